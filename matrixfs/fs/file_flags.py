"""What the flags of files forbid, hand down and promise, as chattr(1) sets them.

On a local filesystem the kernel itself knows immutable and append-only files; of a FUSE filesystem it knows nothing, so
each operation asks here, under the lock of the inodes concerned: a flag holds on all nodes from the moment it is set.

Rules:
    FF1 EPERM where Linux's VFS and ext4 give it.  An immutable inode doesn't change at all, also not through a
        descriptor that was opened before.  An append-only file is opened for appending only; a descriptor that could
        overwrite before the flag was set still can, as on ext4.
    FF2 What is made in a directory gets those of its flags that ext4 hands down, and with P its project.  Nothing of
        another project gets a name in a directory with P: EXDEV.
    FF3 With S everything done to a file, with S or D everything done to a directory's names, is durable when the call
        returns.

Source: fs/namei.c (may_delete, may_create, may_open), fs/attr.c (may_setattr), ext4's namei.c, ialloc.c and ioctl.c.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from matrixfs.ondisk.inode import (
    FLAG_APPEND,
    FLAG_DIRSYNC,
    FLAG_IMMUTABLE,
    FLAG_JOURNAL_DATA,
    FLAG_NOATIME,
    FLAG_NODUMP,
    FLAG_PROJECT_INHERIT,
    FLAG_SYNC,
    flags_of_type,
)

if TYPE_CHECKING:
    from matrixfs.fs.inode import Inode
    from matrixfs.fs.volume import Volume

FIXED = FLAG_IMMUTABLE | FLAG_APPEND
INHERITED = FLAG_SYNC | FLAG_DIRSYNC | FLAG_NODUMP | FLAG_NOATIME | FLAG_JOURNAL_DATA | FLAG_PROJECT_INHERIT


def _refuse(inode: Inode) -> OSError:
    kind = "immutable" if inode.flags & FLAG_IMMUTABLE else "append-only"
    return OSError(errno.EPERM, f"inode {inode.ino} is {kind} (chattr)")


# --- what is forbidden: each raises OSError EPERM -------------------------------------------------------------


def check_open(inode: Inode, flags: int) -> None:
    """Before a file is opened with these flags of open(2)."""
    if not inode.flags & FIXED:
        return
    truncates = bool(flags & os.O_TRUNC)
    writes = flags & os.O_ACCMODE != os.O_RDONLY
    if inode.flags & FLAG_IMMUTABLE and (writes or truncates):
        raise _refuse(inode)
    if inode.flags & FLAG_APPEND and ((writes and not flags & os.O_APPEND) or truncates):
        raise _refuse(inode)


def check_write(inode: Inode, *, appends: bool) -> None:
    """Before bytes change.  ``appends``: at the end only, or through a descriptor older than the flag."""
    if inode.flags & (FLAG_IMMUTABLE if appends else FIXED):
        raise _refuse(inode)


def check_change(inode: Inode) -> None:
    """Before owner, mode, times or extended attributes change, and before the inode gets another name."""
    if inode.flags & FIXED:
        raise _refuse(inode)


def check_new_name(directory: Inode) -> None:
    """Before a directory gets a name."""
    if directory.flags & FLAG_IMMUTABLE:
        raise _refuse(directory)


def check_lost_name(directory: Inode, inode: Inode) -> None:
    """Before an inode loses its name in a directory."""
    for each in (directory, inode):
        check_change(each)


def check_project(directory: Inode, inode: Inode) -> None:
    """Before an inode that exists gets a name in a directory (FF2).  Raises OSError EXDEV."""
    if directory.flags & FLAG_PROJECT_INHERIT and directory.project != inode.project:
        raise OSError(errno.EXDEV, f"directory {directory.ino} holds what belongs to project {directory.project} only")


# --- what is handed down, and what is promised ----------------------------------------------------------------


def inherit(inode: Inode, directory: Inode) -> None:
    """Give a new inode, whose type is known, the flags that its directory hands down (FF2)."""
    inode.flags |= directory.flags & INHERITED & flags_of_type(inode.mode)


async def keep(volume: Volume, inode: Inode) -> None:
    """Something was done to an exclusively held file, no group is held: return when what FF3 promises is so.

    The lock is held meanwhile, as what is returned of the inode must still be true.  Raises as ``data.fsync``.
    """
    if inode.flags & FLAG_SYNC:
        await volume.write_back.flush(inode)
        await volume.journal.sync()


async def keep_metadata(volume: Volume, *inodes: Inode) -> None:
    """As ``keep`` where only attributes or names changed, also with groups held.  Raises DeviceError, Fenced."""
    if any(inode.flags & (FLAG_SYNC | FLAG_DIRSYNC) for inode in inodes):
        await volume.journal.sync()
