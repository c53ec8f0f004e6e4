"""Flags and projects of files, and what is free: ioctl(2) as chattr(1), lsattr(1), xfs_io(8) and fstrim(8) use it.

How the requests come and how they are answered: ``parked``.  For FS_IOC_GETFLAGS and the three like it the kernel asks
twice for every change: first for what there is, by which it checks the caller's rights.  It sends them for files and
directories only.
"""

from __future__ import annotations

import errno
import struct
from functools import partial
from typing import TYPE_CHECKING, Any

from matrixfs.fuse import libfuse
from matrixfs.fuse.callers import has_capability
from matrixfs.fuse.edge import upcall

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from matrixfs.fuse.api import Flags
    from matrixfs.fuse.edge import Edge
    from matrixfs.fuse.kernel_caches import KernelCaches
    from matrixfs.fuse.parked import ParkedRequests

_FLAGS = struct.Struct("=I")
_RANGE = struct.Struct("=QQQ")  # struct fstrim_range: start, length, least
_PROJECT = struct.Struct("=IIII12x")  # struct fsxattr: flags, hint for extents, their number, project

_IMMUTABLE, _IMMUTABLE_XFS = 0x10, 0x8
_CAP_SYS_ADMIN = 21


class FlagRequests:
    """See the module.

    Args:
        volume: the filesystem.
        flags: what works on it.
        caches: the kernel doesn't ask by itself for the time of change that a new flag brings.
        edge: translates errors and node ids, counts calls.
        parked: has the requests answered.
    """

    def __init__(self, volume: Any, flags: Flags, caches: KernelCaches, edge: Edge, parked: ParkedRequests) -> None:
        self.edge = edge
        self._volume = volume
        self._flags = flags
        self._caches = caches
        self._parked = parked

    def request(self, operation: int, number: int, node: int, uid: int, pid: int, argument: bytes) -> None:
        """A request was parked; called within pyfuse3's loop."""
        works: tuple[Callable[..., Awaitable[bytes]], ...] = (  # in the extension's order
            self.getflags, self.setflags, self.fsgetxattr, self.fssetxattr, self.getversion, self.fitrim,
        )  # fmt: skip
        work = works[operation]
        whole = partial(self._answer, number, work, node, argument, uid, partial(has_capability, pid))
        self._parked.answer(number, work.__name__, whole, interruptible=work == self.fitrim)

    async def _answer(self, number: int, work: Callable[..., Awaitable[bytes]], *arguments: Any) -> None:
        libfuse.reply_ioctl(number, await work(*arguments))

    @upcall(0)
    async def getflags(self, ino: int, *_arguments: Any) -> bytes:
        """FS_IOC_GETFLAGS."""
        return _FLAGS.pack((await self._flags.show(self._volume, ino)).ext4)

    @upcall(0)
    async def setflags(self, ino: int, argument: bytes, uid: int, has: Callable[[int], bool]) -> bytes:
        """FS_IOC_SETFLAGS."""
        (numbers,) = _FLAGS.unpack(argument)
        if numbers & _IMMUTABLE:
            await self._caches.purge_inode(ino)  # has the kernel write what was changed through a mapping
        await self._flags.set_flags(self._volume, ino, numbers, uid, has)
        self._caches.attributes_changed(ino)
        return b""

    @upcall(0)
    async def fsgetxattr(self, ino: int, *_arguments: Any) -> bytes:
        """FS_IOC_FSGETXATTR."""
        found = await self._flags.show(self._volume, ino)
        return _PROJECT.pack(found.xfs, 0, 0, found.project)

    @upcall(0)
    async def fssetxattr(self, ino: int, argument: bytes, uid: int, has: Callable[[int], bool]) -> bytes:
        """FS_IOC_FSSETXATTR."""
        numbers, _, _, project = _PROJECT.unpack(argument)
        if numbers & _IMMUTABLE_XFS:
            await self._caches.purge_inode(ino)
        await self._flags.set_project(self._volume, ino, numbers, project, uid, has)
        self._caches.attributes_changed(ino)
        return b""

    @upcall(0)
    async def getversion(self, ino: int, *_arguments: Any) -> bytes:
        """FS_IOC_GETVERSION: what tells apart successive files of one number."""
        return _FLAGS.pack((await self._flags.show(self._volume, ino)).version)

    @upcall(0)
    async def fitrim(self, _ino: int, argument: bytes, uid: int, has: Callable[[int], bool]) -> bytes:
        """FITRIM: the store is told which blocks in a range of it are free."""
        if uid != 0 and not has(_CAP_SYS_ADMIN):
            raise OSError(errno.EPERM, "for root only")
        start, length, least = _RANGE.unpack(argument)
        return _RANGE.pack(start, await self._volume.trims.between(start, length, least), least)
