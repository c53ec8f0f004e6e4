"""statx(2) where it asks for the time of birth, as stat(1) does: all else the kernel asks for by GETATTR.

How the requests come and how they are answered: ``parked``.  Kernels before 6.6 have no such request and tell no time
of birth.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from matrixfs.fuse import libfuse
from matrixfs.fuse.edge import upcall

if TYPE_CHECKING:
    from matrixfs.fuse.api import Inode
    from matrixfs.fuse.edge import Edge
    from matrixfs.fuse.parked import ParkedRequests

_VALID = struct.Struct("=QII16x")  # struct fuse_statx_out up to its struct fuse_statx: seconds, ns, flags
_STATX = struct.Struct("=IIQIIIHxxQQQQ")  # mask to attributes_mask
_TIME = struct.Struct("=qI4x")
_DEVICES = struct.Struct("=IIII112x")  # the inode's and the filesystem's, which the kernel knows

_BASIC_STATS, _BIRTH = 0x7FF, 0x800  # STATX_BASIC_STATS, STATX_BTIME
_SECOND_NS = 10**9


class StatxRequests:
    """See the module.

    Args:
        look: finds an inode, as for GETATTR.
        tell: the reply to GETATTR for it.
        edge: translates errors and node ids, counts calls.
        parked: has the requests answered.
    """

    def __init__(
        self, look: Callable[[int], Awaitable[Inode]], tell: Callable[[Inode], Any], edge: Edge, parked: ParkedRequests
    ) -> None:
        self.edge = edge
        self._look = look
        self._tell = tell
        self._parked = parked

    def request(self, _operation: int, number: int, node: int) -> None:
        """A request was parked; called within pyfuse3's loop."""
        self._parked.answer(number, "statx", partial(self._answer, number, node))

    async def _answer(self, number: int, node: int) -> None:
        libfuse.reply_statx(number, await self.statx(node))

    @upcall(0)
    async def statx(self, ino: int) -> bytes:
        """Attributes, valid until invalidated, and the time of birth."""
        inode = await self._look(ino)
        return _packed(self._tell(inode), inode.btime_ns)


def _packed(told: Any, btime_ns: int) -> bytes:
    """Struct fuse_statx_out of a reply to GETATTR and a time of birth."""
    times = (told.st_atime_ns, btime_ns, told.st_ctime_ns, told.st_mtime_ns)
    return b"".join((
        _VALID.pack(int(told.attr_timeout), 0, 0),
        _STATX.pack(
            _BASIC_STATS | _BIRTH, told.st_blksize, 0, told.st_nlink, told.st_uid, told.st_gid, told.st_mode,
            told.st_ino, told.st_size, told.st_blocks, 0,
        ),
        *(_TIME.pack(*divmod(time, _SECOND_NS)) for time in times),
        _DEVICES.pack(os.major(told.st_rdev), os.minor(told.st_rdev), 0, 0),
    ))  # fmt: skip
