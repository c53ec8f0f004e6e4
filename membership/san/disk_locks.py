"""The administrator's table of locks that applications hold on cluster disks (pure; 002-24, R5).

A lock belongs to one incarnation of a node, and is exclusive or shared.  Who asks first is served first; a shared lock
does not pass an exclusive one that waits.

Invariants:

D1. An exclusive lock is held alone: nobody is granted what stands against what is held, or may be held.
D2. A lock is freed by its node, or when that incarnation can't hold it any more: it left, or its fence is *confirmed*.
    Suspicion frees nothing; only what a suspect waited for is dropped.
D3. A new administrator knows nothing and grants nothing until every member of its header has reported what it holds,
    and every evicted node that did not report is confirmed fenced.
D4. What comes before the report of its sender is of no account: a request may have been given up since.

The order of waiting nodes is lost with the administrator: they ask the new one again.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from membership.messages import (
    DISK_LOCKS_MAX,
    AskDiskLocks,
    DiskLockAnswer,
    DiskLockAsk,
    DiskLocksReport,
    DiskUnlock,
    DiskUnlocked,
)

if TYPE_CHECKING:
    from membership.effects import Outbox
    from membership.label import Timing
    from membership.messages import DiskLock
    from membership.san.header import SanHeader

Verdict: TypeAlias = Literal["granted", "queued", "refused"]
DiskLockBody = DiskLocksReport | DiskLockAsk | DiskUnlock


class State(Enum):
    """Of one lock of one node, as the administrator knows it."""

    ABSENT = "absent"
    WAITING = "waiting"
    HELD = "held"


class Event(Enum):
    """What happens to it."""

    ASK_FREE = "asked for, and nothing stands against it"
    ASK_WAIT = "asked for, something stands against it, and its owner waits"
    ASK_TRY = "asked for, something stands against it, and its owner does not wait"
    CLEAR = "what stood against it is gone"
    UNLOCK = "given up"
    SUSPECT = "its node is no member any more, its fence is not confirmed"
    GONE = "its node left, or its fence is confirmed"


class Answer(Enum):
    """What its node is told."""

    GRANTED = "granted"
    QUEUED = "queued"
    REFUSED = "refused"
    UNLOCKED = "unlocked"
    NOTHING = "nothing"


TABLE: Final[dict[tuple[State, Event], tuple[State, Answer]]] = {
    (State.ABSENT, Event.ASK_FREE): (State.HELD, Answer.GRANTED),
    (State.ABSENT, Event.ASK_WAIT): (State.WAITING, Answer.QUEUED),
    (State.ABSENT, Event.ASK_TRY): (State.ABSENT, Answer.REFUSED),
    (State.ABSENT, Event.CLEAR): (State.ABSENT, Answer.NOTHING),
    (State.ABSENT, Event.UNLOCK): (State.ABSENT, Answer.UNLOCKED),  # our first answer was lost
    (State.ABSENT, Event.SUSPECT): (State.ABSENT, Answer.NOTHING),
    (State.ABSENT, Event.GONE): (State.ABSENT, Answer.NOTHING),
    (State.WAITING, Event.ASK_FREE): (State.HELD, Answer.GRANTED),
    (State.WAITING, Event.ASK_WAIT): (State.WAITING, Answer.QUEUED),
    (State.WAITING, Event.ASK_TRY): (State.ABSENT, Answer.REFUSED),
    (State.WAITING, Event.CLEAR): (State.HELD, Answer.GRANTED),
    (State.WAITING, Event.UNLOCK): (State.ABSENT, Answer.UNLOCKED),
    (State.WAITING, Event.SUSPECT): (State.ABSENT, Answer.NOTHING),
    (State.WAITING, Event.GONE): (State.ABSENT, Answer.NOTHING),
    (State.HELD, Event.ASK_FREE): (State.HELD, Answer.GRANTED),  # our answer was lost
    (State.HELD, Event.ASK_WAIT): (State.HELD, Answer.GRANTED),
    (State.HELD, Event.ASK_TRY): (State.HELD, Answer.GRANTED),
    (State.HELD, Event.CLEAR): (State.HELD, Answer.NOTHING),
    (State.HELD, Event.UNLOCK): (State.ABSENT, Answer.UNLOCKED),
    (State.HELD, Event.SUSPECT): (State.HELD, Answer.NOTHING),
    (State.HELD, Event.GONE): (State.ABSENT, Answer.NOTHING),
}


@dataclass(slots=True, eq=False)
class Row:
    """One lock; also what ``matrixctl`` shows."""

    node: int
    incarnation: int
    lock: DiskLock
    state: State

    @property
    def described(self) -> str:
        """For who is refused."""
        kind = "exclusively" if self.lock.exclusive else "shared"
        verb = "is held" if self.state is State.HELD else "is waited for"
        return f"the disk {verb} {kind} by node {self.node} ({self.lock.owner})"


class DiskLocks:
    """Made anew whenever a node becomes administrator, like ``Filesystems``."""

    def __init__(self, header: SanHeader, timing: Timing, outbox: Outbox) -> None:
        """Args: header: the first of this administrator."""
        self._header = header
        self._first_generation = header.generation
        self._timing = timing
        self._out = outbox
        self._rows: dict[bytes, list[Row]] = {}  # by disk, in the order they came
        self._unknown = {**header.members, **header.fencing}  # who may hold what we don't know (D3)
        self._dead: set[tuple[int, int]] = set()  # confirmed fenced, not off the header yet
        self._asked_at = float("-inf")

    # -- inputs ------------------------------------------------------------------------------------------------

    def header_changed(self, header: SanHeader) -> None:
        """A later header of ours: who is not in it has left, who is in ``fencing`` is suspect."""
        self._header = header
        self._dead &= set(header.fencing.items())
        self._look_at_nodes()

    def node_dead(self, node: int, incarnation: int) -> None:
        """Its fence is confirmed."""
        self._dead.add((node, incarnation))
        self._look_at_nodes()

    def receive(self, node: int, body: DiskLockBody) -> None:
        """A message of a node."""
        if self._header.members.get(node) != body.incarnation:
            return  # a suspect, or a stranger: it is told nothing, and asks again as a member
        if isinstance(body, DiskLocksReport):
            self._on_report(node, body)
        elif self._unknown:
            return  # D3; asked again until answered
        elif isinstance(body, DiskLockAsk):
            self._on_ask(node, body)
        else:
            row = self._find(node, body.incarnation, body.serial)
            if row is not None:
                self._happen(row, Event.UNLOCK)
                self._clear(row.lock.disk)
            self._out.post(node, DiskUnlocked(self._header.generation, body.incarnation, body.serial))

    def tick(self, now: float) -> None:
        """Ask again for reports that did not come."""
        if now - self._asked_at >= self._timing.heartbeat * 2:
            self.ask_again(now)

    def ask_again(self, now: float) -> None:
        """Also at once when a view was installed."""
        self._asked_at = now
        for node, incarnation in sorted(self._unknown.items()):
            if self._header.members.get(node) == incarnation:
                self._out.post(node, AskDiskLocks(self._header.generation))

    # -- questions ---------------------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """All is known that may be held (D3)."""
        return not self._unknown

    @property
    def unknown(self) -> tuple[int, ...]:
        """Nodes of which it is not known what they hold."""
        return tuple(sorted(self._unknown))

    def rows(self) -> tuple[Row, ...]:
        """All locks, by disk, in order."""
        return tuple(row for _, rows in sorted(self._rows.items()) for row in rows)

    # -- internals ---------------------------------------------------------------------------------------------

    def _standing(self, node: int, incarnation: int) -> Event | None:
        """Whether an incarnation is gone or suspect; None: a member (D2)."""
        if self._header.members.get(node) == incarnation:
            return None
        if self._header.fencing.get(node) == incarnation and (node, incarnation) not in self._dead:
            return Event.SUSPECT
        return Event.GONE  # it left, or was fenced: its slot is another's only after that (H1)

    def _look_at_nodes(self) -> None:
        self._unknown = {n: i for n, i in self._unknown.items() if self._standing(n, i) is not Event.GONE}
        for row in self.rows():
            event = self._standing(row.node, row.incarnation)
            if event is not None:
                self._happen(row, event)
        for disk in list(self._rows):
            self._clear(disk)

    def _on_report(self, node: int, body: DiskLocksReport) -> None:
        if self._unknown.get(node) != body.incarnation or body.generation < self._first_generation:
            return  # a repetition, what it holds since then we granted; or to us when we were administrator before
        del self._unknown[node]
        for lock in body.held:
            if self._find(node, body.incarnation, lock.serial) is None:
                self._rows.setdefault(lock.disk, []).append(Row(node, body.incarnation, lock, State.HELD))

    def _on_ask(self, node: int, body: DiskLockAsk) -> None:
        row = self._find(node, body.incarnation, body.lock.serial)
        if row is None:
            if sum(r.node == node and r.incarnation == body.incarnation for r in self.rows()) >= DISK_LOCKS_MAX:
                self._answer(node, body.incarnation, body.lock.serial, "refused", "too many locks of this node")
                return
            row = Row(node, body.incarnation, body.lock, State.ABSENT)
            self._rows.setdefault(body.lock.disk, []).append(row)
        against = self._against(row)
        event = Event.ASK_FREE if against is None else Event.ASK_WAIT if body.wait else Event.ASK_TRY
        self._happen(row, event, "" if against is None else against.described)

    def _happen(self, row: Row, event: Event, reason: str = "") -> None:
        row.state, answer = TABLE[row.state, event]
        if row.state is State.ABSENT:
            rows = self._rows[row.lock.disk]
            rows.remove(row)
            if not rows:
                del self._rows[row.lock.disk]
        if answer is Answer.GRANTED:
            self._answer(row.node, row.incarnation, row.lock.serial, "granted", "")
        elif answer is Answer.QUEUED:
            self._answer(row.node, row.incarnation, row.lock.serial, "queued", reason)
        elif answer is Answer.REFUSED:
            self._answer(row.node, row.incarnation, row.lock.serial, "refused", reason)

    def _answer(self, node: int, incarnation: int, serial: int, answer: Verdict, reason: str) -> None:
        self._out.post(node, DiskLockAnswer(self._header.generation, incarnation, serial, answer, reason))

    def _clear(self, disk: bytes) -> None:
        """Grant what nothing stands against any more (D1)."""
        for row in self._rows.get(disk, ()):
            if row.state is State.WAITING and self._against(row) is None:
                self._happen(row, Event.CLEAR)

    def _against(self, row: Row) -> Row | None:
        """What stands against a lock.

        All that came before it, held or waiting; and nothing else, for who came later was granted nothing against it.
        """
        for other in self._rows[row.lock.disk]:
            if other is row:
                return None
            if other.lock.exclusive or row.lock.exclusive:
                return other
        raise AssertionError("a row is in its list")

    def _find(self, node: int, incarnation: int, serial: int) -> Row | None:
        for row in self.rows():
            if (row.node, row.incarnation, row.lock.serial) == (node, incarnation, serial):
                return row
        return None
