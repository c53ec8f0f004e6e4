"""The lease: until when this node may write (pure; 002-12, 002-22; R3, R4).

A renewal starts, writes the slot durably, then reads the SAN header.  If the header lists this incarnation, the
right to write extends to *start of the renewal* + lease.  Peers count from the moment a header without the node was
durable, which is after the start of any renewal that still saw it: that is the formula of R4.

Invariants:

L1. The deadline never lies more than ``lease`` after the start of a renewal that saw us as a member.
L2. FENCED and LEFT are final: a process that lost its right never gets it back; a new incarnation joins anew.
L3. LAPSED is a pause, for as long as it takes: nothing is written but the slot, and writers wait.  A renewal that still
    sees us listed ends it: nobody evicted us, so nobody acted, and what was under way may be done again.  So a store
    that is gone for all pauses the cluster; a node that alone can't reach it is evicted by the others (san/admin.py).
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from membership.label import Timing


class LeaseState(Enum):
    """What this node may do."""

    OUT = "out"  # no member yet: may write its slot and ballot, nothing else
    MEMBER = "member"
    LAPSED = "lapsed"  # the deadline passed, for all we know we are still listed
    FENCED = "fenced"
    LEFT = "left"


class LeaseEvent(Enum):
    """What happens to it."""

    LISTED = "listed"  # a renewal finished in time and the header lists us
    UNLISTED = "unlisted"  # a renewal finished and the header does not list us
    FAILED = "failed"  # a renewal failed: I/O error or a torn header
    DEADLINE = "deadline"  # the clock passed the deadline
    EVICTED = "evicted"  # we were listed and are not any more, or the administrator says so
    GONE = "gone"  # our clean leave is on the header


TRANSITIONS: dict[tuple[LeaseState, LeaseEvent], LeaseState] = {
    (LeaseState.OUT, LeaseEvent.LISTED): LeaseState.MEMBER,
    (LeaseState.OUT, LeaseEvent.UNLISTED): LeaseState.OUT,
    (LeaseState.OUT, LeaseEvent.FAILED): LeaseState.OUT,
    (LeaseState.OUT, LeaseEvent.DEADLINE): LeaseState.OUT,
    (LeaseState.OUT, LeaseEvent.EVICTED): LeaseState.FENCED,  # listed once, though it never had a lease (L2)
    (LeaseState.OUT, LeaseEvent.GONE): LeaseState.LEFT,
    (LeaseState.MEMBER, LeaseEvent.LISTED): LeaseState.MEMBER,
    (LeaseState.MEMBER, LeaseEvent.UNLISTED): LeaseState.FENCED,
    (LeaseState.MEMBER, LeaseEvent.FAILED): LeaseState.MEMBER,
    (LeaseState.MEMBER, LeaseEvent.DEADLINE): LeaseState.LAPSED,
    (LeaseState.MEMBER, LeaseEvent.EVICTED): LeaseState.FENCED,
    (LeaseState.MEMBER, LeaseEvent.GONE): LeaseState.LEFT,
    (LeaseState.LAPSED, LeaseEvent.LISTED): LeaseState.MEMBER,
    (LeaseState.LAPSED, LeaseEvent.UNLISTED): LeaseState.FENCED,
    (LeaseState.LAPSED, LeaseEvent.FAILED): LeaseState.LAPSED,
    (LeaseState.LAPSED, LeaseEvent.DEADLINE): LeaseState.LAPSED,
    (LeaseState.LAPSED, LeaseEvent.EVICTED): LeaseState.FENCED,
    (LeaseState.LAPSED, LeaseEvent.GONE): LeaseState.LEFT,
    **{(LeaseState.FENCED, event): LeaseState.FENCED for event in LeaseEvent},
    **{(LeaseState.LEFT, event): LeaseState.LEFT for event in LeaseEvent},
}


class LeaseCore:
    """State and deadline of one node's lease.  Times are monotonic seconds of this host."""

    def __init__(self, timing: Timing) -> None:
        self.state = LeaseState.OUT
        self.deadline = float("-inf")
        self._timing = timing
        self._seen_at = float("inf")  # start of the last renewal that came to its end; before the first: no doubt yet

    def finished(self, start: float, now: float, *, listed: bool, leaving: bool = False) -> None:
        """A renewal that began at ``start`` wrote the slot and read the header."""
        self.tick(now)
        self._seen_at = start if self._seen_at == float("inf") else max(self._seen_at, start)
        if not listed:
            self._step(LeaseEvent.GONE if leaving else LeaseEvent.UNLISTED)
        elif now < start + self._timing.lease:
            self._step(LeaseEvent.LISTED)
            if self.state is LeaseState.MEMBER:
                self.deadline = max(self.deadline, start + self._timing.lease)

    def failed(self, now: float) -> None:
        """A renewal failed; the old deadline stands."""
        self.tick(now)
        if self._seen_at == float("inf"):
            self._seen_at = now
        self._step(LeaseEvent.FAILED)

    def evicted(self) -> None:
        """A durable header without us is in force, after one that had us; or the administrator says so."""
        self._step(LeaseEvent.EVICTED)

    def left(self) -> None:
        """We are off a header by our own wish, and nobody needs it to be in force."""
        self._step(LeaseEvent.GONE)

    def tick(self, now: float) -> None:
        """Notice the deadline."""
        if now >= self.deadline:
            self._step(LeaseEvent.DEADLINE)

    def has_storage(self, now: float) -> bool:
        """Whether a renewal came to its end within the last ``lease`` seconds, whatever it found."""
        return now < self._seen_at + self._timing.lease

    def next_renewal(self, start: float) -> float:
        """When the renewal after the one that began at ``start`` is due."""
        return start + self._timing.renew

    def _step(self, event: LeaseEvent) -> None:
        self.state = TRANSITIONS[self.state, event]
