"""How long a contended lock stays where it is (pure): the turns that nodes take.

A lock that several nodes want goes round.  Each hand-over costs (flush, purge, messages, and the next holder reads
again), so a holder that goes on using the lock keeps it for a *turn*, counted from the grant, before it obeys:

- **T1** A turn lasts ``TURN``, on every node the same, so that whoever goes on using the lock has an equal share; or
  ``SHARE`` hand-overs where those are dearer than that, at most ``TURN_MAX``.  So the time lost is a bounded share of
  the whole, and so is anybody's wait: nodes x (turn + hand-over).  ``SHARE`` must be small: a long turn dirties much,
  which makes giving up dear, which must not make the next turn longer still.
- **T2** A turn ends early when nobody here used the lock for ``patience``, the cost of one hand-over.  Nobody knows
  whether the next use comes; waiting for as long as the mistake would cost is never worse than twice the best choice
  (the "ski rental" rule).  If users came back while it was being given up, the next patience is twice as long, up to
  ``SLACK_MAX`` times: on a busy machine a user is late, and its node would lose turn after turn.
- **T3** A lock that was kept in vain lately is not kept: it is used once per turn, and whoever waits for it, waits for
  nothing.  It is kept again when local users came while it was being given up: they did not wait for the peer's work,
  so they would have come in a turn too.
- **T4** Nothing is kept that nobody used since the grant, or since the last demotion: a reader takes EX down to PR
  first and, writing next, PR down to NL; the second one is obeyed at once (GFS2's double demote, anchors.md 4 and 7.5).
- **T5** A node whose reads of the object are followed by writes asks for EX at once (``writes``): reading under PR
  first would cost two hand-overs for one turn.  One turn without a write and it asks for PR again.

Source: anchors.md 7.5; measured in docs/decisions/0013-hot-objects-take-turns.md.
"""

from __future__ import annotations

from dlm.modes import EX, NL, PR
from dlm.names import Resource

CONTENDED = 0.010  # seconds: a lock that a peer wants so soon after its grant is contended from here on
TURN = 0.060  # seconds
TURN_MAX = 0.200  # seconds
SHARE = 2.0  # turn : giving up; the next holder loses about as much again by reading
SLACK_MAX = 8  # hand-overs of patience
PATIENCE_MIN = 0.002  # seconds
PATIENCE_MAX = 0.020  # seconds
WEIGHT = 0.25  # of the newest hand-over in the average
OUTLIER = 3.0  # times the average: more than this a single hand-over does not count, the store may have hiccuped
CREDIT_MAX = 3
REMEMBERED_MAX = 4096  # contended resources


class Turn:
    """What is known of one contended lock; made when it is first wanted by a peer within a turn of the grant."""

    __slots__ = ("asked", "cost", "credit", "early", "slack", "writes")

    def __init__(self) -> None:
        self.cost = 0.0  # seconds a hand-over takes here, averaged
        self.credit = 1  # > 0: keeping it was of use lately (T3)
        self.early = False  # the last one ended for lack of use,
        self.slack = 1  # and so many hand-overs are waited for the next use (T2)
        self.asked = NL  # mode last wanted
        self.writes = False  # T5

    @property
    def length(self) -> float:
        """Seconds from the grant that the holder may keep the lock (T1)."""
        return min(TURN_MAX, max(TURN, SHARE * self.cost))

    @property
    def patience(self) -> float:
        """Seconds without use that end a turn (T2)."""
        return min(PATIENCE_MAX, max(PATIENCE_MIN, self.cost) * self.slack)

    def kept(self, uses: int, *, early: bool) -> None:
        """The turn is over, ``early`` for lack of use (T2); the lock was used ``uses`` times since the revoke (T3)."""
        self.early = early
        self.credit = min(CREDIT_MAX, self.credit + 1) if uses > 1 else max(0, self.credit - 1)

    def ask(self, mode: int) -> int:
        """The mode to request for a local user who needs ``mode`` (T5)."""
        if mode == EX:
            self.writes = self.writes or self.asked == PR
        self.asked = mode
        return EX if self.writes else mode

    def handed_over(self, seconds: float, *, idle: bool, missed: bool) -> None:
        """The lock was given up.

        Args:
            seconds: from the decision until the lock manager was told.
            idle: it was held in EX and nobody wrote (T5).
            missed: local users wait for it already (T3).
        """
        if self.cost:
            seconds = min(seconds, OUTLIER * self.cost)
        self.cost += WEIGHT * (seconds - self.cost) if self.cost else seconds
        if idle:
            self.writes = False
        if missed:
            self.credit = min(CREDIT_MAX, self.credit + 1)
        if self.early:
            self.slack = min(SLACK_MAX, 2 * self.slack) if missed else 1
            self.early = False


class Turns:
    """The turns of the locks contended last: they outlive the locks, which a node forgets when it gives them up."""

    def __init__(self) -> None:
        self._turns: dict[Resource, Turn] = {}  # oldest first

    def __len__(self) -> int:
        return len(self._turns)

    def find(self, resource: Resource) -> Turn | None:
        """What is known of a resource, if anything."""
        return self._turns.get(resource)

    def open(self, resource: Resource) -> Turn:
        """The resource's turn, made if need be."""
        turn = self._turns.get(resource) or Turn()
        self.keep(resource, turn)
        return turn

    def keep(self, resource: Resource, turn: Turn) -> None:
        """The resource is the one contended last."""
        self._turns.pop(resource, None)
        self._turns[resource] = turn
        if len(self._turns) > REMEMBERED_MAX:
            del self._turns[next(iter(self._turns))]
