"""LinkMesh over real TCP on 127.0.0.1-3: resume without loss, refusals, restarts, strangers."""

from __future__ import annotations

import socket
import struct
from contextlib import asynccontextmanager, suppress
from functools import partial

import pytest
import trio

from membership.clock import SystemClock, SystemRng
from membership.errors import OperatorError
from membership.seams import Delivery, LinkDown, LinkUp, PeerAddress
from membership.transport import links as links_module
from membership.transport import session as session_module
from membership.transport.handshake import HELLO_BYTES, NOTHING, Connector, Credentials, Instance
from membership.transport.links import LinkMesh

UUID, KEY = b"u" * 16, b"k" * 32
LONG = 60.0  # a grace no test waits for


class Node:
    """A mesh in a nursery of its own, so that it can be killed."""

    def __init__(self, mesh: LinkMesh, address: PeerAddress, scope: trio.CancelScope) -> None:
        self.mesh, self.address, self._scope = mesh, address, scope
        self.stopped = trio.Event()

    async def kill(self) -> None:
        """Close all sockets, as the kernel does for a killed process."""
        self._scope.cancel()
        await self.stopped.wait()

    async def next(self, kind: type) -> object:
        """The next event of this kind; others are dropped."""
        while True:
            event = await self.mesh.receive()
            if isinstance(event, kind):
                return event


@asynccontextmanager
async def cluster():
    async with trio.open_nursery() as nursery:

        async def start(
            number, *, incarnation=1, purpose="test", key=KEY, uuid=UUID, port=0, others=(), **options
        ) -> Node:
            host = f"127.0.0.{number + 1}"
            identity = PeerAddress(number, incarnation, host, 0)
            mesh = LinkMesh(identity, purpose, uuid, key, SystemClock(), SystemRng(), **options)
            address = PeerAddress(number, incarnation, host, await mesh.listen(host, port, others), others)
            node = Node(mesh, address, trio.CancelScope())

            async def live(task_status):
                with node._scope:
                    await mesh.run(task_status=task_status)
                node.stopped.set()

            await nursery.start(live)
            return node

        yield start
        nursery.cancel_scope.cancel()


def introduce(*nodes: Node) -> None:
    for node in nodes:
        node.mesh.set_peers([other.address for other in nodes])


class Proxy:
    """A TCP relay that a test can break: what was in it is lost, as in a broken path."""

    def __init__(self, target: PeerAddress) -> None:
        self.target = target
        self.accepted = 0
        self._scopes: list[trio.CancelScope] = []
        self._streams: list[trio.SocketStream] = []

    async def listen(self, nursery: trio.Nursery, host: str = "127.0.0.3") -> PeerAddress:
        listeners = await nursery.start(partial(trio.serve_tcp, host=host), self._relay, 0)
        port = listeners[0].socket.getsockname()[1]
        return PeerAddress(self.target.node, self.target.incarnation, host, port)

    def break_all(self) -> None:
        for stream in self._streams:  # reset, don't close in order: what the kernel holds is thrown away too
            stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        for scope in self._scopes:
            scope.cancel()
        self._scopes.clear()
        self._streams.clear()

    async def _relay(self, caller: trio.SocketStream) -> None:
        self.accepted += 1
        scope = trio.CancelScope()
        with scope:
            async with await trio.open_tcp_stream(self.target.host, self.target.port) as callee, caller:
                self._scopes.append(scope)
                self._streams += [caller, callee]
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._pump, caller, callee, scope)
                    nursery.start_soon(self._pump, callee, caller, scope)

    async def _pump(self, source: trio.SocketStream, sink: trio.SocketStream, scope: trio.CancelScope) -> None:
        try:
            while data := await source.receive_some(4096):
                await sink.send_all(data)
        except trio.BrokenResourceError:
            pass
        scope.cancel()


async def until(node: Node, counter: str, value: int) -> None:
    """Return when a counter of the node has reached a value."""
    while node.mesh.statistics()[counter] < value:  # noqa: ASYNC110  (the mesh has no event for it)
        await trio.sleep(0.001)


