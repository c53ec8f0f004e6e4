"""Locks given up on our own account: by age, by number, by memory pressure (``locks/reclaim.py``, ``pressure.py``)."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from dlm.modes import EX, NL, PR
from dlm.names import Resource
from matrixfs.locks.pressure import MemoryPressure
from matrixfs.locks.reclaim import AGES, GIVEN_UP_MAX, INTERVAL
from matrixfs.locks.resources import GROUP, INODE, OPEN, RENAME
from tests.matrixfs.lock_bench import Bench, Clock, Manager, held


class Memory:
    """Whether memory is short."""

    def __init__(self) -> None:
        self.short = False

    def stalled(self) -> bool:
        return self.short


@pytest.fixture
def memory() -> Memory:
    return Memory()


@pytest.fixture
async def bench(nursery: trio.Nursery, autojump_clock: Clock, memory: Memory) -> Bench:
    bench = Bench(nursery, Manager(), memory.stalled)
    await nursery.start(bench.cache.run)
    return bench


async def idle(bench: Bench, resource: Resource, mode: int) -> None:
    lock = await held(bench, mode, resource=resource)
    lock.drop(mode)


@pytest.mark.parametrize(
    ("domain", "mode", "after", "target"),
    [
        (INODE, EX, 60, PR), (INODE, PR, 1800, NL), (OPEN, PR, 60, NL), (OPEN, EX, 60, NL), (RENAME, EX, 60, NL),
    ],
)  # fmt: skip
async def test_age(bench: Bench, autojump_clock: Clock, domain: int, mode: int, after: float, target: int) -> None:
    resource = Resource(domain, 100)
    await idle(bench, resource, mode)
    await trio.sleep(after - 2 * INTERVAL)
    assert bench.manager.log == []
    await trio.sleep(5 * INTERVAL)
    assert bench.manager.log == [("release", 100, target)]
    assert bench.cache.statistics()["reclaimed"] == 1


async def test_an_inode_written_once_goes_in_two_steps(bench: Bench, autojump_clock: Clock) -> None:
    await idle(bench, Resource(INODE, 100), EX)
    await trio.sleep(AGES[INODE].drop + 5 * INTERVAL)
    assert bench.manager.log == [("release", 100, PR), ("release", 100, NL)]


async def test_groups_stay_where_they_are(bench: Bench, autojump_clock: Clock) -> None:
    await idle(bench, Resource(GROUP, 100), EX)
    await trio.sleep(5000)
    assert bench.manager.log == []


async def test_what_is_used_or_held_stays(bench: Bench, autojump_clock: Clock) -> None:
    await idle(bench, Resource(INODE, 1), EX)
    await held(bench, EX, resource=Resource(INODE, 2))
    lock = bench.lock(Resource(INODE, 1))
    for _ in range(100):
        await trio.sleep(AGES[INODE].drop / 40)
        assert lock.try_hold(PR)
        lock.drop(PR)
    assert [entry for entry in bench.manager.log if entry[1] == 2] == []
    assert lock.mode >= PR


async def test_too_many_locks_the_longest_unused_go(
    bench: Bench, autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(10):
        await idle(bench, Resource(INODE, number), PR)
    await trio.sleep(3 * INTERVAL)
    busy = bench.lock(Resource(INODE, 0))
    assert busy.try_hold(PR)
    busy.drop(PR)
    monkeypatch.setattr("matrixfs.locks.reclaim.LOCKS_MAX", 5)
    await trio.sleep(3 * INTERVAL)
    assert bench.cache.statistics()["reclaimed"] == 5
    assert [number for number in range(10) if bench.cache.find(Resource(INODE, number))] == [0, 6, 7, 8, 9]
    assert sorted(bench.callouts.calls) == [(number, PR, NL) for number in range(1, 6)]


@pytest.mark.seed("002-35")
async def test_memory_pressure_takes_locks_whatever_their_age(
    bench: Bench, memory: Memory, autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("matrixfs.locks.reclaim.LOCKS_MIN", 3)
    bench.manager.at_once = True
    for number in range(GIVEN_UP_MAX + 10):
        lock = bench.lock(Resource(INODE, number))
        await lock.hold(PR)
        lock.drop(PR)
    memory.short = True
    await trio.sleep(INTERVAL + 0.1)
    assert bench.cache.statistics()["cached"] == 10, "so many a round"
    await trio.sleep(3 * INTERVAL)
    found = bench.cache.statistics()
    assert (found["cached"], found["memory_stalls"]) == (3, 4)
    memory.short = False
    await trio.sleep(3 * INTERVAL)
    assert bench.cache.statistics()["memory_stalls"] == 4


# --- what the kernel tells ----------------------------------------------------------------------------------


def kernel(tmp_path: Path, percent: str = "0.00", events: str = "low 0\nhigh 0\nmax 0\noom 0\n") -> MemoryPressure:
    (tmp_path / "pressure").write_text(f"some avg10={percent} avg60=0.00 avg300=0.00 total=5\nfull avg10=0.00 x\n")
    (tmp_path / "self").write_text("1:name=systemd:/x\n0::/own\n")
    (tmp_path / "own").mkdir(exist_ok=True)
    (tmp_path / "own" / "memory.events").write_text(events)
    return MemoryPressure(tmp_path / "pressure", tmp_path / "self", tmp_path)


def test_stalls_of_tasks_are_pressure(tmp_path: Path) -> None:
    assert not kernel(tmp_path).stalled()
    assert kernel(tmp_path, "12.50").stalled()


def test_a_limit_that_was_met_is_pressure_once(tmp_path: Path) -> None:
    memory = kernel(tmp_path, events="low 0\nhigh 3\nmax 2\noom 0\n")
    assert not memory.stalled(), "that was before"
    (tmp_path / "own" / "memory.events").write_text("low 9\nhigh 3\nmax 3\noom 0\n")
    assert memory.stalled()
    assert not memory.stalled()


@pytest.mark.parametrize("content", ["", "some", "some avg10=\n", "some avg10=x y\n", "\n\n", "high\nmax x\n"])
def test_files_missing_or_of_another_form_are_no_pressure(tmp_path: Path, content: str) -> None:
    memory = kernel(tmp_path)
    (tmp_path / "pressure").write_text(content)
    (tmp_path / "own" / "memory.events").write_text(content)
    assert not memory.stalled()
    nowhere = tmp_path / "absent"
    assert not MemoryPressure(nowhere, nowhere, nowhere).stalled()


def test_on_this_machine_it_answers() -> None:
    assert MemoryPressure().stalled() in (True, False)
