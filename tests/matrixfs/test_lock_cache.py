"""The lock cache: scopes, reuse, callouts, fairness, time-outs, cancellation (002-05 to 002-08)."""

from __future__ import annotations

import random

import pytest
import trio

from dlm.modes import EX, NL, PR
from matrixfs.locks.turns import CONTENDED
from membership.errors import DeviceError
from tests.matrixfs.lock_bench import A, B, Bench, Clock, Manager, held, settle


@pytest.fixture
async def bench(nursery: trio.Nursery, autojump_clock: Clock) -> Bench:
    bench = Bench(nursery, Manager())
    await nursery.start(bench.cache.run)
    return bench


# --- reuse and scopes ---------------------------------------------------------------------------------------


@pytest.mark.seed("002-06")
async def test_a_cached_lock_costs_no_message_and_no_checkpoint(bench: Bench, autojump_clock: Clock) -> None:
    lock = await held(bench, EX)
    lock.drop(EX)
    with trio.testing.assert_no_checkpoints():
        for mode, exclusive in ((PR, False), (EX, False), (EX, True), (PR, True)):
            assert lock.try_hold(mode, exclusive)
            lock.drop(mode, exclusive)
    assert bench.manager.log == []
    assert bench.cache.find(A) is lock


async def test_a_grant_at_once_needs_no_checkpoint(nursery: trio.Nursery) -> None:
    bench = Bench(nursery, Manager(at_once=True))
    await nursery.start(bench.cache.run)
    with trio.testing.assert_no_checkpoints():
        assert await bench.lock().hold(EX, exclusive=True)
    nursery.cancel_scope.cancel()


@pytest.mark.seed("002-07")
@pytest.mark.parametrize(
    ("first", "second", "together"),
    [
        # server scope: the DLM lock only, locals not excluded
        ((PR, False), (PR, False), True), ((PR, False), (EX, False), True), ((EX, False), (EX, False), True),
        # process scope
        ((EX, True), (PR, False), False), ((EX, True), (EX, True), False),
        ((PR, False), (EX, True), False), ((EX, False), (EX, True), False),
    ],
)  # fmt: skip
async def test_scopes(bench: Bench, first: tuple[int, bool], second: tuple[int, bool], together: bool) -> None:
    lock = await held(bench, EX)
    lock.drop(EX)
    assert await lock.hold(*first)
    waiting = bench.start(lock, *second)
    await settle()
    assert waiting.result is (True if together else None)
    assert lock.try_hold(*second) is (together and not second[1])
    lock.drop(*first)
    if together:
        lock.drop(*second)
    await settle()
    assert waiting.result
    waiting.drop()
    assert lock.idle
    assert bench.manager.log == []


async def test_readers_cached_in_pr_wait_for_a_greater_mode(bench: Bench, autojump_clock: Clock) -> None:
    lock = await held(bench, PR)
    writer = bench.start(lock, EX)
    await settle()
    assert bench.manager.take_log() == [("request", 100, EX)]
    late = bench.start(lock, PR)  # no overtaking, though PR is cached
    await settle()
    assert (writer.result, late.result) == (None, None)
    bench.manager.grant(A, EX)
    await settle()
    assert (writer.result, late.result) == (True, True)


async def test_local_waiters_are_served_in_order(bench: Bench, autojump_clock: Clock) -> None:
    lock = await held(bench, EX, True)
    order: list[int] = []

    async def user(number: int, mode: int, exclusive: bool) -> None:
        await lock.hold(mode, exclusive)
        order.append(number)
        await trio.sleep(1)
        lock.drop(mode, exclusive)

    async with trio.open_nursery() as nursery:
        for number, (mode, exclusive) in enumerate([(EX, True), (PR, False), (PR, False), (EX, True), (PR, False)]):
            nursery.start_soon(user, number, mode, exclusive)
            await settle()
        lock.drop(EX, True)
    order[1:3] = sorted(order[1:3])  # the two readers get in together
    assert order == [0, 1, 2, 3, 4]
    assert bench.manager.log == []


