"""Handshake: who gets in, who does not, and that who does not learns nothing (R11)."""

from __future__ import annotations

import random

import pytest

from membership.errors import BadMessage
from membership.transport.handshake import (
    CHALLENGE_BYTES,
    HELLO_BYTES,
    MAC_BYTES,
    NOTHING,
    PREFIX_BYTES,
    PROOF_BYTES,
    Acceptor,
    Agreement,
    Connector,
    Credentials,
    Instance,
    ResumePoint,
    check_prefix_untrusted,
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
    entropies: tuple[bytes, bytes] = (b"c" * 64, b"a" * 64),
) -> tuple[Connector, Acceptor]:
    ours = Credentials(UUID, KEY, "matrixd")
    return Connector(theirs or ours, me, wanted, stated, entropies[0]), Acceptor(ours, here, entropies[1])


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
    impostor = Acceptor(Credentials(UUID, KEY, "matrixd"), HIGH, b"a" * 64)
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
    _, later = pair(entropies=(b"c" * 64, b"A" * 64))
    later.receive_hello_untrusted(connector.hello)  # the recorded HELLO is genuine
    later.challenge(NOTHING)
    with pytest.raises(BadMessage, match="prove"):
        later.receive_proof_untrusted(proof)
    fresh, _ = pair(entropies=(b"C" * 64, b"a" * 64))
    with pytest.raises(BadMessage, match="cluster key"):
        fresh.receive_challenge_untrusted(challenge)


def test_reflected_messages_fail():
    connector, acceptor = pair()
    own = Acceptor(Credentials(UUID, KEY, "matrixd"), LOW, b"n" * 64)
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


def transcript(connector: Connector, acceptor: Acceptor) -> tuple[tuple[bytes, ...], Agreement]:
    acceptor.receive_hello_untrusted(connector.hello)
    challenge = acceptor.challenge(NOTHING)
    proof, agreement = connector.receive_challenge_untrusted(challenge)
    return (connector.hello, challenge, proof), agreement


def test_keys_need_more_than_the_cluster_key_and_what_was_recorded():
    """Forward secrecy: the same cluster key, the same messages to its eyes, another secret of an end: other keys."""
    messages, agreement = transcript(*pair())
    thief = Credentials(UUID, KEY, "matrixd")
    for guess in (bytes(32), messages[0][112:144], messages[1][72:104]):  # no secret, or the public keys
        assert agreement.send_key not in thief.session_keys(guess, b"".join(messages))
    _, again = transcript(*pair(entropies=(b"c" * 32 + b"d" * 32, b"a" * 64)))
    assert agreement.send_key != again.send_key
    assert agreement.send_key not in b"".join(messages)


def test_every_message_goes_into_the_keys():
    credentials = Credentials(UUID, KEY, "matrixd")
    (hello, challenge, proof), _ = transcript(*pair())
    keys = {credentials.session_keys(b"s" * 32, b"".join(parts)) for parts in (
        (hello, challenge, proof), (hello[:-1] + b"x", challenge, proof), (hello, challenge, proof[:-1] + b"x"),
    )}  # fmt: skip
    assert len(keys) == 3
    assert credentials.session_keys(b"s" * 32, b"") != credentials.session_keys(b"t" * 32, b"")


@pytest.mark.parametrize("public", [bytes(32), (1).to_bytes(32, "little")], ids=["zero", "one"])
def test_insider_with_a_public_key_of_low_order_is_refused(public):
    connector, acceptor = pair()
    credentials = Credentials(UUID, KEY, "matrixd")
    unsigned = connector.hello[:112] + public
    hello = unsigned + credentials.mac(b"hello", unsigned)
    acceptor.receive_hello_untrusted(hello)
    challenge = acceptor.challenge(NOTHING)
    proof = b"MXLH\2\3\0\0" + credentials.mac(b"proof", hello, challenge)
    with pytest.raises(BadMessage, match="no secret"):
        acceptor.receive_proof_untrusted(proof)
    acceptor.receive_hello_untrusted(connector.hello)
    unsigned = acceptor.challenge(NOTHING)[:72] + public
    with pytest.raises(BadMessage, match="no secret"):
        connector.receive_challenge_untrusted(unsigned + credentials.mac(b"challenge", connector.hello, unsigned))


@pytest.mark.parametrize("ours", [True, False], ids=["we encrypt", "we don't"])
def test_ends_that_differ_in_encryption_refuse_each_other_and_say_why(ours):
    connector = Connector(Credentials(UUID, KEY, "matrixd", encrypt=ours), LOW, HIGH, NOTHING, b"c" * 64)
    acceptor = Acceptor(Credentials(UUID, KEY, "matrixd", encrypt=not ours), HIGH, b"a" * 64)
    acceptor.receive_hello_untrusted(connector.hello)
    words = ("plain links, we encrypted", "encrypted links, we plain")
    with pytest.raises(BadMessage, match=f"node 5 wants {words[not ours]} ones: all nodes"):
        connector.receive_challenge_untrusted(acceptor.challenge(NOTHING))
    with pytest.raises(BadMessage, match=f"node 3 wants {words[ours]} ones: all nodes"):
        acceptor.check_terms()
    with pytest.raises(BadMessage, match="all nodes"):
        acceptor.receive_proof_untrusted(b"MXLH\2\3\0\0" + bytes(MAC_BYTES))


def test_plain_ends_agree_too():
    credentials = Credentials(UUID, KEY, "matrixd", encrypt=False)
    ends = Connector(credentials, LOW, HIGH, NOTHING, b"c" * 64), Acceptor(credentials, HIGH, b"a" * 64)
    assert [end.encrypt for end in run(*ends)] == [False, False]


@pytest.mark.parametrize(
    ("prefix", "match"),
    [(b"MXLH\1\1\0\0", "protocol 1, we 2"), (b"MXLH\3\1\0\0", "protocol 3"), (b"GET / HT", "no handshake")],
)
def test_another_version_is_refused_by_its_first_bytes(prefix, match):
    assert len(prefix) == PREFIX_BYTES
    check_prefix_untrusted(b"MXLH\2\1\1\0")
    with pytest.raises(BadMessage, match=match):
        check_prefix_untrusted(prefix)


def test_fuzz_raises_nothing_but_bad_message():
    rng = random.Random(7)
    for _ in range(3000):
        connector, acceptor = pair()
        data = rng.randbytes(rng.choice([0, 1, 8, HELLO_BYTES, CHALLENGE_BYTES, PROOF_BYTES, 300]))
        if rng.random() < 0.5:
            data = (b"MXLH\2" + bytes([rng.randrange(5)]) + b"\0\0" + data[8:])[: len(data)]
        for receive in (
            acceptor.receive_hello_untrusted,
            connector.receive_challenge_untrusted,
            acceptor.receive_proof_untrusted,
        ):
            with pytest.raises(BadMessage):
                receive(data)
