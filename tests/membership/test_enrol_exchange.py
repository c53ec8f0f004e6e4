"""The words of an enrolment, and a whole one: token, request, decision, answer, file (R11)."""

from __future__ import annotations

import random

import msgspec
import pytest

from membership.enrol.credentials import NodeCredentials, load, save
from membership.enrol.exchange import (
    MESSAGE_BYTES_MAX,
    Desk,
    Enrolled,
    EnrolRequest,
    Refused,
    answer_untrusted,
    encode,
    enrolled_untrusted,
    request_untrusted,
)
from membership.enrol.grants import Grants, State
from membership.enrol.token import Contact, decode_untrusted
from membership.enrol.token import encode as encode_token
from membership.errors import BadMessage, OperatorError

WALL = 1_800_000_000
REQUEST = EnrolRequest(1, "n4", (("10.0.0.4", 7001), ("fd00::4", 7001)), "1.0", b"i" * 16)
ENROLLED = Enrolled("web", b"C" * 16, b"K" * 32, True, "?", ("/dev/disk/by-id/x", "iscsi://10.0.0.9/iqn.x/0"))


def test_round_trips() -> None:
    assert request_untrusted(encode(REQUEST)) == REQUEST
    for answer in (ENROLLED, Refused("no")):
        assert answer_untrusted(encode(answer)) == answer
    assert "K" * 8 not in repr(ENROLLED)


@pytest.mark.parametrize(
    "change",
    [
        {"version": -1}, {"node": ""}, {"node": "n" * 65}, {"node": "\u00e9" * 33}, {"node": "n 4"}, {"node": "n\n"},
        {"addresses": ()}, {"addresses": (("10.0.0.4", 1),) * 9}, {"addresses": (("host", 1),)},
        {"addresses": (("10.0.0.4", 0),)}, {"addresses": (("FD00::4", 1),)}, {"addresses": (("10.0.0.4", 70000),)},
        {"software": "x" * 65}, {"software": "\x1b"}, {"instance": b"x"},
    ],
    ids=str,
)  # fmt: skip
def test_requests_out_of_range_are_refused(change) -> None:
    with pytest.raises(BadMessage):
        request_untrusted(encode(msgspec.structs.replace(REQUEST, **change)))


@pytest.mark.parametrize(
    "change",
    [
        {"cluster_name": ""}, {"cluster_name": "a\nb"}, {"cluster": b"x"}, {"cluster_key": b"K" * 31}, {"node": "a b"},
        {"stores": ()}, {"stores": ("",)}, {"stores": ("x\x07",)}, {"stores": ("x" * 1025,)}, {"stores": ("x",) * 9},
        {"encrypt": 1},
    ],
    ids=str,
)  # fmt: skip
def test_answers_out_of_range_are_refused(change) -> None:
    with pytest.raises(BadMessage):
        answer_untrusted(encode(msgspec.structs.replace(ENROLLED, **change)))
    with pytest.raises(BadMessage):
        answer_untrusted(encode(Refused("x" * 1025)))


def test_hostile_messages_raise_one_error() -> None:
    rng = random.Random(5)
    good = [encode(REQUEST), encode(ENROLLED), encode(Refused("no"))]
    for _ in range(3000):
        data = bytearray(rng.choice(good))
        for _ in range(rng.randrange(1, 5)):
            at = rng.randrange(len(data)) if data else 0
            if rng.random() < 0.7 and data:
                data[at] = rng.randrange(256)
            elif rng.random() < 0.5:
                data[at:at] = rng.randbytes(rng.randrange(1, 9))
            else:
                del data[at:]
        for decode in (request_untrusted, answer_untrusted):
            try:
                decode(bytes(data))
            except BadMessage:
                continue
    for data in (b"", bytes(MESSAGE_BYTES_MAX + 1), b"\x91" * 5000, good[1]):
        with pytest.raises(BadMessage):
            request_untrusted(data)
    with pytest.raises(BadMessage):
        answer_untrusted(good[0])