async def test_one_request_at_a_time_and_the_next_for_what_is_still_wanted(bench: Bench, autojump_clock: Clock) -> None:
    lock = bench.lock()
    reader = bench.start(lock, PR)
    await settle()
    writer = bench.start(lock, EX)
    await settle()
    assert bench.manager.take_log() == [("request", 100, PR)]
    bench.manager.grant(A, PR)
    await settle()
    assert (reader.result, writer.result) == (True, None)
    assert bench.manager.take_log() == [("request", 100, EX)]


# --- revoke and callouts ------------------------------------------------------------------------------------


@pytest.mark.seed("002-08")
@pytest.mark.parametrize("target", [PR, NL])
async def test_a_revoke_waits_for_holders_then_surrenders_then_releases(bench: Bench, target: int) -> None:
    lock = await held(bench, EX)
    bench.cache.revoke(A, target)
    late = bench.start(lock, PR)
    await settle()
    assert (bench.callouts.calls, late.result) == ([], None), "no new holder gets in, none is thrown out"
    lock.drop(EX)
    await settle()
    assert bench.callouts.calls == [(100, EX, target)]
    released = ("release", 100, target)
    if target == PR:
        assert late.result
        assert bench.manager.log == [released]
    else:
        assert late.result is None
        assert bench.manager.log == [released, ("request", 100, PR)]


async def test_a_reader_may_stay_beside_a_demotion_to_pr(bench: Bench, autojump_clock: Clock) -> None:
    lock = await held(bench, EX)
    assert lock.try_hold(PR)
    lock.drop(EX)
    bench.cache.revoke(A, PR)
    await settle()
    assert bench.manager.log == [("release", 100, PR)]
    lock.drop(PR)


async def test_but_not_where_the_demotion_changes_what_readers_see(bench: Bench, autojump_clock: Clock) -> None:
    """Buffered bytes are on their way to the store: a reader in between would find them in neither place."""
    bench.callouts.flushes = True
    lock = await held(bench, EX)
    assert lock.try_hold(PR)
    lock.drop(EX)
    bench.cache.revoke(A, PR)
    await settle()
    assert bench.callouts.calls == []
    lock.drop(PR)
    await settle()
    assert bench.manager.log == [("release", 100, PR)]


async def test_the_dlm_hears_of_it_only_after_the_callout(bench: Bench, autojump_clock: Clock) -> None:
    lock = await held(bench, EX)
    lock.drop(EX)
    bench.callouts.gate = trio.Event()
    bench.cache.revoke(A, PR)
    await settle()
    assert bench.manager.log == []
    assert lock.mode == EX
    bench.cache.revoke(A, NL)  # less is wanted meanwhile: surrendered again before anything is said
    bench.callouts.gate.set()
    await settle()
    assert bench.callouts.calls == [(100, EX, PR), (100, EX, NL)]
    assert bench.manager.log == [("release", 100, NL)]
    assert bench.cache.find(A) is None


async def test_a_repeated_or_crossed_revoke_is_nothing(bench: Bench, autojump_clock: Clock) -> None:
    lock = await held(bench, PR)
    bench.cache.revoke(A, PR)
    bench.cache.revoke(B, NL)
    lock.drop(PR)
    bench.cache.revoke(A, NL)
    bench.cache.revoke(A, NL)
    await settle()
    assert bench.callouts.calls == [(100, PR, NL)]
    bench.cache.revoke(A, NL)
    await settle()
    assert bench.manager.log == [("release", 100, NL)]


