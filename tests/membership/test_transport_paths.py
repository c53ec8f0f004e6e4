"""Several addresses per peer: a session outlives the path it runs on, and a dead process is still noticed at once.

Real TCP over 127.0.0.0/8, through forwarders that a test can silence: the kernels at both ends go on acknowledging, as
they do for what a switch swallows.
"""

from __future__ import annotations

import errno
import random
import socket
import struct
from functools import partial

import pytest
import trio

from membership.clock import SystemClock, SystemRng
from membership.errors import OperatorError
from membership.seams import Delivery, LinkDown, LinkUp, PeerAddress
from membership.transport import door as door_module
from membership.transport import links as links_module
from membership.transport.links import LinkMesh
from membership.transport.paths import PATHS_MAX, Paths, others_problem
from membership.transport.peer import DOWN, LOST, PeerLink
from membership.transport.pulse import BEAT_SECONDS, PATH_SILENT_BEATS, Pulse
from tests.membership.test_transport_links import KEY, LONG, UUID, cluster, collect, introduce, numbers

pytestmark = pytest.mark.seed("002-19", "003-26")


class Wire:
    """One network between A and B: a forwarder on an address of its own, in front of one address of B."""

    def __init__(self, host: str, target: tuple[str, int]) -> None:
        self.host, self._target = host, target
        self._silent = {True: False, False: False}  # by direction; True: to B
        self._change = trio.Event()
        self._streams: list[trio.SocketStream] = []

    async def listen(self, nursery: trio.Nursery, port: int) -> int:
        listeners = await nursery.start(partial(trio.serve_tcp, host=self.host), self._relay, port)
        return listeners[0].socket.getsockname()[1]

    def cut(self, *, to_b: bool = True, to_a: bool = True) -> None:
        """Swallow what comes from now on, silently."""
        self._silent = {True: to_b, False: to_a}
        self._change.set()
        self._change = trio.Event()

    def heal(self) -> None:
        """Go on, with what was held back first: late, as TCP would send it again."""
        self.cut(to_b=False, to_a=False)

    def reset(self) -> None:
        """Break the connections, with all that is in them."""
        for stream in [stream for stream in self._streams if stream.socket.fileno() >= 0]:
            stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            stream.socket.close()
        self._streams.clear()

    async def _relay(self, caller: trio.SocketStream) -> None:
        try:
            async with await trio.open_tcp_stream(*self._target) as callee, caller:
                self._streams += [caller, callee]
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._pump, caller, callee, True, nursery.cancel_scope)
                    nursery.start_soon(self._pump, callee, caller, False, nursery.cancel_scope)
        except OSError:
            pass  # B is gone

    async def _pump(self, source, sink, to_b: bool, scope: trio.CancelScope) -> None:
        try:
            while data := await source.receive_some(4096):
                while self._silent[to_b]:
                    await self._change.wait()
                await sink.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        scope.cancel()


async def two_wires(start, nursery, **options):
    """A and B with two networks between them; A connects."""
    a = await start(0, others=("127.0.1.1",), **options)
    b = await start(1, others=("127.0.1.2",), **options)
    wires = [Wire("127.0.2.2", ("127.0.0.2", b.address.port)), Wire("127.0.3.2", ("127.0.1.2", b.address.port))]
    port = await wires[0].listen(nursery, 0)
    await wires[1].listen(nursery, port)
    a.mesh.set_peers([PeerAddress(1, 1, wires[0].host, port, (wires[1].host,))])
    b.mesh.set_peers([a.address])
    return a, b, wires


async def until(found) -> None:
    while not found():  # noqa: ASYNC110  (the mesh has no event for it)
        await trio.sleep(0.001)


def path(node) -> str:
    return node.mesh.links()[0].path


@pytest.fixture
def beat(monkeypatch):
    """A path is silent after 40 ms."""
    monkeypatch.setattr(links_module, "BEAT_SECONDS", 0.02)


