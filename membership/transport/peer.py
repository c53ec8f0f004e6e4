"""One peer's link: the session with it, and what has been reported about it (pure).

States and what they mean to who reads the events::

    new    in the set of peers, never reached            messages wait for the first session
    up     a connection stands                           LinkUp was reported
    lost   the connection ended, ``grace`` is running    nothing reported yet; messages wait for the resume
    down   LinkDown was reported                         messages wait for the next session

The law of loss: **messages are lost only together with a LinkDown, and all that were sent in that session before
it and not delivered are lost.**  What is sent after a LinkDown belongs to the next session and comes after its
LinkUp.  A peer never reached is reported after ``grace`` too, but keeps its messages: it may simply have
learned of us later than we of it.  LinkDown(refused=False) may be followed by LinkDown(refused=True), never the
other way round without a LinkUp between.
"""

from __future__ import annotations

import math

from membership.errors import BadMessage
from membership.seams import LinkDown, LinkUp, PeerAddress
from membership.transport.handshake import Agreement, ResumePoint
from membership.transport.paths import Paths
from membership.transport.session import Session

NEW, UP, LOST, DOWN = "new", "up", "lost", "down"


class PeerLink:
    """State machine of one (node, incarnation); the shell owns sockets and time."""

    def __init__(self, address: PeerAddress, now: float, grace: float) -> None:
        """Args: now: seconds; grace: seconds a lost peer may take to come back unreported."""
        self.address = address
        self.grace = grace
        self.session = Session()
        self.phase = NEW
        self.since = now
        self.deadline = now + grace  # when ``expired`` will report; infinite while nothing is pending
        self.paths = Paths()
        self._refused = False  # reported so since the last LinkUp
        self._partly_refused = False  # in the last round over the paths: some refused, none answered
        self.away_since = now  # when ``phase`` was UP last; if ever
        self.losses = 0  # LinkDowns
        self.trouble = ""  # what was wrong with the answer to our last attempt
        self.sessions = 0
        self.connections = 0

    @property
    def resume_point(self) -> ResumePoint:
        """What to state in a handshake."""
        return ResumePoint(self.session.id, self.session.received)

    def established(self, agreement: Agreement, now: float) -> list[LinkUp | LinkDown]:
        """A handshake with this very instance succeeded, and the old connection, if any, is gone.

        Returns:
            What to report.  If the link is not UP afterwards, the new connection is of no use: close it.  Then our
            session changed while the handshake ran, or the peer claimed the impossible.
        """
        events: list[LinkUp | LinkDown] = []
        if agreement.stated.session != self.session.id:
            return events
        if agreement.resumed:
            try:
                self.session.rewind(agreement.peer_received)
            except BadMessage as error:
                return [self._drop(str(error), now, refused=False)]
        else:
            if self.session.id:
                self.session = Session()
                events.append(self._down("the peer began a new session", refused=False))
            self.session.id = agreement.session
            self.sessions += 1
            events.append(LinkUp(self.address.node))
        self.connections += 1
        self.trouble = ""
        self._enter(UP, now, math.inf)
        self._refused = self._partly_refused = False
        return events

    def lost(self, now: float) -> None:
        """The connection ended."""
        if self.phase == UP:
            self._enter(LOST, now, now + self.grace)

    def refused(self, reason: str, now: float) -> list[LinkUp | LinkDown]:
        """The peer's host says that this instance is not there: report it at once, and once."""
        if self._refused:
            return []
        self._refused = True
        return [self._drop(reason, now, refused=True)]

    def unanswered(self, refused: int, paths: int, now: float) -> list[LinkUp | LinkDown]:
        """No path leads to the peer: on ``refused`` of all its ``paths`` the host said that nobody listens (P3)."""
        if refused == paths:
            return self.refused("connection refused", now)
        self._partly_refused = refused > 0
        return []

    def expired(self, now: float) -> list[LinkUp | LinkDown]:
        """Report the peer if its grace is over."""
        if now < self.deadline:
            return []
        if self.phase == NEW:
            self._enter(DOWN, now, math.inf)
            return [self._down(f"not reached within {self.grace:g} s{self._why}", refused=False)]
        self._refused = self._partly_refused
        return [self._drop(f"not back within {self.grace:g} s{self._why}", now, refused=self._refused)]

    @property
    def _why(self) -> str:
        return f": {self.trouble}" if self.trouble else ""

    def stuck(self, now: float) -> list[LinkUp | LinkDown]:
        """The session's queue is full: drop it.  The shell closes the connection."""
        session = self.session
        return [self._drop(f"stuck: {session.queued} messages not acknowledged", now, refused=self._refused)]

    def _drop(self, reason: str, now: float, *, refused: bool) -> LinkDown:
        self.session = Session()
        self._enter(DOWN, now, math.inf)
        return self._down(reason, refused=refused)

    def _down(self, reason: str, *, refused: bool) -> LinkDown:
        self.losses += 1
        return LinkDown(self.address.node, refused, reason)

    def _enter(self, phase: str, now: float, deadline: float) -> None:
        if self.phase == UP:
            self.away_since = now
        self.phase, self.since, self.deadline = phase, now, deadline
