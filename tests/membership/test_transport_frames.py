"""Frames: what goes in comes out however the stream is cut, and anything else is a BadMessage (R11)."""

from __future__ import annotations

import random

import pytest

from membership.errors import BadMessage
from membership.transport.frames import FRAME_BYTES_MAX, HEADER, HEADER_BYTES, MAC_BYTES, FrameReader, FrameWriter
from membership.transport.session import MESSAGE_BYTES_MAX, PACKET_MESSAGES_MAX, PING, PONG, Packet

KEY = bytes(range(32))
PACKETS = [
    Packet(1, 0, [b"one"]),
    Packet(2, 7, []),
    Packet(2**64 - 1, 7, [], PING),
    Packet(1, 7, [], PONG),
    Packet(2, 7, [b"", b"two", bytes(5000)]),
    Packet(5, 2**64 - 1, [bytes(MESSAGE_BYTES_MAX), bytes(MESSAGE_BYTES_MAX)]),
    Packet(7, 9, [b"x"] * PACKET_MESSAGES_MAX),
]


def frames(key: bytes = KEY) -> list[bytes]:
    writer = FrameWriter(key)
    return [writer.encode(packet) for packet in PACKETS]


@pytest.mark.parametrize("step", [1, 31, 32, 33, 4096, 10**7])
def test_round_trip_however_the_stream_is_cut(step):
    stream = b"".join(frames()[: 5 if step < 32 else 7])
    reader = FrameReader(KEY)
    got = [packet for at in range(0, len(stream), step) for packet in reader.feed_untrusted(stream[at : at + step])]
    assert got == PACKETS[: 5 if step < 32 else 7]


def test_largest_packet_is_under_the_cap():
    assert max(map(len, frames())) <= FRAME_BYTES_MAX


def test_golden_frame():
    """The format is fixed: docs/format/wire-transport.md shows these bytes."""
    assert FrameWriter(KEY).encode(Packet(1, 0, [b"hello"])).hex() == (
        "4d5846520100010009000000000000000100000000000000000000000000000005000000" + b"hello".hex()
        + "4409c2013a19c2a1da28faf61645e8da"
    )


@pytest.mark.parametrize("order", [[1], [0, 0], [0, 2], [1, 0]], ids=["missing", "repeated", "skipped", "swapped"])
def test_frame_out_of_turn_is_bad(order):
    made = frames()
    reader = FrameReader(KEY)
    with pytest.raises(BadMessage, match="MAC"):
        for index in order:
            reader.feed_untrusted(made[index])


def test_frame_of_another_key_is_bad():
    with pytest.raises(BadMessage, match="MAC"):
        FrameReader(KEY).feed_untrusted(frames(bytes(32))[0])


def test_every_flipped_bit_is_noticed_and_delivers_nothing():
    frame = frames()[0]
    for bit in range(len(frame) * 8):
        bad = bytearray(frame)
        bad[bit // 8] ^= 1 << bit % 8
        try:
            assert FrameReader(KEY).feed_untrusted(bytes(bad)) == []  # a longer length: waits for the rest
        except BadMessage:
            continue
        assert 64 <= bit < 96, "only in the length field may a flip make us wait"


def sign(header: bytes, body: bytes) -> bytes:
    """A frame with a right MAC around whatever: what only an insider could send."""
    from membership.transport.frames import _Mac

    return header + body + _Mac(KEY).next(header + body)


@pytest.mark.parametrize(
    ("count", "body"),
    [
        (1, b""),
        (1, b"\1\0\0"),
        (1, b"\5\0\0\0abc"),
        (0, b"x"),
        (1, b"\0\0\0\0\0"),
        (1, b"\xff\xff\xff\xff"),
        (1, (MESSAGE_BYTES_MAX + 1).to_bytes(4, "little") + bytes(MESSAGE_BYTES_MAX + 1)),
    ],
)
def test_insider_body_that_does_not_add_up_is_bad(count, body):
    header = HEADER.pack(b"MXFR", 1, 0, count, len(body), 0, 1, 0)
    with pytest.raises(BadMessage):
        FrameReader(KEY).feed_untrusted(sign(header, body))


@pytest.mark.parametrize(
    "fields",
    [
        (b"HTTP", 1, 0, 0, 0, 0, 1, 0),
        (b"MXFR", 2, 0, 0, 0, 0, 1, 0),
        (b"MXFR", 1, 3, 0, 0, 0, 1, 0),
        (b"MXFR", 1, 1, 1, 0, 0, 1, 0),
        (b"MXFR", 1, 2, 0, 4, 0, 1, 0),
        (b"MXFR", 1, 0, PACKET_MESSAGES_MAX + 1, 0, 0, 1, 0),
        (b"MXFR", 1, 0, 0, FRAME_BYTES_MAX - HEADER_BYTES - MAC_BYTES + 1, 0, 1, 0),
        (b"MXFR", 1, 0, 0, 0, 1, 1, 0),
    ],
)
def test_bad_header_is_refused_before_its_body_arrives(fields):
    with pytest.raises(BadMessage):
        FrameReader(KEY).feed_untrusted(HEADER.pack(*fields))


def test_fuzz_raises_nothing_but_bad_message():
    rng = random.Random(11)
    good = frames()[:5]
    for _ in range(3000):
        data = bytearray(rng.choice(good) if rng.random() < 0.7 else rng.randbytes(rng.randrange(200)))
        for _ in range(rng.randrange(4)):
            if data:
                data[rng.randrange(len(data))] = rng.randrange(256)
        reader = FrameReader(KEY)
        try:
            for _ in range(3):
                reader.feed_untrusted(bytes(data[: rng.randrange(len(data) + 1)]))
        except BadMessage:
            pass
