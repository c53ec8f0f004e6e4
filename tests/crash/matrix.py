"""The crash matrix: every point of a recording, some choices of each, all that is checked there."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import trio
from trio.testing import MockClock

from membership.errors import MatrixError
from tests.crash.history import Broken
from tests.crash.looker import Look, look, outside_journals, replay_all, work_on
from tests.crash.points import Point, described, points
from tests.crash.workloads import WORKLOADS, Recording, record
from tests.sim.disk import Media, SimDisk
from tests.sim.network import deterministic_scheduling

_T = TypeVar("_T")
WORK_SHARE = 8  # of so many different disks, one is mounted and used
LOOKS_MAX = 500  # remembered: points that follow each other leave few different disks
AGAIN_SHARE = 4  # of so many choices, the replay of one is cut
AGAIN_POINTS = 20  # at so many points of its own, at most


@dataclass(frozen=True, slots=True)
class Where:
    """One crash, or one with a second one during its replay: everything that it takes to repeat it."""

    workload: str
    seed: int
    k: int
    choice: int
    again: int | None = None
    again_choice: int = 0

    def options(self) -> str:
        """For scripts/test --crash."""
        text = f"--workload {self.workload} --seed {self.seed} --at {self.k} --choice {self.choice}"
        return text if self.again is None else f"{text} --again {self.again} --again-choice {self.again_choice}"


@dataclass(slots=True)
class Failure:
    """What went wrong, where."""

    where: Where
    story: str
    found: str


@dataclass(slots=True)
class Counts:
    """A row of the table."""

    flushes: int = 0
    points: int = 0
    crashes: int = 0
    fates: Counter[str] = field(default_factory=Counter)  # writes at risk
    disks: int = 0  # different ones after the replay
    used: int = 0  # of those, mounted and worked on
    double: int = 0
    failures: list[Failure] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Plan:
    """How thorough to be."""

    choices: int = 3  # of each point, where there are more
    points: int | None = None  # of each workload; None = all
    every: bool = False  # points before writes that are not durable, and every second crash, too
    failures: int = 1 << 30  # end after so many


class Matrix:
    """One recording under test."""

    def __init__(self, workload: str, seed: int) -> None:
        self.workload = workload
        self.seed = seed
        self.recording: Recording = record(WORKLOADS[workload], seed)
        self.counts = Counts(flushes=sum(not hasattr(entry, "data") for entry in self.recording.disk.log))
        self._looks: dict[int, Look | str] = {}  # the last ones, by a hash of the disk

    def run(self, plan: Plan) -> Counts:
        """All of it; failures are in the counts."""
        wanted = [point.k for point in points(self.recording.disk, every=plan.every)]
        rng = random.Random(f"points {self.seed}")
        chosen = set(wanted if plan.points is None else rng.sample(wanted, min(plan.points, len(wanted))))
        for point in points(self.recording.disk, every=plan.every):
            if point.k in chosen and len(self.counts.failures) < plan.failures:
                self.counts.points += 1
                for choice in self._choices(point, plan, rng):
                    self.crash(point, choice, plan, again=plan.every or rng.randrange(AGAIN_SHARE) == 0)
        return self.counts

    @staticmethod
    def _choices(point: Point, plan: Plan, rng: random.Random) -> list[int]:
        count = point.choices()
        if count is None:
            return list(range(plan.choices))
        return sorted(rng.sample(range(count), min(count, plan.choices)))

    def repeat(self, where: Where) -> Counts:
        """One crash alone."""
        point = next(each for each in points(self.recording.disk, every=True) if each.k == where.k)
        if where.again is None:
            self.crash(point, where.choice, Plan(), again=False, work=True)
        else:
            disk, _ = self._crashed(point, where.choice)
            first = self._replayed(disk, Where(where.workload, where.seed, where.k, where.choice))
            second = next(each for each in points(disk, every=True) if each.k == where.again)
            self._crash_again(disk, second, where, first)
        return self.counts

    # --- one crash --------------------------------------------------------------------------------------------

    def crash(self, point: Point, choice: int, plan: Plan, *, again: bool, work: bool = False) -> None:
        """Lose the power at a point, replay, and check everything."""
        where = Where(self.workload, self.seed, point.k, choice)
        disk, fates = self._crashed(point, choice)
        self.counts.crashes += 1
        self.counts.fates += fates
        result = self._replayed(disk, where)
        if result is None:
            return
        found = self._looked(disk, result, where, work)
        try:
            if isinstance(found, str):
                raise Broken(found)
            self.recording.history.judge(found.tree, point.k)
        except Broken as error:
            self._failed(where, fates, str(error))
        if again:
            self._crash_again_everywhere(disk, where, result, plan)

    def _crashed(self, point: Point, choice: int) -> tuple[SimDisk, Counter[str]]:
        media, fates = point.crashed(choice, self.seed)
        return self._disk(media, f"{self.workload}@{point.k}"), fates

    def _disk(self, media: Media, name: str) -> SimDisk:
        disk = self.recording.disk.twin(media, name, self.seed)
        disk.latency = (0.0, 0.0)
        return disk

    def _replayed(self, disk: SimDisk, where: Where) -> Media | None:
        """Replay; the medium then, or None with a failure noted."""
        superblock = self.recording.superblock
        order = list(range(superblock.journals))
        random.Random(f"order {where}").shuffle(order)
        try:
            self._run(replay_all(disk, superblock, order), where)
        except MatrixError as error:
            self._failed(where, Counter(), f"replay: {error}")
            return None
        return disk.media

    def _looked(self, disk: SimDisk, result: Media, where: Where, work: bool) -> Look | str:
        superblock, history = self.recording.superblock, self.recording.history
        key = hash(outside_journals(result, superblock))
        known = self._looks.get(key)
        if known is None or work:
            self.counts.disks += 1
            copy = self._disk(result.copy(), disk.media_name)
            try:
                known = self._run(look(copy, superblock, history), where)
                if work or self.counts.disks % WORK_SHARE == 1:
                    self.counts.used += 1
                    self._run(work_on(copy, superblock, history, known), where)
            except (Broken, MatrixError) as error:
                known = str(error)
            self._looks[key] = known
            if len(self._looks) > LOOKS_MAX:
                del self._looks[next(iter(self._looks))]
        return known

    # --- again ------------------------------------------------------------------------------------------------

    def _crash_again_everywhere(self, disk: SimDisk, where: Where, first: Media, plan: Plan) -> None:
        """Lose the power at each point of the replay: the next replay must give the same blocks (P5)."""
        rng = random.Random(f"again {where}")
        entries = range(len(disk.log) + 1)
        chosen = set(entries if plan.every else rng.sample(entries, min(AGAIN_POINTS, len(entries))))
        for second in points(disk, every=True):
            if second.k not in chosen:
                continue
            count = second.choices()
            for choice in rng.sample(range(count or 1 << 16), min(count or 2, 9 if plan.every else 2)):
                twice = Where(where.workload, where.seed, where.k, where.choice, second.k, choice)
                self._crash_again(disk, second, twice, first)

    def _crash_again(self, disk: SimDisk, second: Point, where: Where, first: Media | None) -> None:
        assert first is not None
        superblock = self.recording.superblock
        self.counts.double += 1
        media, fates = second.crashed(where.again_choice, self.seed)
        again = self._disk(media, f"{disk.media_name}.{second.k}")
        result = self._replayed(again, where)
        if result is None:
            return
        once, twice = outside_journals(first, superblock), outside_journals(result, superblock)
        if once != twice:
            blocks = sorted({block for block, _ in once ^ twice})
            self._failed(where, fates, f"a replay that was cut and begun again leaves other blocks: {blocks[:9]}")

    # --- help ---------------------------------------------------------------------------------------------------

    def _run(self, work: Coroutine[Any, Any, _T], where: Where) -> _T:
        """Run it as it would run alone: the order of its tasks is part of the point."""

        async def main() -> _T:
            return await work

        with deterministic_scheduling(hash((where.seed, where.k, where.choice, where.again or -1))):
            return trio.run(main, clock=MockClock(autojump_threshold=0))

    def _failed(self, where: Where, fates: Counter[str], found: str) -> None:
        story = f"power lost before {described(self.recording.disk, where.k)} (entry {where.k})"
        if fates:
            story += "; of the writes at risk: " + ", ".join(f"{count} {fate}" for fate, count in sorted(fates.items()))
        self.counts.failures.append(Failure(where, story, found))
