"""A whole fsck: open, replay, check, repair, check again, until nothing is left to repair."""

from __future__ import annotations

import enum
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from matrixfs.blockstore.initialize import data_window
from matrixfs.fs.replay import ReplayReport
from matrixfs.fsck.alive import NodeWatch
from matrixfs.fsck.area import Area
from matrixfs.fsck.check import check_filesystem
from matrixfs.fsck.context import Counts, Progress, Usage
from matrixfs.fsck.overlay import Overlay
from matrixfs.fsck.problems import Findings
from matrixfs.fsck.quotas import rebuild
from matrixfs.fsck.repair import Repair
from matrixfs.fsck.store import check_label_copies, read_superblock, replay_journals
from matrixfs.fsck.upgrade import turn_on_quotas
from matrixfs.fsck.upgrade import upgrade as upgrade_superblock
from matrixfs.ondisk.superblock import Superblock
from membership.label import Label, read_label
from membership.seams import Clock, Rng, SectorDevice

ROUNDS_MAX = 10  # a repair may uncover what the damage hid; more rounds than this never helped

EXIT_CLEAN = 0
EXIT_CORRECTED = 1
EXIT_UNCORRECTED = 4


Seize: TypeAlias = Callable[[Label], Awaitable[None]]


class Mode(enum.Enum):
    """What to do about problems."""

    LOOK = "look"  # -n: nothing is written
    ASK = "ask"  # repair when the administrator says yes
    REPAIR = "repair"  # -y
    PREEN = "preen"  # -p: repair when all of it is safe, else change nothing


class Reporter(Progress, Protocol):
    """Where a run tells what it does."""

    def say(self, line: str) -> None:
        """A line worth reading."""
        ...

    def replayed(self, journal: int, report: ReplayReport, *, in_memory: bool) -> None:
        """A journal was replayed."""
        ...

    def found(self, findings: Findings) -> None:
        """A check ended with these findings."""
        ...

    def ask(self, fixable: int) -> bool:
        """Whether to repair."""
        ...


@dataclass(slots=True)
class Outcome:
    """How a run ended."""

    name: str = ""
    uuid: str = ""
    blocks_total: int = 0
    counts: Counts = field(default_factory=Counts)
    found: Findings = field(default_factory=Findings)  # by the first check
    left: Findings = field(default_factory=Findings)  # by the last one
    repaired: int = 0
    rounds: int = 0
    features_new: int = 0  # that an upgrade set
    quotas_new: bool = False  # they were turned on

    @property
    def exit_code(self) -> int:
        """As fsck(8) says.  Notes are no errors."""
        if self.left.errors:
            return EXIT_UNCORRECTED
        return EXIT_CORRECTED if self.found.errors else EXIT_CLEAN


async def run_fsck(
    device: SectorDevice,
    mode: Mode,
    clock: Clock,
    rng: Rng,
    reporter: Reporter,
    seize: Seize | None = None,
    *,
    upgrade: bool = False,
    quotas: bool = False,
) -> Outcome:
    """Check, and with ``mode`` repair, the filesystem on a cluster disk.

    Args:
        device: the whole disk; in mode LOOK it is only read.
        mode: what to do about problems.
        clock: to watch for live nodes.
        rng: for repairs.
        reporter: told everything as it happens.
        seize: called before the first write: nobody else can write from now on.
        upgrade: when it is clean in the end, let it use all that this version can do; not with mode LOOK.
        quotas: when it is clean in the end, have what users, groups and projects use counted; not with mode LOOK.

    Raises:
        OperatorError: no cluster disk, in use, or of a newer version.
        CorruptRecord: both labels are damaged.
        DeviceError: I/O failed.
    """
    label = await read_label(device)
    watch = NodeWatch(device, label, clock)
    await watch.refuse_if_alive(will_write=mode is not Mode.LOOK, say=reporter.say)
    if mode is not Mode.LOOK and seize is not None:
        await seize(label)
    outcome = Outcome()
    session = _Session(device, label, watch, rng, reporter, counts_usage=quotas)
    match mode:
        case Mode.LOOK:
            await session.look(outcome)
        case Mode.PREEN:
            await session.preen(outcome)
        case _:
            await session.check(outcome)
            if outcome.found.fixable and (mode is Mode.REPAIR or reporter.ask(len(outcome.found.fixable))):
                await session.repair(outcome)
    if upgrade and not outcome.left.errors:
        await session.upgrade(outcome)
    if quotas and not outcome.left.errors:
        await session.turn_on_quotas(outcome)
    return outcome


