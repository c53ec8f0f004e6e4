"""Extents: runs of a file's blocks that lie together on the store, sorted by their place in the file."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import NamedTuple

from matrixfs.ondisk.index import BODY_AT, BODY_BYTES
from membership.errors import CorruptRecord
from membership.label import BLOCK_BYTES
from membership.records import Record, raw, record, u16, u64

_EXTENT = struct.Struct("<QQII")
EXTENT_BYTES = _EXTENT.size
EXTENTS_MAX = BODY_BYTES // EXTENT_BYTES
LOGICAL_MAX = 1 << 52  # blocks: far beyond any file, far below overflow
UNWRITTEN = 1  # the blocks are the file's, and read as zeros whatever lies there


class Extent(NamedTuple):
    """``length`` blocks at ``physical`` hold the file's blocks from ``logical`` on; ``physical`` 0: there are none."""

    logical: int
    physical: int
    length: int
    flags: int = 0

    @property
    def end(self) -> int:
        """The block of the file behind it."""
        return self.logical + self.length

    @property
    def written(self) -> bool:
        """Whether the bytes lie on the store: else they are zeros."""
        return self.physical != 0 and not self.flags & UNWRITTEN

    def part(self, start: int, end: int) -> Extent:
        """What of it lies in the file's blocks from ``start`` up to, not including, ``end``."""
        low, high = max(start, self.logical), min(end, self.end)
        return self._replace(logical=low, physical=self.physical + low - self.logical, length=high - low)


@record(magic=b"MXFSEXTL", size=BLOCK_BYTES)
class ExtentLeafRecord(Record):
    """One leaf of extents."""

    inode: int = u64(48, "whose file it is part of")
    entries: int = u16(58, "extents")
    body: bytes = raw(BODY_AT, BODY_BYTES, "extents of u64 logical, u64 physical, u32 length, u32 flags")


def pack_extents(extents: Iterable[Extent]) -> bytes:
    """The extents as bytes."""
    return b"".join(_EXTENT.pack(*extent) for extent in extents)


def unpack_extents_untrusted(
    data: bytes, count: int, where: str, blocks_total: int, flags_known: int = UNWRITTEN
) -> list[Extent]:
    """``count`` extents, checked for order, range and flags.  Raises CorruptRecord."""
    if count > len(data) // EXTENT_BYTES:
        raise CorruptRecord(where, "extent entries", f"at most {len(data) // EXTENT_BYTES}", count)
    extents: list[Extent] = []
    end = 0
    for logical, physical, length, flags in _EXTENT.iter_unpack(data[: count * EXTENT_BYTES]):
        if logical < end or length == 0 or logical + length > LOGICAL_MAX:
            raise CorruptRecord(where, "extent order", f"at least {end}", logical)
        if flags & ~flags_known:
            raise CorruptRecord(where, "extent flags", f"{flags_known:#x}", f"{flags:#x}")
        if not 0 < physical < physical + length < blocks_total:
            raise CorruptRecord(where, "extent range", f"below {blocks_total}", physical)
        extents.append(Extent(logical, physical, length, flags))
        end = logical + length
    return extents