def numbers(count: int) -> list[bytes]:
    return [i.to_bytes(4, "little") * 50 for i in range(count)]


async def collect(node: Node, count: int) -> list[bytes]:
    return [(await node.next(Delivery)).payload for _ in range(count)]


@pytest.mark.seed("002-19")
async def test_three_nodes_talk_to_each_other_and_themselves():
    async with cluster() as start:
        nodes = [await start(i) for i in range(3)]
        introduce(*nodes)
        for node in nodes:
            for other in nodes:
                node.mesh.send(other.address.node, b"from %d" % node.address.node)
        for node in nodes:
            got = {(await node.next(Delivery)).payload for _ in nodes}
            assert got == {b"from 0", b"from 1", b"from 2"}
            assert [link.phase for link in node.mesh.links()] == ["up", "up"]


@pytest.mark.seed("003-33")
async def test_messages_of_one_pass_share_a_frame():
    async with cluster() as start:
        a, b = await start(0), await start(1)
        introduce(a, b)
        await a.next(LinkUp)
        await b.next(LinkUp)
        for expected in 2, 1, 1:  # after rest the first message leaves at once, in a frame of its own
            before = a.mesh.statistics()
            for payload in numbers(9):
                a.mesh.send(1, payload)
            assert await collect(b, 9) == numbers(9)
            after = a.mesh.statistics()
            assert after["messages_sent"] - before["messages_sent"] == 9
            assert after["frames_sent"] - before["frames_sent"] == expected