class Cluster:
    """An administrator with tokens and a database, in memory."""

    def __init__(self) -> None:
        self.grants = Grants((), WALL, 0.0)
        self.database: dict[bytes, object] = {}
        self.nodes = {"n1"}
        self.alerts: list[str] = []
        self.desk = Desk(self.grants, ENROLLED, self.objection)

    def objection(self, request: EnrolRequest) -> str:
        return f"a node {request.node} exists already" if request.node in self.nodes else ""

    def issue(self, node: str) -> str:
        contacts = (Contact("10.0.0.1", 7001),)
        token, grant, _ = self.grants.issue(b"C" * 16, node, 600, contacts, random.Random(6), WALL, 0.0)
        self.database[grant.token_id] = grant
        return encode_token(token)

    def call(self, line: str, request: EnrolRequest, seconds: int = 1) -> Enrolled | Refused:
        """What ``call_as_guest`` does, without its encryption: both ends must have the same key."""
        token = decode_untrusted(line)
        assert self.grants.key_of(token.token_id) == token.key
        reply = self.desk.answer_untrusted(token.token_id, encode(request), WALL + seconds, seconds)
        if reply.changed is not None:
            self.database[token.token_id] = reply.changed
        if reply.alert:
            self.alerts.append(reply.alert)
        if reply.request is not None:
            assert self.database[token.token_id].state is State.REDEEMED
        return answer_untrusted(reply.data)


def test_a_whole_enrolment(tmp_path) -> None:
    cluster = Cluster()
    line = cluster.issue("n4")
    answer = cluster.call(line, REQUEST)
    assert answer == msgspec.structs.replace(ENROLLED, node="n4")
    addresses = tuple(Contact(*address) for address in REQUEST.addresses)
    save(str(tmp_path), NodeCredentials.of(answer, addresses))
    loaded = load(str(tmp_path), decode_untrusted(line).cluster)
    assert loaded == NodeCredentials("web", b"C" * 16, b"K" * 32, True, "n4", ENROLLED.stores, addresses)
    # the answer was lost: again; then a replay by somebody else, though the node is known by now
    assert cluster.call(line, REQUEST, 30) == answer
    cluster.nodes.add("n4")
    replay = cluster.call(line, msgspec.structs.replace(REQUEST, instance=b"j" * 16), 31)
    assert replay == Refused("this join token was used already; ask for a new one, and say so if it was not you")
    assert len(cluster.alerts) == 1


def test_the_new_server_takes_no_other_answer() -> None:
    token = decode_untrusted(Cluster().issue("n4"))
    mine = msgspec.structs.replace(ENROLLED, node="n4")
    assert enrolled_untrusted(encode(mine), token, REQUEST) == mine
    for other in (ENROLLED, msgspec.structs.replace(mine, cluster=b"D" * 16)):
        with pytest.raises(BadMessage, match="another cluster or another node"):
            enrolled_untrusted(encode(other), token, REQUEST)
    with pytest.raises(OperatorError, match="the cluster refused this server: no room"):
        enrolled_untrusted(encode(Refused("no room")), token, REQUEST)


def test_refusals_tell_the_reason_and_no_more() -> None:
    cluster = Cluster()
    line = cluster.issue("")
    later = cluster.call(line, msgspec.structs.replace(REQUEST, version=2))
    assert later == Refused(
        "the cluster speaks version 1 of enrolment, this server 2: install the cluster's version of MatrixFS"
    )
    assert cluster.call(line, msgspec.structs.replace(REQUEST, node="n1")) == Refused("a node n1 exists already")
    assert isinstance(cluster.call(line, REQUEST), Enrolled)  # neither used the token up
    assert cluster.alerts == []
    token = decode_untrusted(line)
    cluster.grants.revoke(token.token_id)
    revoked = cluster.call(line, REQUEST)
    assert revoked == Refused("this join token was revoked")
    with pytest.raises(BadMessage):
        cluster.desk.answer_untrusted(token.token_id, b"\x90", WALL, 0.0)


def test_a_late_token() -> None:
    cluster = Cluster()
    line = cluster.issue("n4")
    assert cluster.call(line, REQUEST, 1000) == Refused("this join token has expired; ask for a new one")
    assert cluster.database[decode_untrusted(line).token_id].state is State.EXPIRED
