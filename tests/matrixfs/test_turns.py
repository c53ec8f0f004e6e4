"""Turns of contended locks: how long they stay, and what is asked for (anchors.md 7.5, ``locks/turns.py``)."""

from __future__ import annotations

import pytest
import trio

from dlm.modes import EX, NL, PR
from dlm.names import Resource
from matrixfs.locks.lock import Lock
from matrixfs.locks.turns import (
    CONTENDED,
    CREDIT_MAX,
    PATIENCE_MAX,
    PATIENCE_MIN,
    REMEMBERED_MAX,
    SHARE,
    SLACK_MAX,
    TURN,
    TURN_MAX,
    Turn,
    Turns,
)
from tests.matrixfs.lock_bench import A, Bench, Clock, Manager, held, settle

STEP = 0.0005  # between two uses of somebody busy: well below PATIENCE_MIN


@pytest.fixture
async def bench(nursery: trio.Nursery, autojump_clock: Clock) -> Bench:
    bench = Bench(nursery, Manager())
    await nursery.start(bench.cache.run)
    return bench


async def use(lock: Lock, seconds: float, mode: int = EX) -> None:
    """Use the lock over and over, as long as it is to be had without waiting."""
    end = trio.current_time() + seconds
    while trio.current_time() < end and lock.try_hold(mode):
        lock.drop(mode)
        await trio.sleep(STEP)


def released(bench: Bench) -> bool:
    return ("release", 100, NL) in bench.manager.take_log()


# --- the rules ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("costs", "length", "patience"),
    [
        ([], TURN, PATIENCE_MIN),
        ([0.0001], TURN, PATIENCE_MIN),
        ([TURN / SHARE], TURN, PATIENCE_MAX),
        ([0.005] * 9, TURN, 0.005),
        ([0.030], SHARE * 0.030, PATIENCE_MAX),
        ([10.0], TURN_MAX, PATIENCE_MAX),
    ],
)
def test_t1_t2_turns_are_alike_unless_a_hand_over_is_dear(costs: list[float], length: float, patience: float) -> None:
    turn = Turn()
    for cost in costs:
        turn.handed_over(cost, idle=False, missed=False)
    assert turn.length == pytest.approx(length)
    assert turn.patience == pytest.approx(patience)


def test_t1_one_slow_flush_does_not_make_turns_long() -> None:
    turn = Turn()
    turn.handed_over(0.030, idle=False, missed=False)
    turn.handed_over(5.0, idle=False, missed=False)
    assert turn.length < 2 * SHARE * 0.030


def test_t2_patience_grows_while_users_come_too_late() -> None:
    turn = Turn()
    found = []
    for early, missed in [(True, True)] * 4 + [(False, False), (False, True), (True, False)]:
        turn.kept(5, early=early)
        turn.handed_over(0.002, idle=False, missed=missed)
        found.append(round(turn.patience / 0.002))
    assert found == [2, 4, SLACK_MAX, SLACK_MAX, SLACK_MAX, SLACK_MAX, 1], "a full turn teaches nothing"


def test_t1_turns_become_alike_whatever_they_were() -> None:
    """A long turn dirties much, so that giving up is dear: that must not make the next turn of this node long, too."""
    use, fixed, each = 0.0004, 0.002, 0.00005  # seconds: a create, a hand-over, and more of it for each create
    one, other = Turn(), Turn()
    one.cost, other.cost = 0.060, 0.002
    for turn in (one, other) * 8:
        turn.handed_over(fixed + each * turn.length / use, idle=False, missed=True)
    assert one.length == pytest.approx(other.length, rel=0.1)


def test_t3_credit_is_bounded_both_ways() -> None:
    turn = Turn()
    for _ in range(10):
        turn.kept(5, early=False)
    assert turn.credit == CREDIT_MAX
    for _ in range(10):
        turn.kept(1, early=True)
    assert turn.credit == 0
    turn.handed_over(0.001, idle=False, missed=True)
    assert turn.credit == 1


def test_t5_a_write_after_a_read_makes_the_next_read_ask_for_ex() -> None:
    turn = Turn()
    assert [turn.ask(mode) for mode in (PR, PR, EX, PR, PR)] == [PR, PR, EX, EX, EX]
    turn.handed_over(0.001, idle=True, missed=False)  # a turn without a write
    assert turn.ask(PR) == PR


def test_a_writer_who_never_reads_first_teaches_nothing() -> None:
    turn = Turn()
    assert [turn.ask(mode) for mode in (EX, EX, PR)] == [EX, EX, PR]


def test_what_is_remembered_is_bounded_and_the_latest() -> None:
    turns = Turns()
    first = turns.open(Resource(2, 0))
    second = turns.open(Resource(2, 1))
    turns.keep(Resource(2, 0), first)
    for number in range(2, REMEMBERED_MAX + 1):
        turns.open(Resource(2, number))
    assert len(turns) == REMEMBERED_MAX
    assert turns.find(Resource(2, 0)) is first
    assert turns.find(Resource(2, 1)) is not second


# --- the cache ----------------------------------------------------------------------------------------------


