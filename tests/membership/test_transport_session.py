"""Sessions: whatever happens below, what is delivered is a prefix of what was sent, and a resume completes it."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from membership.errors import BadMessage
from membership.transport import session as module
from membership.transport.session import MESSAGE_BYTES_MAX, QUEUED_BYTES_MAX, Packet, Session

KINDS = ["send", "send", "flush", "deliver", "deliver", "repeat", "lose", "break"]
ACTIONS = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 999)), max_size=120)


class Wire:
    """Two sessions with an evil network between them."""

    def __init__(self) -> None:
        self.ends = Session(), Session()
        self.flying: list[tuple[int, Packet]] = []
        self.sent: tuple[list[bytes], list[bytes]] = [], []
        self.got: tuple[list[bytes], list[bytes]] = [], []

    def send(self, end: int) -> None:
        payload = b"%d" % len(self.sent[end])
        assert self.ends[end].queue(payload)
        self.sent[end].append(payload)

    def flush(self, end: int) -> None:
        while (packet := self.ends[end].take()) is not None:
            self.flying.append((1 - end, packet))

    def deliver(self, index: int, *, keep: bool = False) -> None:
        if self.flying:
            index %= len(self.flying)
            end, packet = self.flying[index] if keep else self.flying.pop(index)
            self.got[end].extend(self.ends[end].receive_untrusted(packet))

    def reconnect(self) -> None:
        """A new connection: nothing of the old one arrives any more."""
        self.flying.clear()
        heard = [end.received for end in self.ends]
        self.ends[0].rewind(heard[1])
        self.ends[1].rewind(heard[0])

    def check(self) -> None:
        for end in (0, 1):
            assert self.got[end] == self.sent[1 - end][: len(self.got[end])]


@given(ACTIONS)
@settings(max_examples=300, deadline=None, derandomize=True)
@pytest.mark.seed("002-19")
def test_any_schedule_delivers_a_prefix_and_the_resume_all(actions):
    wire = Wire()
    for what, value in actions:
        if what == "send":
            wire.send(value % 2)
        elif what == "flush":
            wire.flush(value % 2)
        elif what == "deliver":
            wire.deliver(value)
        elif what == "repeat":
            wire.deliver(value, keep=True)
        elif what == "lose" and wire.flying:
            wire.flying.pop(value % len(wire.flying))
        elif what == "break":
            wire.reconnect()
        wire.check()
    wire.reconnect()
    for end in (0, 1):
        wire.flush(end)
    while wire.flying:
        wire.deliver(0)
    wire.check()
    assert [len(got) for got in wire.got] == [len(wire.sent[1]), len(wire.sent[0])]


class Overlap:
    """Two sessions that change over to a new connection while the old one still carries messages both ways."""

    def __init__(self) -> None:
        self.ends = Session(), Session()  # connector, acceptor
        self.sent: tuple[list[bytes], list[bytes]] = [], []
        self.got: tuple[list[bytes], list[bytes]] = [], []
        self.on = [0, 0]  # the connection that each end uses
        self._flying: dict[tuple[int, int], list[Packet]] = {}  # by receiving end and connection, in order
        self._hello: int | None = None  # received, as stated
        self._challenge: int | None = None

    def send(self, end: int) -> None:
        payload = b"%d" % len(self.sent[end])
        assert self.ends[end].queue(payload)
        self.sent[end].append(payload)
        self.flush(end)

    def flush(self, end: int) -> None:
        while (packet := self.ends[end].take()) is not None:
            self._flying.setdefault((1 - end, self.on[end]), []).append(packet)

    def acknowledge(self, end: int) -> None:
        packet = self.ends[end].control(module.PING, 1)
        self._flying.setdefault((1 - end, self.on[end]), []).append(packet)

    def deliver(self, end: int) -> None:
        waiting = self._flying.get((end, self.on[end]))
        if waiting:
            packet = waiting.pop(0)
            if packet.kind == module.MESSAGES:
                self.got[end].extend(self.ends[end].receive_untrusted(packet))
            else:
                self.ends[end].acknowledge_untrusted(packet.ack)

    def step(self) -> None:
        """The next of: HELLO is sent, it is answered, the connector changes over, the acceptor does."""
        if self._hello is None:
            self._hello = self.ends[0].received
        elif self._challenge is None:
            self._challenge = self.ends[1].received
        elif self.on[0] == self.on[1]:
            self.on[0] += 1
            self.ends[0].rewind(self._challenge)
            self.flush(0)
        else:
            self.on[1] += 1
            self.ends[1].rewind(self._hello)
            self.flush(1)
            self._hello = self._challenge = None


@pytest.mark.parametrize("seed", range(50))
@pytest.mark.seed("002-19")
def test_change_over_while_the_old_connection_stands_loses_and_doubles_nothing(seed):
    rng = random.Random(seed)
    both = Overlap()
    for _ in range(400):
        what, end = rng.choice(("send", "deliver", "deliver", "acknowledge", "step")), rng.randrange(2)
        both.step() if what == "step" else getattr(both, what)(end)
    while both.on[0] != both.on[1]:
        both.step()
    for _ in range(800):
        for end in (0, 1):
            both.deliver(end)
    assert both.got == (both.sent[1], both.sent[0])


@pytest.mark.seed("003-33")
def test_messages_are_gathered_up_to_the_caps():
    session = Session()
    for _ in range(module.PACKET_MESSAGES_MAX + 1):
        session.queue(b"x")
    first, second = session.take(), session.take()
    assert (first.first, len(first.messages)) == (1, module.PACKET_MESSAGES_MAX)
    assert (second.first, len(second.messages)) == (module.PACKET_MESSAGES_MAX + 1, 1)
    assert session.take() is None
    big = Session()
    for _ in range(5):
        big.queue(bytes(MESSAGE_BYTES_MAX))
    assert [len(big.take().messages) for _ in range(3)] == [2, 2, 1]


def test_full_queue_says_so_and_takes_nothing():
    session = Session()
    for _ in range(QUEUED_BYTES_MAX // MESSAGE_BYTES_MAX):
        assert session.queue(bytes(MESSAGE_BYTES_MAX))
    assert not session.queue(b"x")
    assert session.queued_bytes == QUEUED_BYTES_MAX
    with pytest.raises(ValueError, match="at most"):
        Session().queue(bytes(MESSAGE_BYTES_MAX + 1))


def test_queue_of_many_small_messages_is_bounded(monkeypatch):
    monkeypatch.setattr(module, "QUEUED_MESSAGES_MAX", 4)
    session = Session()
    assert [session.queue(b"") for _ in range(5)] == [True] * 4 + [False]


def test_one_way_traffic_is_acknowledged_without_a_timer():
    a, b = Session(), Session()
    for _ in range(module.ACK_MESSAGES):
        a.queue(b"x")
    b.receive_untrusted(a.take())
    assert b.ack_due
    a.receive_untrusted(b.take())
    assert (a.queued, a.queued_bytes, b.ack_due, b.take()) == (0, 0, False, None)


@pytest.mark.parametrize(
    "packet",
    [
        Packet(1, 2, []),  # acknowledges what was never sent
        Packet(0, 0, [b"x"]),
        Packet(module.QUEUED_MESSAGES_MAX + 1, 0, [b"x"]),
        Packet(2**64 - 1, 0, [b"x"]),
    ],
)
def test_impossible_packets_are_bad(packet):
    session = Session()
    session.queue(b"only one")
    session.take()
    with pytest.raises(BadMessage):
        session.receive_untrusted(packet)


@pytest.mark.parametrize("claimed", [3, 2**64 - 1])
def test_impossible_resume_points_are_bad(claimed):
    session = Session()
    session.queue(b"1")
    session.queue(b"2")
    session.take()
    session.receive_untrusted(Packet(1, 1, []))
    with pytest.raises(BadMessage):
        session.rewind(claimed)


def test_resume_point_older_than_an_acknowledgement_says_nothing():
    """Stated when the handshake began; the connection before stood until it ended, and brought the acknowledgement."""
    session = Session()
    for message in b"1", b"2", b"3":
        session.queue(message)
    session.take()
    session.receive_untrusted(Packet(1, 2, []))
    session.rewind(0)
    assert session.take() == Packet(3, 0, [b"3"])


def test_fuzz_raises_nothing_but_bad_message():
    rng = random.Random(20)
    for _ in range(2000):
        session = Session()
        for _ in range(rng.randrange(4)):
            session.queue(b"x")
        session.take()
        for _ in range(5):
            edge = rng.choice([0, 1, 2, 3, 2**18, 2**63, 2**64 - 1])
            packet = Packet(edge, rng.choice([0, 1, 2, 3, 2**64 - 1]), [b""] * rng.randrange(4))
            try:
                session.receive_untrusted(packet)
            except BadMessage:
                break
