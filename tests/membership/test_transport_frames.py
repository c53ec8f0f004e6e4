"""Frames: what goes in comes out however the stream is cut, and anything else is a BadMessage (R11).

Everything twice: encrypted, and plain with a MAC.
"""

from __future__ import annotations

import random

import pytest

from membership.errors import BadMessage
from membership.transport.frames import (
    FRAME_BYTES_MAX,
    HEADER,
    HEADER_BYTES,
    TAG_BYTES,
    FrameReader,
    FrameWriter,
    _seal,
)
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


@pytest.fixture(params=[True, False], ids=["encrypted", "plain"], autouse=True)
def encrypt(request) -> bool:
    return request.param


def frames(encrypt: bool, key: bytes = KEY) -> list[bytes]:
    writer = FrameWriter(key, encrypt=encrypt)
    return [writer.encode(packet) for packet in PACKETS]


@pytest.mark.parametrize("step", [1, 31, 32, 33, 4096, 10**7])
def test_round_trip_however_the_stream_is_cut(encrypt, step):
    stream = b"".join(frames(encrypt)[: 5 if step < 32 else 7])
    reader = FrameReader(KEY, encrypt=encrypt)
    got = [packet for at in range(0, len(stream), step) for packet in reader.feed_untrusted(stream[at : at + step])]
    assert got == PACKETS[: 5 if step < 32 else 7]


def test_largest_packet_is_under_the_cap(encrypt):
    assert max(map(len, frames(encrypt))) <= FRAME_BYTES_MAX


def test_golden_frame(encrypt):
    """The format is fixed: docs/format/wire-transport.md shows these bytes."""
    rest = {
        False: "05000000" + b"hello".hex() + "4409c2013a19c2a1da28faf61645e8da",
        True: "0bbcb5dedd49efd167e6d101ffb97a9baaa50244a252f12ec9",
    }
    version = "02" if encrypt else "01"
    header = f"4d584652{version}0001000900000000000000" + "0100000000000000" + "00" * 8
    assert FrameWriter(KEY, encrypt=encrypt).encode(Packet(1, 0, [b"hello"])).hex() == header + rest[encrypt]


def test_what_is_encrypted_can_t_be_read(encrypt):
    writer = FrameWriter(KEY, encrypt=encrypt)
    sealed = [writer.encode(Packet(1, 0, [b"a secret name"])) for _ in range(2)]
    assert any(b"secret" in frame for frame in sealed) == (not encrypt)
    assert sealed[0][HEADER_BYTES:] != sealed[1][HEADER_BYTES:], "the same message again looks different"


def test_one_form_is_not_taken_for_the_other(encrypt):
    with pytest.raises(BadMessage, match="version"):
        FrameReader(KEY, encrypt=not encrypt).feed_untrusted(frames(encrypt)[0])


def test_a_key_wears_out(encrypt, monkeypatch):
    monkeypatch.setattr("membership.transport.frames.KEY_FRAMES_MAX", 2)
    writer = FrameWriter(KEY, encrypt=encrypt)
    worn = []
    for _ in range(3):
        writer.encode(Packet(1, 0, []))
        worn.append(writer.is_worn)
    assert worn == [False, True, True]


@pytest.mark.parametrize("order", [[1], [0, 0], [0, 2], [1, 0]], ids=["missing", "repeated", "skipped", "swapped"])
def test_frame_out_of_turn_is_bad(encrypt, order):
    made = frames(encrypt)
    reader = FrameReader(KEY, encrypt=encrypt)
    with pytest.raises(BadMessage, match="wrong (MAC|tag)"):
        for index in order:
            reader.feed_untrusted(made[index])


def test_frame_of_another_key_is_bad(encrypt):
    with pytest.raises(BadMessage, match="wrong (MAC|tag)"):
        FrameReader(KEY, encrypt=encrypt).feed_untrusted(frames(encrypt, bytes(32))[0])


def test_every_flipped_bit_is_noticed_and_delivers_nothing(encrypt):
    frame = frames(encrypt)[0]
    for bit in range(len(frame) * 8):
        bad = bytearray(frame)
        bad[bit // 8] ^= 1 << bit % 8
        reader = FrameReader(KEY, encrypt=encrypt)
        try:
            assert reader.feed_untrusted(bytes(bad)) == []  # a longer length: waits for the rest
        except BadMessage:
            continue
        assert 64 <= bit < 96, "only in the length field may a flip make us wait"


def sign(encrypt: bool, header: bytes, body: bytes) -> bytes:
    """A frame with a right tag around whatever: what only an insider could send."""
    return _seal(KEY, encrypt=encrypt).close(header, body)


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
def test_insider_body_that_does_not_add_up_is_bad(encrypt, count, body):
    header = HEADER.pack(b"MXFR", 2 if encrypt else 1, 0, count, len(body), 0, 1, 0)
    with pytest.raises(BadMessage):
        FrameReader(KEY, encrypt=encrypt).feed_untrusted(sign(encrypt, header, body))


@pytest.mark.parametrize(
    "fields",
    [
        (b"HTTP", None, 0, 0, 0, 0, 1, 0),
        (b"MXFR", 3, 0, 0, 0, 0, 1, 0),
        (b"MXFR", None, 4, 0, 0, 0, 1, 0),
        (b"MXFR", None, 1, 1, 0, 0, 1, 0),
        (b"MXFR", None, 2, 0, 4, 0, 1, 0),
        (b"MXFR", None, 0, PACKET_MESSAGES_MAX + 1, 0, 0, 1, 0),
        (b"MXFR", None, 0, 0, FRAME_BYTES_MAX - HEADER_BYTES - TAG_BYTES + 1, 0, 1, 0),
        (b"MXFR", None, 0, 0, 0, 1, 1, 0),
    ],
)
def test_bad_header_is_refused_before_its_body_arrives(encrypt, fields):
    reader = FrameReader(KEY, encrypt=encrypt)
    with pytest.raises(BadMessage):
        reader.feed_untrusted(HEADER.pack(fields[0], fields[1] or (2 if encrypt else 1), *fields[2:]))


def test_fuzz_raises_nothing_but_bad_message(encrypt):
    rng = random.Random(11)
    good = frames(encrypt)[:5]
    for _ in range(3000):
        data = bytearray(rng.choice(good) if rng.random() < 0.7 else rng.randbytes(rng.randrange(200)))
        for _ in range(rng.randrange(4)):
            if data:
                data[rng.randrange(len(data))] = rng.randrange(256)
        reader = FrameReader(KEY, encrypt=encrypt)
        try:
            for _ in range(3):
                reader.feed_untrusted(bytes(data[: rng.randrange(len(data) + 1)]))
        except BadMessage:
            pass
