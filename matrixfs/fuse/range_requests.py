"""Ranges of files: the kernel's FALLOCATE, LSEEK and COPY_FILE_RANGE requests.

How they come and how they are answered: ``parked``.  What the kernel does itself: it checks arguments and descriptors,
takes set-id bits away, and drops its pages of a range that was zeroed or copied over, once it has our answer.  It never
asks to collapse or insert ranges (EOPNOTSUPP), and SEEK_SET, SEEK_CUR and SEEK_END are its own.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from matrixfs.fuse import libfuse
from matrixfs.fuse.edge import upcall

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from matrixfs.fuse.api import Ranges
    from matrixfs.fuse.edge import Edge
    from matrixfs.fuse.handles import Handle
    from matrixfs.fuse.parked import ParkedRequests

# The operations of the extension, in its order.
FALLOCATE, LSEEK, COPY_FILE_RANGE = range(3)


class RangeRequests:
    """See the module.

    Args:
        volume: the filesystem.
        ranges: what works on it.
        edge: translates errors and handles, counts calls.
        parked: has the requests answered.
    """

    def __init__(self, volume: Any, ranges: Ranges, edge: Edge, parked: ParkedRequests) -> None:
        self.edge = edge
        self._volume = volume
        self._ranges = ranges
        self._parked = parked

    def request(self, operation: int, number: int, *arguments: Any) -> None:
        """A request was parked; called within pyfuse3's loop."""
        work: Callable[..., Awaitable[None]]
        if operation == FALLOCATE:
            name, work = "fallocate", self.fallocate
        elif operation == LSEEK:
            name, work = "lseek", partial(self._seek, number)
        else:
            name, work = "copy_file_range", partial(self._copy, number)
        self._parked.answer(number, name, partial(work, *arguments))

    async def _seek(self, number: int, *arguments: Any) -> None:
        libfuse.reply_seek(number, await self.lseek(*arguments))

    async def _copy(self, number: int, *arguments: Any) -> None:
        libfuse.reply_written(number, await self.copy_file_range(*arguments))

    @upcall(handle=1)
    async def fallocate(self, handle: Handle, mode: int, offset: int, length: int) -> None:
        """Reserve, zero or free a range."""
        await self._ranges.fallocate(self._volume, handle.ino, mode, offset, length)

    @upcall(handle=1)
    async def lseek(self, handle: Handle, offset: int, whence: int) -> int:
        """Find data, or a hole."""
        return await self._ranges.seek(self._volume, handle.ino, offset, whence)

    @upcall(handle=2)
    async def copy_file_range(self, source: Handle, target: Handle, at: int, to: int, length: int) -> int:
        """Copy bytes between files, or within one."""
        return await self._ranges.copy(self._volume, source.ino, at, target.ino, to, length, target.overwrites)