async def contended(bench: Bench, credit: int = 1) -> Lock:
    """The lock, granted just now with a peer waiting, and used once."""
    lock = bench.lock()
    waiting = bench.start(lock, EX)
    await settle()
    lock.turn = bench.cache._turns.open(A)
    lock.turn.credit = credit
    bench.manager.grant(A, EX, NL)
    await settle()
    waiting.drop()
    await settle()
    bench.manager.take_log()
    return lock


async def test_t1_whoever_goes_on_using_it_has_a_turn(bench: Bench, autojump_clock: Clock) -> None:
    lock = await contended(bench)
    began = trio.current_time()
    await use(lock, 1)
    await settle()
    assert TURN - STEP <= trio.current_time() - began <= TURN + 2 * STEP
    assert released(bench)
    assert bench.cache.statistics()["revokes_deferred"] == 1


async def test_t1_a_lock_held_for_long_goes_at_once(bench: Bench, autojump_clock: Clock) -> None:
    lock = await held(bench, EX)
    lock.drop(EX)
    await use(lock, 2 * CONTENDED)
    bench.cache.revoke(A, NL)
    await settle()
    assert released(bench)
    assert lock.turn is None, "nothing is remembered of what is not contended"


async def test_t2_a_turn_ends_when_nobody_uses_the_lock(bench: Bench, autojump_clock: Clock) -> None:
    lock = await contended(bench)
    await use(lock, CONTENDED / 3)
    assert not released(bench)
    await trio.sleep(2 * PATIENCE_MIN + STEP)
    assert released(bench)


async def test_t2_a_long_operation_is_a_use(bench: Bench, autojump_clock: Clock) -> None:
    lock = await contended(bench)
    assert lock.try_hold(EX)
    await trio.sleep(TURN - PATIENCE_MIN)
    assert not lock.revoking
    lock.drop(EX)


async def test_t3_kept_in_vain_it_goes_at_once_next_time(bench: Bench, autojump_clock: Clock) -> None:
    await contended(bench)
    await trio.sleep(CONTENDED)  # in vain
    assert released(bench)
    lock = bench.lock()
    waiting = bench.start(lock, EX)
    await settle()
    bench.manager.take_log()
    bench.manager.grant(A, EX, NL)
    await settle()
    waiting.drop()
    await settle()
    assert released(bench), "with no time spent: the fact outlived the lock"


async def test_t3_users_who_come_while_it_goes_bring_the_turns_back(bench: Bench, autojump_clock: Clock) -> None:
    lock = await contended(bench, credit=0)
    assert lock.turn is not None
    assert released(bench) is False  # it went before this log began
    lock = await held(bench, EX)
    bench.cache.revoke(A, NL)
    bench.start(lock, EX)
    lock.drop(EX)
    await settle()
    assert lock.turn is not None
    assert lock.turn.credit == 1


@pytest.mark.seed("002-08")
async def test_t4_the_second_of_two_demotions_is_obeyed_at_once(bench: Bench, autojump_clock: Clock) -> None:
    lock = await contended(bench)
    await use(lock, CONTENDED / 2)
    lock.revoke_to = PR  # what the peer wanted
    await trio.sleep(CONTENDED)
    assert bench.manager.take_log() == [("release", 100, PR)]
    bench.cache.revoke(A, NL)
    await settle()
    assert released(bench)


async def test_t5_the_cache_asks_for_ex_where_writes_follow_reads(bench: Bench, autojump_clock: Clock) -> None:
    lock = bench.lock()
    lock.turn = bench.cache._turns.open(A)
    lock.turn.writes = True
    reader = bench.start(lock, PR)
    await settle()
    assert bench.manager.take_log() == [("request", 100, EX)]
    bench.manager.grant(A, EX)
    await settle()
    assert (reader.result, lock.readers, lock.wrote) == (True, 1, False)
    reader.drop()
    bench.cache.revoke(A, NL)
    await trio.sleep(TURN_MAX)
    assert released(bench)
    bench.start(lock, PR)
    await settle()
    assert bench.manager.take_log() == [("request", 100, PR)], "nobody wrote"


async def test_t5_not_where_holds_last(bench: Bench, autojump_clock: Clock) -> None:
    """OPEN locks are held in PR as long as a file is open: EX would wait for the last close elsewhere."""
    bench.callouts.upgrades = False
    lock = bench.lock()
    lock.turn = bench.cache._turns.open(A)
    lock.turn.writes = True
    bench.start(lock, PR)
    await settle()
    assert bench.manager.take_log() == [("request", 100, PR)]


async def test_a_turn_in_too_low_a_mode_ends(bench: Bench, autojump_clock: Clock) -> None:
    """Two nodes hold PR and want EX: neither may wait for its own turn to end."""
    lock = bench.lock()
    reader = bench.start(lock, PR)
    await settle()
    bench.manager.grant(A, PR, NL)
    await settle()
    reader.drop()
    writer = bench.start(lock, EX)
    await settle()
    assert bench.manager.take_log() == [("request", 100, PR), ("release", 100, NL), ("request", 100, EX)]
    assert writer.result is None


async def test_a_revoke_during_a_turn_only_lowers_its_end(bench: Bench, autojump_clock: Clock) -> None:
    lock = await contended(bench)
    bench.cache.revoke(A, NL)
    bench.cache.revoke(A, NL)
    await use(lock, 1)
    await settle()
    assert bench.cache.statistics()["revokes_deferred"] == 1
    assert bench.callouts.calls == [(100, EX, NL)]
