"""Attributes: stat, chmod, chown, truncate, utimes, readlink, statfs."""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2s
from struct import Struct
from typing import TYPE_CHECKING

from matrixfs.fs import access_lists, acl, data, file_flags, privileges, xattrs
from matrixfs.fs.file_flags import check_open
from matrixfs.fs.held import Held
from matrixfs.fs.inode import Inode
from matrixfs.fs.namespace import SYMLINK_MAX
from matrixfs.fs.owners import owner_changes, set_owner
from matrixfs.fs.quotas import Owner, owner_of
from matrixfs.locks.modes import PR
from matrixfs.ondisk.inode import TIME_MAX_NS, TIME_MIN_NS
from matrixfs.ondisk.superblock import ROOT_INODE, SYSTEM_BLOCKS
from membership.errors import CorruptionError

if TYPE_CHECKING:
    from matrixfs.fs.volume import Volume

__all__ = [
    "Changes", "StatFs", "by_number", "check_open", "generation", "getattr", "permits", "readlink", "setattr", "statfs",
]  # fmt: skip

_HANDLE = Struct("<QQ")


@dataclass(frozen=True, slots=True)
class Changes:
    """What setattr changes; None leaves a field alone.  Times are ns since the epoch, size is bytes."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    changer: privileges.Changer | None = None  # whose change takes privileges away; None: it doesn't
    times_are_now: bool = False  # asked for as "now", both: who may write the file may do that

    @property
    def only_touches(self) -> bool:
        """Whether it is what an append-only file allows: times as of an access, or what writing takes away."""
        times = self.atime_ns is not None or self.mtime_ns is not None
        others = (self.mode, self.uid, self.gid, self.size)
        return all(value is None for value in others) and (self.times_are_now or not times)


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


async def by_number(volume: Volume, ino: int) -> Inode:
    """``getattr`` for a file handle, which anybody may have made up: no inode of our own, and none that was removed.

    One that is removed and in use here is known to the kernel, which then doesn't ask.  Raises as ``getattr`` does.
    """
    if ino != ROOT_INODE and ino < SYSTEM_BLOCKS:
        raise OSError(errno.ESTALE, f"{ino} is nobody's inode")
    inode = await getattr(volume, ino)
    if not inode.nlink:
        raise OSError(errno.ESTALE, f"inode {ino} was removed")
    return inode


def generation(volume: Volume, inode: Inode) -> int:
    """What a file handle has beside the number: 32 bits that only nodes of this filesystem can tell.

    A file's block may look like an inode, to somebody who is shown handles and makes up one (NFS): its incarnation he
    would choose himself.
    """
    key = volume.superblock.hash_seed.to_bytes(8, "little")
    told = _HANDLE.pack(inode.ino, inode.incarnation)
    return int.from_bytes(blake2s(told, key=key, digest_size=4).digest(), "little")


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
        OSError: ESTALE, EISDIR, EINVAL, EFBIG, EPERM, EDQUOT.
        CorruptionError, DeviceError, Fenced: the inode can't be read.
    """
    with Held(volume) as held:
        inode = await held.exclusive(ino)
        file_flags.check_write(inode, appends=changes.only_touches)
        if changes.changer is not None:
            await privileges.take_away(volume, inode, changes.changer)
        owner = _new_owner(inode, changes)
        lists = None if changes.mode is None else await access_lists.after_chmod(volume, inode, changes.mode)
        await volume.journal.admit()
        if changes.size is not None:
            if not stat.S_ISREG(inode.mode):
                raise OSError(errno.EISDIR if inode.is_directory else errno.EINVAL, "no regular file")
            await data.resize(volume, inode, changes.size)
        if owner is not None:
            await owner_changes(volume, held, inode, owner)
        # No checkpoint from here (J1).
        if changes.mode is not None:
            inode.mode = stat.S_IFMT(inode.mode) | stat.S_IMODE(changes.mode)
        if lists is not None:
            xattrs.rewrite(volume, inode, lists)
        if owner is not None:
            set_owner(volume, inode, owner)
            held.charged()
        volume.touch(inode, data=False)
        if changes.atime_ns is not None:
            inode.atime_ns = _storable(changes.atime_ns)
        if changes.mtime_ns is not None:
            inode.mtime_ns = _storable(changes.mtime_ns)
        await file_flags.keep(volume, inode)
        return inode


def _new_owner(inode: Inode, changes: Changes) -> Owner | None:
    """Whom the inode is counted for after the changes; None where that stays."""
    if changes.uid is None and changes.gid is None:
        return None
    before = owner_of(inode)
    uid = before.uid if changes.uid is None else changes.uid
    gid = before.gid if changes.gid is None else changes.gid
    after = before._replace(uid=uid, gid=gid)
    return None if after == before else after


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
