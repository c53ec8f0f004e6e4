"""The data area as fsck reads it: whole blocks, many at once, neighbours together."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterator

from matrixfs.fs.parallel import for_each
from matrixfs.ondisk.group import GroupRecord
from matrixfs.ondisk.superblock import Superblock
from membership.errors import CorruptRecord
from membership.label import BLOCK_BYTES
from membership.seams import SectorDevice

READERS = 32  # reads in flight
RUN_MAX = 64  # blocks of one read
GAP_MAX = 4  # blocks read for nothing to save a read

READ_AT_ONCE = 256  # blocks that a pass should ask for at once: 1 MiB of memory
AHEAD_MAX = 2048  # blocks read ahead: 8 MiB of memory


class Area:
    """A filesystem's area.  All reads may raise DeviceError."""

    def __init__(self, device: SectorDevice, superblock: Superblock) -> None:
        self.device = device
        self.superblock = superblock
        self._ahead: dict[int, bytes] = {}

    async def read(self, block: int) -> bytes:
        """One block."""
        ahead = self._ahead.pop(block, None)
        return ahead if ahead is not None else await self.device.read(block * BLOCK_BYTES, BLOCK_BYTES)

    async def read_ahead(self, blocks: Collection[int]) -> None:
        """Read what will be asked for next, each block once, all of it at the same time; what was ahead is dropped."""
        self._ahead = {}
        self._ahead = await self.read_many(blocks)

    async def read_many(self, blocks: Collection[int]) -> dict[int, bytes]:
        """Blocks by number."""
        wanted = set(blocks)
        found = {block: self._ahead.pop(block) for block in wanted if block in self._ahead}
        wanted -= found.keys()
        if len(wanted) == 1:
            (block,) = wanted
            found[block] = await self.read(block)
            return found

        async def read(run: tuple[int, int]) -> None:
            start, count = run
            data = await self.device.read(start * BLOCK_BYTES, count * BLOCK_BYTES)
            for at in range(count):
                if start + at in wanted:
                    found[start + at] = data[at * BLOCK_BYTES : (at + 1) * BLOCK_BYTES]

        reads = list(neighbours(wanted))
        await for_each(reads, read, workers=min(READERS, len(reads)))
        return found


async def read_groups(area: Area) -> AsyncIterator[tuple[int, GroupRecord | CorruptRecord]]:
    """(index, its record or what is wrong with it) of every allocation group, in order.  Raises DeviceError."""
    superblock = area.superblock
    for start in range(0, superblock.groups, READ_AT_ONCE):
        indexes = range(start, min(start + READ_AT_ONCE, superblock.groups))
        read = await area.read_many([superblock.group_block(index) for index in indexes])
        for index in indexes:
            block = superblock.group_block(index)
            yield index, _decode_group(superblock, index, read[block])


def _decode_group(superblock: Superblock, index: int, data: bytes) -> GroupRecord | CorruptRecord:
    block = superblock.group_block(index)
    try:
        group = GroupRecord.decode_untrusted(data, f"group {index}", owner=superblock.owner, address=block)
        group.check_untrusted(f"group {index}")
        return group
    except CorruptRecord as error:
        return error


def neighbours(blocks: Collection[int]) -> Iterator[tuple[int, int]]:
    """(first, count) of the reads that cover ``blocks``."""
    start = end = -1
    for block in sorted(blocks):
        if start >= 0 and block - end <= GAP_MAX and block - start < RUN_MAX:
            end = block + 1
            continue
        if start >= 0:
            yield start, end - start
        start, end = block, block + 1
    if start >= 0:
        yield start, end - start


def bit_runs(bits: int) -> Iterator[tuple[int, int]]:
    """(first, length) of every run of set bits."""
    at = 0
    while bits:
        skip = (bits & -bits).bit_length() - 1
        at += skip
        bits >>= skip
        length = (~bits & (bits + 1)).bit_length() - 1
        yield at, length
        at += length
        bits >>= length
