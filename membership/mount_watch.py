"""When a mount process that is not dead is given up all the same (pure; issue 3, "a peer that never answers").

A mount's own matrixd asks it four times a second whether it lives (ping) and hears how it stands (``Pulse``).  It
only complains (``Stuck``); the administrator evicts, and the same matrixd carries that out (``san/evictions.py``).

========== ================================================================ ======================================
verdict    what matrixd sees                                                for how long
========== ================================================================ ======================================
frozen     pings unanswered; stopped, or asleep and no CPU time used        link_dead (2.5 s)
silent     pings unanswered; it runs, waits for a CPU or for the kernel     stuck (12 link_dead, 30 s)
dead end   it owes a lock or the answer to an order, waits for no peer,     stuck
           and nothing of it moves: no I/O ends, no lock comes or goes
overdue    it owes the same lock, and that lock's own flush does not move   OVERDUE stuck (600 s)
========== ================================================================ ======================================

Invariants:

W1. Slow is not dead: every I/O that ends restarts *dead end*, every byte flushed for the lock restarts *overdue*.
    The disk answers this node's renewals within the lease meanwhile, so one I/O of 30 s is no slow disk.
W2. While the lease has lapsed nothing is held against the mount but silence: it may not write, on purpose.
W3. Time in which this matrixd did not run itself does not count: a look adds at most twice the interval of looks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from membership.errors import BadMessage
from membership.orders import (
    GhostsReleased,
    ReleaseGhosts,
    Replay,
    Replayed,
    Resume,
    Resumed,
    Stuck,
    Suspend,
    Suspended,
)

if TYPE_CHECKING:
    from membership.label import Timing
    from membership.orders import Order, Reply

LOOK_SECONDS = 0.25  # between two looks, and two pings
OVERDUE = 20  # times ``Timing.stuck``
WHAT_MAX = 200  # characters that name an owed lock
_NATURAL_MAX = 2**64

# A Rebuilt may wait for any peer: who is to blame there, the lost links tell (san/lost_links.py).
_ANSWERS: dict[type[Order], type[Reply]] = {
    Suspend: Suspended,
    Resume: Resumed,
    Replay: Replayed,
    ReleaseGhosts: GhostsReleased,
}


class Activity(NamedTuple):
    """What the kernel says of a process."""

    state: str  # of its first thread, as in /proc/PID/stat: R, S, D, T...
    ticks: int  # CPU time of all threads


@dataclass(frozen=True, slots=True)
class Pulse:
    """What a mount process says of itself with every answer to a ping."""

    moved: int = 0  # grows with every I/O that ends and every lock that comes or goes
    waits: bool = False  # it waits for a lock that a peer has
    owed: float = 0.0  # seconds since when a peer has wanted a lock back; 0: nobody does
    what: str = ""  # that lock
    left: int = 0  # bytes that are still to be flushed for it

    def to_map(self) -> dict[str, Any]:
        """Plain data for CBOR."""
        return {"moved": self.moved, "waits": self.waits, "owed": self.owed, "what": self.what, "left": self.left}

    @classmethod
    def from_map_untrusted(cls, data: object) -> Pulse:
        """The inverse of ``to_map``; fields it does not know are passed over.  Raises BadMessage."""
        if not isinstance(data, dict):
            raise BadMessage("pulse: no map")
        moved, left = (data.get(name) for name in ("moved", "left"))
        waits, owed, what = (data.get(name) for name in ("waits", "owed", "what"))
        naturals = all(type(n) is int and 0 <= n < _NATURAL_MAX for n in (moved, left))
        if not naturals or not isinstance(waits, bool) or not isinstance(what, str) or len(what) > WHAT_MAX:
            raise BadMessage("pulse: field missing or out of range")
        if type(owed) not in (int, float) or not 0 <= owed < float("inf"):  # type: ignore[operator]
            raise BadMessage("pulse: owed out of range")
        return cls(int(moved), waits, float(owed), what, int(left))  # type: ignore[arg-type]


class MountWatch:
    """One mount process, as its matrixd judges it.  Times are monotonic seconds."""

    def __init__(self, timing: Timing, now: float, deadline: float) -> None:
        """Args: now: of the admission; deadline: of the lease."""
        self.pulse = Pulse()
        self._timing = timing
        self._deadline = deadline
        self._looked_at = now
        self._asked = 0
        self._answered = 0
        self._activity: Activity | None = None
        self._unanswered: dict[type[Order], None] = {}
        self._last = Pulse()
        self._silent = self._frozen = self._still = self._overdue = 0.0  # seconds, as counted by W3

    # -- inputs ------------------------------------------------------------------------------------------------

    def may_ping(self) -> bool:
        """Whether the last ping is answered: only one is under way, so that sending never waits for the process."""
        return self._answered == self._asked

    def ping(self) -> int:
        """The number of the ping that is sent now."""
        self._asked += 1
        return self._asked

    def answered(self, serial: int, pulse: Pulse) -> None:
        """The mount process answered a ping.  Late answers count, invented and repeated ones don't."""
        if self._answered < serial <= self._asked:
            self._answered = serial
            self.pulse = pulse

    def ordered(self, order: Order) -> None:
        """An order was sent to it."""
        if isinstance(order, Suspend):
            self._unanswered.clear()  # it overtakes all others
        if type(order) in _ANSWERS:
            self._unanswered[type(order)] = None

    def replied(self, reply: Reply) -> None:
        """It answered an order."""
        for order, answer in _ANSWERS.items():
            if isinstance(reply, answer):
                self._unanswered.pop(order, None)

    def leased(self, deadline: float) -> None:
        """The lease was renewed."""
        self._deadline = deadline

    # -- the verdict -------------------------------------------------------------------------------------------

    def look(self, activity: Activity, now: float) -> Stuck | None:
        """Every ``LOOK_SECONDS``: what to complain of to the administrator, None if all is well or may become so.

        Args:
            activity: of its process, now.
            now: monotonic seconds.
        """
        elapsed = min(max(now - self._looked_at, 0.0), 2 * LOOK_SECONDS)  # W3
        self._looked_at = now
        self._count_silence(activity, elapsed)
        self._count_debts(elapsed, paused=now > self._deadline)
        self._activity, self._last = activity, self.pulse
        stuck = self._timing.stuck
        if self._frozen >= self._timing.link_dead:
            state = "stopped" if activity.state in "Tt" else "asleep"
            return Stuck(f"its process is {state} and has not answered for {self._silent:.0f} s", self._silent)
        if self._silent >= stuck:
            return Stuck(f"its process runs but has not answered for {self._silent:.0f} s", self._silent)
        if self._still >= stuck:
            return Stuck(f"{self._debt()}, and nothing has moved for {self._still:.0f} s", self._still)
        if self._overdue >= OVERDUE * stuck:
            return Stuck(self._debt(), self._overdue)
        return None

    # -- internals ---------------------------------------------------------------------------------------------

    def _count_silence(self, activity: Activity, elapsed: float) -> None:
        if self.may_ping():
            self._silent = self._frozen = 0.0
            return
        self._silent += elapsed
        before = self._activity
        is_idle = before is not None and activity.ticks == before.ticks and activity.state in "TtS"
        self._frozen = self._frozen + elapsed if is_idle else 0.0

    def _count_debts(self, elapsed: float, *, paused: bool) -> None:
        now, last = self.pulse, self._last
        if paused:  # W2
            self._still = self._overdue = 0.0
            return
        owes = bool(now.owed or self._unanswered)
        is_still = owes and now.moved == last.moved and not now.waits
        self._still = self._still + elapsed if is_still else 0.0
        is_same = bool(now.owed) and (now.what, now.left) == (last.what, last.left)
        self._overdue = self._overdue + elapsed if is_same else 0.0

    def _debt(self) -> str:
        if self.pulse.owed:
            return f"a peer has waited {self.pulse.owed:.0f} s for {self.pulse.what}"
        orders = ", ".join(order.__name__ for order in self._unanswered)
        return f"it does not answer {orders}"