async def test_revoked_while_a_greater_mode_is_requested(bench: Bench, autojump_clock: Clock) -> None:
    """Two nodes hold PR and want EX: both give PR up, then one after the other gets EX."""
    lock = await held(bench, PR)
    lock.drop(PR)
    writer = bench.start(lock, EX, True)
    await settle()
    bench.cache.revoke(A, NL)
    await settle()
    assert bench.manager.take_log() == [("request", 100, EX), ("release", 100, NL)]
    assert writer.result is None
    bench.manager.grant(A, EX)
    await settle()
    assert writer.result
    assert bench.manager.log == []


async def test_granted_while_it_is_demoted(bench: Bench, autojump_clock: Clock) -> None:
    """The conversion comes while the old mode is being surrendered for an earlier waiter."""
    lock = await held(bench, PR)
    lock.drop(PR)
    writer = bench.start(lock, EX, True)
    await settle()
    bench.callouts.gate = trio.Event()
    bench.cache.revoke(A, NL)
    await settle()
    bench.manager.grant(A, EX)
    await settle()
    assert writer.result is None
    bench.callouts.gate.set()
    await settle()
    assert bench.manager.take_log() == [("request", 100, EX), ("release", 100, NL), ("request", 100, EX)]
    bench.manager.grant(A, EX)
    await settle()
    assert writer.result


async def test_release_when_finished_lets_the_waiter_in_first(bench: Bench, autojump_clock: Clock) -> None:
    lock = bench.lock()
    waiting = bench.start(lock, EX, True)
    await settle()
    bench.manager.grant(A, EX, NL)  # 003-39
    await settle()
    assert waiting.result
    assert bench.callouts.calls == []
    waiting.drop()
    await trio.sleep(CONTENDED)
    assert bench.manager.log == [("request", 100, EX), ("release", 100, NL)]


