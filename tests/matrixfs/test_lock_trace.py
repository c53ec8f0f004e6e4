"""The trace ring: bounded, in order, plain data."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from matrixfs.locks.resources import INODE, Resource
from matrixfs.locks.trace import Trace


class TickingClock:
    """Every look at it is a millisecond later; the wall clock is 1,000 s ahead."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 0.001
        return self.now

    def wall_ns(self) -> int:
        return round((self.now + 1000) * 1e9)

    async def sleep(self, seconds: float) -> None:
        raise AssertionError("a trace never waits")


def test_an_empty_ring_is_an_empty_dump() -> None:
    assert Trace(TickingClock(), 4).dump() == []


def test_what_was_noted_comes_back_with_wall_times() -> None:
    trace = Trace(TickingClock())
    trace.note("revoke", Resource(INODE, 4711), 3, 2)
    trace.note("granted", Resource(INODE, 4711), 5)
    first, second = trace.dump()
    assert first | {"wall_ns": 0} == {
        "wall_ns": 0, "event": "revoke", "domain": INODE, "object": 4711, "mode": 3, "peer": 2,
    }  # fmt: skip
    assert (second["mode"], second["peer"]) == (5, -1)
    assert 0 < second["wall_ns"] - first["wall_ns"] < 2_000_000
    assert first["wall_ns"] > 999 * 10**9
    json.dumps(trace.dump())


@given(size=st.integers(1, 9), count=st.integers(0, 40))
def test_the_last_ones_are_kept_in_order(size: int, count: int) -> None:
    trace = Trace(TickingClock(), size)
    for number in range(count):
        trace.note("request", Resource(INODE, number))
    kept = trace.dump()
    assert [event["object"] for event in kept] == list(range(max(0, count - size), count))
    assert [event["wall_ns"] for event in kept] == sorted(event["wall_ns"] for event in kept)
    assert trace.total == count
