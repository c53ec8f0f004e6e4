"""Ranges of files: the kernel's FALLOCATE, LSEEK and COPY_FILE_RANGE requests.

How they come and how they are answered: ``parked``.  What the kernel does itself: it checks arguments and descriptors,
and drops its pages of a range that was zeroed or copied over, once it has our answer.  It never
asks to collapse or insert ranges (EOPNOTSUPP), and SEEK_SET, SEEK_CUR and SEEK_END are its own.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from matrixfs.fuse import libfuse
from matrixfs.fuse.callers import Caller
from matrixfs.fuse.edge import upcall

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from matrixfs.fuse.api import Ranges
    from matrixfs.fuse.edge import Edge
    from matrixfs.fuse.handles import Handle
    from matrixfs.fuse.kernel_caches import KernelCaches
    from matrixfs.fuse.parked import ParkedRequests

# The operations of the extension, in its order.
FALLOCATE, LSEEK, COPY_FILE_RANGE = range(3)


class RangeRequests:
    """See the module.

    Args:
        volume: the filesystem.
        ranges: what works on it.
        caches: told when a file lost privileges.
        edge: translates errors and handles, counts calls.
        parked: has the requests answered.
    """

    def __init__(self, volume: Any, ranges: Ranges, caches: KernelCaches, edge: Edge, parked: ParkedRequests) -> None:
        self.edge = edge
        self._volume = volume
        self._ranges = ranges
        self._caches = caches
        self._parked = parked

    def request(self, operation: int, number: int, *arguments: Any) -> None:
        """A request was parked; called within pyfuse3's loop."""
        work: Callable[..., Awaitable[None]]
        if operation == FALLOCATE:
            name, work, arguments = "fallocate", self.fallocate, (*arguments, Caller(self._caches))
        elif operation == LSEEK:
            name, work = "lseek", partial(self._seek, number)
        else:
            name, work = "copy_file_range", partial(self._copy, number)
            arguments = (*arguments, Caller(self._caches))
        self._parked.answer(number, name, partial(work, *arguments))

    async def _seek(self, number: int, *arguments: Any) -> None:
        libfuse.reply_seek(number, await self.lseek(*arguments))

    async def _copy(self, number: int, *arguments: Any) -> None:
        libfuse.reply_written(number, await self.copy_file_range(*arguments))

    @upcall(handle=1)
    async def fallocate(self, handle: Handle, mode: int, offset: int, length: int, caller: Caller) -> None:
        """Reserve, zero or free a range."""
        await self._ranges.fallocate(self._volume, handle.ino, mode, offset, length, caller)

    @upcall(handle=1)
    async def lseek(self, handle: Handle, offset: int, whence: int) -> int:
        """Find data, or a hole."""
        return await self._ranges.seek(self._volume, handle.ino, offset, whence)

    @upcall(handle=2)
    async def copy_file_range(
        self, source: Handle, target: Handle, at: int, to: int, length: int, caller: Caller
    ) -> int:
        """Copy bytes between files, or within one."""
        return await self._ranges.copy(
            self._volume, source.ino, at, target.ino, to, length, caller, target.overwrites
        )
