"""What is counted of locks, by kind, and which resources are the most contended."""

from __future__ import annotations

import json

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from dlm.modes import EX, NL, PR
from dlm.names import Resource
from matrixfs.locks.counters import BOUNDS, Histogram
from matrixfs.locks.hottest import ENTRIES_MAX, FADE, WAIT_MIN, Hottest
from matrixfs.locks.resources import GROUP, OPEN
from tests.matrixfs.lock_bench import A, Bench, Clock, Manager, held, settle


@pytest.fixture
async def bench(nursery: trio.Nursery, autojump_clock: Clock) -> Bench:
    bench = Bench(nursery, Manager())
    await nursery.start(bench.cache.run)
    return bench


def counted(bench: Bench, kind: str = "inode") -> dict[str, object]:
    found: dict[str, object] = bench.cache.statistics()["types"][kind]
    return found


@given(st.lists(st.floats(0, 100)))
def test_a_histogram_counts_every_wait_once(waits: list[float]) -> None:
    histogram = Histogram()
    for seconds in waits:
        histogram.note(seconds)
    dumped = histogram.dump()
    assert dumped.pop("sum") == pytest.approx(sum(waits), abs=1e-5)
    assert dumped == {
        **{str(bound): sum(seconds <= bound for seconds in waits) for bound in BOUNDS}, "+Inf": len(waits),
    }  # fmt: skip


async def test_every_kind_is_there_before_anything_happens(bench: Bench) -> None:
    types = bench.cache.statistics()["types"]
    assert sorted(types) == ["change", "group", "inode", "open", "quota", "rename", "shape"]
    json.dumps(types)


async def test_hits_are_the_holds_that_did_not_wait(bench: Bench, autojump_clock: Clock) -> None:
    lock = await held(bench, EX)
    lock.drop(EX)
    for _ in range(5):
        assert lock.try_hold(PR)
        lock.drop(PR)
    before = counted(bench)
    assert (before["hits"], before["waits"], before["requests"]) == (5, 1, 1)
    bench.cache.revoke(A, NL)
    await settle()
    after = counted(bench)
    assert (after["hits"], after["waits"], after["cached"]) == (5, 1, 0), "also of locks that are gone"


async def test_a_hand_over_is_counted_on_both_sides(bench: Bench, autojump_clock: Clock) -> None:
    lock = await held(bench, EX)
    bench.cache.revoke(A, NL)
    again = bench.start(lock, PR)
    await trio.sleep(0.05)
    lock.drop(EX)
    await settle()
    bench.manager.grant(A, PR)
    await settle()
    assert again.result
    found = counted(bench)
    assert (found["revokes"], found["hand_overs_given"], found["flushes"], found["purges"]) == (1, 1, 1, 1)
    waiting, releasing = found["waiting"], found["releasing"]
    assert isinstance(waiting, dict)
    assert isinstance(releasing, dict)
    assert (waiting["+Inf"], waiting["0.02"], waiting["0.1"]) == (2, 1, 2)
    assert releasing["sum"] == pytest.approx(0.05, abs=1e-3)
    (hot,) = bench.cache.hottest(10)
    assert (hot["domain"], hot["object"], hot["waiters"]) == (2, 100, 0)
    assert hot["hand_overs"] == pytest.approx(1 / FADE, rel=0.01)


async def test_kinds_are_kept_apart(bench: Bench, autojump_clock: Clock) -> None:
    for domain, mode in ((OPEN, PR), (GROUP, EX), (GROUP, EX)):
        lock = await held(bench, mode, resource=Resource(domain, 7 + bench.cache.statistics()["cached"]))
        lock.drop(mode)
    assert (counted(bench, "open")["cached"], counted(bench, "open")["cached_exclusive"]) == (1, 0)
    assert (counted(bench, "group")["cached"], counted(bench, "group")["cached_exclusive"]) == (2, 2)
    assert counted(bench)["requests"] == 0


async def test_what_is_given_up_unasked_is_no_hand_over(bench: Bench, autojump_clock: Clock) -> None:
    lock = await held(bench, PR)
    lock.drop(PR)
    bench.cache.discard(lock)
    await settle()
    assert (counted(bench)["hand_overs_given"], counted(bench)["purges"]) == (0, 1)
    assert bench.cache.hottest(1) == []


# --- the hottest --------------------------------------------------------------------------------------------


def test_what_most_time_is_spent_waiting_for_comes_first_and_fades() -> None:
    hottest = Hottest()
    hottest.waited(Resource(2, 1), 0.5, 100.0)
    for _ in range(5):
        hottest.handed_over(Resource(2, 2), 100.0)
    hottest.waited(Resource(2, 3), 2.0, 100.0)
    hottest.waited(Resource(2, 4), WAIT_MIN / 2, 100.0)
    assert [each["object"] for each in hottest.dump(9, 100.0, {})] == [3, 1, 2]
    assert [each["object"] for each in hottest.dump(2, 100.0, {})] == [3, 1]
    (first, *_) = hottest.dump(1, 100.0 + FADE, {})
    assert first["waiting"] == pytest.approx(2.0 / FADE / 2.718, rel=0.01)
    hottest.waited(Resource(2, 1), 0.6, 100.0 + 2 * FADE)
    assert [each["object"] for each in hottest.dump(1, 100.0 + 2 * FADE, {})] == [1]


def test_what_is_waited_for_now_comes_first_and_what_cooled_down_is_left_out() -> None:
    hottest = Hottest()
    hottest.waited(Resource(2, 1), 9.0, 100.0)
    stuck = {Resource(2, 7): 3}  # no wait for it has ended
    assert [(each["object"], each["waiters"]) for each in hottest.dump(9, 100.0, stuck)] == [(7, 3), (1, 0)]
    assert hottest.dump(9, 100.0 + 4 * FADE, {}) == []


def test_a_walk_over_many_resources_does_not_drive_out_what_is_hot() -> None:
    hottest = Hottest()
    for number in range(10 * ENTRIES_MAX):
        hottest.handed_over(Resource(2, 10 + number), number / 1000)
        if number % 100 == 0:
            hottest.waited(Resource(2, 1), 0.01, number / 1000)
    assert len(hottest) == ENTRIES_MAX
    assert hottest.dump(1, 11.0, {})[0]["object"] == 1
