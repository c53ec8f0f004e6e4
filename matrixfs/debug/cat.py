"""The bytes of a file or the target of a symbolic link, as the store has them: holes are zeros (D3)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field

from matrixfs.debug.finding import find_inode
from matrixfs.debug.store import Store
from matrixfs.debug.trees import is_directory, leaf_items
from matrixfs.ondisk.extent import Extent
from matrixfs.ondisk.inode import TREE, InodeRecord
from membership.errors import OperatorError
from membership.label import BLOCK_BYTES

PORTION_BLOCKS = 256  # written at once
_ZEROS = bytes(PORTION_BLOCKS * BLOCK_BYTES)


@dataclass(slots=True)
class Cat:
    """Which bytes are wanted, and what went wrong on the way."""

    what: str
    offset: int
    length: int | None
    problems: list[str] = field(default_factory=list)

    async def portions(self, store: Store) -> AsyncGenerator[bytes, None]:
        """The bytes, in order.

        Raises:
            OperatorError: it is a directory, or there is no such thing.
            CorruptionError, DeviceError: it can't be read.
        """
        inode, self.problems = await find_inode(store, self.what)
        if is_directory(inode):
            raise OperatorError(f"inode {inode.address} is a directory: see ls")
        end = inode.size if self.length is None else min(inode.size, self.offset + self.length)
        if inode.layout != TREE:
            yield inode.tail[: inode.size][self.offset : end]
            return
        at = self.offset
        async with aclosing(self._extents(store, inode)) as extents:
            async for extent in extents:
                start, stop = extent.logical * BLOCK_BYTES, min(end, (extent.logical + extent.length) * BLOCK_BYTES)
                if stop <= at:
                    continue
                for portion in _zeros(at, min(start, end)):
                    yield portion
                at = max(at, start)
                if not extent.written:  # reserved: reads as zeros
                    for portion in _zeros(at, stop):
                        yield portion
                    at = max(at, stop)
                while at < stop:
                    data = await _blocks(store, extent, at)
                    taken = data[at % BLOCK_BYTES : at % BLOCK_BYTES + stop - at]
                    yield taken
                    at += len(taken)
                if at >= end:
                    return
        for portion in _zeros(at, end):
            yield portion

    async def _extents(self, store: Store, inode: InodeRecord) -> AsyncGenerator[Extent, None]:
        async with aclosing(leaf_items(store, inode)) as walk:
            async for node, extents in walk:
                self.problems += node.problems
                for extent in extents:
                    yield extent


async def _blocks(store: Store, extent: Extent, at: int) -> bytes:
    """Some blocks of an extent from the one that holds byte ``at`` of the file."""
    first = at // BLOCK_BYTES - extent.logical
    count = min(extent.length - first, PORTION_BLOCKS)
    start = extent.physical + first
    store.check_block(start + count - 1)
    return await store.area.device.read(start * BLOCK_BYTES, count * BLOCK_BYTES)


def _zeros(start: int, end: int) -> Iterator[bytes]:
    """What a hole from ``start`` to ``end`` reads as."""
    while start < end:
        portion = _ZEROS[: end - start]
        yield portion
        start += len(portion)
