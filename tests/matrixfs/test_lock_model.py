"""Several lock caches against a reference lock manager: random users, revokes, time-outs, cancels, memory pressure.

The manager is a table with a queue for each resource; what it does takes effect at once, what it says arrives later, in
order.  Checked: nobody holds what the others' modes exclude, nor more than his node was granted; every user gets in or
gives up; every revoke is answered; in the end nobody waits anywhere.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from dlm.client import Grant
from dlm.messages import NEVER
from dlm.modes import COMPATIBLE, EX, NL, PR, TOLERATED
from dlm.names import Resource
from matrixfs.locks import reclaim
from matrixfs.locks.cache import LockCache
from matrixfs.locks.lock import Lock
from tests.sim.network import SimClock, deterministic_scheduling

RESOURCES = [Resource(2, number) for number in range(3)]
SECONDS = 1.0  # of work; virtual
END = 60.0  # more than any chain of turns takes


class Master:
    """The reference: who is granted what, who waits, who was told to go down."""

    def __init__(self) -> None:
        self.granted: dict[Resource, dict[Node, int]] = {resource: {} for resource in RESOURCES}
        self.queues: dict[Resource, list[tuple[Node, int]]] = {resource: [] for resource in RESOURCES}
        self.told: set[tuple[Node, Resource, int]] = set()

    def fits(self, node: Node, resource: Resource, mode: int) -> bool:
        holders = self.granted[resource].items()
        return all(other is node or COMPATIBLE[mode] >> held & 1 for other, held in holders)

    def grant(self, node: Node, resource: Resource, mode: int) -> None:
        self.granted[resource][node] = mode
        self.told = {told for told in self.told if told[:2] != (node, resource)}
        node.post("granted", resource, mode)

    def serve(self, resource: Resource) -> None:
        queue = self.queues[resource]
        while queue and self.fits(queue[0][0], resource, queue[0][1]):
            node, mode = queue.pop(0)
            self.grant(node, resource, mode)
        if queue:
            wanted = queue[0][1]
            for node, held in self.granted[resource].items():
                target = TOLERATED[held][wanted]
                if node is not queue[0][0] and target < held and (node, resource, target) not in self.told:
                    self.told.add((node, resource, target))
                    node.post("revoke", resource, target)

    def release(self, node: Node, resource: Resource, mode: int) -> None:
        if mode:
            self.granted[resource][node] = mode
        else:
            self.granted[resource].pop(node, None)
        self.serve(resource)


class Callouts:
    flushes = True
    upgrades = True

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    async def surrender(self, lock: Lock, mode: int) -> None:
        await trio.sleep(self.rng.choice((0, 0.001, 0.02)))
        assert lock.drained(mode)


class Node:
    """A node's cache, and its end of the manager."""

    def __init__(self, master: Master, rng: random.Random) -> None:
        self.master = master
        self.rng = rng
        self.short = False
        self.cache = LockCache(SimClock(), self.fatal, stalled=lambda: self.short)
        self.cache.attach(self)
        self.callouts = Callouts(rng)
        self.mail: deque[tuple[str, Resource, int]] = deque()
        self.news = trio.Event()

    def fatal(self, error: BaseException) -> None:
        raise error

    def lock(self, resource: Resource) -> Lock:
        return self.cache.lock(resource, self.callouts)

    def post(self, what: str, resource: Resource, mode: int) -> None:
        self.mail.append((what, resource, mode))
        self.news.set()

    async def deliver(self) -> None:
        while True:
            await self.news.wait()
            self.news = trio.Event()
            while self.mail:
                await trio.sleep(self.rng.choice((0, 0.0005, 0.005)))
                if not self.mail:
                    break
                what, resource, mode = self.mail.popleft()
                if what == "granted":
                    self.cache.granted(resource, Grant(mode, None, NEVER))
                elif what == "revoke":
                    self.cache.revoke(resource, mode)
                else:
                    self.cache.denied(resource)

    # --- what the cache asks (``LockManager``) ---

    def request(
        self, resource: Resource, mode: int, *, try_: bool = False, extras: Sequence[Resource] = ()
    ) -> Grant | None:
        if try_:
            for each in (resource, *extras):
                if not self.master.queues[each] and self.master.fits(self, each, mode):
                    self.master.grant(self, each, mode)
                else:
                    self.post("denied", each, mode)
            return None
        assert all(node is not self for node, _ in self.master.queues[resource]), "a second request"
        if self.master.granted[resource].get(self):
            self.master.queues[resource].insert(0, (self, mode))  # conversions first
        else:
            self.master.queues[resource].append((self, mode))
        self.master.serve(resource)
        return None

    def release(self, resource: Resource, mode: int, value: bytes | None) -> None:
        assert self.master.granted[resource].get(self, NL) > mode
        if not any(mail[:2] == ("granted", resource) for mail in self.mail):  # else that grant is newer, and counts
            self.master.release(self, resource, mode)

    def cancel(self, resource: Resource) -> None:
        queue = self.master.queues[resource]
        for entry in [entry for entry in queue if entry[0] is self]:
            queue.remove(entry)
        for mail in [mail for mail in self.mail if mail[:2] == ("granted", resource)]:
            self.mail.remove(mail)  # given back: down to what the cache knows of
            self.master.release(self, resource, self.lock(resource).mode)
        self.master.serve(resource)


