"""A tree of quotas made anew: which records it consists of (pure)."""

from __future__ import annotations

import stat
from collections.abc import Iterator

from matrixfs.fsck.fixes import RebuildQuotas
from matrixfs.ondisk.extent import EXTENT_BYTES, EXTENTS_MAX, Extent, ExtentLeafRecord, pack_extents
from matrixfs.ondisk.index import INDEX_ENTRIES_MAX, PAIR_BYTES, IndexRecord, pack_pairs
from matrixfs.ondisk.inode import TAIL_BYTES, TREE, InodeRecord
from matrixfs.ondisk.quota import (
    COUNTERS_PER_BLOCK,
    LIMITS_PER_BLOCK,
    NO_LIMITS,
    QuotaRecord,
    counters_key,
    limits_key,
    pack_counters,
    pack_limits,
)
from matrixfs.ondisk.superblock import QUOTA_INODE
from membership.records import Record

Place = tuple[int, int]  # a free block, and the generation that a record in it may begin with


def bodies(fix: RebuildQuotas) -> dict[int, bytes]:
    """The content of each block of quotas, by key: all is counted by journal 0."""
    limits: dict[int, list[tuple[int, ...]]] = {}
    for kind, number, each in fix.limits:
        row = limits.setdefault(limits_key(kind, number), [NO_LIMITS] * LIMITS_PER_BLOCK)
        row[number % LIMITS_PER_BLOCK] = each
    counters: dict[int, list[tuple[int, int]]] = {}
    for kind, number, blocks, inodes in fix.usage:
        counted = counters.setdefault(counters_key(0, kind, number), [(0, 0)] * COUNTERS_PER_BLOCK)
        counted[number % COUNTERS_PER_BLOCK] = (blocks, inodes)
    found = {key: pack_limits(row) for key, row in limits.items()}
    return found | {key: pack_counters(counted) for key, counted in counters.items()}


def blocks_needed(count: int) -> int:
    """Blocks of a tree for ``count`` blocks of quotas, these included."""
    needed, level, in_root = count, count, TAIL_BYTES // EXTENT_BYTES
    per_block = EXTENTS_MAX
    while level > in_root:
        level = -(-level // per_block)
        needed += level
        per_block, in_root = INDEX_ENTRIES_MAX, TAIL_BYTES // PAIR_BYTES
    return needed


def plant(inode: InodeRecord, found: dict[int, bytes], places: Iterator[Place], owner: bytes) -> list[Record]:
    """The records of a tree, in free places; ``inode`` is made its root."""
    records: list[Record] = []
    level: list[tuple[int, int]] = []  # key and block
    for key in sorted(found):
        block, generation = next(places)
        records.append(QuotaRecord(owner=owner, address=block, generation=generation, key=key, body=found[key]))
        level.append((key, block))
    depth, in_root, per_block = 0, TAIL_BYTES // EXTENT_BYTES, EXTENTS_MAX
    while len(level) > in_root:
        above: list[tuple[int, int]] = []
        for at in range(0, len(level), per_block):
            part = level[at : at + per_block]
            block, generation = next(places)
            header = {"owner": owner, "address": block, "generation": generation, "inode": QUOTA_INODE}
            body = _pack(part, depth)
            kind = IndexRecord(level=depth, **header) if depth else ExtentLeafRecord(**header)
            kind.entries, kind.body = len(part), body
            records.append(kind)
            above.append((part[0][0] if above else 0, block))
        level, depth = above, depth + 1
        in_root, per_block = TAIL_BYTES // PAIR_BYTES, INDEX_ENTRIES_MAX
    inode.mode, inode.nlink, inode.layout, inode.flags, inode.size = stat.S_IFREG | 0o600, 1, TREE, 0, 0
    inode.depth, inode.entries, inode.tail, inode.blocks = depth, len(level), _pack(level, depth), len(records)
    return records


def _pack(level: list[tuple[int, int]], depth: int) -> bytes:
    """What names the blocks of a level."""
    if depth:
        return pack_pairs([0, *(key for key, _ in level[1:])], [block for _, block in level])
    return pack_extents([Extent(key, block, 1) for key, block in level])
