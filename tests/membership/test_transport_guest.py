"""Guests: one question with a join token's secret, and nothing for anybody else (R11)."""

from __future__ import annotations

import random
from contextlib import asynccontextmanager, suppress

import pytest
import trio

from membership.clock import SystemRng
from membership.errors import BadMessage, OperatorError, PeerError
from membership.transport import guest as guest_module
from membership.transport import reception
from membership.transport.frames import FrameWriter
from membership.transport.guest import call_as_guest
from membership.transport.handshake import (
    CHALLENGE_BYTES,
    ENTROPY_BYTES,
    HELLO_BYTES,
    NOTHING,
    Acceptor,
    Agreement,
    Connector,
    Credentials,
)
from membership.transport.reception import GUEST, GUEST_BYTES_MAX, GUESTS_MAX, HOST
from membership.transport.session import PING, Packet
from tests.membership.test_transport_links import UUID, cluster, collect, introduce, until

pytestmark = pytest.mark.seed("002-19")
TOKEN, SECRET = b"t" * 16, b"s" * 32


class Tokens:
    """Knows tokens, and echoes what is asked, twice."""

    def __init__(self, *tokens: bytes) -> None:
        self.known = set(tokens)
        self.asked: list[bytes] = []
        self.gate: trio.Event | None = None
        self.refusal: Exception | None = None

    def credentials(self, token_id: bytes) -> Credentials | None:
        return Credentials.of_token(UUID, token_id, SECRET) if token_id in self.known else None

    async def answer(self, token_id: bytes, request: bytes) -> bytes:
        self.asked.append(request)
        if self.gate is not None:
            await self.gate.wait()
        if self.refusal is not None:
            raise self.refusal
        return (token_id + request * 2)[:GUEST_BYTES_MAX]


@asynccontextmanager
async def door(*tokens: bytes, **options):
    known = Tokens(*tokens)
    async with cluster() as start:
        node = await start(1, guests=known, **options)
        yield known, node


def call(node, request: bytes = b"let me in", *, token: bytes = TOKEN, secret: bytes = SECRET, uuid: bytes = UUID):
    return call_as_guest(node.address.host, node.address.port, uuid, token, secret, request, SystemRng())


async def proven(node) -> tuple[trio.SocketStream, Agreement]:
    """A guest that has proven itself and does as it likes from then on."""
    connector = Connector(Credentials.of_token(UUID, TOKEN, SECRET), GUEST, HOST, NOTHING, bytes(ENTROPY_BYTES))
    stream = await trio.open_tcp_stream(node.address.host, node.address.port)
    await stream.send_all(connector.hello)
    challenge = await stream.receive_some(CHALLENGE_BYTES)
    proof, agreement = connector.receive_challenge_untrusted(challenge)
    await stream.send_all(proof)
    return stream, agreement


async def ends_unanswered(stream: trio.SocketStream) -> None:
    with suppress(trio.BrokenResourceError):  # reset: we had said more than it read
        assert await stream.receive_some(1000) == b""
    await stream.aclose()


@pytest.mark.parametrize("encrypt", [True, False], ids=["encrypted links", "plain links"])
async def test_a_guest_asks_once_and_is_answered(encrypt):
    async with door(TOKEN, encrypt=encrypt) as (tokens, node):
        assert await call(node) == TOKEN + b"let me in" * 2
        assert tokens.asked == [b"let me in"]
        assert (node.mesh.statistics()["guests"], node.mesh.statistics()["connects"]) == (1, 0)
        assert node.mesh.links() == []


@pytest.mark.parametrize("size", [0, 1, GUEST_BYTES_MAX])
async def test_any_size_up_to_the_cap(size):
    async with door(TOKEN) as (_, node):
        assert await call(node, bytes(size)) == (TOKEN + bytes(2 * size))[:GUEST_BYTES_MAX]


@pytest.mark.parametrize(
    "other", [{"token": b"u" * 16}, {"secret": b"S" * 32}, {"uuid": b"U" * 16}], ids=["token", "secret", "cluster"]
)
async def test_who_does_not_hold_a_known_token_is_a_stranger(other):
    async with door(TOKEN) as (tokens, node):
        with pytest.raises(PeerError, match="does not take this token"):
            await call(node, **other)
        assert tokens.asked == []
        assert node.mesh.statistics()["rejected"] == 1


async def test_a_token_is_asked_for_at_every_call():
    async with door(TOKEN) as (tokens, node):
        await call(node)
        tokens.known.clear()  # used
        with pytest.raises(PeerError, match="make a new one"):
            await call(node)


