"""Attributes: stat, chmod, chown, truncate, utimes, readlink, statfs."""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from matrixfs.fs import access_lists, acl, data, xattrs
from matrixfs.fs.held import Held
from matrixfs.fs.inode import Inode
from matrixfs.fs.namespace import SYMLINK_MAX
from matrixfs.locks.modes import PR
from matrixfs.ondisk.inode import TIME_MAX_NS, TIME_MIN_NS
from membership.errors import CorruptionError

if TYPE_CHECKING:
    from matrixfs.fs.volume import Volume


@dataclass(frozen=True, slots=True)
class Changes:
    """What setattr changes; None leaves a field alone.  Times are ns since the epoch, size is bytes."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    drop_set_id: bool = False  # somebody but root writes: set-user-ID and set-group-ID go


@dataclass(frozen=True, slots=True)
class StatFs:
    """Space in blocks of 4 KiB.  Inodes take a block each, so they end with the blocks."""

    blocks: int
    free: int
    files: int
    files_free: int


async def getattr(volume: Volume, ino: int) -> Inode:  # noqa: A001 - the operation's name in FUSE
    """The inode.  Raises OSError ESTALE, CorruptionError, DeviceError, Fenced."""
    lock = volume.inode_lock(ino)
    if not lock.try_hold(PR):
        await lock.hold(PR)
    try:
        inode: Inode | None = lock.subject
        return inode if inode is not None and inode.mode else await volume.load(lock)
    finally:
        lock.drop(PR)


async def permits(volume: Volume, ino: int, wanted: int, uid: int, is_member: Callable[[int], bool]) -> bool:
    """Whether an inode's mode and access control list let a caller read or write it, as the kernel would check it.

    Args:
        volume: the filesystem.
        ino: the inode.
        wanted: permission bits: 4 read, 2 write.
        uid: the caller; 0 may do both.
        is_member: whether the caller is in a group.

    Raises OSError ESTALE, CorruptionError, DeviceError, Fenced.
    """
    with Held(volume) as held:
        inode = await held.shared(ino)
        if uid == 0:
            return True
        if uid == inode.uid:
            return inode.mode >> 6 & wanted == wanted
        rules = await access_lists.of(volume, inode) if inode.mode & stat.S_IRWXG else None
        if rules is not None:
            return acl.permits(rules, wanted, uid, is_member, inode.uid, inode.gid)
        granted = inode.mode >> 3 if is_member(inode.gid) else inode.mode
        return granted & wanted == wanted


async def setattr(volume: Volume, ino: int, changes: Changes) -> Inode:  # noqa: A001 - the operation's name in FUSE
    """Change attributes; permissions were checked by the kernel.

    Raises:
        OSError: ESTALE, EISDIR, EINVAL, EFBIG.
        CorruptionError, DeviceError, Fenced: the inode can't be read.
    """
    with Held(volume) as held:
        inode = await held.exclusive(ino)
        lists = None if changes.mode is None else await access_lists.after_chmod(volume, inode, changes.mode)
        await volume.journal.admit()
        if changes.size is not None:
            if not stat.S_ISREG(inode.mode):
                raise OSError(errno.EISDIR if inode.is_directory else errno.EINVAL, "no regular file")
            await data.resize(volume, inode, changes.size)
        if changes.drop_set_id:
            inode.mode = without_set_id(inode.mode)
        if changes.mode is not None:
            inode.mode = stat.S_IFMT(inode.mode) | stat.S_IMODE(changes.mode)
        if lists is not None:
            xattrs.rewrite(volume, inode, lists)
        if changes.uid is not None:
            inode.uid = changes.uid
        if changes.gid is not None:
            inode.gid = changes.gid
        volume.touch(inode, data=False)
        if changes.atime_ns is not None:
            inode.atime_ns = _storable(changes.atime_ns)
        if changes.mtime_ns is not None:
            inode.mtime_ns = _storable(changes.mtime_ns)
        return inode


def without_set_id(mode: int) -> int:
    """What is left of a mode when somebody writes to the file; set-group-ID without execution means locking."""
    return mode & ~stat.S_ISUID & ~(stat.S_ISGID if mode & stat.S_IXGRP else 0)


def _storable(time_ns: int) -> int:
    """A time that anybody may have asked for, cut to what an inode holds, as Linux has filesystems do."""
    return min(max(time_ns, TIME_MIN_NS), TIME_MAX_NS)


async def readlink(volume: Volume, ino: int) -> bytes:
    """The target of a symlink.  Raises OSError ESTALE, EINVAL, CorruptionError, DeviceError, Fenced."""
    with Held(volume) as held:
        inode = await held.shared(ino)
        if not stat.S_ISLNK(inode.mode):
            raise OSError(errno.EINVAL, "no symbolic link")
        if inode.size > SYMLINK_MAX:
            raise CorruptionError(f"inode {ino}", "length of the target", f"at most {SYMLINK_MAX}", inode.size)
        return await data.content(volume, inode, 0, inode.size)


async def statfs(volume: Volume) -> StatFs:
    """Space: exact for this node's groups, a few seconds old for what other nodes have just taken or freed."""
    total = volume.superblock.capacity()
    free = await volume.allocator.count_free()
    return StatFs(total, free, total, free)
