"""Tokens at their issuer: every state and event, replays, clocks that jump (R11)."""

from __future__ import annotations

import dataclasses
import itertools
import random

import cbor2
import pytest

from membership.enrol.grants import (
    AGAIN_SECONDS,
    GRANTS_MAX,
    LIFETIME_SECONDS_MAX,
    SKEW_SECONDS,
    TABLE,
    Event,
    Grant,
    Grants,
    State,
    Verdict,
)
from membership.enrol.token import Contact
from membership.errors import BadMessage, OperatorError

CLUSTER = b"C" * 16
CONTACTS = (Contact("10.0.0.1", 7001),)
WALL = 1_800_000_000
ME, THIEF = b"m" * 16, b"t" * 16


def issued(node: str = "n4", lifetime: int = 600):
    grants = Grants((), WALL, 100.0)
    token, grant, dropped = grants.issue(CLUSTER, node, lifetime, CONTACTS, random.Random(1), WALL, 100.0)
    assert dropped == ()
    return grants, token, grant


def test_the_table_is_complete_and_leaves_no_end_for_better() -> None:
    assert set(TABLE) == set(itertools.product(State, Event))
    for (state, _), (after, verdict) in TABLE.items():
        if state is not State.ISSUED:
            assert after in (state, State.REVOKED)
        if verdict is Verdict.GRANT:
            assert after is State.REDEEMED


@pytest.mark.parametrize(("state", "event"), list(itertools.product(State, Event)))
def test_every_state_and_event(state: State, event: Event) -> None:
    """Through the public calls, as far as the state can meet the event at all."""
    grants, token, grant = issued()
    key = token.token_id
    if state is State.REDEEMED:
        assert grants.redeem(key, "n4", ME, WALL, 100.0).verdict is Verdict.GRANT
    elif state is State.EXPIRED:
        assert [g.state for g in grants.expire(WALL + 600 + SKEW_SECONDS + 1, 100.0)] == [State.EXPIRED]
    elif state is State.REVOKED:
        grants.redeem(key, "n4", ME, WALL, 100.0)
        grants.revoke(key)
    after, verdict = TABLE[state, event]
    before = grants.all()[0]
    assert before.state is state
    if event is Event.REVOKE:
        assert grants.revoke(key).state is after
    elif event is Event.EXPIRE:
        changed = grants.expire(WALL + 600 + SKEW_SECONDS + 1, 100.0)
        assert [g.state for g in changed] == ([after] if after is not state else [])
    else:
        node = "n5" if event is Event.UNFIT else "n4"
        decision = grants.redeem(key, node, ME if event is Event.AGAIN else THIEF, WALL + 1, 101.0)
        assert decision.verdict is verdict
        assert bool(decision.reason) == (verdict is not Verdict.GRANT)
        assert bool(decision.alert) == (verdict is Verdict.ALARM)
        assert (decision.changed is not None) == (verdict is Verdict.GRANT)
    assert grants.all()[0].state is after
    assert verdict is not Verdict.NOTHING or event in (Event.REVOKE, Event.EXPIRE)


def test_a_token_works_once() -> None:
    grants, token, grant = issued()
    decision = grants.redeem(token.token_id, "n4", ME, WALL + 5, 105.0)
    assert decision.changed == dataclasses.replace(
        grant, state=State.REDEEMED, redeemed=WALL + 5, redeemed_by=ME, redeemed_node="n4"
    )
    replay = grants.redeem(token.token_id, "n4", THIEF, WALL + 6, 106.0)
    assert replay.verdict is Verdict.ALARM
    assert replay.reason == "this join token was used already; ask for a new one, and say so if it was not you"
    assert "node 'n4' was refused" in replay.alert
    assert replay.changed is None