async def test_without_guests_a_token_is_another_purpose():
    async with cluster() as start:
        node = await start(1)
        with pytest.raises(PeerError, match="does not take this token"):
            await call(node)


async def test_a_host_that_does_not_hold_the_secret_is_not_believed():
    async def impostor(stream: trio.SocketStream) -> None:
        other = Acceptor(Credentials.of_token(UUID, TOKEN, SECRET), HOST, bytes(ENTROPY_BYTES))
        other.receive_hello_untrusted(await stream.receive_some(HELLO_BYTES))
        other._credentials = Credentials.of_token(UUID, TOKEN, b"S" * 32)
        await stream.send_all(other.challenge(NOTHING))

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, impostor, 0)
        port = listeners[0].socket.getsockname()[1]
        with pytest.raises(PeerError, match="does not take this token"):
            await call_as_guest("127.0.0.1", port, UUID, TOKEN, SECRET, b"", SystemRng())
        nursery.cancel_scope.cancel()


async def test_nobody_there_is_one_line():
    with pytest.raises(PeerError, match=r"127\.0\.0\.1, port 1: ECONNREFUSED: does matrixd run there"):
        await call_as_guest("127.0.0.1", 1, UUID, TOKEN, SECRET, b"", SystemRng())


async def test_recorded_conversation_gets_nothing():
    """Everything a listener saw, sent again: it gets a CHALLENGE that fits none of it, and then nothing."""
    said: list[bytes] = []

    async with door(TOKEN) as (tokens, node), trio.open_nursery() as nursery:

        async def record(caller: trio.SocketStream) -> None:
            async with await trio.open_tcp_stream(node.address.host, node.address.port) as callee:
                async with trio.open_nursery() as both:

                    async def back() -> None:
                        while data := await callee.receive_some():
                            await caller.send_all(data)
                        both.cancel_scope.cancel()

                    both.start_soon(back)
                    while data := await caller.receive_some():
                        said.append(data)
                        await callee.send_all(data)

        listeners = await nursery.start(trio.serve_tcp, record, 0)
        port = listeners[0].socket.getsockname()[1]
        await call_as_guest("127.0.0.1", port, UUID, TOKEN, SECRET, b"a secret wish", SystemRng())
        assert len(said) >= 2
        assert b"secret wish" not in b"".join(said)
        async with await trio.open_tcp_stream(node.address.host, node.address.port) as thief:
            await thief.send_all(b"".join(said))
            assert len(await thief.receive_some(1000)) == CHALLENGE_BYTES
            await ends_unanswered(thief)
        assert len(tokens.asked) == 1
        nursery.cancel_scope.cancel()


async def test_guest_that_claims_to_be_a_node_is_a_stranger():
    """The token's secret makes no cluster key, and a node's HELLO no guest."""
    async with door(TOKEN) as (_, node):
        credentials = Credentials.of_token(UUID, TOKEN, SECRET)
        credentials.purpose = Credentials(UUID, b"k", "test").purpose
        connector = Connector(credentials, GUEST, HOST, NOTHING, bytes(ENTROPY_BYTES))
        stream = await trio.open_tcp_stream(node.address.host, node.address.port)
        await stream.send_all(connector.hello)
        await ends_unanswered(stream)


@pytest.mark.parametrize(
    "packets",
    [
        [Packet(1, 0, [b"a"]), Packet(2, 0, [b"b"])],
        [Packet(1, 0, [b"a", b"b"])],
        [Packet(1, 0, [])],
        [Packet(2, 0, [b"a"])],
        [Packet(1, 1, [b"a"])],
        [Packet(1, 0, [], PING)],
        [Packet(1, 0, [bytes(GUEST_BYTES_MAX + 1)])],
        [Packet(1, 0, [bytes(GUEST_BYTES_MAX)] * 3)],
    ],
    ids=["two", "two in one", "none", "number", "acknowledgement", "ping", "too large", "far too large"],
)
async def test_anything_but_one_request_ends_the_conversation(packets):
    async with door(TOKEN) as (tokens, node):
        stream, agreement = await proven(node)
        writer = FrameWriter(agreement.send_key, encrypt=True)
        with suppress(trio.BrokenResourceError):
            await stream.send_all(b"".join(writer.encode(packet) for packet in packets))
        await ends_unanswered(stream)
        assert tokens.asked == []
        assert node.mesh.statistics()["rejected"] == 1


