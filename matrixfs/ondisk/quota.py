"""Quotas on disk: blocks of the quota inode's tree, each with the limits, or one journal's counters, of some ids.

A block's *key* is its logical block number in that tree: ``kind << 32 | id // IDS``.  Kinds 0 to 2 are the limits of
users, groups and projects; kind ``3 + 3 * journal + type`` are the counters of a journal.  What an id uses is the sum
of its counters over all journals: one journal's may well be negative, since who frees counts it, whoever allocated.

Id 0 has no limits; in its place stand the grace periods of its type, in the fields for the ends of grace.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple

from matrixfs.ondisk.index import BODY_AT, BODY_BYTES
from matrixfs.ondisk.superblock import JOURNALS_MAX
from membership.errors import CorruptRecord
from membership.label import BLOCK_BYTES
from membership.records import Record, raw, record, u64

USER, GROUP, PROJECT = TYPES = range(3)
ID_MAX = (1 << 32) - 1
AMOUNT_MAX = 1 << 52  # blocks or inodes: far beyond any store
TIME_MAX = (1 << 63) - 1

_COUNTER = struct.Struct("<qq")
_LIMITS = struct.Struct("<6Q")
COUNTERS_PER_BLOCK = BODY_BYTES // _COUNTER.size
LIMITS_PER_BLOCK = BODY_BYTES // _LIMITS.size
KIND_SHIFT = 32
KINDS = 3 + 3 * JOURNALS_MAX


@record(magic=b"MXFSQUOT", size=BLOCK_BYTES)
class QuotaRecord(Record):
    """One block of limits or of counters."""

    key: int = u64(48, "kind << 32 | id of the first one // ids in such a block")
    body: bytes = raw(BODY_AT, BODY_BYTES, "limits or counters, by id")


class Counter(NamedTuple):
    """What one journal's owners have added to what an id uses."""

    blocks: int = 0
    inodes: int = 0


class Limits(NamedTuple):
    """Of one id; 0 means none.  Ends of grace are wall clock, ns since the epoch."""

    blocks_hard: int = 0
    blocks_soft: int = 0
    inodes_hard: int = 0
    inodes_soft: int = 0
    blocks_until_ns: int = 0  # until when more than the soft limit is allowed; 0: it is not exceeded
    inodes_until_ns: int = 0

    @property
    def are_set(self) -> bool:
        """Whether there is any."""
        return bool(self.blocks_hard or self.blocks_soft or self.inodes_hard or self.inodes_soft)


NO_LIMITS = Limits()


def limits_key(kind: int, number: int) -> int:
    """The block that holds the limits of an id."""
    return kind << KIND_SHIFT | number // LIMITS_PER_BLOCK


def counters_key(journal: int, kind: int, number: int) -> int:
    """The block that holds a journal's counter of an id."""
    return 3 + 3 * journal + kind << KIND_SHIFT | number // COUNTERS_PER_BLOCK


class Meaning(NamedTuple):
    """What a key says."""

    type: int
    journal: int  # -1: limits
    first: int  # id


def meaning_of(key: int) -> Meaning | None:
    """What the block with this key holds; None for a key that can't be."""
    kind, at = key >> KIND_SHIFT, key & (1 << KIND_SHIFT) - 1
    first = at * (LIMITS_PER_BLOCK if kind < 3 else COUNTERS_PER_BLOCK)
    if kind >= KINDS or first > ID_MAX:
        return None
    return Meaning(kind % 3, kind // 3 - 1, first)


def pack_counters(counters: Sequence[Sequence[int]]) -> bytes:
    """The counters as bytes."""
    return struct.pack(f"<{2 * len(counters)}q", *chain.from_iterable(counters))


def iterate_counters(body: bytes) -> Iterator[Counter]:
    """All counters of a block, whether they can be or not."""
    return (Counter(*each) for each in _COUNTER.iter_unpack(body))


def unpack_counters_untrusted(body: bytes, where: str) -> list[Counter]:
    """All counters of a block.  Raises CorruptRecord."""
    counters = list(iterate_counters(body))
    if any(abs(blocks) > AMOUNT_MAX or abs(inodes) > AMOUNT_MAX for blocks, inodes in counters):
        raise CorruptRecord(where, "counters", f"at most {AMOUNT_MAX}", "more")
    return counters


def pack_limits(limits: Sequence[Sequence[int]]) -> bytes:
    """The limits as bytes."""
    return b"".join([_LIMITS.pack(*each) for each in limits])


def iterate_limits(body: bytes) -> Iterator[Limits]:
    """All limits of a block, whether they can be or not."""
    return (Limits(*each) for each in _LIMITS.iter_unpack(body))


def unpack_limits_untrusted(body: bytes, where: str) -> list[Limits]:
    """All limits of a block.  Raises CorruptRecord."""
    found = list(iterate_limits(body))
    if not all(are_possible(limits) for limits in found):
        raise CorruptRecord(where, "limits", f"at most {AMOUNT_MAX}, the soft one not above the hard one", "others")
    return found


def are_possible(limits: Limits) -> bool:
    """Whether somebody could have set these."""
    hard_and_soft = ((limits.blocks_hard, limits.blocks_soft), (limits.inodes_hard, limits.inodes_soft))
    return all(max(pair) <= AMOUNT_MAX and (not pair[0] or pair[1] <= pair[0]) for pair in hard_and_soft) and (
        max(limits.blocks_until_ns, limits.inodes_until_ns) <= TIME_MAX
    )
