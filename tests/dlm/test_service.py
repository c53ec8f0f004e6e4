"""The trio shell: callbacks, sends, rebuild as an awaited barrier, hostile payloads; over a network in memory."""

from __future__ import annotations

import math

import pytest
import trio
import trio.testing

from dlm.lockspace import WORK_ENTRIES
from dlm.messages import Request, encode
from dlm.modes import EX, PR
from dlm.names import Resource
from dlm.service import LockService
from membership.seams import Delivery, LinkDown, PeerAddress
from membership.views import DeadInstance, Instance, LockspaceView

R = Resource(1, 5)


class Wire:
    """A Transport in memory: unbounded, ordered, drops what is sent to who is no peer."""

    def __init__(self, node, network):
        self.node, self.network = node, network
        self.peers = set()
        self.put, self.take = trio.open_memory_channel(math.inf)
        network[node] = self

    def set_peers(self, peers):
        self.peers = {peer.node for peer in peers}

    def send(self, node, payload):
        if node in self.peers and node in self.network:
            self.network[node].put.send_nowait(Delivery(self.node, payload))

    async def serve(self, handler):
        async for event in self.take:
            handler(event)


class User:
    """Records what it is told; obeys revokes when told to."""

    def __init__(self):
        self.told = []
        self.service = None
        self.obeys = False

    def granted(self, resource, grant):
        self.told.append(("granted", resource, grant.mode, grant.value))

    def denied(self, resource):
        self.told.append(("denied", resource))

    def revoke(self, resource, mode):
        self.told.append(("revoke", resource, mode))
        if self.obeys:
            self.service.release(resource, mode, b"value")


class Net:
    def __init__(self, *nodes):
        self.wires = {}
        self.users = {node: User() for node in nodes}
        self.services = {node: LockService(node, 100, Wire(node, self.wires), 0, self.users[node]) for node in nodes}
        for node in nodes:
            self.users[node].service = self.services[node]

    def view(self, attempt, *dead):
        members = tuple(PeerAddress(node, 100, "127.0.0.1", node) for node in sorted(self.services))
        return LockspaceView(attempt, members, dead)

    async def change(self, attempt, *dead):
        results = []

        async def one(service):
            results.append(await service.rebuild(self.view(attempt, *dead)))

        for service in self.services.values():
            service.suspend(attempt)
        async with trio.open_nursery() as nursery:
            for service in self.services.values():
                nursery.start_soon(one, service)
        for service in self.services.values():
            service.resume(attempt)
        await trio.testing.wait_all_tasks_blocked()
        return results

    def mastered_by(self, node):
        return next(r for i in range(999) if self.services[node].master_is_local(r := Resource(1, i)))


@pytest.fixture
async def net(nursery):
    net = Net(0, 1, 2)
    for service in net.services.values():
        await nursery.start(service.run)
    assert await net.change(1) == [True, True, True]
    return net


async def test_local_grant_at_once_and_without_checkpoint(net):
    resource = net.mastered_by(1)
    with trio.testing.assert_no_checkpoints():
        grant = net.services[1].request(resource, EX)
        assert (grant.mode, grant.value) == (EX, None)
        net.services[1].release(resource, 0)
    assert net.services[1].held(resource) == 0
    statistics = net.services[1].statistics()
    assert statistics["local_grants"] == 1
    assert "sent_Request" not in statistics
    assert net.users[1].told == []


async def test_hand_over_with_value(net):
    resource = net.mastered_by(2)
    net.users[0].obeys = True
    assert net.services[0].request(resource, EX) is None
    await trio.testing.wait_all_tasks_blocked()
    assert net.services[1].request(resource, PR) is None
    await trio.testing.wait_all_tasks_blocked()
    assert net.users[0].told == [("granted", resource, EX, None), ("revoke", resource, PR)]
    assert net.users[1].told == [("granted", resource, PR, b"value")]
    assert net.services[0].held(resource) == PR
    assert net.services[2].dump()[0]["granted"] == {0: "PR", 1: "PR"}
    assert net.services[2].statistics()["received_Release"] == 1


