"""Every state of a cached lock times every event, against the table in the docstring of ``locks/cache.py``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio

from dlm.modes import EX, NL, PR
from matrixfs.locks import cache
from matrixfs.locks.lock import Lock
from matrixfs.locks.turns import CONTENDED, TURN_MAX
from tests.matrixfs.lock_bench import A, B, Bench, Clock, Manager, held, settle


def table() -> dict[tuple[str, str], str]:
    """(state, event) to state, as documented."""
    rows = [line.split() for line in (cache.__doc__ or "").splitlines()]
    start = next(number for number, row in enumerate(rows) if row[:2] == ["state", "use"])
    events = rows[start][1:]
    found: dict[tuple[str, str], str] = {}
    for row in rows[start + 2 :]:
        if row[0].startswith("="):
            break
        found |= {(row[0], event): target for event, target in zip(events, row[1:], strict=True)}
    return found


TABLE = table()


def state_of(lock: Lock) -> str:
    if lock.demoting:
        return "demoting"
    if lock.revoking:
        return "revoking"
    if lock.revoke_to is not None:
        return "kept"
    if lock.requested:
        return "requested"
    if lock.mode == NL:
        return "absent"
    return "held" if lock.in_use else "cached"


@pytest.fixture
async def bench(nursery: trio.Nursery, autojump_clock: Clock) -> Bench:
    bench = Bench(nursery, Manager())
    await nursery.start(bench.cache.run)
    bench.callouts.gate = trio.Event()
    return bench


# --- how to get there ---------------------------------------------------------------------------------------


async def absent(bench: Bench) -> Lock:
    return bench.lock()


async def cached(bench: Bench) -> Lock:
    lock = await held(bench, PR)
    lock.drop(PR)
    return lock


async def has_holder(bench: Bench) -> Lock:
    return await held(bench, PR)


async def requested(bench: Bench) -> Lock:
    """Tried along with another one, and somebody waits for it already."""
    lock = bench.lock()
    bench.nursery.start_soon(bench.cache.prefetch, [lock, bench.lock(B)], PR)
    await settle()  # or the order of the two tasks is trio's to choose
    bench.start(lock, PR)
    await settle()
    return lock


async def kept(bench: Bench) -> Lock:
    lock = bench.lock()
    bench.start(lock, PR)
    await settle()
    lock.turn = bench.cache._turns.open(A)
    lock.turn.cost = TURN_MAX  # long turns, and patience
    bench.manager.grant(A, PR, NL)
    await settle()
    return lock


async def kept_idle(bench: Bench) -> Lock:
    lock = await kept(bench)
    lock.drop(PR)
    return lock


async def revoking(bench: Bench) -> Lock:
    lock = await held(bench, PR)
    bench.cache.revoke(A, NL)
    await settle()
    return lock


async def demoting(bench: Bench) -> Lock:
    lock = await revoking(bench)
    lock.drop(PR)
    await settle()
    return lock


# --- what may happen ----------------------------------------------------------------------------------------


async def contend(bench: Bench, lock: Lock) -> None:
    """A peer wants it soon after it was granted and used."""
    lock.granted_at = bench.cache._clock.monotonic()
    lock.uses += 1
    bench.cache.revoke(A, NL)


async def over(bench: Bench, lock: Lock) -> None:
    await trio.sleep(TURN_MAX + CONTENDED)


async def done(bench: Bench, lock: Lock) -> None:
    assert bench.callouts.gate is not None
    bench.callouts.gate.set()


def plain(action: Callable[[Bench, Lock], object]) -> Callable[[Bench, Lock], Awaitable[None]]:
    async def event(bench: Bench, lock: Lock) -> None:
        action(bench, lock)

    return event


STATES = {
    "absent": absent, "cached": cached, "held": has_holder, "requested": requested, "kept": kept,
    "revoking": revoking, "demoting": demoting,
}  # fmt: skip
EVENTS = {
    "use": plain(lambda bench, lock: bench.start(lock, PR)),
    "more": plain(lambda bench, lock: bench.start(lock, EX)),
    "grant": plain(lambda bench, lock: bench.manager.grant(A, PR)),
    "deny": plain(lambda bench, lock: bench.cache.denied(A)),
    "revoke": plain(lambda bench, lock: bench.cache.revoke(A, NL)),
    "contend": contend,
    "drop": plain(lambda bench, lock: lock.drop(PR)),
    "over": over,
    "done": done,
}


def test_the_table_is_complete() -> None:
    assert sorted(TABLE) == sorted((state, event) for state in STATES for event in EVENTS)
    assert set(TABLE.values()) <= {*STATES, "-"}


@pytest.mark.parametrize(("state", "event"), [cell for cell, target in TABLE.items() if target != "-"])
async def test_it_moves_as_the_table_says(bench: Bench, autojump_clock: Clock, state: str, event: str) -> None:
    idle_needed = (state, event) in {("kept", "more"), ("kept", "over")}  # else the demotion waits for the holder
    lock = await (kept_idle if idle_needed else STATES[state])(bench)
    assert state_of(lock) == state
    await EVENTS[event](bench, lock)
    if event != "over" and TABLE[state, event] != "kept":
        await settle()
    assert state_of(lock) == TABLE[state, event]
