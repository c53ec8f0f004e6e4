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
from matrixfs.fsck.context import Counts, Progress
from matrixfs.fsck.overlay import Overlay
from matrixfs.fsck.problems import Findings
from matrixfs.fsck.repair import Repair
from matrixfs.fsck.store import check_label_copies, read_superblock, replay_journals
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
    REPAIR = "repair"  # -y, -p


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
) -> Outcome:
    """Check, and with ``mode`` repair, the filesystem on a cluster disk.

    Args:
        device: the whole disk; in mode LOOK it is only read.
        mode: what to do about problems.
        clock: to watch for live nodes.
        rng: for repairs.
        reporter: told everything as it happens.
        seize: called before the first write: nobody else can write from now on.

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
    window = data_window(device, label)
    session = _Session(device, label, Overlay(window) if mode is Mode.LOOK else window, reporter)
    outcome = Outcome()
    outcome.found = outcome.left = await session.check(outcome)
    if mode is Mode.LOOK or not outcome.found.fixable or session.superblock is None:
        return outcome
    if mode is Mode.ASK and not reporter.ask(len(outcome.found.fixable)):
        return outcome
    while outcome.left.fixable and outcome.rounds < ROUNDS_MAX:
        await watch.recheck()
        fixable = outcome.left.fixable
        area = Area(session.area_device, session.superblock)
        await Repair(device, label, area, rng, reporter).run(finding.fix for finding in fixable if finding.fix)
        outcome.repaired += len(fixable)
        outcome.rounds += 1
        outcome.left = await session.check(outcome)
    return outcome


class _Session:
    """What stays the same between two checks."""

    def __init__(self, disk: SectorDevice, label: Label, area_device: SectorDevice, reporter: Reporter) -> None:
        self._disk = disk
        self._label = label
        self._reporter = reporter
        self.area_device = area_device
        self.superblock: Superblock | None = None

    async def check(self, outcome: Outcome) -> Findings:
        """Check everything; fill in what the outcome says of the filesystem."""
        findings = Findings()
        await check_label_copies(self._disk, self._label, findings)
        superblock = self.superblock = await read_superblock(self.area_device, findings)
        if superblock is not None:
            outcome.name, outcome.blocks_total = superblock.name, superblock.blocks_total
            outcome.uuid = str(uuid.UUID(bytes=superblock.owner))
            in_memory = isinstance(self.area_device, Overlay)
            for journal, report in await replay_journals(self.area_device, superblock, findings):
                self._reporter.replayed(journal, report, in_memory=in_memory)
            context = await check_filesystem(Area(self.area_device, superblock), findings, self._reporter)
            outcome.counts = context.counts
        self._reporter.found(findings)
        return findings