async def test_request_never_calls_back_inside(net):
    resource = net.mastered_by(1)
    net.services[0].request(resource, PR)
    await trio.testing.wait_all_tasks_blocked()
    for cancelled in (False, True):
        assert net.services[1].request(resource, EX, try_=True) is None
        assert net.users[1].told == []
        if cancelled:
            net.services[1].cancel(resource)
        await trio.testing.wait_all_tasks_blocked()
        assert net.users[1].told == ([] if cancelled else [("denied", resource)])
        net.users[1].told.clear()


async def test_what_a_release_causes_here_is_told_before_it_returns(net):
    resource = net.mastered_by(1)
    assert net.services[1].request(resource, EX) is not None
    net.services[0].request(resource, PR)
    net.services[2].request(resource, EX)
    await trio.testing.wait_all_tasks_blocked()
    assert net.users[1].told == [("revoke", resource, PR)]
    with trio.testing.assert_no_checkpoints():
        net.services[1].release(resource, PR, b"v")
        assert net.users[1].told[1:] == [("revoke", resource, 0)]
    await trio.testing.wait_all_tasks_blocked()
    assert net.users[0].told == [("granted", resource, PR, b"v")]


async def test_give_way_while_our_own_request_waits(net):
    resource = net.mastered_by(1)
    for node in (1, 0):
        net.services[node].request(resource, PR)
        await trio.testing.wait_all_tasks_blocked()
    assert net.services[0].request(resource, EX) is None
    await trio.testing.wait_all_tasks_blocked()
    assert net.services[1].request(resource, EX) is None
    net.services[1].release(resource, 0)
    await trio.testing.wait_all_tasks_blocked()
    assert net.users[0].told[-1] == ("granted", resource, EX, None)
    net.services[0].release(resource, 0)
    await trio.testing.wait_all_tasks_blocked()
    assert net.users[1].told[-1] == ("granted", resource, EX, None)


async def test_rebuild_is_overtaken_by_a_newer_attempt(net, nursery):
    results = []

    async def rebuild_alone():
        results.append(await net.services[0].rebuild(net.view(5)))

    net.services[0].suspend(5)
    nursery.start_soon(rebuild_alone)
    await trio.testing.wait_all_tasks_blocked()
    assert results == []
    assert await net.change(6) == [True, True, True]
    assert results == [False]
    assert await net.services[0].rebuild(net.view(5)) is False  # stale
    assert await net.services[0].rebuild(net.view(6)) is True  # asked twice


async def test_ghosts_wait_for_the_replay(net):
    resource = net.mastered_by(0)
    net.services[2].request(resource, EX)
    await trio.testing.wait_all_tasks_blocked()
    view = net.view(1).instances
    del net.services[2], net.wires[2]
    dead = DeadInstance(2, 100, 2, (view,))
    assert await net.change(2, dead) == [True, True]
    assert net.services[1].request(resource, PR) is None
    await trio.testing.wait_all_tasks_blocked()
    assert net.users[1].told == []
    for service in net.services.values():
        service.release_ghosts(Instance(2, 100))
    await trio.testing.wait_all_tasks_blocked()
    assert net.users[1].told == [("granted", resource, PR, None)]


async def test_hostile_payloads_and_lost_links_are_counted(net):
    wire = net.wires[0]
    wire.put.send_nowait(Delivery(1, b"\xff" * 100))
    wire.put.send_nowait(LinkDown(1, refused=False, reason="test"))
    wire.put.send_nowait(Delivery(9, encode(1, Request(R, EX, 1))))
    await trio.testing.wait_all_tasks_blocked()
    statistics = net.services[0].statistics()
    assert (statistics["bad_messages"], statistics["links_lost"], statistics["stale"]) == (1, 1, 1)
    assert net.services[0].request(net.mastered_by(0), EX) is not None


async def test_leave(net):
    net.services[0].leave()
    net.services[0].suspend(9)
    assert await net.services[0].rebuild(net.view(9)) is False


async def test_others_run_between_the_pieces(net):
    turns, locks = 0, 3 * WORK_ENTRIES
    for i in range(locks):
        net.services[0].request(Resource(1, i), EX)

    async def somebody_else():
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as inner:
        inner.start_soon(somebody_else)
        for service in net.services.values():
            service.suspend(2)
        async with trio.open_nursery() as all_of_them:
            for service in net.services.values():
                all_of_them.start_soon(service.rebuild, net.view(2))
        inner.cancel_scope.cancel()
    assert turns >= locks // WORK_ENTRIES