@pytest.mark.usefixtures("beat")
@pytest.mark.parametrize("seed", range(6))
async def test_every_message_comes_once_and_in_order_whichever_path_is_cut(seed):
    """Both directions or one, silently or by a reset, at random moments; the other path is whole."""
    rng = random.Random(seed)
    async with cluster() as start, trio.open_nursery() as nursery:
        a, b, wires = await two_wires(start, nursery, grace=LONG)  # a machine that stands still for a second is no news
        sent = numbers(6000)

        async def send(node, to: int) -> None:
            for i, payload in enumerate(sent):
                node.mesh.send(to, payload)
                if i % 10 == 0:
                    await trio.sleep(0.001)

        async def take(node) -> None:
            got: list[bytes] = []
            while len(got) < len(sent):
                event = await node.mesh.receive()
                assert isinstance(event, Delivery)
                got.append(event.payload)
            assert got == sent

        async def trouble() -> None:
            for _ in range(5):
                await trio.sleep(rng.uniform(0, 0.05))
                before = a.mesh.links()[0].moves
                wire = wires[[wire.host for wire in wires].index(path(a))]
                kind = rng.choice(("both", "to b", "to a", "reset"))
                wire.cut(to_b=kind != "to a", to_a=kind != "to b")
                if kind == "reset":
                    wire.reset()
                await until(lambda before=before: a.mesh.links()[0].moves > before)  # only a cut path is left
                wire.heal()

        async with trio.open_nursery() as work:
            await a.next(LinkUp)
            await b.next(LinkUp)
            for task in partial(send, a, 1), partial(send, b, 0), partial(take, a), partial(take, b), trouble:
                work.start_soon(task)
        assert a.mesh.links()[0].moves >= 5
        assert [node.mesh.statistics()["sessions"] for node in (a, b)] == [1, 1]
        nursery.cancel_scope.cancel()


@pytest.mark.usefixtures("beat")
async def test_path_that_is_back_is_not_gone_back_to():
    async with cluster() as start, trio.open_nursery() as nursery:
        a, b, wires = await two_wires(start, nursery, grace=LONG)
        await a.next(LinkUp)
        await b.next(LinkUp)
        assert path(a) == wires[0].host
        wires[0].cut()
        await until(lambda: path(a) == wires[1].host)
        wires[0].heal()
        a.mesh.send(1, b"after")
        assert await collect(b, 1) == [b"after"]
        await trio.sleep(0.2)  # ten beats
        assert (path(a), a.mesh.links()[0].moves, a.mesh.links()[0].losses) == (wires[1].host, 1, 0)
        nursery.cancel_scope.cancel()


@pytest.mark.usefixtures("beat")
async def test_path_that_is_cut_only_to_the_peer_is_left_because_the_peer_says_so():
    """The connecting side hears the peer's PINGs all the time."""
    async with cluster() as start, trio.open_nursery() as nursery:
        a, b, wires = await two_wires(start, nursery, grace=LONG)
        await a.next(LinkUp)
        await b.next(LinkUp)
        wires[0].cut(to_a=False)
        a.mesh.send(1, b"swallowed at first")
        assert await collect(b, 1) == [b"swallowed at first"]
        assert path(a) == wires[1].host
        nursery.cancel_scope.cancel()


@pytest.mark.usefixtures("beat")
async def test_peer_that_answers_nowhere_keeps_its_link():
    """Stopped, that is: it must not lose a session because it has two addresses."""
    async with cluster() as start, trio.open_nursery() as nursery:
        a, b, wires = await two_wires(start, nursery, grace=LONG)
        await a.next(LinkUp)
        await b.next(LinkUp)
        for wire in wires:
            wire.cut()
        a.mesh.send(1, b"while it is stopped")
        await until(lambda: a.mesh.silence(1) > 0.2)
        for wire in wires:
            wire.heal()
        assert await b.mesh.receive() == Delivery(0, b"while it is stopped")
        assert [node.mesh.links()[0].losses for node in (a, b)] == [0, 0]
        assert a.mesh.statistics()["sessions"] == 1
        nursery.cancel_scope.cancel()


