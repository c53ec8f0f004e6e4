"""The quotas: their tree and its blocks, the limits, and what is counted against what is used.

Damage here hides nothing of the files, so it taints nothing; the tree is made anew from the usage that the other passes
counted and the limits that can be read.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass, field, replace

from matrixfs.fs.quota_store import decode_counters_untrusted, record_untrusted
from matrixfs.fsck.context import Context, Usage, reason
from matrixfs.fsck.fixes import RebuildQuotas
from matrixfs.fsck.inodes import check_blocks
from matrixfs.fsck.problems import QUOTA_BLOCK, QUOTA_LIMITS, QUOTA_TREE, QUOTA_USAGE, Findings, Problem
from matrixfs.fsck.trees import Leaf, TreeWalk
from matrixfs.ondisk.extent import unpack_extents_untrusted
from matrixfs.ondisk.inode import DEPTH_MAX, TREE, InodeRecord
from matrixfs.ondisk.quota import NO_LIMITS, Limits, Meaning, are_possible, iterate_limits, meaning_of
from matrixfs.ondisk.superblock import QUOTA_INODE
from membership.errors import CorruptRecord

TYPE_NAMES = ("user", "group", "project")


@dataclass(slots=True)
class Quotas:
    """What was read of them."""

    blocks: dict[int, int] = field(default_factory=dict)  # key -> block
    owned: list[int] = field(default_factory=list)  # blocks of the tree that nothing else has
    usage: Usage = field(default_factory=dict)
    limits: dict[tuple[int, int], Limits] = field(default_factory=dict)
    wrong: list[tuple[Problem, dict[str, object]]] = field(default_factory=list)


async def claim_quotas(context: Context) -> Quotas:
    """Claim the quotas' tree, and read it; the names were walked before.  Raises DeviceError."""
    found = Quotas()
    private = replace(context, findings=Findings())  # what is wrong with this tree is a problem of the quotas
    try:
        inode = await _inode(context)
        walk = _Walk(private, inode, found)
        await walk.run()
    except CorruptRecord as error:
        found.wrong.append((QUOTA_TREE, {"reason": reason(error)}))
        return found
    if private.findings.counts:
        found.wrong.append((QUOTA_TREE, {"reason": private.findings.kept[0].text}))
    else:
        check_blocks(context.findings, inode, len(found.owned))
    for key, block in found.blocks.items():
        try:
            await _read(context, found, key, block)
        except CorruptRecord as error:
            found.wrong.append((QUOTA_BLOCK, {"block": block, "reason": reason(error)}))
    return found


async def _inode(context: Context) -> InodeRecord:
    where, owner = f"inode {QUOTA_INODE}", context.area.superblock.owner
    data = await context.area.read(QUOTA_INODE)
    inode = InodeRecord.decode_untrusted(data, where, owner=owner, address=QUOTA_INODE)
    if not stat.S_ISREG(inode.mode) or inode.layout != TREE or inode.depth > DEPTH_MAX or inode.flags:
        raise CorruptRecord(where, "layout", "the tree of a file", "another")
    return inode


class _Walk:
    """The tree's extents; each is of blocks of quotas."""

    def __init__(self, context: Context, inode: InodeRecord, found: Quotas) -> None:
        self._context = context
        self._found = found
        self._end = 0
        self._walk = TreeWalk(context, inode, self._leaf, found.owned.append)

    async def run(self) -> None:
        """Walk.  Raises DeviceError."""
        await self._walk.run()

    async def _leaf(self, leaf: Leaf) -> None:
        superblock = self._context.area.superblock
        for extent in unpack_extents_untrusted(leaf.body, leaf.entries, "extents", superblock.blocks_total, 0):
            if not leaf.low <= extent.logical < leaf.high or extent.logical < self._end:
                self._walk.out_of_order(leaf.block, extent.logical)
                return
            self._end = extent.end
            if self._context.claim(QUOTA_INODE, extent.physical, extent.length):
                blocks = range(extent.physical, extent.physical + extent.length)
                self._found.blocks.update(zip(range(extent.logical, extent.end), blocks, strict=True))
                self._found.owned.extend(blocks)


async def _read(context: Context, found: Quotas, key: int, block: int) -> None:
    """Take one block apart.  Raises CorruptRecord, DeviceError."""
    superblock = context.area.superblock
    meaning, data = meaning_of(key), await context.area.read(block)
    if meaning is None or meaning.journal >= superblock.journals:
        raise CorruptRecord(f"block {block}", "key", "a type of quotas and a journal", hex(key))
    if meaning.journal >= 0:
        for number, (blocks, inodes) in enumerate(
            decode_counters_untrusted(data, superblock, block, key).counters, meaning.first
        ):
            if blocks or inodes:
                used = found.usage.setdefault((meaning.type, number), [0, 0])
                used[0] += blocks
                used[1] += inodes
        return
    body = record_untrusted(data, superblock, block, key)[0].body
    for number, limits in enumerate(iterate_limits(body), meaning.first):
        if not are_possible(limits):
            found.wrong.append((QUOTA_LIMITS, {"who": _who(meaning, number)}))
        elif limits != NO_LIMITS:
            found.limits[meaning.type, number] = limits


def _who(meaning: Meaning, number: int) -> str:
    return f"{TYPE_NAMES[meaning.type]} {number}"


def check_usage(context: Context, found: Quotas) -> None:
    """Compare what is counted with what is used, when all inodes were seen; report what is wrong with quotas."""
    used = {key: value for key, value in context.usage.items() if any(value)}
    counted = {key: value for key, value in found.usage.items() if any(value)}
    differ = sorted(key for key in used.keys() | counted.keys() if used.get(key) != counted.get(key))
    unread = any(problem in (QUOTA_TREE, QUOTA_BLOCK) for problem, _ in found.wrong)
    if differ and not unread:  # else that is why
        kind, number = differ[0]
        details = {
            "count": len(differ), "who": f"{TYPE_NAMES[kind]} {number}",
            "found": counted.get(differ[0], [0, 0]), "expected": used.get(differ[0], [0, 0]),
        }  # fmt: skip
        found.wrong.append((QUOTA_USAGE, details))
    if found.wrong:
        fix = rebuild(context.usage, found.limits, found.owned)
        for problem, details in found.wrong:
            context.findings.add(problem, fix, **details)


def rebuild(usage: Usage, limits: dict[tuple[int, int], Limits], old: list[int]) -> RebuildQuotas:
    """The repair of whatever is wrong with quotas; also what turns them on."""
    return RebuildQuotas(
        tuple((kind, number, each) for (kind, number), each in sorted(limits.items())),
        tuple((kind, number, blocks, inodes) for (kind, number), (blocks, inodes) in sorted(usage.items())),
        tuple(old),
    )
