"""Inbox: one order whichever way events take, no nested calls, no long runs without a checkpoint, a bounded queue."""

from __future__ import annotations

import random

import pytest
import trio
import trio.testing

from membership.seams import Delivery
from membership.transport import inbox as inbox_module
from membership.transport.inbox import AT_ONCE, Inbox


def events(start: int, stop: int, node: int = 1) -> list[Delivery]:
    return [Delivery(node, number.to_bytes(4, "little")) for number in range(start, stop)]


def number(event: Delivery) -> int:
    return int.from_bytes(event.payload, "little")


async def test_handing_to_who_serves_is_a_plain_call():
    inbox, got = Inbox(), []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(inbox.serve, got.append)
        await trio.testing.wait_all_tasks_blocked()
        inbox.hand(events(0, 3))
        assert got == events(0, 3), "no task had to run for it"
        nursery.cancel_scope.cancel()
    inbox.hand(events(3, 5))
    assert len(inbox) == 2, "nobody serves any more"


@pytest.mark.parametrize("seed", range(20))
async def test_order_is_kept_whichever_way_events_take(seed):
    rng, inbox, got, sent = random.Random(seed), Inbox(), [], 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(inbox.serve, got.append)
        for _ in range(200):
            count = rng.choice((1, 1, 3, AT_ONCE - 1, AT_ONCE, AT_ONCE + 1, 300))
            rng.choice((inbox.hand, inbox.put))(events(sent, sent + count))
            sent += count
            if rng.random() < 0.5:
                await trio.lowlevel.checkpoint()
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert [number(event) for event in got] == list(range(sent))


async def test_what_the_handler_causes_comes_after_it_and_not_within():
    inbox, depth, told = Inbox(), 0, []

    def handler(event: Delivery) -> None:
        nonlocal depth
        assert depth == 0, "nested"
        depth += 1
        told.append(number(event))
        if number(event) < 3:
            inbox.put(events(10 + number(event), 11 + number(event)))
        depth -= 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(inbox.serve, handler)
        await trio.testing.wait_all_tasks_blocked()
        inbox.hand(events(0, 4))
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert told == [0, 1, 2, 3, 10, 11, 12]


async def test_peer_forgotten_by_the_handler_is_silent_at_once():
    inbox, told = Inbox(), []

    def handler(event: Delivery) -> None:
        told.append((event.node, number(event)))
        if told[-1] == (1, 2):
            inbox.forget(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(inbox.serve, handler)
        await trio.testing.wait_all_tasks_blocked()
        inbox.hand([*events(0, 5), *events(5, 6, node=2)])
        nursery.cancel_scope.cancel()
    assert told == [(1, 0), (1, 1), (1, 2), (2, 5)]


@pytest.mark.parametrize("way", ["hand", "put"])
async def test_a_flood_lets_other_tasks_run(way):
    inbox, turns, since, longest = Inbox(), 0, 0, 0

    def handler(_: Delivery) -> None:
        nonlocal since, longest
        since += 1
        longest = max(longest, since)

    async def other() -> None:
        nonlocal turns, since
        while True:
            turns += 1
            since = 0
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(inbox.serve, handler)
        nursery.start_soon(other)
        await trio.lowlevel.checkpoint()
        getattr(inbox, way)(events(0, 10_000))
        while len(inbox):  # noqa: ASYNC110  (it has no event for it)
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert longest <= 2 * AT_ONCE
    assert turns > 10_000 // (2 * AT_ONCE)


async def test_who_fills_it_waits_for_room(monkeypatch):
    monkeypatch.setattr(inbox_module, "ROOM_EVENTS", 100)
    inbox, rounds = Inbox(), 0
    async with trio.open_nursery() as nursery:

        async def fill() -> None:
            nonlocal rounds
            while rounds < 50:
                inbox.hand(events(0, 60))
                rounds += 1
                if inbox.crowded:
                    await inbox.wait_room()

        nursery.start_soon(fill)
        await trio.testing.wait_all_tasks_blocked()
        assert rounds == 2
        assert len(inbox) == 120
        for _ in range(50 * 60):
            await inbox.get()
            assert len(inbox) <= 160
    assert rounds == 50


async def test_only_one_may_serve():
    inbox = Inbox()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(inbox.serve, print)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(AssertionError, match="serves already"):
            await inbox.serve(print)
        nursery.cancel_scope.cancel()
