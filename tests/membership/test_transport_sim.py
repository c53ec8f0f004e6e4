"""The simulated network keeps the Transport's contract and is deterministic (R2)."""

from __future__ import annotations

import random

import pytest
import trio
import trio.testing

from membership.seams import Delivery, LinkDown, LinkUp
from tests.sim.network import SimClock, SimNetwork, SimTransport, deterministic_scheduling


async def drain(transport: SimTransport, seconds: float) -> list[object]:
    """Everything received within virtual ``seconds``."""
    events: list[object] = []
    with trio.move_on_after(seconds):
        while True:
            events.append(await transport.receive())
    return events


def payloads(events: list[object]) -> list[int]:
    return [int.from_bytes(event.payload, "little") for event in events if isinstance(event, Delivery)]


def number(i: int) -> bytes:
    return i.to_bytes(4, "little")


async def start(nursery: trio.Nursery, net: SimNetwork, count: int) -> list[SimTransport]:
    await nursery.start(net.run)
    made = [net.transport(node) for node in range(count)]
    for one in made:
        one.set_peers([other.address for other in made])
    return made


async def test_delivers_in_order_and_once_despite_reordering_and_duplicates(autojump_clock):
    async with trio.open_nursery() as nursery:
        net = SimNetwork(3, duplicate=0.3)
        a, b = await start(nursery, net, 2)
        for i in range(500):
            a.send(1, number(i))
        events = await drain(b, 5)
        assert events[0] == LinkUp(0)
        assert payloads(events) == list(range(500))
        nursery.cancel_scope.cancel()


async def test_short_cut_is_resumed_unreported(autojump_clock):
    async with trio.open_nursery() as nursery:
        net = SimNetwork(4)
        a, b = await start(nursery, net, 2)
        await drain(b, 1)
        net.cut(0, 1)
        for i in range(100):
            a.send(1, number(i))
        await trio.sleep(0.4)
        net.heal(0, 1)
        events = await drain(b, 5)
        assert payloads(events) == list(range(100))
        assert len(events) == 100
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("both", [True, False])
async def test_long_cut_is_reported_and_comes_back_as_a_new_session(autojump_clock, both):
    async with trio.open_nursery() as nursery:
        net = SimNetwork(5)
        a, b = await start(nursery, net, 2)
        await drain(b, 1)
        await drain(a, 1)
        net.cut(0, 1, both=both)
        a.send(1, b"lost")
        for one, peer in ((a, 1), (b, 0)):
            assert await drain(one, 5) == [LinkDown(peer, False, "not back within 1 s")]
        a.send(1, b"next session")
        net.heal(0, 1)
        assert await drain(b, 5) == [LinkUp(0), Delivery(0, b"next session")]
        assert await drain(a, 1) == [LinkUp(1)]
        nursery.cancel_scope.cancel()


@pytest.mark.seed("003-26")
async def test_kill_refuses_and_a_restart_is_a_new_peer(autojump_clock):
    async with trio.open_nursery() as nursery:
        net = SimNetwork(6)
        a, b, c = await start(nursery, net, 3)
        await drain(a, 1)
        net.kill(1)
        assert await drain(a, 0.25) == [LinkDown(1, True, "connection refused")]
        b2 = net.transport(1, incarnation=2)
        b2.set_peers([a.address])
        a.set_peers([b2.address, c.address])
        a.send(1, b"hello")
        assert await drain(b2, 1) == [LinkUp(0), Delivery(0, b"hello")]
        assert await drain(a, 1) == [LinkUp(1)]
        nursery.cancel_scope.cancel()


async def test_kill_behind_a_cut_is_refused_only_after_heal(autojump_clock):
    async with trio.open_nursery() as nursery:
        net = SimNetwork(7)
        a, _ = await start(nursery, net, 2)
        await drain(a, 1)
        net.cut(0, 1)
        net.kill(1)
        assert await drain(a, 3) == [LinkDown(1, False, "not back within 1 s")]
        net.heal(0, 1)
        assert await drain(a, 3) == [LinkDown(1, True, "connection refused")]
        nursery.cancel_scope.cancel()


async def test_partition_separates_groups_only(autojump_clock):
    async with trio.open_nursery() as nursery:
        net = SimNetwork(8)
        made = await start(nursery, net, 4)
        for one in made:
            await drain(one, 1)
        net.partition({0, 1}, {2, 3})
        for one in made:
            for other in range(4):
                one.send(other, number(one.address.node))
        got = [sorted(payloads(await drain(one, 3))) for one in made]
        assert got == [[0, 1], [0, 1], [2, 3], [2, 3]]
        nursery.cancel_scope.cancel()