async def test_fuzz_leaves_the_door_open():
    rng = random.Random(3)
    async with door(TOKEN) as (tokens, node):
        for _ in range(60):
            stream, agreement = await proven(node)
            frame = bytearray(FrameWriter(agreement.send_key, encrypt=True).encode(Packet(1, 0, [b"hello" * 5])))
            for _ in range(rng.randrange(1, 4)):
                frame[rng.randrange(len(frame))] ^= 1 << rng.randrange(8)
            with suppress(trio.BrokenResourceError):
                await stream.send_all(bytes(frame) if rng.random() < 0.7 else rng.randbytes(rng.randrange(200)))
                await stream.send_eof()
            await ends_unanswered(stream)
        assert tokens.asked == []
        await call(node)


async def test_guest_that_says_nothing_or_little_is_shown_out(monkeypatch):
    """Slow loris: its time runs from the proof, not from its last byte."""
    monkeypatch.setattr(reception, "GUEST_SECONDS_MAX", 0.1)
    async with door(TOKEN) as (tokens, node):
        stream, agreement = await proven(node)
        frame = FrameWriter(agreement.send_key, encrypt=True).encode(Packet(1, 0, [bytes(1000)]))
        with suppress(trio.BrokenResourceError):
            for byte in frame:
                await stream.send_all(bytes([byte]))
                await trio.sleep(0.005)
        await ends_unanswered(stream)
        assert tokens.asked == []
        assert await call(node)


async def test_answer_that_takes_too_long_is_cancelled(monkeypatch):
    monkeypatch.setattr(reception, "GUEST_SECONDS_MAX", 0.05)
    async with door(TOKEN) as (tokens, node):
        tokens.gate = trio.Event()
        with pytest.raises(PeerError, match="took the token, but gave no answer"):
            await call(node)
    monkeypatch.setattr(guest_module, "GUEST_SECONDS_MAX", 0.05)
    monkeypatch.setattr(reception, "GUEST_SECONDS_MAX", 60)
    async with door(TOKEN) as (tokens, node):
        tokens.gate = trio.Event()
        with pytest.raises(PeerError, match=r"no answer in 0\.05 s"):
            await call(node)


@pytest.mark.parametrize("refusal", [OperatorError("the cluster is full"), BadMessage("no request")])
async def test_refusal_is_silence_and_a_line_in_the_log(refusal, caplog):
    async with door(TOKEN) as (tokens, node):
        tokens.refusal = refusal
        with pytest.raises(PeerError, match="gave no answer: its log says why"):
            await call(node)
        assert any(str(refusal) in line for line in caplog.messages)


async def test_few_guests_at_once_and_nodes_are_not_kept_waiting():
    async with cluster() as start, trio.open_nursery() as nursery:
        tokens = Tokens(TOKEN)
        tokens.gate = trio.Event()
        a, b = await start(0), await start(1, guests=tokens)
        answers: list[bytes] = []

        async def visit(i: int) -> None:
            answers.append(await call(b, b"%d" % i))

        for i in range(GUESTS_MAX):
            nursery.start_soon(visit, i)
        while len(tokens.asked) < GUESTS_MAX:  # noqa: ASYNC110
            await trio.sleep(0.001)
        with pytest.raises(PeerError, match="gave no answer"):
            await call(b, b"one too many")
        introduce(a, b)
        a.mesh.send(1, b"between nodes")
        assert await collect(b, 1) == [b"between nodes"]
        tokens.gate.set()
        await until(b, "guests", GUESTS_MAX)
        while len(answers) < GUESTS_MAX:  # noqa: ASYNC110
            await trio.sleep(0.001)
        assert sorted(answers) == [TOKEN + b"%d%d" % (i, i) for i in range(GUESTS_MAX)]
        assert await call(b, b"later") == TOKEN + b"laterlater"


async def test_recorded_hellos_keep_no_guest_out():
    """Whoever saw a HELLO can send it at will; only a proof takes one of the few places."""
    async with door(TOKEN) as (_, node):
        hello = Connector(Credentials.of_token(UUID, TOKEN, SECRET), GUEST, HOST, NOTHING, bytes(ENTROPY_BYTES)).hello
        thieves = []
        for _ in range(3 * GUESTS_MAX):
            stream = await trio.open_tcp_stream(node.address.host, node.address.port)
            await stream.send_all(hello)
            assert len(await stream.receive_some(1000)) == CHALLENGE_BYTES
            thieves.append(stream)
        assert await call(node)
        for stream in thieves:
            await stream.aclose()