@pytest.mark.parametrize(
    ("seconds", "instance", "node", "verdict"),
    [
        (AGAIN_SECONDS, ME, "n4", Verdict.GRANT), (AGAIN_SECONDS + 1, ME, "n4", Verdict.ALARM),
        (-AGAIN_SECONDS - 1, ME, "n4", Verdict.ALARM), (1, THIEF, "n4", Verdict.ALARM), (1, ME, "n5", Verdict.ALARM),
    ],
)  # fmt: skip
def test_who_lost_the_answer_gets_it_again_for_a_minute(seconds, instance, node, verdict) -> None:
    grants, token, _ = issued("")
    first = grants.redeem(token.token_id, "n4", ME, WALL + 100, 200.0)
    again = grants.redeem(token.token_id, node, instance, WALL + 100 + seconds, 201.0)
    assert again.verdict is verdict
    assert again.changed == (first.changed if verdict is Verdict.GRANT else None)


def test_a_new_administrator_knows_the_same() -> None:
    grants, token, _ = issued()
    changed = grants.redeem(token.token_id, "n4", ME, WALL + 5, 105.0).changed
    other = Grants([Grant.from_dict_untrusted(cbor2.loads(cbor2.dumps(changed.to_dict())))], WALL + 6, 9.0)
    assert other.key_of(token.token_id) == token.key
    assert other.redeem(token.token_id, "n4", THIEF, WALL + 7, 10.0).verdict is Verdict.ALARM
    assert other.redeem(token.token_id, "n4", ME, WALL + 7, 10.0).verdict is Verdict.GRANT


def test_time_is_over_by_the_wall_clock_with_skew() -> None:
    grants, token, _ = issued()
    assert grants.expire(WALL + 600 + SKEW_SECONDS, 100.0) == ()
    late = grants.redeem(token.token_id, "n4", ME, WALL + 601 + SKEW_SECONDS, 101.0)
    assert (late.verdict, late.changed.state, late.alert) == (Verdict.REFUSE, State.EXPIRED, "")
    assert "expired" in late.reason
    # and it stays so when the clock is set back (G2)
    assert grants.redeem(token.token_id, "n4", ME, WALL + 1, 102.0).verdict is Verdict.REFUSE


def test_a_clock_set_back_prolongs_nothing() -> None:
    grants, token, _ = issued()
    now = 100.0 + 600 + SKEW_SECONDS
    assert grants.expire(WALL, now) == ()
    assert grants.redeem(token.token_id, "n4", ME, WALL, now + 1).verdict is Verdict.REFUSE
    assert grants.all()[0].state is State.EXPIRED


def test_a_clock_before_the_issue_is_wrong_and_uses_nothing_up() -> None:
    grants, token, _ = issued()
    early = grants.redeem(token.token_id, "n4", ME, WALL - SKEW_SECONDS - 1, 101.0)
    assert (early.verdict, early.changed) == (Verdict.REFUSE, None)
    assert "clock" in early.alert
    assert grants.redeem(token.token_id, "n4", ME, WALL - SKEW_SECONDS, 101.0).verdict is Verdict.GRANT


def test_a_clock_set_back_before_the_administrator_started_prolongs_by_one_lifetime_at_most() -> None:
    _, token, grant = issued()
    other = Grants([grant], WALL - 10, 0.0)
    assert other.redeem(token.token_id, "n4", ME, WALL, 600 + SKEW_SECONDS + 1).verdict is Verdict.REFUSE


def test_an_objection_and_a_wrong_name_use_nothing_up() -> None:
    grants, token, _ = issued()
    other = grants.redeem(token.token_id, "n5", ME, WALL, 101.0)
    assert (other.verdict, other.reason) == (Verdict.REFUSE, "this join token is for node n4, this server is n5")
    taken = grants.redeem(token.token_id, "n4", ME, WALL, 101.0, "a node n4 exists")
    assert (taken.verdict, taken.reason, taken.changed) == (Verdict.REFUSE, "a node n4 exists", None)
    assert grants.redeem(token.token_id, "n4", ME, WALL, 101.0).verdict is Verdict.GRANT
    # a used token is an alarm though there is an objection too
    assert grants.redeem(token.token_id, "n4", THIEF, WALL, 101.0, "a node n4 exists").verdict is Verdict.ALARM