async def test_purposes_do_not_meet(autojump_clock):
    async with trio.open_nursery() as nursery:
        net = SimNetwork(9)
        await nursery.start(net.run)
        a, b = net.transport(0, purpose="x"), net.transport(1, purpose="y")
        a.set_peers([b.address])
        b.set_peers([a.address])
        assert await drain(a, 3) == [LinkDown(1, True, "connection refused")]
        nursery.cancel_scope.cancel()


def run_chaos(seed: int) -> list[object]:
    """A random schedule of sends, cuts, heals and restarts; returns the whole trace."""

    async def main() -> list[object]:
        rng = random.Random(seed)
        async with trio.open_nursery() as nursery:
            net = SimNetwork(seed, duplicate=0.2)
            made = await start(nursery, net, 3)
            for one in made:
                nursery.start_soon(drain, one, 1e9)
            for step in range(300):
                a, b = rng.sample(range(3), 2)
                what = rng.random()
                if what < 0.05:
                    net.cut(a, b, both=rng.random() < 0.5)
                elif what < 0.15:
                    net.heal(a, b)
                elif what < 0.17:
                    made[a] = net.transport(a, incarnation=step + 2)
                    nursery.start_soon(drain, made[a], 1e9)
                    for one in made:
                        one.set_peers([other.address for other in made])
                else:
                    made[a].send(b, number(step))
                await SimClock().sleep(rng.uniform(0, 0.05))
            net.heal_all()
            await trio.sleep(5)
            nursery.cancel_scope.cancel()
        return list(net.trace)

    with deterministic_scheduling(seed):
        return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_same_seed_same_trace():
    for seed in range(5):
        assert run_chaos(seed) == run_chaos(seed)
    assert run_chaos(0) != run_chaos(1)


def test_chaos_never_reorders_or_repeats():
    """Per receiver and sender, step numbers only grow, whatever was cut or restarted; and links all come back."""
    for seed in range(40):
        trace = run_chaos(seed)
        last: dict[tuple[object, int], int] = {}
        state: dict[tuple[object, int], object] = {}
        for _, what, _, who, detail in trace:
            if what == "deliver":
                node, payload = detail
                step = int.from_bytes(payload, "little")
                assert step > last.get((who, node), -1), (seed, who, detail)
                last[who, node] = step
                assert isinstance(state[who, node], LinkUp), (seed, who, detail)
            elif what == "event":
                state[who, detail.node] = detail
            else:
                state = {key: value for key, value in state.items() if key[0] != who}
        newest = {who.node: who for who, _ in state}
        ups = [key for key, value in state.items() if key[0] == newest[key[0].node] and isinstance(value, LinkUp)]
        assert len(ups) == 6, (seed, state)


@pytest.mark.seed("003-26")
async def test_frozen_process_is_silent_keeps_its_link_and_loses_nothing(autojump_clock):
    async with trio.open_nursery() as nursery:
        net = SimNetwork(9)
        a, b = await start(nursery, net, 2)
        await drain(b, 1)
        assert await a.receive() == LinkUp(1)
        assert a.silence(1) == 0
        net.freeze(1)
        for i in range(50):
            a.send(1, number(i))
            b.send(0, number(i))
        assert await drain(b, 20) == await drain(a, 0) == []
        assert a.silence(1) == pytest.approx(20)
        assert b.silence(0) == 0, "it slept: it has no opinion"
        net.thaw(1)
        assert payloads(await drain(a, 1)) == payloads(await drain(b, 1)) == list(range(50))
        assert a.silence(1) == 0
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("both", [True, False])
async def test_silence_counts_through_a_cut_and_a_lost_link(autojump_clock, both):
    async with trio.open_nursery() as nursery:
        net = SimNetwork(10)
        a, b = await start(nursery, net, 2)
        await drain(b, 1)
        net.cut(0, 1, both=both)
        await drain(a, 7)
        assert a.silence(1) == b.silence(0) == pytest.approx(7)
        net.heal(0, 1)
        await drain(a, 1)
        assert a.silence(1) == b.silence(0) == 0
        net.kill(1)
        await drain(a, 3)
        assert a.silence(1) == pytest.approx(3)
        a.set_peers([])
        assert a.silence(1) == 0
        nursery.cancel_scope.cancel()
