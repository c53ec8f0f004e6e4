"""Wire format of the lock service: round trips, golden bytes, hostile bytes (R11, R12)."""

from __future__ import annotations

import contextlib
import random

import pytest

from dlm.messages import (
    BATCH_ENTRIES_MAX,
    EXTRAS_MAX,
    GHOSTS_MAX,
    HISTORY_MAX,
    NO_VALUE,
    PAYLOAD_BYTES_MAX,
    VALUE_BYTES_MAX,
    Cancel,
    Denied,
    Extra,
    ExtraAnswer,
    Ghost,
    Granted,
    LockReport,
    Member,
    Prefetched,
    Rebuild,
    RebuildDone,
    RecordReport,
    Release,
    Request,
    Revoke,
    Value,
    decode_untrusted,
    encode,
)
from dlm.names import Resource
from dlm.recovery import Packer
from membership.errors import BadMessage

TOP = (1 << 64) - 1
R = Resource(255, TOP, TOP, TOP)
BIG = Value(b"\xff" * VALUE_BYTES_MAX, True, TOP, TOP)
LOCK = LockReport(R, 5, TOP, BIG, True, 5, TOP, True)
RECORD = RecordReport(R, BIG, [Ghost(63, TOP, 5)] * GHOSTS_MAX)
MESSAGES = [
    Request(R, 5, TOP, True),
    Request(Resource(0, 0), 1, 0),
    Granted(R, 5, TOP, BIG, 0),
    Granted(R, 1, 1),
    Denied(R, 7),
    Revoke(R, 0),
    Release(R, 0, 3, BIG),
    Release(R, 4, 3, None),
    Cancel(R, 9),
    Rebuild([LOCK], [RECORD]),
    RebuildDone(12, [[Member(63, TOP)] * 64] * 2),
    RebuildDone(0),
    Request(R, 5, TOP, True, 255, [Extra(R, TOP)] * EXTRAS_MAX),
    Granted(R, 5, TOP, BIG, 0, [ExtraAnswer(R, TOP, True, BIG)] * EXTRAS_MAX),
    Prefetched(5, [ExtraAnswer(R, TOP, True, BIG)] * EXTRAS_MAX),
]


GOLDEN = "0500000000000000" + "97" + "01" + "9401070000" + "05" + "09" + "c2" + "00" + "90"
GOLDEN_FIRST = "0500000000000000" + "95" + "01" + "9401070000" + "05" + "09" + "c2"  # without priority and extras


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_round_trip(message):
    payload = encode(TOP, message)
    assert len(payload) <= PAYLOAD_BYTES_MAX
    assert decode_untrusted(payload) == (TOP, message)


def test_golden_bytes():
    """Type numbers and field order never change; only appending is allowed."""
    message = Request(Resource(1, 7), 5, 9)
    assert encode(5, message).hex() == GOLDEN
    assert decode_untrusted(bytes.fromhex(GOLDEN)) == (5, message)
    assert decode_untrusted(bytes.fromhex(GOLDEN_FIRST)) == (5, message)
    tags = {type(message).__struct_config__.tag for message in MESSAGES}
    assert tags == set(range(1, 10))


def test_a_later_version_may_append_fields():
    payload = bytes.fromhex(GOLDEN.replace("97", "98") + "2a")
    assert decode_untrusted(payload) == (5, Request(Resource(1, 7), 5, 9))


def test_full_batches_stay_below_the_cap():
    made = []
    packer = Packer(made.append)
    for _ in range(1000):
        packer.lock(LOCK)
        packer.record(RECORD)
    packer.done([], [])
    assert made.pop() == RebuildDone(len(made))
    assert sum(len(batch.locks) for batch in made) == 1000
    assert sum(len(batch.records) for batch in made) == 1000
    assert all(0 < len(batch.locks) + len(batch.records) <= 2 * BATCH_ENTRIES_MAX for batch in made)
    for batch in made:
        assert decode_untrusted(encode(TOP, batch))[1] == batch
    Packer(made.append).done([], [])
    assert made[-1] == RebuildDone(0)


def test_full_history_stays_below_the_cap():
    message = RebuildDone(TOP, [[Member(63, TOP)] * 64] * HISTORY_MAX)
    assert decode_untrusted(encode(TOP, message))[1] == message


@pytest.mark.parametrize(
    "message",
    [
        Request(Resource(256, 0), 1, 0),
        Request(Resource(-1, 0), 1, 0),
        Request(Resource(0, -1), 1, 0),
        Request(R, 6, 0),
        Request(R, -1, 0),
        Granted(R, 1, 1, NO_VALUE, 6),
        Release(R, 0, 0, Value(b"x" * (VALUE_BYTES_MAX + 1), True, 0, 0)),
        Rebuild([LockReport(R, 0, 0, NO_VALUE, False, -1, 0, False)] * (BATCH_ENTRIES_MAX + 1), []),
        Rebuild([], [RecordReport(R, NO_VALUE, [Ghost(0, 0, 5)] * (GHOSTS_MAX + 1))]),
        Rebuild([], [RecordReport(R, NO_VALUE, [Ghost(64, 0, 5)])]),
        RebuildDone(0, [[]] * (HISTORY_MAX + 1)),
    ],
    ids=str,
)
def test_out_of_range_is_refused(message):
    with pytest.raises(BadMessage):
        decode_untrusted(encode(1, message))


def test_fuzz_raises_only_bad_message():
    rng = random.Random(4711)
    seen = {"good": 0, "bad": 0}
    for _ in range(20000):
        payload = bytearray(encode(rng.randrange(1 << 64), rng.choice(MESSAGES)))
        for _ in range(rng.randint(0, 3)):
            payload[rng.randrange(len(payload))] = rng.randrange(256)
        if rng.random() < 0.2:
            del payload[rng.randrange(len(payload)) :]
        try:
            decode_untrusted(bytes(payload))
            seen["good"] += 1
        except BadMessage:
            seen["bad"] += 1
    assert min(seen.values()) > 1000
    for _ in range(5000):
        with contextlib.suppress(BadMessage):
            decode_untrusted(rng.randbytes(rng.randint(0, 64)))
    for hostile in (b"", b"x" * 8, b"x" * (PAYLOAD_BYTES_MAX + 1), b"x" * 8 + b"\x91" * 50000):
        with pytest.raises(BadMessage):
            decode_untrusted(hostile)
