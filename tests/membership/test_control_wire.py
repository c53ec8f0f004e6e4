"""Frames and messages of the control socket: what is hostile is BadMessage, and nothing else (W1, W2, R11)."""

from __future__ import annotations

import random
import struct

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from membership import control_wire as wire
from membership.errors import BadMessage, CorruptRecord, DeviceError, Fenced, OperatorError
from membership.label import DEFAULT_TIMING

CLUSTER = wire.ClusterInfo(
    node_id=63,
    node_name="n1",
    node_address="127.0.0.1",
    node_others=("127.0.1.1", "fd00::1"),
    cluster_name="web",
    cluster_uuid=b"u" * 16,
    cluster_key=b"secret-secret-secret-secret-secr",
    encrypt=True,
    store_path="/dev/sdb",
    data_offset=1024 * 4096,
    data_length=1 << 40,
    timing=DEFAULT_TIMING,
    traits=(5, 7, 1 << 3),
)

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(st.lists(st.dictionaries(st.text(), plain, max_size=4), max_size=4), st.integers(1, 7))
def test_frames_survive_any_cut(bodies: list[dict], step: int) -> None:
    messages = [{**body, "kind": "x"} for body in bodies]
    stream = b"".join(wire.encode_frame(m) for m in messages)
    frames, found = wire.FrameBuffer(), []
    for i in range(0, len(stream), step):
        frames.feed(stream[i : i + step])
        while (message := frames.next_untrusted()) is not None:
            found.append(message)
    assert found == messages


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff",
        cbor2.dumps([1]),
        cbor2.dumps({"no": "kind"}),
        cbor2.dumps({"kind": 1}),
        cbor2.dumps({"kind": "x", 1: 2}),
        cbor2.dumps({"kind": "x", b"key": 2}),
        cbor2.dumps({"kind": "x", "big": 1 << 70}),  # a tag
        cbor2.dumps({"kind": "x", "undefined": cbor2.undefined}),
        b"\xa2" + cbor2.dumps("kind") + cbor2.dumps("x") + cbor2.dumps("kind") + cbor2.dumps("y"),
        b"\xa2" + cbor2.dumps("kind") + cbor2.dumps("x") + cbor2.dumps("a") + bytes.fromhex("d81c81d81d00"),  # a cycle
        b"\xa2" + cbor2.dumps("kind") + cbor2.dumps("x") + cbor2.dumps("a") + bytes.fromhex("c5821b7fffffffffffffff01"),
        b"\xa2" + cbor2.dumps("kind") + cbor2.dumps("x") + cbor2.dumps("a") + b"\x81" * 5000 + b"\x00",
        cbor2.dumps({"kind": "x"})[:-1],
    ],
)
def test_hostile_bodies_are_bad_messages(body: bytes) -> None:
    with pytest.raises(BadMessage):
        wire.decode_untrusted(body)


def test_a_length_over_the_cap_is_refused_before_its_bytes_come() -> None:
    frames = wire.FrameBuffer()
    frames.feed(struct.pack("<I", wire.FRAME_BYTES_MAX + 1))
    with pytest.raises(BadMessage, match="over 8388608"):
        frames.next_untrusted()
    with pytest.raises(BadMessage, match="over 8388608"):
        wire.encode_frame({"kind": "x", "data": bytes(wire.FRAME_BYTES_MAX)})


def test_fuzz_only_bad_message_comes_out() -> None:
    rng = random.Random(20261120)
    good = wire.encode_frame({"kind": "welcome", "cluster": wire.cluster_to_map(CLUSTER), "list": [1, 2.5, None, b"x"]})
    for _ in range(5000):
        data = bytearray(good)
        for _ in range(rng.randint(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        frames = wire.FrameBuffer()
        frames.feed(bytes(data[: rng.randint(0, len(data))]) if rng.random() < 0.3 else bytes(data))
        try:
            message = frames.next_untrusted()
            if message is not None:
                wire.cluster_of_untrusted(wire.take(message, "cluster", dict))
        except BadMessage:
            pass


def test_cluster_and_admission_travel_and_hide_the_key() -> None:
    message = wire.decode_untrusted(cbor2.dumps({"kind": "x", "cluster": wire.cluster_to_map(CLUSTER)}))
    cluster = wire.cluster_of_untrusted(message["cluster"])
    assert cluster == CLUSTER
    admission = wire.admission_of_untrusted(
        cluster, {"fs_name": "web", "journal": -1, "generation": 7, "lease_deadline": 4}
    )
    assert (admission.node_id, admission.journal, admission.generation, admission.lease_deadline) == (63, -1, 7, 4.0)
    assert "secret" not in repr(cluster) + repr(admission)


@pytest.mark.parametrize("key", list(wire.cluster_to_map(CLUSTER)))
def test_each_field_of_the_cluster_is_checked(key: str) -> None:
    fields = wire.cluster_to_map(CLUSTER)
    for bad in ({**fields, key: [None]}, {k: v for k, v in fields.items() if k != key}):
        with pytest.raises(BadMessage):
            wire.cluster_of_untrusted(bad)


def test_contradicting_timing_is_a_bad_message() -> None:
    fields = wire.cluster_to_map(CLUSTER)
    fields["timing"] = {**fields["timing"], "lease": 0.001}
    with pytest.raises(BadMessage, match="timing"):
        wire.cluster_of_untrusted(fields)


@pytest.mark.parametrize(
    "error", [OperatorError("a"), Fenced("b"), DeviceError("c"), CorruptRecord("block 1", "magic", 1, 2)]
)
def test_errors_keep_their_line_and_exit_code(error: Exception) -> None:
    back = wire.error_of_untrusted(wire.error_message(error))
    assert (str(back), back.exit_code) == (str(error), error.exit_code)
    if isinstance(error, (OperatorError, Fenced)):
        assert type(back) is type(error)
