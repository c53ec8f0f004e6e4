"""Growing a filesystem: what is written, in which order, so that a crash leaves the old one or the new one.

Three parts.  ``prepare`` writes what lies behind the old end, beside all work.  ``Growth.apply`` writes the superblock
while every mount is suspended, and all read it again before they resume (matrixfs/member.py): so no mount ever meets a
block that it does not know.  Then whoever takes the lock of the last group of before enlarges it.

Invariants:

G1. Before the superblock names a block, nothing but ``prepare`` writes it, and ``prepare`` writes no block of the old
    filesystem.
G2. All that two superblocks differ in lies in their first 512 bytes: torn or not, a write leaves one of the two.
G3. Each superblock has a place of its own for its copy, which is written before it.
G4. The group that was last and short is not touched: ``blocks`` in its own block says where it ends, what is behind
    is free, and the next holder of its lock enlarges it in a transaction (fs/groups.py).  So no two blocks have to
    change at once.
G5. Was the last group full, the old copy may lie where the next group's bitmap must be.  Then there is a superblock in
    between: larger, but with no group more; so its copy lies elsewhere, and the old place is free for the bitmap.
G6. A mount has one superblock object, which takes over the newer one (``Superblock.take_over``).
G7. One grows at a time: under the SHAPE lock (matrixfs/growing.py).
G8. Journals are added in extents of groups (fs/journal_space.py), cleared before the superblock names them.  The area
    is as large as before, so here the superblock's copy can only follow it: a crash between the two leaves the copy one
    generation behind, which fsck says and writes again, and nothing else minds.

Source: issue 5 ("the filesystem grown live"); decision 0021.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from matrixfs.fs.mkfs import clear_journals, empty_group, journal_records, superblock_copy, write_all
from matrixfs.ondisk.superblock import JOURNAL_RUNS, RUNS_MAX
from membership.label import BLOCK_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matrixfs.ondisk.superblock import Superblock
    from membership.records import Record
    from membership.seams import Rng, SectorDevice

GROUP_BLOCKS_MIN = 2  # a bitmap, and something for it to say


@dataclass(frozen=True, slots=True)
class Growth:
    """What is left to write once everything behind the old end is prepared."""

    after: Superblock
    steps: Sequence[Record]  # each durable before the next

    async def apply(self, area: SectorDevice) -> None:
        """Make the filesystem the larger one.  Every mount is suspended, and reads the superblock before it resumes.

        Raises DeviceError, Fenced: it is the old one or the new one.
        """
        for step in self.steps:
            await area.write(step.address * BLOCK_BYTES, step.encode(), durable=True)


def changed(superblock: Superblock, **fields: Any) -> Superblock:
    """The same with other values in some fields, and the next generation."""
    return replace(superblock, **{"generation": superblock.generation + 1, **fields})


def plan(superblock: Superblock, blocks_total: int) -> Superblock | None:
    """The superblock of the same filesystem in an area of ``blocks_total`` blocks; None when that gains no room."""
    room = blocks_total - 1 - superblock.group_start - GROUP_BLOCKS_MIN
    groups = max(superblock.groups, room // (1 << superblock.group_shift) + 1)
    after = changed(superblock, blocks_total=blocks_total, groups=groups)
    return after if after.capacity() > superblock.capacity() else None


async def prepare(area: SectorDevice, before: Superblock, after: Superblock) -> Growth:
    """Write what ``after`` needs and ``before`` does not have (G1).  All is durable on return.

    Raises DeviceError, Fenced: the filesystem is as it was.
    """
    first = before.groups
    in_the_way = first < after.groups and after.group_block(first) == before.blocks_total - 1  # the old copy, G5
    steps: list[Record] = [after]
    if in_the_way:
        between = changed(before, blocks_total=after.blocks_total - 1)
        after = changed(after)
        steps = [between, empty_group(after, first), after]
        await write_all(area, [superblock_copy(between)])
        first += 1
    await write_all(area, (empty_group(after, index) for index in range(first, after.groups)))
    await write_all(area, [superblock_copy(after)])
    await area.flush()
    return Growth(after, steps)


async def prepare_journals(
    area: SectorDevice, before: Superblock, runs: Sequence[tuple[int, int]], blocks: int, rng: Rng
) -> Growth:
    """Make journals in extents that nobody uses; all is durable on return, and nobody knows of them yet.

    Args:
        area: the data area.
        before: the present superblock.
        runs: (first block, journals) of each extent.
        blocks: of each journal.
        rng: for the journals' salts.

    Raises DeviceError, Fenced: the filesystem is as it was.
    """
    known = [(run.start, run.journals, run.blocks) for run in before.runs()[1:]]
    rows = [*known, *((start, journals, blocks) for start, journals in runs)]
    rows += [(0, 0, 0)] * (RUNS_MAX - len(rows))
    starts, counts, lengths = zip(*rows, strict=True)
    after = changed(
        before,
        features_incompatible=before.features_incompatible | JOURNAL_RUNS,
        journals=before.journals + sum(journals for _, journals in runs),
        run_start=starts,
        run_journals=counts,
        run_blocks=lengths,
    )
    for start, journals in runs:
        await clear_journals(area, start, journals * blocks)
    for index in range(before.journals, after.journals):
        await write_all(area, journal_records(after, index, rng))
    await area.flush()
    return Growth(after, [after, superblock_copy(after)])
