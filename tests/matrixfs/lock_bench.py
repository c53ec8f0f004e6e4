"""A lock cache against a scripted lock manager: what the tests of the cache share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio

from dlm.client import PLAIN_GRANTS, Grant
from dlm.messages import NEVER
from dlm.names import Resource
from matrixfs.locks.cache import LockCache
from matrixfs.locks.lock import Lock
from matrixfs.locks.turns import CONTENDED
from tests.sim.network import SimClock

Clock = trio.abc.Clock
A = Resource(2, 100)
B = Resource(2, 101)


class Manager:
    """Notes what it is asked; grants when told to, or at once."""

    def __init__(self, *, at_once: bool = False) -> None:
        self.at_once = at_once
        self.log: list[tuple[object, ...]] = []
        self.cache: LockCache

    def request(
        self, resource: Resource, mode: int, *, try_: bool = False, extras: Sequence[Resource] = ()
    ) -> Grant | None:
        extra = ((*(each[1] for each in extras),),) if extras or try_ else ()
        self.log.append(("request", resource[1], mode, *extra))
        return PLAIN_GRANTS[mode] if self.at_once else None

    def release(self, resource: Resource, mode: int, value: bytes | None) -> None:
        self.log.append(("release", resource[1], mode))

    def cancel(self, resource: Resource) -> None:
        self.log.append(("cancel", resource[1]))

    def grant(self, resource: Resource, mode: int, finish: int = NEVER) -> None:
        self.cache.granted(resource, Grant(mode, None, finish))

    def take_log(self) -> list[tuple[object, ...]]:
        log, self.log = self.log, []
        return log


class Callouts:
    """Notes what is surrendered; can be made to wait or fail."""

    def __init__(self) -> None:
        self.flushes = False
        self.upgrades = True
        self.calls: list[tuple[int, int, int]] = []
        self.gate: trio.Event | None = None
        self.error: Exception | None = None

    async def surrender(self, lock: Lock, mode: int) -> None:
        self.calls.append((lock.number, lock.mode, mode))
        await trio.lowlevel.checkpoint()
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        assert lock.drained(mode), "a local holder is left"


class Bench:
    """A running cache."""

    def __init__(
        self, nursery: trio.Nursery, manager: Manager, stalled: Callable[[], bool] = lambda: False
    ) -> None:
        self.nursery = nursery
        self.manager = manager
        self.callouts = Callouts()
        self.fatal: list[BaseException] = []
        self.cache = LockCache(SimClock(), self.fatal.append, stalled=stalled)
        self.cache.attach(manager)
        manager.cache = self.cache

    def lock(self, resource: Resource = A) -> Lock:
        return self.cache.lock(resource, self.callouts)

    def start(self, lock: Lock, mode: int, exclusive: bool = False, timeout: float | None = None) -> Waiting:
        waiting = Waiting(lock, mode, exclusive)
        self.nursery.start_soon(waiting.run, timeout)
        return waiting


class Waiting:
    """A task that wants a lock."""

    def __init__(self, lock: Lock, mode: int, exclusive: bool) -> None:
        self.lock, self.mode, self.exclusive = lock, mode, exclusive
        self.scope = trio.CancelScope()
        self.result: bool | None = None

    async def run(self, timeout: float | None) -> None:
        with self.scope:
            self.result = await self.lock.hold(self.mode, self.exclusive, timeout)

    def drop(self) -> None:
        assert self.result
        self.lock.drop(self.mode, self.exclusive)


async def settle() -> None:
    await trio.testing.wait_all_tasks_blocked()


async def held(bench: Bench, mode: int, exclusive: bool = False, resource: Resource = A) -> Lock:
    """The lock, granted in ``mode`` and held, for so long that its turn is over (``turns``)."""
    lock = bench.lock(resource)
    waiting = bench.start(lock, mode, exclusive)
    await settle()
    bench.manager.grant(resource, mode)
    await trio.sleep(CONTENDED)
    assert waiting.result
    bench.manager.take_log()
    return lock
