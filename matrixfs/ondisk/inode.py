"""The inode block: attributes in the first 256 bytes, and the root of the file's tree in the rest.

``layout`` says what the 3,840-byte tail holds:

- ``INLINE``: the file's bytes or the symlink's target, ``size`` of them;
- ``TREE`` with ``depth`` 0: directory entries (``directory.py``) or extents (``extent.py``) themselves;
- ``TREE`` with ``depth`` d > 0: an index of (key, child) pairs (``index.py``), d levels above the leaves.
"""

from __future__ import annotations

import stat

from matrixfs.ondisk.xattr import INLINE_BYTES
from membership.label import BLOCK_BYTES
from membership.records import Record, i64, raw, record, u8, u16, u32, u64

TAIL_AT = 256
TAIL_BYTES = BLOCK_BYTES - TAIL_AT

INLINE = 0
TREE = 1
DEPTH_MAX = 6

FLAG_TRUNCATING = 1  # extents past the end of file are being freed: finish that before the file may grow
FLAG_QUARANTINED = 2  # a scrub found what could harm others if it were changed: nobody may use it before fsck ran
FLAG_IMMUTABLE = 4  # chattr +i: neither the file nor its names change
FLAG_APPEND = 8  # +a: only appended to
FLAG_NODUMP = 16  # +d: for backup programs
FLAG_NOATIME = 32  # +A: reading moves no access time
FLAG_SYNC = 64  # +S: every write is durable when it returns
FLAG_DIRSYNC = 128  # +D: every change of names in this directory, too
FLAG_JOURNAL_DATA = 256  # +j: data goes through the journal
FLAG_PROJECT_INHERIT = 512  # +P: what is made in this directory belongs to its project
FLAGS_OF_USERS = sum(1 << bit for bit in range(2, 10))  # what chattr(1) shows and sets
FLAGS_OF_DIRECTORIES = FLAG_DIRSYNC | FLAG_PROJECT_INHERIT  # which mean nothing elsewhere
FLAGS_OF_SPECIAL = FLAG_NODUMP | FLAG_NOATIME  # what links, devices, pipes and sockets can have, as on ext4
FLAGS_KNOWN = FLAG_TRUNCATING | FLAG_QUARANTINED | FLAGS_OF_USERS
FLAG_LETTERS = {  # as chattr(1) and lsattr(1) call them
    FLAG_SYNC: "S",
    FLAG_DIRSYNC: "D",
    FLAG_IMMUTABLE: "i",
    FLAG_APPEND: "a",
    FLAG_NODUMP: "d",
    FLAG_NOATIME: "A",
    FLAG_JOURNAL_DATA: "j",
    FLAG_PROJECT_INHERIT: "P",
}

TIME_MIN_NS, TIME_MAX_NS = -(1 << 63), (1 << 63) - 1  # 1677 to 2262: what the fields hold


def flags_of_type(mode: int) -> int:
    """Flags of users that an inode of this type can have (ext4_mask_flags)."""
    if stat.S_ISDIR(mode):
        return FLAGS_OF_USERS
    return FLAGS_OF_USERS & ~FLAGS_OF_DIRECTORIES if stat.S_ISREG(mode) else FLAGS_OF_SPECIAL


@record(magic=b"MXFSINOD", size=BLOCK_BYTES)
class InodeRecord(Record):
    """``address`` is the inode's number."""

    mode: int = u32(48, "type and permissions as in stat(2)")
    nlink: int = u32(52, "names; 0 = orphan, to be freed when nobody has it open")
    uid: int = u32(56, "owner")
    gid: int = u32(60, "group")
    size: int = u64(64, "bytes; of a directory: bytes of its entries")
    blocks: int = u64(72, "blocks of data, of the tree and of extended attributes, this block not counted")
    atime_ns: int = i64(80, "last access, ns since the epoch")
    mtime_ns: int = i64(88, "last change of data; grows with every change under the lock (coherence.md 2)")
    ctime_ns: int = i64(96, "last change of the inode")
    btime_ns: int = i64(104, "creation")
    rdev: int = u64(112, "device number of a device node")
    incarnation: int = u64(120, "tells apart successive files that had this number (NFS generation)")
    data_version: int = u64(128, "counts changes of data: whether the kernel's pages are still good")
    flags: int = u32(136, "FLAG_ bits")
    layout: int = u8(140, "INLINE or TREE")
    depth: int = u8(141, "levels of index above the leaves")
    entries: int = u16(142, "entries in the root (TREE)")
    orphaned_by: int = u32(144, "journal whose orphan directory lists this inode, plus 1; 0 = not an orphan")
    project: int = u32(148, "project that its blocks are counted for (quotas)")
    parent: int = u64(152, "of a directory: the directory that holds it")
    children: int = u64(160, "of a directory: names in it")
    attributes: int = u64(168, "first block of the extended attributes; 0 = none, or they lie here")
    inline_length: int = u16(176, "bytes of extended attributes that lie here")
    inline_attributes: bytes = raw(178, INLINE_BYTES, "extended attributes that fit here")
    tail: bytes = raw(TAIL_AT, TAIL_BYTES, "see above")
