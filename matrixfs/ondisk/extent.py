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


class Extent(NamedTuple):
    """``length`` blocks at ``physical`` hold the file's blocks from ``logical`` on."""

    logical: int
    physical: int
    length: int


@record(magic=b"MXFSEXTL", size=BLOCK_BYTES)
class ExtentLeafRecord(Record):
    """One leaf of extents."""

    inode: int = u64(48, "whose file it is part of")
    entries: int = u16(58, "extents")
    body: bytes = raw(BODY_AT, BODY_BYTES, "extents of u64 logical, u64 physical, u32 length, u32 zero")


def pack_extents(extents: Iterable[Extent]) -> bytes:
    """The extents as bytes."""
    return b"".join(_EXTENT.pack(logical, physical, length, 0) for logical, physical, length in extents)


def unpack_extents_untrusted(data: bytes, count: int, where: str, blocks_total: int) -> list[Extent]:
    """``count`` extents, checked for order and range.  Raises CorruptRecord."""
    if count > len(data) // EXTENT_BYTES:
        raise CorruptRecord(where, "extent entries", f"at most {len(data) // EXTENT_BYTES}", count)
    extents: list[Extent] = []
    end = 0
    for logical, physical, length, zero in _EXTENT.iter_unpack(data[: count * EXTENT_BYTES]):
        if logical < end or length == 0 or zero != 0 or logical + length > LOGICAL_MAX:
            raise CorruptRecord(where, "extent order", f"at least {end}", logical)
        if not 0 < physical < physical + length < blocks_total:
            raise CorruptRecord(where, "extent range", f"below {blocks_total}", physical)
        extents.append(Extent(logical, physical, length))
        end = logical + length
    return extents