async def test_connection_killed_mid_stream_resumes_without_loss():
    async with cluster() as start, trio.open_nursery() as nursery:
        a, b = await start(0, grace=LONG), await start(1, grace=LONG)
        proxy = Proxy(b.address)
        a.mesh.set_peers([await proxy.listen(nursery)])
        b.mesh.set_peers([a.address])
        sent = numbers(4000)
        events: list[object] = []

        async def send(node: Node, to: int) -> None:
            for i, payload in enumerate(sent):
                node.mesh.send(to, payload)
                if i % 20 == 0:
                    await trio.lowlevel.checkpoint()
                if to == 1 and i % 800 == 400:
                    await a_delivered(i)
                    proxy.break_all()

        async def a_delivered(count: int) -> None:
            await until(b, "messages_received", count // 2)

        async def gather(node: Node) -> list[bytes]:
            got: list[bytes] = []
            while len(got) < len(sent):
                event = await node.mesh.receive()
                if isinstance(event, Delivery):
                    got.append(event.payload)
                else:
                    events.append(event)
            assert got == sent
            return got

        async with trio.open_nursery() as work:
            work.start_soon(send, a, 1)
            work.start_soon(send, b, 0)
            work.start_soon(gather, a)
            work.start_soon(gather, b)
        assert sorted(events, key=lambda event: event.node) == [LinkUp(0), LinkUp(1)]
        assert a.mesh.statistics()["reconnects"] >= 3
        assert a.mesh.statistics()["sessions"] == 1
        nursery.cancel_scope.cancel()


@pytest.mark.seed("003-26")
@pytest.mark.parametrize("killed", [0, 1], ids=["the connecting side", "the accepting side"])
async def test_killed_peer_is_refused_without_waiting_for_the_grace(killed):
    async with cluster() as start:
        nodes = [await start(0, grace=LONG), await start(1, grace=LONG)]
        introduce(*nodes)
        survivor = nodes[1 - killed]
        await survivor.next(LinkUp)
        await nodes[killed].kill()
        assert await survivor.next(LinkDown) == LinkDown(killed, True, "connection refused")


@pytest.mark.parametrize("absent", [0, 1])
async def test_peer_that_never_was_there_is_refused(absent):
    async with cluster() as start:
        gone = await start(absent)
        await gone.kill()
        node = await start(1 - absent, grace=LONG)
        node.mesh.set_peers([gone.address])
        assert await node.next(LinkDown) == LinkDown(absent, True, "connection refused")


@pytest.mark.parametrize("same_port", [True, False])
async def test_restarted_peer_is_a_new_peer_and_gets_nothing_of_the_old_one(same_port):
    async with cluster() as start:
        a, b = await start(0, grace=LONG), await start(1, grace=LONG)
        introduce(a, b)
        await a.next(LinkUp)
        await b.kill()
        again = await start(1, incarnation=2, port=b.address.port if same_port else 0)
        down = await a.next(LinkDown)
        assert down.refused
        a.mesh.send(1, b"to the dead")
        introduce(a, again)
        a.mesh.send(1, b"to the living")
        assert await again.mesh.receive() == LinkUp(0)
        assert await again.mesh.receive() == Delivery(0, b"to the living")


async def test_silent_path_is_reported_after_the_grace_and_again_up_with_a_new_session():
    """A listener that answers nobody: neither refused nor there."""
    async with cluster() as start, trio.open_nursery() as nursery:
        a, b = await start(0, grace=0.1), await start(1, grace=0.1)
        proxy = Proxy(b.address)
        a.mesh.set_peers([await proxy.listen(nursery)])
        b.mesh.set_peers([a.address])
        await a.next(LinkUp)
        await b.next(LinkUp)
        with socket.socket() as deaf:
            deaf.bind(("127.0.0.3", 0))
            deaf.listen(5)
            proxy.target = PeerAddress(1, 1, *deaf.getsockname())
            proxy.break_all()
            assert await a.next(LinkDown) == LinkDown(1, False, "not back within 0.1 s")
            assert await b.next(LinkDown) == LinkDown(0, False, "not back within 0.1 s")
            a.mesh.send(1, b"next session")
            proxy.target = b.address
            proxy.break_all()
        assert await b.mesh.receive() == LinkUp(0)
        assert await b.mesh.receive() == Delivery(0, b"next session")
        assert await a.next(LinkUp) == LinkUp(1)
        nursery.cancel_scope.cancel()


async def test_peer_known_later_than_it_connects_is_parked_and_loses_nothing():
    async with cluster() as start:
        a, b = await start(0, grace=LONG), await start(1, grace=LONG)
        a.mesh.set_peers([b.address])
        a.mesh.send(1, b"early")
        assert await a.next(LinkUp) == LinkUp(1)
        b.mesh.set_peers([a.address])
        assert await b.mesh.receive() == LinkUp(0)
        assert await b.mesh.receive() == Delivery(0, b"early")


async def test_dropped_peer_is_silent_at_once():
    async with cluster() as start:
        a, b = await start(0, grace=LONG), await start(1, grace=LONG)
        introduce(a, b)
        await b.next(LinkUp)
        a.mesh.send(1, b"one")
        assert await collect(b, 1) == [b"one"]
        a.mesh.send(1, b"two")
        await until(b, "messages_received", 2)
        b.mesh.set_peers([])
        b.mesh.send(0, b"dropped silently")
        b.mesh.send(1, b"to myself")
        assert await b.mesh.receive() == Delivery(1, b"to myself")


async def test_stuck_peer_is_dropped(monkeypatch):
    monkeypatch.setattr(session_module, "QUEUED_MESSAGES_MAX", 100)
    async with cluster() as start:
        a, b = await start(0, grace=LONG), await start(1, grace=LONG)
        introduce(a, b)
        await a.next(LinkUp)
        await b.next(LinkUp)
        for payload in numbers(101):
            a.mesh.send(1, payload)
        assert await a.next(LinkDown) == LinkDown(1, False, "stuck: 100 messages not acknowledged")
        assert await b.next(LinkDown) == LinkDown(0, False, "the peer began a new session")
        assert await a.next(LinkUp) == LinkUp(1)
        a.mesh.send(1, b"new session")
        assert await collect(b, 1) == [b"new session"]


@pytest.mark.parametrize(
    "other", [{"key": b"x" * 32}, {"uuid": b"x" * 16}, {"purpose": "lockspace:1"}], ids=["key", "cluster", "purpose"]
)
async def test_stranger_gets_no_further_than_the_handshake(other):
    async with cluster() as start:
        a, b = await start(0, grace=0.1), await start(1, grace=0.1, **other)
        introduce(a, b)
        why = "it hung up on us: another cluster, key, purpose or version of MatrixFS"
        assert await a.next(LinkDown) == LinkDown(1, False, f"not reached within 0.1 s: {why}")
        assert a.mesh.links()[0].trouble == why
        assert await b.next(LinkDown) == LinkDown(0, False, "not reached within 0.1 s")
        assert b.mesh.statistics()["rejected"] > 0
        assert b.mesh.statistics()["connects"] == 0


@pytest.mark.parametrize("encrypt", [True, False])
async def test_nodes_that_differ_in_encryption_say_so_on_both_ends(encrypt, caplog):
    async with cluster() as start:
        a, b = await start(0, grace=0.1, encrypt=encrypt), await start(1, grace=0.1, encrypt=not encrypt)
        introduce(a, b)
        theirs, ours = ("plain", "encrypted") if encrypt else ("encrypted", "plain")
        why = f"node 1 wants {theirs} links, we {ours} ones: all nodes of a cluster must agree"
        assert await a.next(LinkDown) == LinkDown(1, False, f"not reached within 0.1 s: {why}")
        await until(b, "rejected", 3)
        assert sum(f"node 0 wants {ours} links" in line for line in caplog.messages) == 1
        assert b.mesh.statistics()["connects"] == 0


async def test_plain_links_work_when_all_want_them():
    async with cluster() as start:
        a, b = await start(0, encrypt=False), await start(1, encrypt=False)
        introduce(a, b)
        a.mesh.send(1, b"in the clear")
        assert await collect(b, 1) == [b"in the clear"]


async def test_older_version_is_refused_at_once_and_said_once(caplog):
    """A HELLO of version 1 is shorter than ours: it must not be waited for."""
    async with cluster() as start:
        b = await start(1)
        for _ in range(3):
            async with await trio.open_tcp_stream(b.address.host, b.address.port) as caller:
                await caller.send_all(b"MXLH\1\1\0\0" + bytes(136))
                with suppress(trio.BrokenResourceError):  # reset: it read the first bytes only
                    assert await caller.receive_some(1000) == b""
        assert b.mesh.statistics()["rejected"] == 3
        assert [line.split(": ", 1)[1] for line in caplog.messages] == [
            "the caller speaks link protocol 1, we 2: run one MatrixFS on all nodes"
        ]


async def test_worn_keys_are_replaced_and_nothing_is_lost(monkeypatch):
    monkeypatch.setattr("membership.transport.frames.KEY_FRAMES_MAX", 20)
    monkeypatch.setattr(links_module, "BEAT_SECONDS", 0.001)
    async with cluster() as start:
        a, b = await start(0, grace=LONG), await start(1, grace=LONG)
        introduce(a, b)
        sent = numbers(500)
        for payload in sent:
            a.mesh.send(1, payload)
            await trio.lowlevel.checkpoint()
        assert await collect(b, 500) == sent
        await until(a, "reconnects", 3)
        assert a.mesh.statistics()["sessions"] == 1


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\n" * 20, b"\0" * HELLO_BYTES], ids=["eof", "http", "zeros"])
async def test_caller_without_the_key_hears_nothing(said):
    async with cluster() as start:
        b = await start(1)
        async with await trio.open_tcp_stream(b.address.host, b.address.port) as caller:
            with suppress(trio.BrokenResourceError):  # reset: we had sent more than it read
                await caller.send_all(said)
                await caller.send_eof()
                assert await caller.receive_some(1000) == b""


async def test_replayed_hello_disturbs_nobody():
    async with cluster() as start:
        a, b = await start(0, grace=LONG), await start(1, grace=LONG)
        introduce(a, b)
        await a.next(LinkUp)
        recorded = Connector(Credentials(UUID, KEY, "test"), Instance(0, 1), Instance(1, 1), NOTHING, b"n" * 64).hello
        async with await trio.open_tcp_stream(b.address.host, b.address.port) as thief:
            await thief.send_all(recorded)
            await thief.receive_some(1000)
            await thief.send_all(b"no proof" * 5)
            assert await thief.receive_some(1000) == b""
        a.mesh.send(1, b"still here")
        assert await collect(b, 1) == [b"still here"]
        assert b.mesh.statistics()["reconnects"] == 0


async def test_garbage_from_an_insider_breaks_the_connection_only():
    async with cluster() as start:
        a, b = await start(0, grace=LONG), await start(1, grace=LONG)
        introduce(a, b)
        await a.next(LinkUp)
        a.mesh._peers[1].connection._sock.send(b"garbage" * 10)
        await until(b, "reconnects", 1)
        a.mesh.send(1, b"after it")
        assert await collect(b, 1) == [b"after it"]


async def test_slow_reader_loses_nothing_and_stops_the_sender():
    async with cluster() as start:
        a, b = await start(0, grace=LONG), await start(1, grace=LONG)
        introduce(a, b)
        big = bytes(session_module.MESSAGE_BYTES_MAX)
        for _ in range(100):
            a.mesh.send(1, big)
        for payload in numbers(20000):
            a.mesh.send(1, payload)
        assert await collect(b, 100) == [big] * 100
        assert await collect(b, 20000) == numbers(20000)


async def test_listening_on_a_foreign_address_is_the_operators_error():
    mesh = LinkMesh(PeerAddress(0, 1, "", 0), "test", UUID, KEY, SystemClock(), SystemRng())
    with pytest.raises(OperatorError, match="cannot listen on 192.0.2.1"):
        await mesh.listen("192.0.2.1")


@pytest.mark.seed("003-26")
async def test_stopped_process_is_silent_though_its_connection_stands(monkeypatch):
    """Its kernel goes on acknowledging; only a PING that nobody answers tells."""
    monkeypatch.setattr(links_module, "BEAT_SECONDS", 0.001)
    async with cluster() as start:
        a, b = await start(0), await start(1)
        introduce(a, b)
        await a.next(LinkUp)
        while a.mesh.links()[0].round_trip_us == 0:  # noqa: ASYNC110  (the mesh has no event for it)
            await trio.sleep(0.001)
        assert a.mesh.links()[0].round_trip_max_us >= a.mesh.links()[0].round_trip_us
        assert a.mesh.silence(1) < 1
        stopped = b.mesh._peers[0].connection
        monkeypatch.setattr(type(stopped), "_receive_pulse_untrusted", lambda *_: None)
        monkeypatch.setattr(stopped._pulse.__class__, "heard", lambda _: None)
        while a.mesh.silence(1) < 0.02:  # noqa: ASYNC110
            await trio.sleep(0.001)
        assert [link.phase for link in a.mesh.links()] == ["up"]
        assert a.mesh.links()[0].losses == 0
        assert a.mesh.silence(7) == 0


async def test_pings_let_an_idle_link_forget_what_it_kept(monkeypatch):
    monkeypatch.setattr(links_module, "BEAT_SECONDS", 0.001)
    async with cluster() as start:
        a, b = await start(0), await start(1)
        introduce(a, b)
        a.mesh.send(1, b"one")
        assert await collect(b, 1) == [b"one"]
        while a.mesh.links()[0].queued:  # noqa: ASYNC110
            await trio.sleep(0.001)
        traffic = a.mesh.links()[0].traffic
        assert traffic.messages_sent == 1
        assert traffic.frames_sent > 1
        before = a.mesh.statistics()
        a.mesh.set_peers([])
        after = a.mesh.statistics()
        assert after["frames_sent"] >= before["frames_sent"]
        assert after["messages_sent"] == 1, "what a dropped peer counted stays in the sum"
