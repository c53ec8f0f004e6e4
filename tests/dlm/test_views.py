"""Views as plain data, and hostile views."""

from __future__ import annotations

import random

import cbor2
import pytest

from membership.errors import BadMessage
from membership.seams import PeerAddress
from membership.views import DeadInstance, Instance, LockspaceView

VIEW = LockspaceView(
    (3 << 32) | 7,
    (PeerAddress(0, 11, "127.0.0.1", 4000), PeerAddress(2, 12, "127.0.0.3", 4000, ("127.0.1.3", "fd00::3"))),
    (DeadInstance(1, 9, 1, ((Instance(0, 11), Instance(1, 9)),)), DeadInstance(2, 5, 2)),
)


def test_round_trip_through_cbor():
    assert LockspaceView.from_dict_untrusted(cbor2.loads(cbor2.dumps(VIEW.to_dict()))) == VIEW
    assert VIEW.instances == (Instance(0, 11), Instance(2, 12))


def test_members_without_further_hosts_look_as_they_always_did():
    one, several = VIEW.to_dict()["members"]
    assert one == [0, 11, "127.0.0.1", 4000]
    assert several == [2, 12, "127.0.0.3", 4000, ["127.0.1.3", "fd00::3"]]


@pytest.mark.parametrize("others", [["a"] * 4, [""], [7], ["a,b"], "a", ["x" * 201], None, {}])
def test_bad_further_hosts(others):
    data = VIEW.to_dict() | {"members": [[0, 1, "127.0.0.1", 1, others]]}
    with pytest.raises(BadMessage):
        LockspaceView.from_dict_untrusted(data)


@pytest.mark.parametrize("members", [(2, 0), (0, 0), (1, 64)])
def test_members_are_sorted_single_and_in_range(members):
    data = VIEW.to_dict() | {"members": [[node, 1, "127.0.0.1", 1] for node in members]}
    with pytest.raises(BadMessage):
        LockspaceView.from_dict_untrusted(data)


def test_a_member_is_not_dead():
    data = VIEW.to_dict()
    data["dead"][0]["node"], data["dead"][0]["incarnation"] = 0, 11
    with pytest.raises(BadMessage):
        LockspaceView.from_dict_untrusted(data)


def test_fuzz_raises_only_bad_message():
    rng = random.Random(7)
    junk = [None, -1, 1 << 64, 1.5, True, "x", b"x", [], {}, [[]], [1, 2, 3], "y" * 300, [0] * 300]

    def spoil(value):
        if rng.random() < 0.1:
            return rng.choice(junk)
        if isinstance(value, dict):
            return {key: spoil(one) for key, one in value.items() if rng.random() > 0.05}
        if isinstance(value, list):
            return [spoil(one) for one in value]
        return value

    bad = 0
    for _ in range(3000):
        try:
            LockspaceView.from_dict_untrusted(spoil(VIEW.to_dict()))
        except BadMessage:
            bad += 1
    assert bad > 1000