class Users:
    """Random work, and what is true of everybody's holds at any time."""

    def __init__(self, nodes: list[Node], rng: random.Random) -> None:
        self.nodes = nodes
        self.rng = rng
        self.inside: dict[Resource, list[tuple[Node, int, bool]]] = {resource: [] for resource in RESOURCES}
        self.got_in = self.gave_up = 0

    def check(self, node: Node, lock: Lock, mode: int, exclusive: bool) -> None:
        assert lock.mode >= mode
        assert node.master.granted[lock.resource].get(node, NL) >= mode, "not granted"
        for other, held, alone in self.inside[lock.resource]:
            if other is node:
                assert not (exclusive or alone), "beside an exclusive local holder"
            else:
                assert COMPATIBLE[mode] >> held & 1, "two nodes hold what excludes each other"

    async def user(self, node: Node) -> None:
        rng = self.rng
        while trio.current_time() < SECONDS:
            lock = node.lock(rng.choice(RESOURCES))
            mode, exclusive = rng.choice(((PR, False), (PR, False), (EX, False), (EX, True)))
            with trio.move_on_after(rng.choice((0.002, 0.03, 1000, 1000, 1000))):
                if not await lock.hold(mode, exclusive, rng.choice((None, None, 0.004))):
                    self.gave_up += 1
                    continue
                self.check(node, lock, mode, exclusive)
                self.inside[lock.resource].append((node, mode, exclusive))
                self.got_in += 1
                try:
                    await trio.sleep(rng.choice((0, 0, 0.0003, 0.01)))
                finally:
                    self.inside[lock.resource].remove((node, mode, exclusive))
                    lock.drop(mode, exclusive)
            await trio.sleep(rng.choice((0, 0.0001, 0.0005, 0.02)))

    async def nuisance(self, node: Node) -> None:
        """Prefetches, discards, memory that comes and goes."""
        rng = self.rng
        while trio.current_time() < SECONDS:
            await trio.sleep(rng.uniform(0, 0.1))
            lock = node.lock(rng.choice(RESOURCES))
            what = rng.randrange(3)
            if what == 0:
                await node.cache.prefetch([node.lock(resource) for resource in RESOURCES], PR)
            elif what == 1:
                node.cache.discard(lock)
            else:
                node.short = not node.short


async def story(seed: int, count: int) -> Users:
    rng = random.Random(seed)
    master = Master()
    nodes = [Node(master, rng) for _ in range(count)]
    users = Users(nodes, rng)
    async with trio.open_nursery() as nursery:
        for node in nodes:
            await nursery.start(node.cache.run)
            nursery.start_soon(node.deliver)
        with trio.fail_after(END):  # else somebody starves, or a wake-up was lost
            async with trio.open_nursery() as working:
                for node in nodes:
                    working.start_soon(users.nuisance, node)
                    for _ in range(3):
                        working.start_soon(users.user, node)
        await trio.sleep(5)
        assert not any(master.queues.values()), "a revoke was not answered"
        for node in nodes:
            assert node.cache.waits() == []
            for resource in RESOURCES:
                lock = node.lock(resource)
                assert lock.idle
                assert lock.mode == master.granted[resource].get(node, NL), "the two disagree on what is held"
        nursery.cancel_scope.cancel()
    return users


@pytest.mark.seed("002-05", "002-07")
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1 << 32), count=st.integers(1, 3))
def test_caches_agree_with_the_reference(seed: int, count: int) -> None:
    with pytest.MonkeyPatch.context() as patch, deterministic_scheduling(seed):
        patch.setattr(reclaim, "LOCKS_MIN", 0)
        users = trio.run(story, seed, count, clock=MockClock(autojump_threshold=0))
    assert users.got_in > 50
