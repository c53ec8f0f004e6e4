"""Disk formats of the filesystem: declarations and codecs only, no I/O, no policy (R12).

All numbers of blocks are relative to the filesystem's data area; a block is ``BLOCK_BYTES`` (4 KiB).

Layout of the area (``superblock.Superblock`` has the numbers)::

    0                        superblock; a copy in the last block of the area
    1                        root directory's inode (so that inode 1 is FUSE's root)
    2 .. 2+JOURNALS_MAX-1    orphan directories, one inode per journal
    SYSTEM_BLOCKS ..         journals, each ``journal_blocks`` long
    group_start ..           allocation groups of ``1 << group_shift`` blocks; the first block of each
                             is its bitmap

An inode's number is the number of its block.
"""
