"""Reading and setting the flags and the project of an inode: chattr(1), lsattr(1), the project calls of xfs_io.

Linux has two numberings of the flags: that of ext4 (FS_IOC_SETFLAGS), and that of xfs (FS_IOC_FSSETXATTR), which lacks
some and carries the project beside.  What the kernel checks before it asks us: the owner or CAP_FOWNER, and
CAP_LINUX_IMMUTABLE, by what it was told a moment before.  Another node may have changed that since, so it is checked
again, under the lock.

Source: fs/file_attr.c, ext4_fileattr_set in fs/ext4/ioctl.c, ioctl_iflags(2), ioctl_fsgetxattr(2).
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from matrixfs.fs import file_flags
from matrixfs.fs.attributes import generation
from matrixfs.fs.held import Held
from matrixfs.fs.inode import Inode
from matrixfs.fs.owners import owner_changes, set_owner
from matrixfs.fs.quotas import owner_of
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
from matrixfs.ondisk.superblock import FILE_FLAGS

if TYPE_CHECKING:
    from matrixfs.fs.volume import Volume

CAP_FOWNER = 3
CAP_LINUX_IMMUTABLE = 9
CAP_SYS_RESOURCE = 24


class Number(NamedTuple):
    """A flag as Linux has it in its two numberings; 0: not in that one."""

    flag: int
    ext4: int  # FS_..._FL
    xfs: int  # FS_XFLAG_...


NUMBERS = (
    Number(FLAG_SYNC, 0x8, 0x20),
    Number(FLAG_IMMUTABLE, 0x10, 0x8),
    Number(FLAG_APPEND, 0x20, 0x10),
    Number(FLAG_NODUMP, 0x40, 0x80),
    Number(FLAG_NOATIME, 0x80, 0x40),
    Number(FLAG_JOURNAL_DATA, 0x4000, 0),
    Number(FLAG_DIRSYNC, 0x10000, 0),
    Number(FLAG_PROJECT_INHERIT, 0x20000000, 0x200),
)
XFS_HAS_ATTRIBUTES = 1 << 31  # xfs tells so; who writes back what it read means nothing by it


class Caller(NamedTuple):
    """Who asks: the user, and whether the process has a capability."""

    uid: int
    has: Callable[[int], bool]


class Shown(NamedTuple):
    """The flags of an inode in both numberings, its project, and what NFS calls its generation."""

    ext4: int
    xfs: int
    project: int
    version: int


async def show(volume: Volume, ino: int) -> Shown:
    """The flags and the project.

    Raises:
        OSError: ENOTTY without the feature, ESTALE.
        CorruptRecord, DeviceError, Fenced: it can't be read.
    """
    _check_feature(volume)
    with Held(volume) as held:
        inode = await held.shared(ino)
        found = [number for number in NUMBERS if inode.flags & number.flag]
        ext4, xfs = (sum(numbers) for numbers in ([n.ext4 for n in found], [n.xfs for n in found]))
        return Shown(ext4, xfs, inode.project, generation(volume, inode))


def _check_feature(volume: Volume) -> None:
    if not volume.superblock.features_incompatible & FILE_FLAGS:
        raise OSError(errno.ENOTTY, "made without flags of files: fsck.matrixfs --upgrade adds them")


async def set_flags(volume: Volume, ino: int, numbers: int, uid: int, has: Callable[[int], bool]) -> Inode:
    """FS_IOC_SETFLAGS, by a user; ``has``: whether the process has a capability.

    Raises:
        OSError: EPERM, EOPNOTSUPP for what is unknown or nothing for that type, ENOTTY without the feature, ESTALE.
        CorruptRecord, DeviceError, Fenced: it can't be read.
    """
    flags = sum(number.flag for number in NUMBERS if numbers & number.ext4)
    unknown = numbers & ~sum(number.ext4 for number in NUMBERS)
    return await _put(volume, ino, flags, None, Caller(uid, has), unknown=unknown)


async def set_project(
    volume: Volume, ino: int, numbers: int, project: int, uid: int, has: Callable[[int], bool]
) -> Inode:
    """FS_IOC_FSSETXATTR: the flags that xfs knows, and the project.  Raises as ``set_flags``."""
    flags = sum(number.flag for number in NUMBERS if numbers & number.xfs)
    unknown = numbers & ~sum(number.xfs for number in NUMBERS) & ~XFS_HAS_ATTRIBUTES
    return await _put(volume, ino, flags, project, Caller(uid, has), unknown=unknown)


async def _put(volume: Volume, ino: int, flags: int, project: int | None, caller: Caller, *, unknown: int) -> Inode:
    _check_feature(volume)
    with Held(volume) as held:
        inode = await held.exclusive(ino)
        if project is None:
            project = inode.project
        else:
            flags |= inode.flags & sum(number.flag for number in NUMBERS if not number.xfs)
        _check(volume, inode, flags, project, caller, unknown=bool(unknown))
        await _change(volume, held, inode, flags, project)
        await file_flags.keep_metadata(volume, inode)
        return inode


def _check(volume: Volume, inode: Inode, flags: int, project: int, caller: Caller, *, unknown: bool) -> None:
    """Raises OSError EPERM, EOPNOTSUPP."""
    changed = (flags ^ inode.flags) & volume.superblock.user_flags
    allowed = caller.uid in (0, inode.uid) or caller.has(CAP_FOWNER)
    if changed & file_flags.FIXED:
        allowed &= caller.uid == 0 or caller.has(CAP_LINUX_IMMUTABLE)
    if not allowed:
        raise OSError(errno.EPERM, "neither the owner, nor privileged")
    if unknown or flags & ~(volume.superblock.user_flags & flags_of_type(inode.mode)):
        raise OSError(errno.EOPNOTSUPP, "a flag that means nothing here")
    if inode.flags & flags & FLAG_IMMUTABLE and (changed or project != inode.project):
        raise OSError(errno.EPERM, "immutable, and to stay so: nothing else changes")
    if changed & FLAG_JOURNAL_DATA and caller.uid != 0 and not caller.has(CAP_SYS_RESOURCE):
        raise OSError(errno.EPERM, "journalled data is for root to ask for")


async def _change(volume: Volume, held: Held, inode: Inode, flags: int, project: int) -> None:
    """Set flags and project of an exclusively held inode: the one place where a project changes.

    Raises OSError EDQUOT, when its new project can't take it.
    """
    owner = owner_of(inode)._replace(project=project)
    if owner == owner_of(inode):
        await volume.journal.admit()
    else:
        await owner_changes(volume, held, inode, owner)
    # No checkpoint from here (J1).
    inode.flags = inode.flags & ~volume.superblock.user_flags | flags
    set_owner(volume, inode, owner)
    held.charged()
    volume.touch(inode, data=False)
