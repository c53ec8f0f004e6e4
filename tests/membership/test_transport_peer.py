"""PeerLink: what is reported when, and which messages a report costs."""

from __future__ import annotations

import pytest

from membership.seams import LinkDown, LinkUp, PeerAddress
from membership.transport.handshake import NOTHING, Agreement, Instance, ResumePoint
from membership.transport.peer import DOWN, LOST, NEW, UP, PeerLink
from membership.transport.session import Packet

PEER = PeerAddress(4, 1, "127.0.0.4", 7000)


def agree(session: int, *, resumed: bool = False, stated: ResumePoint = NOTHING, received: int = 0) -> Agreement:
    return Agreement(Instance(4, 1), session, resumed, stated, received, b"", b"")


def link_in(phase: str) -> PeerLink:
    """A link in a phase, with one message sent and one queued; grace 1 s, time 10."""
    link = PeerLink(PEER, 9.0, 1.0)
    link.session.queue(b"first")
    if phase in (UP, LOST):
        link.established(agree(77), 9.5)
        link.session.take()
    if phase == LOST:
        link.lost(10.0)
    if phase == DOWN:
        link.refused("gone", 9.5)
    link.session.queue(b"second")
    return link


REFUSED = [LinkDown(4, True, "no")]
ROWS = [
    # phase, input, events, phase after, messages kept
    (NEW, "established", [LinkUp(4)], UP, 2),
    (NEW, "lost", [], NEW, 2),
    (NEW, "refused", REFUSED, DOWN, 0),
    (NEW, "expired", [LinkDown(4, False, "not reached within 1 s")], DOWN, 2),
    (NEW, "stuck", [LinkDown(4, False, "stuck: 2 messages not acknowledged")], DOWN, 0),
    (UP, "established", [LinkDown(4, False, "the peer began a new session"), LinkUp(4)], UP, 0),
    (UP, "resumed", [], UP, 2),
    (UP, "lost", [], LOST, 2),
    (UP, "refused", REFUSED, DOWN, 0),
    (UP, "expired", [], UP, 2),
    (UP, "stuck", [LinkDown(4, False, "stuck: 2 messages not acknowledged")], DOWN, 0),
    (LOST, "established", [LinkDown(4, False, "the peer began a new session"), LinkUp(4)], UP, 0),
    (LOST, "resumed", [], UP, 2),
    (LOST, "impossible", [LinkDown(4, False, "resumes after message 9, outside of what we keep")], DOWN, 0),
    (LOST, "stale", [], LOST, 2),
    (LOST, "lost", [], LOST, 2),
    (LOST, "refused", REFUSED, DOWN, 0),
    (LOST, "expired", [LinkDown(4, False, "not back within 1 s")], DOWN, 0),
    (LOST, "stuck", [LinkDown(4, False, "stuck: 2 messages not acknowledged")], DOWN, 0),
    (DOWN, "established", [LinkUp(4)], UP, 1),
    (DOWN, "lost", [], DOWN, 1),
    (DOWN, "refused", [], DOWN, 1),
    (DOWN, "expired", [], DOWN, 1),
    (DOWN, "stuck", [LinkDown(4, True, "stuck: 1 messages not acknowledged")], DOWN, 0),
]


@pytest.mark.parametrize(("phase", "what", "events", "after", "kept"), ROWS, ids=[f"{r[0]}-{r[1]}" for r in ROWS])
def test_every_input_in_every_phase(phase, what, events, after, kept):
    link = link_in(phase)
    assert link.phase == phase
    mine = link.resume_point
    inputs = {
        "established": lambda: link.established(agree(88, stated=mine), 20.0),
        "resumed": lambda: link.established(agree(77, resumed=True, stated=mine, received=0), 20.0),
        "impossible": lambda: link.established(agree(77, resumed=True, stated=mine, received=9), 20.0),
        "stale": lambda: link.established(agree(77, resumed=True, stated=ResumePoint(66, 0)), 20.0),
        "lost": lambda: link.lost(20.0),
        "refused": lambda: link.refused("no", 20.0),
        "expired": lambda: link.expired(20.0),
        "stuck": lambda: link.stuck(20.0),
    }
    assert (inputs[what]() or []) == events
    assert (link.phase, link.session.queued) == (after, kept)


def test_silence_may_turn_into_refusal_but_not_back():
    link = link_in(LOST)
    assert [event.refused for event in link.expired(20.0)] == [False]
    assert [event.refused for event in link.refused("no", 21.0)] == [True]
    assert link.refused("no", 22.0) == link.expired(99.0) == []


def test_grace_is_not_over_before_it_is():
    link = link_in(LOST)
    assert link.expired(10.999) == []
    assert len(link.expired(11.0)) == 1


def test_resume_sends_again_what_the_peer_lacks():
    link = link_in(LOST)
    link.established(agree(77, resumed=True, stated=link.resume_point, received=1), 20.0)
    assert link.session.take() == Packet(2, 0, [b"second"])
