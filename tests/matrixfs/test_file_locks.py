"""File locks as the mount calls them: over lock services joined by a network in memory, with a clock in hand."""

from __future__ import annotations

import errno
import math
import random

import pytest
import trio
import trio.testing

from dlm.directory import Directory
from dlm.service import LockService
from matrixfs.locks.file_locks import END_MAX, Conflict, FileLocks, Kind
from membership.seams import Delivery, PeerAddress
from membership.views import LockspaceView

POSIX, FLOCK, NAMED = Kind.POSIX, Kind.FLOCK, Kind.NAMED


class Wire:
    """A Transport in memory: unbounded, ordered, drops what is sent to who is no peer."""

    def __init__(self, node, network):
        self.node, self.network = node, network
        self.peers = set()
        self.sent = []
        self.put, self.take = trio.open_memory_channel(math.inf)
        network[node] = self

    def set_peers(self, peers):
        self.peers = {peer.node for peer in peers}

    def send(self, node, payload):
        if node in self.peers and node in self.network:
            self.sent.append(node)
            self.network[node].put.send_nowait(Delivery(self.node, payload))

    async def serve(self, handler):
        async for event in self.take:
            handler(event)


class NoCache:
    """The client of locks that nobody asks for."""


class Tick:
    """A Clock that stands still until ``forward``."""

    def __init__(self):
        self.now = 100.0
        self.moved = trio.Event()

    def monotonic(self):
        return self.now

    async def sleep(self, seconds):
        until = self.now + seconds
        while self.now < until:
            await self.moved.wait()

    async def forward(self, seconds):
        self.now += seconds
        self.moved.set()
        self.moved = trio.Event()
        await trio.testing.wait_all_tasks_blocked()


class Net:
    def __init__(self, *nodes):
        self.wires, self.services, self.locks = {}, {}, {}
        self.clock = Tick()
        self.attempt = 0
        self.changing = False
        for node in nodes:
            self.services[node] = LockService(node, 100, Wire(node, self.wires), 0, NoCache())
            self.locks[node] = FileLocks(self.services[node], self.clock)

    async def change(self):
        """A whole recovery."""
        self.suspend()
        await self.finish()

    async def change_once(self):
        """A recovery beside calls that go on, unless one is under way."""
        if self.changing:
            return
        self.changing = True
        self.suspend()
        await self.finish(quiet=False)
        self.changing = False

    def suspend(self):
        self.attempt += 1
        for service in self.services.values():
            service.suspend(self.attempt)

    async def finish(self, *, quiet=True):
        members = tuple(PeerAddress(node, 100, "127.0.0.1", node) for node in sorted(self.services))
        async with trio.open_nursery() as nursery:
            for service in self.services.values():
                nursery.start_soon(service.rebuild, LockspaceView(self.attempt, members))
        for service in self.services.values():
            service.resume(self.attempt)
        if quiet:
            await settle()

    async def kill(self, node):
        del self.services[node], self.wires[node], self.locks[node]
        await self.change()

    def mastered_by(self, node, *, after=0):
        directory = Directory(sorted(self.services), 0)
        return next(i for i in range(after + 1, after + 999) if directory.master_of_key(i) == node)

    def sent(self):
        return sum(len(wire.sent) for wire in self.wires.values())


class Task:
    """A call under way: its result, or the errno it ended with."""

    def __init__(self, nursery, call, *arguments, **options):
        self.result = "waits"
        self.scope = trio.CancelScope()
        nursery.start_soon(self._run, call, arguments, options)

    async def _run(self, call, arguments, options):
        with self.scope:
            try:
                self.result = await call(*arguments, **options)
            except OSError as error:
                self.result = error.errno
        if self.scope.cancelled_caught:
            self.result = "cancelled"


async def settle():
    await trio.testing.wait_all_tasks_blocked()


@pytest.fixture
async def net(nursery):
    net = Net(0, 1, 2)
    for node, service in net.services.items():
        await nursery.start(service.run)
        await nursery.start(net.locks[node].run)
    await net.change()
    return net


async def refused(call):
    with pytest.raises(OSError) as caught:
        await call
    return caught.value.errno


async def test_a_try_is_refused_and_f_getlk_names_the_holder(net):
    x = net.mastered_by(0)
    await net.locks[1].set(POSIX, x, 11, 4711, 10, 19, True, wait=False)
    for node in (0, 2):
        assert await net.locks[node].test(POSIX, x, 22, 0, END_MAX, False) == Conflict(1, 4711, 10, 19, True)
        assert await refused(net.locks[node].set(POSIX, x, 22, 1, 19, 30, False, wait=False)) == errno.EAGAIN
    assert await net.locks[1].test(POSIX, x, 11, 0, END_MAX, True) is None
    await net.locks[2].set(POSIX, x, 11, 1, 20, 29, True, wait=False)  # the same id on another node is another owner
    await net.locks[1].unset(POSIX, x, 11, 10, 19)
    assert await net.locks[0].test(POSIX, x, 22, 0, 19, True) is None


