"""Keys, traits and the table of registration: pure (002-31, 002-38)."""

from __future__ import annotations

import itertools
import random

import pytest

from membership.errors import CorruptRecord, Fenced
from membership.fence.keys import CLAIMANT, describe_key, key_of, node_of
from membership.fence.registration import TABLE, Action, Event, Registration, State
from membership.fence.reservations import ALL_REGISTRANTS, REGISTRANTS_ONLY, Leak, LunTraits
from membership.label import NODE_SLOTS
from tests.sim.lun import CONFORMING, ISTGT, TGT, traits_of


def test_a_key_tells_node_and_process():
    assert key_of(3, 0x1234_5678_9ABC_DEF1) == 0x4D58_03_78_9ABC_DEF1
    for node in (0, 1, NODE_SLOTS - 1, CLAIMANT):
        for incarnation in (1, 2**40 - 1, 2**40 + 5, 2**64 - 1):
            key = key_of(node, incarnation)
            assert node_of(key) == node
            assert key != 0 and key < 2**64
            assert key & (2**40 - 1) == incarnation & (2**40 - 1)


def test_other_peoples_keys_are_nobody_of_ours():
    for key in (
        0,
        1,
        0x123ABC,
        0x4D58 << 48 | NODE_SLOTS << 40 | 1,
        0x4D58 << 48 | 0xFE << 40,
        0x4D59 << 48 | 1,
        2**64 - 1,
    ):
        assert node_of(key) is None
        assert "somebody else" in describe_key(key)
    assert "node 5" in describe_key(key_of(5, 1))
    assert "claimant" in describe_key(key_of(CLAIMANT, 1))


def test_every_step_of_the_table():
    """LOST is final; only ADMIT makes REGISTERED; only a registered process has a key to take back."""
    assert set(TABLE) == set(itertools.product(State, Event))
    for (state, event), (after, action) in TABLE.items():
        registration = Registration()
        registration.state, registration.reason = state, "first"
        if action is Action.REFUSE:
            with pytest.raises(Fenced, match="first"):
                registration.step(event, "second")
        else:
            assert registration.step(event, "second") is action
        assert registration.state is after
        if state is State.LOST:
            assert (after, registration.reason) == (State.LOST, "first")
            assert action in {Action.REFUSE, Action.NOTHING}
        elif after is State.LOST:
            assert registration.reason == "second"
        if after is State.REGISTERED:
            assert state is State.REGISTERED or event is Event.ADMIT
        if action in {Action.LEAVE, Action.UNREGISTER}:
            assert state is State.REGISTERED
        if event in {Event.CONFLICT, Event.EVICTED, Event.WITHDRAW}:
            assert after is State.LOST
        assert (action is Action.REGISTER) == (after is State.REGISTERED)


def random_traits(rng: random.Random) -> LunTraits:
    kind = rng.choice((0, REGISTRANTS_ONLY, ALL_REGISTRANTS))
    return LunTraits(kind, *(rng.random() < 0.5 for _ in range(9)), leaks=Leak(rng.randrange(sum(Leak) + 1)))


def test_traits_come_back_from_their_words():
    rng = random.Random(1)
    for _ in range(300):
        traits = random_traits(rng)
        words = traits.to_words()
        assert all(0 <= word < 2**32 for word in words)
        assert LunTraits.from_words_untrusted(*words) == traits
    assert LunTraits().to_words() == (0, 0, 0)


def test_bad_words_are_one_error():
    rng = random.Random(2)
    accepted = refused = 0
    for _ in range(2000):
        words = [rng.choice((rng.randrange(2**32), rng.randrange(16), 1 << rng.randrange(32))) for _ in range(3)]
        try:
            traits = LunTraits.from_words_untrusted(*words)
        except CorruptRecord:
            refused += 1
        else:
            accepted += 1
            assert traits.to_words() == tuple(words)
    assert accepted > 20
    assert refused > 1000


def test_which_sequence_fences():
    """Nothing that was not proved is used."""
    assert LunTraits().fence == "none"
    assert traits_of(CONFORMING).fence == "preempt-and-abort"
    assert traits_of(TGT).fence == "preempt+reset"
    assert traits_of(ISTGT).fence == "none"
    rng = random.Random(3)
    seen = set()
    for _ in range(3000):
        traits = random_traits(rng)
        seen.add(traits.fence)
        if traits.fence == "none":
            continue
        assert traits.kind and traits.outlives_holder and traits.keys_are_true
        assert not traits.leaks & Leak.WRITE_10
        proved = traits.abort_stops if traits.fence == "preempt-and-abort" else traits.reset_stops
        assert proved
    assert seen == {"none", "preempt-and-abort", "preempt+reset"}


def test_traits_in_words_for_people():
    assert traits_of(CONFORMING).describe() == [
        "fence by reservations: preempt-and-abort, registrants only",
        "compare and write: atomic",
    ]
    told = "\n".join(traits_of(TGT).describe())
    assert "preempt+reset" in told
    assert "WRITE SAME, ORWRITE, WRITE AND VERIFY" in told
    assert "its list of keys is wrong" in "\n".join(traits_of(ISTGT).describe())
    assert "no reservation keeps" in "\n".join(LunTraits().describe())