class _Session:
    """What stays the same between two checks."""

    def __init__(
        self,
        disk: SectorDevice,
        label: Label,
        watch: NodeWatch,
        rng: Rng,
        reporter: Reporter,
        *,
        counts_usage: bool,
    ) -> None:
        self._disk = disk
        self._label = label
        self._watch = watch
        self._rng = rng
        self._reporter = reporter
        self._device: SectorDevice = data_window(disk, label)
        self._superblock: Superblock | None = None
        self._counts_usage = counts_usage
        self._usage: Usage = {}  # as the last check counted it
        self._replayed = 0  # journals, by the last check

    async def look(self, outcome: Outcome) -> None:
        """Check without writing (F2)."""
        store, self._device = self._device, Overlay(self._device)
        await self.check(outcome)
        self._device = store

    async def preen(self, outcome: Outcome) -> None:
        """Check without writing; then replay and repair when nothing needs a decision."""
        await self.look(outcome)
        if not outcome.found.is_safe or self._superblock is None:
            return
        if self._replayed:
            await self._watch.recheck()
            await self._replay(self._superblock, Findings())
        await self.repair(outcome)

    async def check(self, outcome: Outcome) -> None:
        """Check everything; fill in what the outcome says of the filesystem."""
        findings = Findings()
        await check_label_copies(self._disk, self._label, findings)
        superblock = self._superblock = await read_superblock(self._device, findings)
        if superblock is not None:
            outcome.name, outcome.blocks_total = superblock.name, superblock.blocks_total
            outcome.uuid = str(uuid.UUID(bytes=superblock.owner))
            await self._replay(superblock, findings)
            area = Area(self._device, superblock)
            context = await check_filesystem(area, findings, self._reporter, counts_usage=self._counts_usage)
            self._usage = context.usage
            outcome.counts = context.counts
        self._reporter.found(findings)
        outcome.left = findings
        if not outcome.rounds:
            outcome.found = findings

    async def repair(self, outcome: Outcome) -> None:
        """Repair what can be repaired, and check again, until nothing is left of it."""
        while outcome.left.fixable and self._superblock is not None and outcome.rounds < ROUNDS_MAX:
            await self._watch.recheck()
            fixable = outcome.left.fixable
            area = Area(self._device, self._superblock)
            repair = Repair(self._disk, self._label, area, self._rng, self._reporter)
            await repair.run(finding.fix for finding in fixable if finding.fix)
            outcome.repaired += len(fixable)
            outcome.rounds += 1
            await self.check(outcome)

    async def upgrade(self, outcome: Outcome) -> None:
        """Let a clean filesystem use all that this version can do."""
        if self._superblock is not None:
            await self._watch.recheck()
            outcome.features_new = await upgrade_superblock(self._device, self._superblock)

    async def turn_on_quotas(self, outcome: Outcome) -> None:
        """Write what a clean filesystem uses, then say that it is counted.  Raises as ``run_fsck``."""
        if self._superblock is not None and not self._superblock.has_quotas:
            await self._watch.recheck()
            area = Area(self._device, self._superblock)
            repair = Repair(self._disk, self._label, area, self._rng, self._reporter)
            await repair.rebuild_quotas(rebuild(self._usage, {}, []))
            await turn_on_quotas(self._device, self._superblock)
            outcome.quotas_new = True

    async def _replay(self, superblock: Superblock, findings: Findings) -> None:
        reports = await replay_journals(self._device, superblock, findings)
        self._replayed = len(reports)
        for journal, report in reports:
            self._reporter.replayed(journal, report, in_memory=isinstance(self._device, Overlay))