async def test_kinds_do_not_meet(net):
    for node, kind in enumerate((POSIX, FLOCK, NAMED)):
        await net.locks[node].set(kind, 5, 1, 1, 0, END_MAX, True, wait=False)
    assert [net.locks[node].held(5) for node in (0, 1, 2)] == [1, 1, 1]
    assert [net.locks[0].holds(kind, 5, 1) for kind in (POSIX, FLOCK, NAMED)] == [True, False, False]


@pytest.mark.seed("003-41")
async def test_messages_per_call(net, nursery):
    near, far = net.mastered_by(1), net.mastered_by(2)
    locks = net.locks[1]
    for x, messages in ((near, 0), (far, 2)):
        for call in (
            lambda x=x: locks.set(POSIX, x, 1, 1, 0, 9, True, wait=True),
            lambda x=x: locks.set(POSIX, x, 1, 1, 5, 9, False, wait=True),
            lambda x=x: locks.set(POSIX, x, 1, 1, 5, 9, True, wait=True),
            lambda x=x: locks.test(POSIX, x, 1, 0, 9, True),
            lambda x=x: locks.drop(POSIX, x, 1),
        ):
            before = net.sent()
            await call()
            assert net.sent() - before == messages
    await locks.set(POSIX, far, 1, 1, 0, 9, True, wait=True)
    before = net.sent()
    await locks.set(POSIX, far, 1, 1, 3, 5, True, wait=True)  # held already
    await locks.unset(POSIX, far, 1, 20, 29)  # not held
    await locks.drop(POSIX, far, 2)
    assert net.sent() == before


async def test_a_waiter_gets_it_when_it_is_free(net, nursery):
    x = net.mastered_by(0)
    await net.locks[1].set(POSIX, x, 1, 1, 0, 99, True, wait=True)
    waits = Task(nursery, net.locks[2].set, POSIX, x, 2, 77, 50, 149, True, wait=True)
    await settle()
    assert waits.result == "waits"
    assert net.locks[2].holds(POSIX, x, 2)
    assert net.locks[2].held(x) == 0
    await net.clock.forward(3)
    (entry,) = net.locks[2].dump()
    assert (entry["pid"], entry["waiting"]) == (77, 3.0)
    assert [e["waits_for"] for e in net.locks[0].dump_mastered()] == [None, [[1, 1]]]
    await net.locks[1].unset(POSIX, x, 1, 0, 49)
    assert waits.result == "waits"
    await net.locks[1].unset(POSIX, x, 1, 50, 60)
    assert waits.result == "waits"
    await net.locks[1].drop(POSIX, x, 1)
    await settle()
    assert waits.result is None
    assert net.locks[2].held(x) == 1


async def test_a_cancelled_wait_leaves_nothing(net, nursery):
    x = net.mastered_by(0)
    await net.locks[1].set(POSIX, x, 1, 1, 0, 9, True, wait=True)
    waits = Task(nursery, net.locks[2].set, POSIX, x, 2, 1, 0, 9, True, wait=True)
    await settle()
    waits.scope.cancel()
    await settle()
    assert waits.result == "cancelled"
    assert not net.locks[2].holds(POSIX, x, 2)
    await net.locks[1].drop(POSIX, x, 1)
    await net.locks[0].set(POSIX, x, 3, 1, 0, 9, True, wait=False)


async def test_a_grant_that_crosses_the_cancellation_is_kept(net, nursery):
    x = net.mastered_by(0)
    await net.locks[0].set(POSIX, x, 1, 1, 0, 9, True, wait=True)
    waits = Task(nursery, net.locks[2].set, POSIX, x, 2, 1, 0, 9, True, wait=True)
    await settle()
    await net.locks[0].unset(POSIX, x, 1, 0, 9)  # local: the grant is on its way when this returns
    waits.scope.cancel()
    await settle()
    assert waits.result is None
    assert net.locks[2].held(x) == 1


async def test_flock_conversions(net, nursery):
    x = net.mastered_by(0)
    for node in (1, 2):
        await net.locks[node].set(FLOCK, x, node, 1, 0, END_MAX, False, wait=False)
    assert await refused(net.locks[1].set(FLOCK, x, 1, 1, 0, END_MAX, True, wait=False)) == errno.EAGAIN
    assert not net.locks[1].holds(FLOCK, x, 1)  # lost, as on Linux
    await net.locks[2].set(FLOCK, x, 2, 1, 0, END_MAX, True, wait=False)
    waits = Task(nursery, net.locks[1].set, FLOCK, x, 1, 1, 0, END_MAX, False, wait=True)
    await settle()
    assert waits.result == "waits"
    await net.locks[2].set(FLOCK, x, 2, 1, 0, END_MAX, False, wait=False)
    await settle()
    assert waits.result is None
    both = [
        Task(nursery, net.locks[node].set, FLOCK, x, node, 1, 0, END_MAX, True, wait=True) for node in (1, 2)
    ]
    await settle()
    assert sorted(str(task.result) for task in both) == ["None", "waits"]  # no deadlock: both dropped first


