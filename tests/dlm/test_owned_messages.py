"""Wire format of the owned locks: round trips, golden bytes, hostile ranges (R11, R12)."""

from __future__ import annotations

import contextlib
import random

import pytest

from dlm.messages import PAYLOAD_BYTES_MAX, Rebuild, decode_untrusted, encode
from dlm.owned.messages import (
    FOLLOWED_MAX,
    HOPS_MAX,
    REPORTS_MAX,
    Acquire,
    Acquired,
    Chase,
    Conflict,
    Follow,
    Found,
    Free,
    Freed,
    Hop,
    Inquire,
    Inquired,
    Kind,
    OwnedReport,
    Reason,
    Refused,
    Withdraw,
)
from dlm.owned.ranges import END_MAX
from membership.errors import BadMessage

TOP = (1 << 64) - 1
PID = (1 << 32) - 1
HOP = Hop(63, TOP, TOP, TOP)
REPORT = OwnedReport(Kind.NAMED, TOP, TOP, END_MAX, END_MAX, True, PID)
MESSAGES = [
    Acquire(Kind.POSIX, TOP, TOP, TOP, 0, END_MAX, True, False, PID, END_MAX),
    Free(Kind.FLOCK, TOP, TOP, TOP, 0, END_MAX, True),
    Free(Kind.FLOCK, 0, 0, 0, 0, 0),
    Inquire(Kind.NAMED, TOP, TOP, TOP, 0, END_MAX, True),
    Withdraw(Kind.POSIX, TOP, TOP),
    Acquired(TOP, END_MAX),
    Refused(TOP, Reason.WITHDRAWN),
    Freed(TOP),
    Inquired(TOP, Conflict(63, PID, 0, END_MAX, True)),
    Inquired(1, None),
    Chase(Kind.POSIX, END_MAX, TOP, [HOP] * HOPS_MAX, [HOP] * HOPS_MAX),
    Follow(Kind.POSIX, END_MAX, TOP, [HOP] * HOPS_MAX, [HOP] * HOPS_MAX, [TOP] * FOLLOWED_MAX),
    Found(Kind.POSIX, END_MAX, TOP, [HOP], []),
    Rebuild([], [], [REPORT] * REPORTS_MAX),
]
GOLDEN = "0500000000000000" + "9b" + "20" + "01" + "07" + "09" + "03" + "00" + "0a" + "c3" + "c2" + "cd04d2" + "02"


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_round_trip(message):
    payload = encode(TOP, message)
    assert len(payload) <= PAYLOAD_BYTES_MAX // 2
    assert decode_untrusted(payload) == (TOP, message)


def test_golden_bytes():
    message = Acquire(Kind.POSIX, 7, 9, 3, 0, 10, True, False, 1234, 2)
    assert encode(5, message).hex() == GOLDEN
    assert decode_untrusted(bytes.fromhex(GOLDEN)) == (5, message)
    tags = {type(message).__struct_config__.tag for message in MESSAGES}
    assert tags == {7, *range(32, 43)}


@pytest.mark.parametrize(
    ("before", "after"),
    [("000ac3", "0b0ac3"), ("2001", "2003"), ("c3c2", "05c2"), ("02", "ff")],
    ids=["start after end", "no such kind", "a number for a flag", "a negative stamp"],
)
def test_out_of_range_is_refused(before, after):
    head, _, tail = GOLDEN.rpartition(before)
    with pytest.raises(BadMessage):
        decode_untrusted(bytes.fromhex(head + after + tail))


@pytest.mark.parametrize(("start", "end"), [(-1, 5), (6, 5), (0, END_MAX + 1), (END_MAX + 1, END_MAX + 1)])
def test_a_report_of_no_range_is_refused(start, end):
    template = OwnedReport(Kind.POSIX, 1, 1, 0, 0, True, 1)
    template.start, template.end = start, end
    with pytest.raises(BadMessage):
        decode_untrusted(encode(1, Rebuild([], [], [template])))


def test_too_long_lists_are_refused():
    for message in (
        Rebuild([], [], [REPORT] * (REPORTS_MAX + 1)),
        Chase(Kind.POSIX, 0, 0, [HOP] * (HOPS_MAX + 1), []),
        Chase(Kind.POSIX, 0, 0, [], []),
        Follow(Kind.POSIX, 0, 0, [HOP], [], [1] * (FOLLOWED_MAX + 1)),
    ):
        with pytest.raises(BadMessage):
            decode_untrusted(encode(1, message))


def test_fuzz_raises_only_bad_message():
    rng = random.Random(4711)
    good = 0
    for _ in range(10000):
        payload = bytearray(encode(1, rng.choice(MESSAGES)))
        for _ in range(rng.randint(0, 3)):
            payload[rng.randrange(8, len(payload))] = rng.randrange(256)
        with contextlib.suppress(BadMessage):
            decode_untrusted(bytes(payload))
            good += 1
    assert 1000 < good < 10000
