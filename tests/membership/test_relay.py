"""Questions between matrixds: answers gathered, silence named, floods bounded."""

from __future__ import annotations

import pytest
import trio

from membership.messages import Answer, Ask, encode, packet_untrusted
from membership.relay import ASK_SECONDS_MAX, ASKED_MAX, MountAnswer, Relay


class TrioClock:
    def monotonic(self) -> float:
        return trio.current_time()

    def wall_ns(self) -> int:
        return 0

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds)


class Matrixd:
    """One node of a perfect network, through the real encoding."""

    def __init__(self, node: int, net: dict[int, Matrixd], nursery: trio.Nursery) -> None:
        self.node, self.net, self.nursery = node, net, nursery
        self.relay = Relay(self, TrioClock())
        self.deaf = False
        net[node] = self

    def post(self, node: int, body: Ask | Answer) -> None:
        other = self.net.get(node)
        if other is not None and not other.deaf:
            other.relay.receive(self.node, packet_untrusted(encode(1, body)).body)

    def start(self, task) -> None:
        self.nursery.start_soon(task)

    async def ask(self, nodes: list[int], what: str = "x"):
        return await self.relay.ask(self.node, nodes, what, b"args")


def answerer(*answers: MountAnswer):
    async def answer(what: str, arguments: bytes) -> list[MountAnswer]:
        await trio.lowlevel.checkpoint()
        assert (what, arguments) == ("x", b"args")
        return list(answers)

    return answer


async def never(_what: str, _arguments: bytes) -> list[MountAnswer]:
    await trio.sleep_forever()


A, B = MountAnswer("web", "/mnt/a", 11, b"\xa0"), MountAnswer("www", "/mnt/b", 12, None)


@pytest.fixture
async def net(nursery):
    found: dict[int, Matrixd] = {}
    for node in range(3):
        Matrixd(node, found, nursery)
    return found


async def test_everybody_answers_for_all_mounts(autojump_clock, net) -> None:
    net[0].relay.answerer = answerer(A)
    net[1].relay.answerer = answerer(A, B)
    assert await net[0].ask([0, 1, 2]) == {0: [A], 1: [A, B], 2: []}
    assert trio.current_time() < 0.1


@pytest.mark.parametrize("silent", ["deaf", "absent", "hangs"])
async def test_silence_is_named_after_the_limit(autojump_clock, net, silent: str) -> None:
    if silent == "hangs":
        net[1].relay.answerer = never
    elif silent == "deaf":
        net[1].deaf = True
    else:
        del net[1]
    began = trio.current_time()
    assert await net[0].ask([1, 2]) == {1: None, 2: []}
    assert trio.current_time() - began == pytest.approx(ASK_SECONDS_MAX)
    assert not net[0].relay._pending


async def test_a_flood_is_bounded(autojump_clock, net) -> None:
    asked = 0

    async def slow(_what: str, _arguments: bytes) -> list[MountAnswer]:
        nonlocal asked
        asked += 1
        await trio.sleep(1)
        return []

    net[1].relay.answerer = slow
    for serial in range(100):
        net[1].relay.receive(0, Ask(serial, "x", b""))
    net[1].relay.receive(2, Ask(1, "x", b""))  # another node's questions are its own
    await trio.sleep(0.5)
    assert asked == ASKED_MAX + 1
    assert net[1].relay.dropped == 100 - ASKED_MAX
    await trio.sleep(1)
    net[1].relay.receive(0, Ask(200, "x", b""))  # once they are answered there is room again
    await trio.sleep(0.5)
    assert asked == ASKED_MAX + 2


async def test_answers_nobody_waits_for_are_dropped(autojump_clock, net) -> None:
    net[0].relay.receive(1, Answer(77, 0, 1, "web", "/mnt", b""))
    assert net[0].relay.dropped == 1
    net[2].deaf = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(net[0].ask, [2])
        await trio.sleep(0.1)
        (key,) = net[0].relay._pending
        net[0].relay.receive(1, Answer(key[1], 0, 1, "web", "/mnt", b""))  # of another node than was asked
        assert net[0].relay.dropped == 2
        for _ in range(1000):
            net[0].relay.receive(2, Answer(key[1], 64, 1, "web", "/mnt", b""))  # more, and more, and more
        await trio.sleep(0.1)
        assert not net[0].relay._pending


async def test_the_asker_goes_away(autojump_clock, net) -> None:
    net[1].deaf = True
    with trio.move_on_after(0.1):
        await net[0].ask([1])
    assert not net[0].relay._pending