async def test_a_failed_callout_is_fatal_and_the_lock_stays(
    bench: Bench, autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """R8, R9: what is dirty is not safe, so the peer must not get the lock."""
    lock = await held(bench, EX)
    lock.drop(EX)
    bench.callouts.error = DeviceError("no path")
    bench.cache.revoke(A, NL)
    await settle()
    assert bench.fatal == [bench.callouts.error]
    assert bench.manager.log == []
    assert lock.mode == EX
    assert not lock.try_hold(PR)
    assert "inode 100" in caplog.text


async def test_a_demoted_lock_that_is_wanted_again_is_requested_again(bench: Bench, autojump_clock: Clock) -> None:
    lock = await held(bench, EX)
    lock.drop(EX)
    bench.callouts.gate = trio.Event()
    bench.cache.revoke(A, NL)
    again = bench.start(lock, EX)
    await settle()
    bench.callouts.gate.set()
    await settle()
    assert bench.manager.log == [("release", 100, NL), ("request", 100, EX)]
    assert bench.cache.find(A) is lock
    bench.manager.grant(A, EX)
    await settle()
    assert again.result


# --- time-outs and cancellation -----------------------------------------------------------------------------


async def test_a_time_out_withdraws_the_request(bench: Bench, autojump_clock: Clock) -> None:
    lock = bench.lock()
    waiting = bench.start(lock, EX, True, timeout=0.2)
    await trio.sleep(0.3)
    assert waiting.result is False
    assert bench.manager.take_log() == [("request", 100, EX), ("cancel", 100)]
    assert lock.idle
    again = bench.start(lock, PR)
    await settle()
    assert bench.manager.log == [("request", 100, PR)]
    bench.manager.grant(A, PR)
    await settle()
    assert again.result


async def test_a_time_out_does_not_leave_others_behind_its_request(bench: Bench, autojump_clock: Clock) -> None:
    """A deletion tries EX on an OPEN lock while the file is opened here: the open wants PR only, and PR is free."""
    lock = bench.lock()
    deletion = bench.start(lock, EX, True, timeout=0.2)
    await settle()
    opening = bench.start(lock, PR)
    await trio.sleep(0.3)
    assert deletion.result is False
    assert bench.manager.take_log() == [("request", 100, EX), ("cancel", 100), ("request", 100, PR)]
    bench.manager.grant(A, PR)
    await settle()
    assert opening.result


async def test_a_time_out_with_the_mode_cached_sends_nothing(bench: Bench, autojump_clock: Clock) -> None:
    lock = await held(bench, EX)
    waiting = bench.start(lock, EX, True, timeout=0.2)
    await trio.sleep(0.3)
    assert waiting.result is False
    assert bench.manager.log == []
    lock.drop(EX)
    assert lock.idle


async def test_a_lock_that_was_never_granted_is_not_kept(bench: Bench, autojump_clock: Clock) -> None:
    lock = bench.lock()
    bench.start(lock, EX, True, timeout=0.2)
    await trio.sleep(0.3)
    assert bench.cache.find(A) is None
    assert bench.cache.lock(A, bench.callouts) is lock


async def test_cancelled_waiters_leave_the_queue(bench: Bench, autojump_clock: Clock) -> None:
    lock = await held(bench, EX, True)
    one, two = bench.start(lock, EX, True), bench.start(lock, PR)
    await settle()
    one.scope.cancel()
    await settle()
    assert one.result is None
    lock.drop(EX, True)
    await settle()
    assert two.result
    two.drop()
    assert lock.idle


async def test_cancelled_in_the_moment_of_the_grant(bench: Bench, autojump_clock: Clock) -> None:
    """The wake-up is on its way: the caller gets the lock, and no hold is lost."""
    lock = bench.lock()
    waiting = bench.start(lock, EX, True)
    await settle()
    bench.manager.grant(A, EX)
    waiting.scope.cancel()
    await settle()
    assert waiting.result
    waiting.drop()
    assert lock.idle


async def test_a_grant_that_nobody_waits_for_any_more_is_cached(bench: Bench, autojump_clock: Clock) -> None:
    lock = bench.lock()
    waiting = bench.start(lock, EX)
    await settle()
    waiting.scope.cancel()
    await settle()
    bench.manager.grant(A, EX)
    assert lock.idle
    assert lock.try_hold(EX, True)


@pytest.mark.parametrize("seed", range(12))
async def test_cancellation_at_any_time_leaves_a_consistent_state(
    bench: Bench, autojump_clock: Clock, seed: int
) -> None:
    """Random holders, revokes, time-outs and cancels; in the end every count is zero and the lock still works."""
    rng = random.Random(seed)
    lock = bench.lock()
    inside: list[tuple[int, bool]] = []

    async def user() -> None:
        mode, exclusive = rng.choice(((PR, False), (EX, False), (EX, True)))
        with trio.move_on_after(rng.choice((0.001, 0.01, 100))):
            if not await lock.hold(mode, exclusive, rng.choice((None, 0.005))):
                return
            try:
                assert not any(other[1] for other in inside), "beside an exclusive holder"
                assert not (exclusive and inside)
                assert lock.mode >= mode
                inside.append((mode, exclusive))
                await trio.sleep(rng.uniform(0, 0.004))
                inside.remove((mode, exclusive))
            except trio.Cancelled:
                inside.remove((mode, exclusive))
                raise
            finally:
                lock.drop(mode, exclusive)

    async def master() -> None:
        """Grants what is asked, late; revokes at random."""
        while True:
            await trio.sleep(rng.uniform(0, 0.003))
            if lock.requested:
                bench.manager.grant(A, lock.requested)
            elif rng.random() < 0.3 and lock.mode:
                bench.cache.revoke(A, rng.choice((NL, PR)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(master)
        async with trio.open_nursery() as users:
            for _ in range(60):
                users.start_soon(user)
                await trio.sleep(rng.uniform(0, 0.003))
        with trio.fail_after(5):
            assert await lock.hold(EX, exclusive=True), "no progress"
        nursery.cancel_scope.cancel()
    lock.drop(EX, exclusive=True)
    assert (lock.readers, lock.writers, lock.exclusive, list(lock.waiters)) == (0, 0, False, [])
