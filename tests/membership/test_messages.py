"""Orders, requests and matrixd messages: round trips, caps, and hostile bytes (R11)."""

from __future__ import annotations

import random
import typing

import msgspec
import pytest

from membership.errors import BadMessage
from membership.messages import (
    ANSWER_BYTES_MAX,
    ARGUMENT_BYTES_MAX,
    DISK_LOCKS_MAX,
    PACKET_BYTES_MAX,
    Answer,
    Ask,
    AskDiskLocks,
    Body,
    DiskLock,
    DiskLockAnswer,
    DiskLockAsk,
    DiskLocksReport,
    DiskUnlock,
    DiskUnlocked,
    Heartbeat,
    MountJoin,
    MountReport,
    OrderTo,
    Propose,
    Report,
    encode,
    packet_untrusted,
)
from membership.orders import (
    AttemptWanted,
    Evict,
    GhostsReleased,
    JournalOwner,
    JournalState,
    Lease,
    LinkLost,
    MountRequest,
    Rebuild,
    Rebuilt,
    ReleaseGhosts,
    Replay,
    Replayed,
    Resume,
    Resumed,
    Stuck,
    Suspend,
    Suspended,
    Told,
    Withdraw,
    order_from_dict_untrusted,
    order_to_dict,
    reply_from_dict_untrusted,
    reply_to_dict,
    request_from_dict_untrusted,
    request_to_dict,
)
from membership.seams import PeerAddress
from membership.views import DeadInstance, Instance, LockspaceView

BIG = 2**64 - 1
DEAD = DeadInstance(3, BIG, 1, ((Instance(0, 1), Instance(3, BIG)),))
MEMBERS = (PeerAddress(0, 1, "10.0.0.1", 9, ("10.1.0.1",)), PeerAddress(2, 7, "10.0.0.3", 9))
VIEW = LockspaceView((5 << 32) + 1, MEMBERS, (DEAD,))
ORDERS = [
    Suspend(BIG),
    Suspend(BIG, survey=True),
    Rebuild(VIEW, (JournalOwner(0, 1, 0), JournalOwner(2, 7, -1))),
    Resume(1, 3),
    Replay(1, DEAD),
    ReleaseGhosts(1, 3, BIG),
    Lease(1.5, 9),
    Withdraw("isolated"),
    Evict("its process is stopped"),
]
REPLIES = [
    Suspended(1),
    Suspended(1, (JournalState(0, 0, 0, dirty=False), JournalState(1, 3, BIG, dirty=True))),
    Rebuilt(2),
    Rebuilt(2, 9),
    Resumed(3),
    Replayed(4, 3, BIG, ok=False, detail="x"),
    GhostsReleased(5, 3, 1),
    LinkLost(6, 2),
    LinkLost(6, 2, refused=True),
    Stuck("its process is stopped", 3.25),
    AttemptWanted(7),
    Told("grown"),
]
REQUEST = MountRequest(
    b"F" * 16,
    "web",
    4,
    5,
    BIG,
    "10.0.0.1",
    9,
    "/mnt",
    (JournalState(0, 0, 0, dirty=False), JournalState(1, 3, 7, dirty=True)),
    ("10.1.0.1", "fd00::1"),
)
REPORT = MountReport(
    b"F" * 16, "web", BIG, "h", 9, "/mnt", 0, REQUEST.journals, 5, True, (JournalOwner(0, 1, 0),),
    ((Instance(0, 1),),), (DEAD,), (Instance(3, 1),), ("10.1.0.1",),
)  # fmt: skip

LOCK = DiskLock(BIG, b"D" * 16, "backup on n1", True)
DISK_LOCK_BODIES = [
    AskDiskLocks(BIG),
    DiskLocksReport(1, BIG, (LOCK,) * DISK_LOCKS_MAX),
    DiskLockAsk(BIG, LOCK, wait=False),
    DiskLockAnswer(1, BIG, 2, "granted", ""),
    DiskLockAnswer(1, 1, 2, "refused", "held by node 1"),
    DiskUnlock(BIG, 2),
    DiskUnlocked(1, BIG, 2),
]


def via_wire(data: dict) -> dict:
    """As a socket delivers it: tuples are lists."""
    import cbor2

    return cbor2.loads(cbor2.dumps(data))


@pytest.mark.parametrize("order", ORDERS, ids=lambda o: type(o).__name__)
def test_orders_survive_the_socket(order):
    assert order_from_dict_untrusted(via_wire(order_to_dict(order))) == order


@pytest.mark.parametrize("reply", REPLIES, ids=lambda r: type(r).__name__)
def test_replies_survive_the_socket(reply):
    assert reply_from_dict_untrusted(via_wire(reply_to_dict(reply))) == reply


def test_request_survives_the_socket():
    assert request_from_dict_untrusted(via_wire(request_to_dict(REQUEST))) == REQUEST


