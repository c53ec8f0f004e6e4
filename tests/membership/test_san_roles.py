"""Figure 11's roles: the table, and the core that steps through it, for every role and event (002-38 to 002-41)."""

from __future__ import annotations

import itertools

import pytest

from membership.messages import Commit, Nominate, Undo
from membership.san.ballot import Decided
from membership.san.events import TakeGeneration, WriteHeader
from membership.san.header import NOBODY
from membership.san.roles import TRANSITIONS, Role, RoleEvent
from tests.membership.test_san_admin import Rig, header

pytestmark = pytest.mark.seed("002-38", "002-40", "002-41")
PAIRS = list(itertools.product(Role, RoleEvent))


def test_table_is_complete_and_only_headers_in_force_make_and_end_administrators():
    assert set(TRANSITIONS) == set(PAIRS)
    for (role, event), after in TRANSITIONS.items():
        if after is Role.ADMIN:
            assert role is Role.ADMIN or event is RoleEvent.IN_FORCE
        if role is Role.ADMIN and after is not Role.ADMIN:
            assert event is RoleEvent.SUPERSEDED
        if after is Role.ELECTED:
            assert (role, event) in {(Role.CANDIDATE, RoleEvent.WON), (Role.ELECTED, RoleEvent.WON)}


def rig_in(role: Role) -> Rig:
    """Node 1 in that role; node 0 is the coordinator."""
    if role is Role.ADMIN:
        rig = Rig(1, start=header(4, NOBODY, (1,)))
        rig.core.header_read(header(5, 1, (0, 1, 2)), rig.now)
        return rig
    rig = Rig(1, start=header(5, NOBODY, (0, 1, 2)))
    if role is not Role.PEER:
        rig.core.receive(0, Nominate(7, 0), rig.now)
        assert TakeGeneration(6) in rig.drive()[1]
    if role is Role.ELECTED:
        rig.core.generation_taken(Decided(1, 101), rig.now)
    return rig


def inputs_of(rig: Rig, event: RoleEvent) -> list:
    """Every input that is this event."""
    core, now = rig.core, rig.now
    if event is RoleEvent.NOMINATED:
        return [lambda: core.receive(0, Nominate(8, 0), now)]
    if event is RoleEvent.WON:
        return [lambda: core.generation_taken(Decided(1, 101), now)]
    if event is RoleEvent.IN_FORCE:
        return [lambda: core.header_read(header(9, 1, (0, 1, 2)), now)]
    if event is RoleEvent.SUPERSEDED:
        return [lambda other=other: core.header_read(header(9, other, (0, 2)), now) for other in (0, NOBODY)]
    dropped = [
        lambda: core.generation_taken(None, now),
        lambda: core.write_failed(now),
        lambda: rig.view((1, 2), 9),  # the coordinator changed
    ]
    if core.role is Role.ELECTED:
        dropped.append(lambda: core.receive(0, Undo(7), now))
    return dropped


@pytest.mark.parametrize(("role", "event"), PAIRS, ids=str)
def test_the_core_does_what_the_table_says(role: Role, event: RoleEvent):
    for i in range(len(inputs_of(rig_in(role), event))):
        rig = rig_in(role)
        assert rig.core.role is role
        inputs_of(rig, event)[i]()
        assert rig.core.role is TRANSITIONS[role, event]


@pytest.mark.parametrize("role", Role)
def test_a_verdict_moves_only_the_elected_and_a_commit_makes_nobody_administrator_by_itself(role: Role):
    rig = rig_in(role)
    rig.core.receive(0, Commit(7), rig.now)
    assert rig.core.role is role
    written = [event for event in rig.drive()[1] if isinstance(event, WriteHeader)]
    assert len(written) == (role is Role.ELECTED)
    rig = rig_in(role)
    rig.core.receive(0, Undo(7), rig.now)
    assert rig.core.role is (Role.PEER if role is Role.ELECTED else role)


def test_an_elected_node_without_an_answer_gives_up_after_link_dead():
    rig = rig_in(Role.ELECTED)
    rig.now += 2.6
    rig.drive()
    assert rig.core.role is Role.PEER