async def test_first_path_that_is_dead_from_the_start_costs_no_link_down():
    async with cluster() as start, trio.open_nursery() as nursery:
        a, b, wires = await two_wires(start, nursery, grace=LONG)
        wires[0].cut()
        a.mesh.send(1, b"over the other")
        assert await a.mesh.receive() == LinkUp(1)
        assert await collect(b, 1) == [b"over the other"]
        assert path(a) == wires[1].host
        nursery.cancel_scope.cancel()


async def test_all_paths_cut_is_a_link_down_after_the_grace():
    async with cluster() as start, trio.open_nursery() as nursery:
        a, b, wires = await two_wires(start, nursery, grace=0.3)
        await a.next(LinkUp)
        await b.next(LinkUp)
        b.mesh.set_peers([PeerAddress(0, 1, "127.0.2.2", a.mesh._peers[1].link.address.port)])  # silent, too
        for wire in wires:
            wire.cut()
            wire.reset()
        began = trio.current_time()
        assert await a.next(LinkDown) == LinkDown(1, False, "not back within 0.3 s")
        assert await b.next(LinkDown) == LinkDown(0, False, "not back within 0.3 s")
        assert trio.current_time() - began >= 0.3
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("killed", [0, 1], ids=["the connecting side", "the accepting side"])
async def test_killed_process_is_refused_on_all_its_paths_at_once(killed):
    async with cluster() as start:
        nodes = [await start(i, grace=LONG, others=(f"127.0.1.{i + 1}", f"127.0.2.{i + 1}")) for i in range(2)]
        introduce(*nodes)
        survivor = nodes[1 - killed]
        await survivor.next(LinkUp)
        await nodes[killed].kill()
        assert await survivor.next(LinkDown) == LinkDown(killed, True, "connection refused")


@pytest.mark.parametrize("absent", [0, 1])
async def test_refusal_on_one_path_says_nothing_while_another_answers(absent):
    """As when the address went to another host with its network."""
    async with cluster() as start:
        nodes = [await start(i, others=(f"127.0.1.{i + 1}",)) for i in range(2)]
        gone = nodes[absent].address
        moved = PeerAddress(gone.node, 1, "127.0.9.9", gone.port, ("127.0.8.8", f"127.0.1.{absent + 1}"))
        nodes[1 - absent].mesh.set_peers([moved])
        nodes[absent].mesh.set_peers([nodes[1 - absent].address])
        assert await nodes[1 - absent].mesh.receive() == LinkUp(absent)


async def test_connections_use_the_own_address_of_the_same_position():
    async with cluster() as start:
        a, b = await start(0, others=("127.0.1.1",)), await start(1, others=("127.0.1.2",))
        introduce(a, b)
        await b.next(LinkUp)
        assert path(b) == "127.0.0.1"
        a.mesh.set_peers([])
        a.mesh.set_peers([PeerAddress(1, 1, "127.0.9.9", b.address.port, ("127.0.1.2",))])  # only the second answers
        await until(lambda: path(b) == "127.0.1.1")
        assert b.mesh.links()[0].moves == 1


@pytest.mark.parametrize("own", ["::1", "192.0.2.7"], ids=["of another family", "not ours"])
async def test_own_address_that_is_of_no_use_is_left_out(own):
    async with cluster() as start:
        a, b = await start(0), await start(1)
        a.mesh._caller.hosts = (own, own)
        introduce(a, b)
        assert await a.next(LinkUp) == LinkUp(1)


