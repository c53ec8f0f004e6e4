"""LinkMesh over sockets that write in part, read in bits, break, and repeat old bytes; and peers that stop reading."""

from __future__ import annotations

import errno
import random
import socket

import pytest
import trio

from membership.seams import Delivery, LinkDown, LinkUp
from membership.transport import links as links_module
from membership.transport import session as session_module
from membership.transport.connection import RECEIVE_BYTES_MAX
from membership.transport.inbox import AT_ONCE, ROOM_EVENTS
from tests.membership.test_transport_links import LONG, cluster, introduce, numbers

pytestmark = pytest.mark.seed("002-19")


class BadSocket:
    """Takes and gives less than it could, breaks off, or says again what an earlier connection said."""

    def __init__(self, inner: socket.socket, rng: random.Random, past: list[bytes]) -> None:
        self._inner, self._rng, self._past = inner, rng, past
        self._left = rng.choice((0, 50, 400, 4000))  # calls until it breaks

    def fileno(self) -> int:
        return self._inner.fileno()

    def close(self) -> None:
        self._inner.close()

    def _age(self) -> None:
        self._left -= 1
        if self._left == 0:
            raise OSError(errno.ECONNRESET, "broken by the test")

    def send(self, data) -> int:
        self._age()
        choice = self._rng.random()
        if choice < 0.2:
            raise BlockingIOError
        return self._inner.send(data[: self._rng.randrange(1, len(data) + 1)] if choice < 0.6 else data)

    def recv(self, size: int) -> bytes:
        self._age()
        choice = self._rng.random()
        if choice < 0.2:
            raise BlockingIOError
        if choice < 0.205 and self._past:
            return self._rng.choice(self._past)
        data = self._inner.recv(self._rng.choice((1, 7, 100, size)))
        self._past.append(data)
        return data


@pytest.mark.parametrize("seed", range(8))
async def test_nothing_is_lost_repeated_or_overtaken_whatever_the_sockets_do(monkeypatch, seed):
    rng, past = random.Random(seed), []
    real = links_module.Connection
    monkeypatch.setattr(links_module, "Connection", lambda sock, *rest: real(BadSocket(sock, rng, past), *rest))
    monkeypatch.setattr(links_module, "BACKOFF_SECONDS_MIN", 0.0001)
    monkeypatch.setattr(links_module, "BACKOFF_SECONDS_MAX", 0.0002)
    async with cluster() as start:
        a, b = await start(0, grace=LONG), await start(1, grace=LONG)
        introduce(a, b)
        sent, downs = numbers(3000), []

        async def send(node, to: int) -> None:
            for i, payload in enumerate(sent):
                node.mesh.send(to, payload)
                if i % 3 == 0:
                    await trio.lowlevel.checkpoint()

        async def take(node, *, serves: bool) -> None:
            got: list[bytes] = []
            with trio.CancelScope() as enough:

                def handler(event) -> None:
                    if isinstance(event, Delivery):
                        got.append(event.payload)
                    elif isinstance(event, LinkDown):
                        downs.append(event)
                    if len(got) >= len(sent):
                        enough.cancel()

                if serves:
                    await node.mesh.serve(handler)
                while True:
                    handler(await node.mesh.receive())
                    await trio.lowlevel.checkpoint()
            assert got == sent

        with trio.fail_after(60):
            async with trio.open_nursery() as work:
                work.start_soon(send, a, 1)
                work.start_soon(send, b, 0)
                work.start_soon(lambda: take(a, serves=True))
                work.start_soon(lambda: take(b, serves=seed % 2 == 0))
        assert downs == []
        assert a.mesh.statistics()["reconnects"] > 1


async def test_flood_to_a_peer_that_stops_reading_is_bounded_and_others_are_served():
    """100,000 messages: the stuck reader's queue ends at its cap, its sender keeps what it must, a third talks on."""
    async with cluster() as start, trio.open_nursery() as nursery:
        flooder, stuck, other = [await start(i, grace=LONG) for i in range(3)]
        introduce(flooder, stuck, other)
        await flooder.next(LinkUp)
        await flooder.next(LinkUp)

        def answer(event) -> None:
            if isinstance(event, Delivery):
                other.mesh.send(event.node, event.payload)

        nursery.start_soon(other.mesh.serve, answer)
        count = 100_000
        for i in range(count):
            flooder.mesh.send(1, i.to_bytes(4, "little"))
            if i % 1000 == 0:  # nobody calls stuck.mesh.receive() yet
                flooder.mesh.send(2, b"are you there")
                assert await flooder.next(Delivery) == Delivery(2, b"are you there")
        while len(stuck.mesh._inbox) <= ROOM_EVENTS:  # noqa: ASYNC110  (the mesh has no event for it)
            await trio.sleep(0.001)
        for _ in range(50):
            flooder.mesh.send(2, b"still there")
            assert await flooder.next(Delivery) == Delivery(2, b"still there")
        assert len(stuck.mesh._inbox) <= ROOM_EVENTS + RECEIVE_BYTES_MAX // (4 + 4), "one read beyond the cap"
        link = next(link for link in flooder.mesh.links() if link.node == 1)
        assert link.phase == "up"
        assert link.queued <= session_module.QUEUED_MESSAGES_MAX
        for i in range(count):
            event = await stuck.next(Delivery)
            assert event == Delivery(0, i.to_bytes(4, "little"))
        nursery.cancel_scope.cancel()


async def test_flood_to_who_serves_leaves_turns_to_others():
    async with cluster() as start, trio.open_nursery() as nursery:
        a, b = await start(0, grace=LONG), await start(1, grace=LONG)
        introduce(a, b)
        await a.next(LinkUp)
        run, longest, got = 0, 0, 0
        done = trio.Event()

        class Passes(trio.abc.Instrument):
            def before_io_wait(self, timeout: float) -> None:
                nonlocal run
                run = 0

        def handler(event) -> None:
            nonlocal run, longest, got
            run += 1
            longest = max(longest, run)
            got += isinstance(event, Delivery)
            if got == 20_000:
                done.set()

        for payload in numbers(20_000):
            a.mesh.send(1, payload)
        passes = Passes()
        trio.lowlevel.add_instrument(passes)
        nursery.start_soon(b.mesh.serve, handler)
        await done.wait()
        trio.lowlevel.remove_instrument(passes)
        assert longest <= 2 * AT_ONCE
        nursery.cancel_scope.cancel()