@pytest.mark.parametrize(
    "change",
    [
        {"fs_uuid": b"short"}, {"fs_name": ""}, {"fs_name": "x" * 65}, {"pid": 0}, {"pid": 2**31}, {"incarnation": 0},
        {"incarnation": 2**64}, {"host": ""}, {"port": 0}, {"port": 65536}, {"mountpoint": ""}, {"journals": []},
        {"journals": [{"index": 1, "node": 0, "incarnation": 0, "dirty": False}]},
        {"journals": [{"index": 0, "node": 64, "incarnation": 0, "dirty": True}]},
        {"journals": [{"index": i, "node": 0, "incarnation": 0, "dirty": False} for i in range(257)]},
        {"pid": "4"}, {"journals": None}, {"start_time": -1}, {"others": ["a"] * 4}, {"others": [""]}, {"others": [1]},
    ],
    ids=str,
)  # fmt: skip
def test_requests_out_of_range_are_refused(change):
    with pytest.raises(BadMessage):
        request_from_dict_untrusted({**request_to_dict(REQUEST), **change})


@pytest.mark.parametrize(
    "data", [None, [], "x", {}, {"order": 1}, {"order": "x"}, {"order": ["suspend"]}, {"order": "suspend"}]
)
def test_nonsense_is_refused(data):
    for decode in (order_from_dict_untrusted, reply_from_dict_untrusted, request_from_dict_untrusted):
        with pytest.raises(BadMessage):
            decode(data)


def test_a_long_detail_is_refused():
    with pytest.raises(BadMessage, match="detail"):
        reply_from_dict_untrusted(reply_to_dict(Replayed(1, 1, 1, ok=False, detail="x" * 2000)))


def test_message_numbers_are_unique_and_packets_round_trip():
    kinds = typing.get_args(Body)
    assert len({kind.__struct_config__.tag for kind in kinds}) == len(kinds)
    for body in (
        Heartbeat(BIG, 1),
        Propose(7, ((0, BIG),)),
        Ask(BIG, "locks", bytes(ARGUMENT_BYTES_MAX)),
        Answer(1, 0, 4711, "web", "/mnt", bytes(ANSWER_BYTES_MAX)),
        Answer(1, 0, 4711, "web", "/mnt", None),
        Report(1, (REPORT,)),
        OrderTo(1, b"F" * 16, 2, order_to_dict(ORDERS[1])),
        *DISK_LOCK_BODIES,
    ):
        packet = packet_untrusted(encode(9, body))
        assert packet.view == 9
        again = packet.body
        if isinstance(again, OrderTo):
            assert order_from_dict_untrusted(again.order) == ORDERS[1]
        else:
            assert again == body


@pytest.mark.parametrize(
    "change",
    [
        {"journal": 256}, {"journal": -2}, {"owners": (JournalOwner(64, 1, 0),)}, {"dead": (DeadInstance(64, 1, 0),)},
        {"dead": (DeadInstance(1, 1, -2),)}, {"released": (Instance(-1, 1),)}, {"history": ((Instance(64, 1),),)},
        {"journals": (JournalState(1, 0, 0, dirty=False),)}, {"fs_uuid": b"x"}, {"host": "x" * 5000},
        {"dead": (DeadInstance(1, 1, 1, ((Instance(99, 1),),)),)},
    ],
    ids=str,
)  # fmt: skip
def test_reports_out_of_range_are_refused(change):
    with pytest.raises(BadMessage):
        packet_untrusted(encode(1, MountJoin(msgspec.structs.replace(REPORT, **change))))


@pytest.mark.parametrize(
    "body",
    [
        Ask(1, "x" * 33, b""), Ask(1, "x", bytes(ARGUMENT_BYTES_MAX + 1)), Ask(-1, "x", b""),
        Answer(1, 65, 1, "", "", None), Answer(1, 0, 1, "", "", bytes(ANSWER_BYTES_MAX + 1)),
        Answer(1, 0, 1, "x" * 5000, "", None),
        DiskLocksReport(1, 1, (LOCK,) * (DISK_LOCKS_MAX + 1)), DiskLockAnswer(1, 1, 1, "perhaps", ""),
        DiskLockAsk(1, msgspec.structs.replace(LOCK, disk=b"D"), True), DiskUnlock(-1, 1),
        DiskLockAsk(1, msgspec.structs.replace(LOCK, owner="x" * 257), True), AskDiskLocks(-1),
    ],
    ids=lambda body: repr(body)[:40],
)  # fmt: skip
def test_questions_out_of_range_are_refused(body):
    with pytest.raises(BadMessage):
        packet_untrusted(encode(1, body))


def test_hostile_packets_raise_one_error():
    rng = random.Random(11)
    good = [
        encode(1, Report(1, (REPORT,))),
        encode(2, Heartbeat(3, 4)),
        encode(3, OrderTo(1, b"F" * 16, 2, {"a": [1]})),
        encode(4, Ask(1, "locks", b"\xa0")),
        encode(4, Answer(1, 2, 4711, "web", "/mnt", b"\xa0")),
        *(encode(5, body) for body in DISK_LOCK_BODIES),
    ]
    for _ in range(3000):
        data = bytearray(rng.choice(good))
        for _ in range(rng.randrange(1, 6)):
            what = rng.randrange(3)
            at = rng.randrange(len(data)) if data else 0
            if what == 0 and data:
                data[at] = rng.randrange(256)
            elif what == 1:
                data[at:at] = rng.randbytes(rng.randrange(1, 9))
            else:
                del data[at:]
        try:
            packet_untrusted(bytes(data))
        except BadMessage:
            continue
    for data in (b"", b"\x93", rng.randbytes(64), bytes(PACKET_BYTES_MAX + 1), b"\x92\x01" * 20000):
        with pytest.raises(BadMessage):
            packet_untrusted(data)
