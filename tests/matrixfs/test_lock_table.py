"""The table of cached locks: identity, giving up on our own account, reclaim, and what an administrator sees (R14)."""

from __future__ import annotations

import gc

import pytest
import trio

from dlm.modes import EX, NL, PR
from tests.matrixfs.lock_bench import A, B, Bench, Clock, Manager, held, settle


@pytest.fixture
async def bench(nursery: trio.Nursery, autojump_clock: Clock) -> Bench:
    bench = Bench(nursery, Manager())
    await nursery.start(bench.cache.run)
    return bench


async def test_a_lock_is_one_object_as_long_as_anybody_refers_to_it(bench: Bench, autojump_clock: Clock) -> None:
    lock = await held(bench, EX)
    lock.drop(EX)
    bench.cache.revoke(A, NL)
    await settle()
    assert bench.cache.find(A) is None
    assert bench.lock() is lock
    del lock
    gc.collect()
    assert len(bench.cache._known) == 0


async def test_discard_gives_up_only_what_is_idle(bench: Bench, autojump_clock: Clock) -> None:
    lock = await held(bench, EX)
    bench.cache.discard(lock)
    await settle()
    assert bench.manager.log == []
    lock.drop(EX)
    bench.cache.discard(lock)
    await settle()
    assert bench.manager.log == [("release", 100, NL)]
    bench.cache.discard(lock)
    await settle()
    assert bench.callouts.calls == [(100, EX, NL)]


async def test_leave_gives_up_everything(bench: Bench, autojump_clock: Clock) -> None:
    for resource in (A, B):
        lock = await held(bench, EX, resource=resource)
        lock.drop(EX)
    await bench.cache.leave()
    assert sorted(bench.manager.log) == [("release", 100, NL), ("release", 101, NL)]
    assert bench.cache.statistics()["cached"] == 0


async def test_waits_tell_who_waits_for_what_and_why(bench: Bench, autojump_clock: Clock) -> None:
    lock = await held(bench, PR)
    bench.start(lock, EX)
    await trio.sleep(2)
    (wait,) = bench.cache.waits()
    assert wait.pop("seconds") >= 2
    assert wait == {
        "resource": "inode 100", "domain": 2, "object": 100, "wanted": EX, "held": PR, "reason": "a peer or recovery",
    }  # fmt: skip


async def test_a_mount_that_ends_demotes_nothing(autojump_clock: Clock) -> None:
    """Operations end after the cache was cancelled with the mount: dropping their locks must be harmless."""
    async with trio.open_nursery() as nursery:
        bench = Bench(nursery, Manager())
        await nursery.start(bench.cache.run)
        lock = await held(bench, EX)
        bench.cache.revoke(A, NL)
        nursery.cancel_scope.cancel()
    lock.drop(EX)
    assert bench.callouts.calls == []
