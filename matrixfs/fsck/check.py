"""One check of a whole filesystem: the passes in their order."""

from __future__ import annotations

from matrixfs.fsck.area import Area, read_groups
from matrixfs.fsck.blockmap import BlockMap
from matrixfs.fsck.context import Context, Progress
from matrixfs.fsck.groups import check_groups
from matrixfs.fsck.lost import find_lost
from matrixfs.fsck.orphans import check_orphans
from matrixfs.fsck.problems import Findings
from matrixfs.fsck.quotas import check_usage, claim_quotas
from matrixfs.fsck.walk import NamespaceWalk, check_link_counts
from matrixfs.ondisk.superblock import ORPHANS_START, ROOT_INODE
from membership.errors import CorruptRecord


async def check_filesystem(
    area: Area, findings: Findings, progress: Progress, *, counts_usage: bool = False
) -> Context:
    """Check everything behind the superblock; the journals must be clean.  Raises DeviceError.

    ``counts_usage``: count what users, groups and projects use, though there are no quotas.
    """
    context = Context(area, BlockMap(area.superblock.blocks_total), progress, findings)
    context.counts_usage = counts_usage or area.superblock.has_quotas
    _claim_system(context)
    context.expected_blocks = await _expected_blocks(area)
    await NamespaceWalk(context).run_root()
    await check_orphans(context)
    if area.superblock.has_quotas:
        quotas = await claim_quotas(context)
    await find_lost(context)
    if area.superblock.has_quotas:
        check_usage(context, quotas)
    check_link_counts(context)
    await check_groups(context)
    context.counts.blocks_used += area.superblock.group_start + 1
    return context


def _claim_system(context: Context) -> None:
    """What belongs to no file: all before the groups, their bitmaps, journals in them, the superblock's copy."""
    superblock = context.area.superblock
    context.map.claim(0, superblock.group_start)
    for index in range(superblock.groups):
        context.map.claim(superblock.group_block(index))
    for run in superblock.runs()[1:]:
        context.map.claim(run.start, run.end - run.start)
    context.map.claim(superblock.blocks_total - 1)
    for number in (ROOT_INODE, *range(ORPHANS_START, ORPHANS_START + superblock.journals)):
        context.map.mark_inode(number)


async def _expected_blocks(area: Area) -> int:
    """How many blocks the groups say are in use: for progress only, so damage doesn't matter."""
    used = area.superblock.group_start + 1
    async for _, group in read_groups(area):
        if not isinstance(group, CorruptRecord):
            used += max(0, group.blocks - group.free)
    return used