async def test_locks_and_waits_outlive_a_view(net, nursery):
    x, y = net.mastered_by(0), net.mastered_by(2)
    for obj in (x, y):
        await net.locks[1].set(POSIX, obj, 1, 1, 0, 9, True, wait=True)
    waits = [Task(nursery, net.locks[2].set, POSIX, obj, 2, 1, 5, 14, False, wait=True) for obj in (x, y)]
    await settle()
    net.suspend()
    asked = Task(nursery, net.locks[2].set, NAMED, x, 5, 1, 0, END_MAX, True, wait=False)
    freed = Task(nursery, net.locks[1].unset, POSIX, x, 1, 0, 4)
    tried = Task(nursery, net.locks[2].set, POSIX, x, 3, 1, 5, 5, True, wait=False)
    withdrawn = waits[1]
    withdrawn.scope.cancel()
    await settle()
    assert [task.result for task in (asked, freed, tried, withdrawn)] == ["waits", "waits", "waits", "cancelled"]
    await net.finish()
    assert [task.result for task in (asked, freed, tried)] == [None, None, errno.EAGAIN]
    assert waits[0].result == "waits"
    await net.locks[0].set(POSIX, x, 9, 1, 0, 4, True, wait=False)
    await net.locks[1].drop(POSIX, x, 1)
    await settle()
    assert waits[0].result is None


async def test_what_a_dead_node_held_is_free_after_the_rebuild(net, nursery):
    x = net.mastered_by(0)
    await net.locks[1].set(POSIX, x, 1, 1, 0, 9, True, wait=True)
    waits = Task(nursery, net.locks[2].set, POSIX, x, 2, 1, 0, 9, True, wait=True)
    await settle()
    assert waits.result == "waits"
    await net.kill(1)
    assert waits.result is None


async def test_deadlock_over_three_nodes_and_arbiters_has_one_victim(net, nursery):
    objects = [net.mastered_by(node) for node in (2, 0, 1)]
    for node in range(3):
        await net.locks[node].set(POSIX, objects[node], node, 1, 0, 9, True, wait=True)
    waits = []
    for node in range(3):
        other = objects[(node + 1) % 3]
        waits.append(Task(nursery, net.locks[node].set, POSIX, other, node, 1, 3, 3, False, wait=True))
        await settle()
    assert [task.result for task in waits] == ["waits"] * 3
    await net.clock.forward(0.2)
    assert sorted(str(task.result) for task in waits) == sorted([str(errno.EDEADLK), "waits", "waits"])
    counts = [service.statistics() for service in net.services.values()]
    assert sum(count.get("owned_deadlocks", 0) for count in counts) == 1


async def test_conversion_deadlock_is_seen_at_once(net, nursery):
    x = net.mastered_by(0)
    for node in (1, 2):
        await net.locks[node].set(POSIX, x, node, 1, 0, 9, False, wait=True)
    first = Task(nursery, net.locks[1].set, POSIX, x, 1, 1, 0, 9, True, wait=True)
    await settle()
    assert await refused(net.locks[2].set(POSIX, x, 2, 1, 0, 9, True, wait=True)) == errno.EDEADLK
    assert first.result == "waits"
    await net.locks[2].drop(POSIX, x, 2)
    await settle()
    assert first.result is None


async def test_nonsense_of_a_caller(net):
    for start, end in ((-1, 5), (6, 5), (0, END_MAX + 1)):
        assert await refused(net.locks[0].set(POSIX, 1, 1, 1, start, end, True, wait=True)) == errno.EINVAL
        assert await refused(net.locks[0].unset(POSIX, 1, 1, start, end)) == errno.EINVAL


async def test_no_update_is_lost_under_cancellations_and_view_changes(net):
    """A counter that is read, waited over and written under one byte, by six tasks of three nodes."""
    x = net.mastered_by(0)
    rng = random.Random(4711)
    counts = {"value": 0, "done": 0, "cancelled": 0}

    async def work(node, owner):
        for i in range(60):
            with trio.CancelScope() as scope:
                if rng.random() < 0.2:
                    nursery.start_soon(cancel_later, scope)
                await net.locks[node].set(POSIX, x, owner, 1, 3, 3, True, wait=True)
                with trio.CancelScope(shield=True):
                    value = counts["value"]
                    await trio.lowlevel.checkpoint()
                    counts["value"] = value + 1
                    counts["done"] += 1
            counts["cancelled"] += scope.cancelled_caught
            await net.locks[node].unset(POSIX, x, owner, 3, 3)
            if node == 2 and i % 20 == 10:
                nursery.start_soon(net.change_once)

    async def cancel_later(scope):
        for _ in range(rng.randrange(8)):
            await trio.lowlevel.checkpoint()
        scope.cancel()

    async with trio.open_nursery() as nursery:
        for node in (0, 1, 2):
            for owner in (1, 2):
                nursery.start_soon(work, node, owner)
    assert counts["value"] == counts["done"]
    assert counts["done"] + counts["cancelled"] >= 6 * 60
    assert counts["cancelled"] > 10
    assert net.attempt > 3
    for node in (0, 1, 2):
        assert net.locks[node].dump() == net.locks[node].dump_mastered() == []
