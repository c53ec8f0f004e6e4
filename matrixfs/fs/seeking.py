"""What of a file is data and what is a hole: SEEK_DATA and SEEK_HOLE (lseek(2)).

A hole is what takes no space, or space that is only reserved.  Bytes that are still buffered are data, by whole blocks,
so that the answer stays the same when they are written back.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from matrixfs.fs import data, extents
from matrixfs.fs.held import Held
from matrixfs.fs.inode import Inode
from membership.label import BLOCK_BYTES

if TYPE_CHECKING:
    from matrixfs.fs.volume import Volume


async def seek(volume: Volume, ino: int, offset: int, whence: int) -> int:
    """lseek(2) with SEEK_DATA or SEEK_HOLE.

    Raises:
        OSError: ENXIO behind the end, or behind the last data; EINVAL, EISDIR, ESTALE.
        CorruptionError, DeviceError, Fenced: the file's extents can't be read.
    """
    if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
        raise OSError(errno.EINVAL, f"no such origin: {whence}")
    with Held(volume) as held:
        inode = await held.shared(ino)
        data.check_regular(inode)
        if not 0 <= offset < inode.size:
            raise OSError(errno.ENXIO, "not within the file")
        block = offset // BLOCK_BYTES
        is_data, _ = await _at(volume, inode, block, block + 1)
        if is_data == (whence == os.SEEK_DATA):
            return offset
        _, end = await run(volume, inode, offset, inode.size)
        if end == inode.size and whence == os.SEEK_DATA:
            raise OSError(errno.ENXIO, "no data from there on")
        return end


async def run(volume: Volume, inode: Inode, at: int, end: int) -> tuple[bool, int]:
    """Whether byte ``at`` of a held file is data, and up to where that stays so, at most ``end`` (within the file)."""
    first, block, stop = at // BLOCK_BYTES, at // BLOCK_BYTES, -(-end // BLOCK_BYTES)
    is_data = False
    while block < stop:
        here, upto = await _at(volume, inode, block, stop)
        if block == first:
            is_data = here
        elif here != is_data:
            break
        block = upto
    return is_data, min(block * BLOCK_BYTES, end)


async def _at(volume: Volume, inode: Inode, block: int, stop: int) -> tuple[bool, int]:
    """Whether a block is data, and up to where the same thing says so."""
    dirty = None if inode.dirty is None else inode.dirty.run_at(block)
    if dirty is not None and dirty[0] <= block:
        return True, dirty[1]
    if isinstance(inode.root, bytes):
        used = -(-len(inode.root) // BLOCK_BYTES)
        here, upto = block < used, used if block < used else stop
    else:
        piece = await extents.piece(volume, inode, block, stop)
        here, upto = piece.written, piece.end
    return here, upto if here or dirty is None else min(upto, dirty[0])
