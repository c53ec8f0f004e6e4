"""Index blocks of the trees below inodes: sorted (key, child block) pairs.

A child holds the keys from its own key up to the next pair's; the first pair's key is 0.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import pairwise

from membership.errors import CorruptRecord
from membership.label import BLOCK_BYTES
from membership.records import Record, raw, record, u8, u16, u64

BODY_AT = 64
BODY_BYTES = BLOCK_BYTES - BODY_AT
PAIR_BYTES = 16
INDEX_ENTRIES_MAX = BODY_BYTES // PAIR_BYTES


@record(magic=b"MXFSINDX", size=BLOCK_BYTES)
class IndexRecord(Record):
    """One index block."""

    inode: int = u64(48, "whose tree it is part of")
    level: int = u8(56, "1 = children are leaves")
    entries: int = u16(58, "pairs")
    body: bytes = raw(BODY_AT, BODY_BYTES, "pairs of u64 key, u64 child block")


def pack_pairs(keys: Sequence[int], children: Sequence[int]) -> bytes:
    """The pairs as bytes."""
    flat = [value for pair in zip(keys, children, strict=True) for value in pair]
    return struct.pack(f"<{len(flat)}Q", *flat)


def unpack_pairs_untrusted(data: bytes, count: int, where: str) -> tuple[list[int], list[int]]:
    """(keys, children) of ``count`` pairs.  Raises CorruptRecord."""
    if not 1 <= count <= len(data) // PAIR_BYTES:
        raise CorruptRecord(where, "index entries", f"1..{len(data) // PAIR_BYTES}", count)
    flat = struct.unpack_from(f"<{2 * count}Q", data)
    keys, children = list(flat[0::2]), list(flat[1::2])
    if keys[0] != 0 or any(a >= b for a, b in pairwise(keys)):
        raise CorruptRecord(where, "index order")
    return keys, children