def test_unknown_tokens() -> None:
    grants, _, _ = issued()
    assert grants.key_of(b"x" * 16) is None
    assert grants.redeem(b"x" * 16, "n4", ME, WALL, 101.0).verdict is Verdict.REFUSE
    with pytest.raises(OperatorError, match="no join token 78787878"):
        grants.revoke(b"x" * 16)


@pytest.mark.parametrize("lifetime", [0, LIFETIME_SECONDS_MAX + 1])
def test_lifetimes_and_names_are_bounded(lifetime: int) -> None:
    with pytest.raises(OperatorError, match="lives 1 second to 30 days"):
        issued(lifetime=lifetime)
    with pytest.raises(OperatorError, match="at most 64 characters"):
        issued("n" * 65)


def test_the_table_of_tokens_is_bounded() -> None:
    grants, first, _ = issued()
    rng = random.Random(2)
    for n in range(GRANTS_MAX - 1):
        assert grants.issue(CLUSTER, "", 600, CONTACTS, rng, WALL + n + 1, 101.0)[2] == ()
    with pytest.raises(OperatorError, match="64 join tokens are open"):
        grants.issue(CLUSTER, "", 600, CONTACTS, rng, WALL + 100, 102.0)
    grants.revoke(first.token_id)
    dropped = grants.issue(CLUSTER, "", 600, CONTACTS, rng, WALL + 100, 102.0)[2]
    assert [g.token_id for g in dropped] == [first.token_id]
    assert len(grants.all()) == GRANTS_MAX
    assert grants.key_of(first.token_id) is None


def test_no_record_has_the_secret() -> None:
    grants, token, grant = issued()
    stored = cbor2.dumps(grant.to_dict())
    assert token.secret not in stored
    assert token.key in stored
    assert repr(token.key) not in repr(grant)
    assert repr(grant).startswith("Grant(token_id=")


def test_records_from_the_database_are_checked() -> None:
    good = issued()[2].to_dict()
    assert Grant.from_dict_untrusted(good).to_dict() == good
    for data in (
        None, [], {}, {**good, "more": 1}, {**good, "state": "new"}, {**good, "state": 5}, {**good, "key": b"x"},
        {**good, "token_id": "x" * 16}, {**good, "issued": -1}, {**good, "expires": 1.5}, {**good, "redeemed": True},
        {**good, "node": b"n"}, {**good, "redeemed_node": "n" * 65}, {**good, "redeemed_by": b"x"},
        {**good, "state": ["x"]}, {name: value for name, value in good.items() if name != "key"},
    ):  # fmt: skip
        with pytest.raises(BadMessage):
            Grant.from_dict_untrusted(data)


def test_whatever_happens_one_instance_gets_in() -> None:
    """Random histories, clocks included: never two instances granted, and nothing after the end."""
    rng = random.Random(4)
    granted_somewhere = 0
    for _ in range(300):
        grants, token, grant = issued("")
        wall, now = WALL, 100.0
        durable = grant
        winners: set[bytes] = set()
        for _ in range(30):
            now += rng.choice([0.1, 10, 100])
            wall = rng.choice([wall, int(WALL + now - 100), WALL + rng.randrange(-1000, 2000)])
            what = rng.random()
            if what < 0.05:
                durable = grants.revoke(token.token_id)
            elif what < 0.2:
                grants = Grants([durable], wall, now)  # a new administrator: from what is durable
            elif what < 0.3:
                durable = next(iter(grants.expire(wall, now)), durable)
            else:
                instance = rng.choice([ME, THIEF])
                before = durable.state
                decision = grants.redeem(token.token_id, "n4", instance, wall, now)
                durable = decision.changed or durable
                if decision.verdict is Verdict.GRANT:
                    assert before in (State.ISSUED, State.REDEEMED)
                    winners.add(instance)
        assert len(winners) <= 1
        granted_somewhere += len(winners)
    assert granted_somewhere > 50