async def test_one_port_is_found_that_is_free_on_all_addresses(monkeypatch):
    real, calls = door_module._listener, []

    async def listener(host: str, port: int) -> socket.socket:
        calls.append(host)
        if host != "127.0.0.1" and len(calls) < 6:
            raise OSError(errno.EADDRINUSE, "in use")
        return await real(host, port)

    monkeypatch.setattr(door_module, "_listener", listener)
    async with cluster() as start:
        a = await start(0, others=("127.0.1.1",))
        for host in a.address.hosts:
            await (await trio.open_tcp_stream(host, a.address.port)).aclose()
    assert calls == ["127.0.0.1", "127.0.1.1"] * 3


async def test_further_address_that_is_not_ours_is_the_operators_error():
    mesh = LinkMesh(PeerAddress(0, 1, "", 0), "test", UUID, KEY, SystemClock(), SystemRng())
    with pytest.raises(OperatorError, match=r"cannot listen on 192\.0\.2\.1"):
        await mesh.listen("127.0.0.1", 0, ("192.0.2.1",))


# ---- the pure parts


def test_paths_are_tried_in_turn_beginning_with_the_present_one():
    paths = Paths()
    assert paths.order(3) == [0, 1, 2]
    paths.position = 2
    assert paths.order(3) == [2, 0, 1]
    assert paths.order(1) == [0], "the peer has fewer addresses now"


def test_moves_count_changes_of_the_path_only():
    paths = Paths()
    moves = []
    for host in "a", "a", "b", "b", "a":
        paths.used(host)
        moves.append(paths.moves)
    assert moves == [0, 0, 1, 1, 2]


def lost_link() -> PeerLink:
    link = PeerLink(PeerAddress(1, 1, "a", 1, ("b",)), 0.0, 1.0)
    link.session.id, link.phase, link.deadline = 5, LOST, 1.0
    return link


@pytest.mark.parametrize(
    ("rounds", "at_once", "after_grace"),
    [
        ([(2, 2)], True, None),
        ([(1, 2)], None, True),  # the other path is silent: it may be a router that refuses, so wait
        ([(0, 2)], None, False),
        ([(1, 2), (0, 2)], None, False),
        ([(1, 2), (2, 2)], True, None),
        ([(1, 1)], True, None),
    ],
)
def test_gone_is_who_refuses_on_all_paths_or_on_one_until_the_grace_ends(rounds, at_once, after_grace):
    link = lost_link()
    events = [event for refused, paths in rounds for event in link.unanswered(refused, paths, 0.5)]
    assert [event.refused for event in events] == ([] if at_once is None else [at_once])
    assert [event.refused for event in link.expired(1.0)] == ([] if after_grace is None else [after_grace])
    assert link.phase == DOWN
    assert link.unanswered(2, 2, 2.0) == [] or not after_grace, "said already"


def test_path_is_doubted_after_two_beats_without_a_sign_or_when_the_peer_says_so():
    pulse, now = Pulse(0.0), 0.0
    pulse.heard()
    found = []
    for _ in range(4):
        now += BEAT_SECONDS
        pulse.beat(now)
        found.append(pulse.is_doubtful)
    assert found == [False, False, True, True]
    pulse.connected()
    assert not pulse.is_doubtful
    pulse.is_deaf = True
    assert (pulse.is_doubtful, pulse.is_silent) == (True, False)
    assert PATH_SILENT_BEATS * BEAT_SECONDS == 1.0


def test_one_late_beat_after_our_own_sleep_doubts_nothing():
    pulse = Pulse(0.0)
    pulse.heard()
    pulse.beat(0.5)
    pulse.beat(3600.0)
    assert not pulse.is_doubtful


@pytest.mark.parametrize(
    ("hosts", "problem"),
    [
        ((), ""),
        (("10.0.0.1", "fd00::1", "x"), ""),
        (("a",) * PATHS_MAX, "5 addresses, at most 4"),
        (("a" * 101, "b" * 99), "further addresses of more than 200 bytes"),
        (("a,b",), "an address that is empty or has a comma or NUL in it"),
        (("a", ""), "an address that is empty or has a comma or NUL in it"),
    ],
)
def test_what_further_addresses_may_be(hosts, problem):
    assert others_problem(hosts) == problem
