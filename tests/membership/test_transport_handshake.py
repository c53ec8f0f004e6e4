"""Handshake: who gets in, who does not, and that who does not learns nothing (R11)."""

from __future__ import annotations

import random

import pytest

from membership.errors import BadMessage
from membership.transport.handshake import (
    CHALLENGE_BYTES,
    HELLO_BYTES,
    NOTHING,
    PROOF_BYTES,
    Acceptor,
    Agreement,
    Connector,
    Credentials,
    Instance,
    ResumePoint,
)

UUID, KEY = b"u" * 16, b"k" * 32
LOW, HIGH = Instance(3, 33), Instance(5, 2**64 - 1)


def pair(
    theirs: Credentials | None = None,
    *,
    me: Instance = LOW,
    wanted: Instance = HIGH,
    here: Instance = HIGH,
    stated: ResumePoint = NOTHING,
    nonces: tuple[bytes, bytes] = (b"c" * 32, b"a" * 32),
) -> tuple[Connector, Acceptor]:
    ours = Credentials(UUID, KEY, "matrixd")
    return Connector(theirs or ours, me, wanted, stated, nonces[0]), Acceptor(ours, here, nonces[1])


def run(connector: Connector, acceptor: Acceptor, stated: ResumePoint = NOTHING) -> tuple[Agreement, Agreement]:
    acceptor.receive_hello_untrusted(connector.hello)
    proof, one = connector.receive_challenge_untrusted(acceptor.challenge(stated))
    return one, acceptor.receive_proof_untrusted(proof)


def test_both_prove_and_agree():
    one, other = run(*pair())
    assert (one.peer, other.peer) == (HIGH, LOW)
    assert one.session == other.session != 0
    assert (one.send_key, one.receive_key) == (other.receive_key, other.send_key)
    assert one.send_key != one.receive_key
    assert not one.resumed
    assert not other.resumed


@pytest.mark.parametrize(
    ("connector_states", "acceptor_states", "resumed"),
    [
        (ResumePoint(9, 4), ResumePoint(9, 6), True),
        (ResumePoint(9, 4), ResumePoint(8, 6), False),
        (ResumePoint(9, 4), NOTHING, False),
        (NOTHING, ResumePoint(9, 6), False),
        (NOTHING, NOTHING, False),
    ],
)
def test_session_is_resumed_only_if_both_still_have_it(connector_states, acceptor_states, resumed):
    one, other = run(*pair(stated=connector_states), acceptor_states)
    assert one.resumed == other.resumed == resumed
    assert one.session == other.session
    assert (one.session == 9) == resumed
    assert (one.peer_received, other.peer_received) == ((6, 4) if resumed else (0, 0))


@pytest.mark.parametrize(
    ("credentials", "match"),
    [
        (Credentials(UUID, b"K" * 32, "matrixd"), "key"),
        (Credentials(b"v" * 16, KEY, "matrixd"), "another cluster"),
        (Credentials(UUID, KEY, "lockspace:1"), "another purpose"),
    ],
    ids=["wrong key", "wrong cluster", "wrong purpose"],
)
def test_stranger_gets_no_answer(credentials, match):
    connector, acceptor = pair(credentials)
    with pytest.raises(BadMessage, match=match):
        acceptor.receive_hello_untrusted(connector.hello)


def test_acceptor_without_the_key_is_not_believed():
    connector, _ = pair()
    impostor = Acceptor(Credentials(UUID, KEY, "matrixd"), HIGH, b"a" * 32)
    impostor.receive_hello_untrusted(connector.hello)
    impostor._credentials = Credentials(UUID, b"K" * 32, "matrixd")
    with pytest.raises(BadMessage, match="cluster key"):
        connector.receive_challenge_untrusted(impostor.challenge(NOTHING))


@pytest.mark.parametrize(
    ("me", "wanted", "here"),
    [(LOW, Instance(6, 1), HIGH), (Instance(7, 1), HIGH, HIGH), (HIGH, HIGH, HIGH)],
    ids=["for another node", "the higher connects", "to itself"],
)
def test_wrong_direction_is_refused(me, wanted, here):
    connector, acceptor = pair(me=me, wanted=wanted, here=here)
    with pytest.raises(BadMessage, match="calls for"):
        acceptor.receive_hello_untrusted(connector.hello)


def test_restarted_acceptor_proves_that_its_predecessor_is_gone():
    one, _ = run(*pair(wanted=Instance(5, 1)))
    assert one.peer == HIGH


def test_replayed_transcript_fails_on_either_side():
    connector, acceptor = pair()
    acceptor.receive_hello_untrusted(connector.hello)
    challenge = acceptor.challenge(NOTHING)
    proof, _ = connector.receive_challenge_untrusted(challenge)
    _, later = pair(nonces=(b"", b"A" * 32))
    later.receive_hello_untrusted(connector.hello)  # the recorded HELLO is genuine
    later.challenge(NOTHING)
    with pytest.raises(BadMessage, match="prove"):
        later.receive_proof_untrusted(proof)
    fresh, _ = pair(nonces=(b"C" * 32, b""))
    with pytest.raises(BadMessage, match="cluster key"):
        fresh.receive_challenge_untrusted(challenge)


def test_reflected_messages_fail():
    connector, acceptor = pair()
    own = Acceptor(Credentials(UUID, KEY, "matrixd"), LOW, b"n" * 32)
    with pytest.raises(BadMessage):
        own.receive_hello_untrusted(connector.hello)  # it names the other end
    acceptor.receive_hello_untrusted(connector.hello)
    challenge = acceptor.challenge(NOTHING)
    for reflected in (connector.hello, connector.hello[:CHALLENGE_BYTES]):
        with pytest.raises(BadMessage):
            connector.receive_challenge_untrusted(reflected)
    with pytest.raises(BadMessage):
        acceptor.receive_proof_untrusted(challenge[:8] + challenge[-32:])


def test_man_in_the_middle_cannot_change_a_bit():
    for message in ("hello", "challenge", "proof"):
        size = {"hello": HELLO_BYTES, "challenge": CHALLENGE_BYTES, "proof": PROOF_BYTES}[message]
        for byte in range(size):
            connector, acceptor = pair(stated=ResumePoint(9, 4))

            def tamper(data: bytes, name: str, message: str = message, byte: int = byte) -> bytes:
                return data if name != message else data[:byte] + bytes([data[byte] ^ 0x10]) + data[byte + 1 :]

            with pytest.raises(BadMessage):
                acceptor.receive_hello_untrusted(tamper(connector.hello, "hello"))
                challenge = tamper(acceptor.challenge(ResumePoint(9, 6)), "challenge")
                proof, _ = connector.receive_challenge_untrusted(challenge)
                acceptor.receive_proof_untrusted(tamper(proof, "proof"))


def test_fuzz_raises_nothing_but_bad_message():
    rng = random.Random(7)
    for _ in range(3000):
        connector, acceptor = pair()
        data = rng.randbytes(rng.choice([0, 1, 8, HELLO_BYTES, CHALLENGE_BYTES, PROOF_BYTES, 300]))
        if rng.random() < 0.5:
            data = (b"MXLH\1" + bytes([rng.randrange(5)]) + b"\0\0" + data[8:])[: len(data)]
        for receive in (
            acceptor.receive_hello_untrusted,
            connector.receive_challenge_untrusted,
            acceptor.receive_proof_untrusted,
        ):
            with pytest.raises(BadMessage):
                receive(data)
