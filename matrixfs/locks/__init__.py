"""The lock-caching layer (LCL, 002-05): the DLM's only client, and the owner of every cached lock of a mount.

**Lock order.**  Take locks in this order, never backwards; the first column is the resource domain:

===== ========= ==========================================================================
rank  domain    rule among several
===== ========= ==========================================================================
0     SHAPE     one for the filesystem: held to grow or to freeze it
0     CHANGE    one for the filesystem: shared (CW) by operations that change something, alone (EX) by a freeze
1     RENAME    one for the filesystem: held to move a directory to another parent
2     INODE     ancestors before descendants, then directories before others, then by number
3     OPEN      after the inode's own lock; waited for only with a time-out
4     QUOTA     by number (type << 32 | id), and after them the one of the quotas' tree
5     GROUP     by number; held only while blocks are taken or given back
===== ========= ==========================================================================

One exception: the lock of an inode number just taken from a group's free blocks is acquired under the
group's lock.  Nobody waits for a group while holding the lock of a free inode number, so no cycle can form.

**What a mode permits** (INODE):

===== ============================================ ==============================
mode  may be cached                                may be dirty
===== ============================================ ==============================
NL    nothing                                      nothing
PR    inode, tree, kernel attributes, names, pages nothing
EX    the same                                     data in memory, metadata in the journal
===== ============================================ ==============================

EX is given up only when what was dirtied under it is durable in place and revoked from the journal;
PR only when what the kernel caches under it can't be reached any more (R8, ``surrender`` of the callouts).
"""
