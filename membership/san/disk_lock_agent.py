"""A node's side of the locks on cluster disks for applications (pure; 002-24).

Between the administrator (``disk_locks``) and the commands of this node that hold locks: repeats what may be lost,
drops what is stale, and reports what is held to a new administrator.

Invariants:

B1. The holder is told Granted before anything else of a lock, and a lock that it gave up is never reported as held.
B2. An answer of a generation older than the one reported to is dropped: that administrator does not know of it.
B3. A lock that is over for its holder is over for us only when the administrator says Unlocked: a refusal too is
    followed by DiskUnlock, for a repetition of the request may have been granted after it.  Links keep the order, so
    no request of ours comes after it.
B4. When our lease is over (``lapse``) nothing is held any more, though we may find ourselves listed again: an
    application's writes pass no gate, and the others may act before we know.  What is waited for stays.
B5. When this node's right ends (``end``) all its locks are lost for good: the others wait for our fence.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

from membership.messages import (
    DISK_LOCKS_MAX,
    AskDiskLocks,
    DiskLock,
    DiskLockAnswer,
    DiskLockAsk,
    DiskLocksReport,
    DiskUnlock,
    DiskUnlocked,
)

if TYPE_CHECKING:
    from membership.effects import Outbox

DiskLockAgentBody = AskDiskLocks | DiskLockAnswer | DiskUnlocked


@dataclass(frozen=True, slots=True)
class DiskLockGranted:
    """Event: it is held."""

    serial: int


@dataclass(frozen=True, slots=True)
class DiskLockQueued:
    """Event: it is waited for; said once."""

    serial: int
    reason: str


@dataclass(frozen=True, slots=True)
class DiskLockRefused:
    """Event: it is not free, and not waited for."""

    serial: int
    reason: str


@dataclass(frozen=True, slots=True)
class DiskLockLost:
    """Event: it was held, and is not any more: its holder must stop at once."""

    serial: int
    reason: str


DiskLockEvent = DiskLockGranted | DiskLockQueued | DiskLockRefused | DiskLockLost


class State(Enum):
    """Of a lock on its node."""

    GONE = "unknown, or over"
    ASKED = "asked for"
    WAITING = "asked for, the administrator has it in its queue"
    HELD = "held"
    GIVING_UP = "not wanted any more, the administrator may not know"


class Event(Enum):
    """What happens to it."""

    GRANTED = "the administrator granted it"
    QUEUED = "the administrator put it in the queue"
    REFUSED = "the administrator refused it"
    UNLOCKED = "the administrator knows that it was given up"
    RELEASE = "its holder ended, or waits no more"
    AGAIN = "time to say again what may be lost"
    LAPSE = "our lease is over"


class Action(Enum):
    """What follows."""

    NOTHING = "nothing"
    ASK = "ask the administrator for it"
    UNLOCK = "tell the administrator that it is not wanted"
    TELL = "tell who asked for it"
    TELL_UNLOCK = "tell who asked for it, and the administrator that it is not wanted"


TABLE: Final[dict[tuple[State, Event], tuple[State, Action]]] = {
    (State.GONE, Event.GRANTED): (State.GONE, Action.UNLOCK),  # it crossed our release
    (State.GONE, Event.QUEUED): (State.GONE, Action.UNLOCK),
    (State.GONE, Event.REFUSED): (State.GONE, Action.NOTHING),
    (State.GONE, Event.UNLOCKED): (State.GONE, Action.NOTHING),
    (State.GONE, Event.RELEASE): (State.GONE, Action.NOTHING),
    (State.GONE, Event.AGAIN): (State.GONE, Action.NOTHING),
    (State.GONE, Event.LAPSE): (State.GONE, Action.NOTHING),
    (State.ASKED, Event.GRANTED): (State.HELD, Action.TELL),
    (State.ASKED, Event.QUEUED): (State.WAITING, Action.TELL),
    (State.ASKED, Event.REFUSED): (State.GIVING_UP, Action.TELL_UNLOCK),  # B3
    (State.ASKED, Event.UNLOCKED): (State.ASKED, Action.NOTHING),
    (State.ASKED, Event.RELEASE): (State.GIVING_UP, Action.UNLOCK),
    (State.ASKED, Event.AGAIN): (State.ASKED, Action.ASK),
    (State.ASKED, Event.LAPSE): (State.ASKED, Action.NOTHING),
    (State.WAITING, Event.GRANTED): (State.HELD, Action.TELL),
    (State.WAITING, Event.QUEUED): (State.WAITING, Action.NOTHING),
    (State.WAITING, Event.REFUSED): (State.GIVING_UP, Action.TELL_UNLOCK),
    (State.WAITING, Event.UNLOCKED): (State.WAITING, Action.NOTHING),
    (State.WAITING, Event.RELEASE): (State.GIVING_UP, Action.UNLOCK),
    (State.WAITING, Event.AGAIN): (State.WAITING, Action.ASK),  # there may be a new administrator
    (State.WAITING, Event.LAPSE): (State.WAITING, Action.NOTHING),
    (State.HELD, Event.GRANTED): (State.HELD, Action.NOTHING),
    (State.HELD, Event.QUEUED): (State.HELD, Action.NOTHING),
    (State.HELD, Event.REFUSED): (State.HELD, Action.NOTHING),
    (State.HELD, Event.UNLOCKED): (State.HELD, Action.NOTHING),
    (State.HELD, Event.RELEASE): (State.GIVING_UP, Action.UNLOCK),
    (State.HELD, Event.AGAIN): (State.HELD, Action.NOTHING),
    (State.HELD, Event.LAPSE): (State.GIVING_UP, Action.TELL_UNLOCK),  # B4
    (State.GIVING_UP, Event.GRANTED): (State.GIVING_UP, Action.UNLOCK),
    (State.GIVING_UP, Event.QUEUED): (State.GIVING_UP, Action.NOTHING),
    (State.GIVING_UP, Event.REFUSED): (State.GIVING_UP, Action.NOTHING),
    (State.GIVING_UP, Event.UNLOCKED): (State.GONE, Action.NOTHING),
    (State.GIVING_UP, Event.RELEASE): (State.GIVING_UP, Action.NOTHING),
    (State.GIVING_UP, Event.AGAIN): (State.GIVING_UP, Action.UNLOCK),
    (State.GIVING_UP, Event.LAPSE): (State.GIVING_UP, Action.NOTHING),
}
_ANSWERS: Final = {"granted": Event.GRANTED, "queued": Event.QUEUED, "refused": Event.REFUSED}


@dataclass(slots=True)
class _Local:
    lock: DiskLock
    wait: bool
    state: State = State.ASKED


class DiskLockAgent:
    """All disk locks of this node.  ``administrator`` is set by the owner before each input."""

    def __init__(self, incarnation: int, outbox: Outbox) -> None:
        """Args: incarnation: of this matrixd."""
        self.administrator: int | None = None
        self._incarnation = incarnation
        self._out = outbox
        self._locals: dict[int, _Local] = {}
        self._serial = 0
        self._reported = 0  # generation of the administrator that was told last what we hold (B2)
        self._ended = ""  # why our right ended; "": it has not

    def request(self, disk: bytes, owner: str, *, exclusive: bool, wait: bool) -> int:
        """Ask for a lock on the disk with this uuid; an event DiskLockGranted or DiskLockRefused follows.

        Returns:
            Its number, for ``release`` and the events.
        """
        self._serial += 1
        serial = self._serial
        lock = DiskLock(serial, disk, owner, exclusive)
        if self._ended or len(self._locals) >= DISK_LOCKS_MAX:
            self._out.tell(DiskLockRefused(serial, self._ended or f"{DISK_LOCKS_MAX} disk locks are in use here"))
            return serial
        self._locals[serial] = _Local(lock, wait)
        self._happen(serial, Event.AGAIN)
        return serial

    def release(self, serial: int) -> None:
        """Its holder has ended, or waits no more."""
        self._happen(serial, Event.RELEASE)

    def ask_again(self) -> None:
        """Say again what the administrator has not answered; also when there is another, or another view."""
        for serial in list(self._locals):
            self._happen(serial, Event.AGAIN)

    def lapse(self, reason: str) -> None:
        """Our lease is over (B4); events DiskLockLost follow."""
        for serial in list(self._locals):
            self._happen(serial, Event.LAPSE, reason)

    def end(self, reason: str) -> tuple[int, ...]:
        """Our right has ended (B5).  Returns the numbers of all locks that are lost, held or waited for."""
        lost = tuple(serial for serial, local in self._locals.items() if local.state is not State.GIVING_UP)
        self._locals.clear()
        self._ended = reason
        return lost

    def is_quiet(self) -> bool:
        """No lock is held, waited for, or given up without the administrator's knowledge: this node may leave."""
        return not self._locals

    def held(self) -> tuple[DiskLock, ...]:
        """All that is held."""
        return tuple(local.lock for local in self._locals.values() if local.state is State.HELD)

    def receive(self, body: DiskLockAgentBody) -> None:
        """A message of the administrator (the caller checked that it is)."""
        if self._ended or body.generation < self._reported:
            return
        if isinstance(body, AskDiskLocks):
            assert self.administrator is not None
            self._reported = body.generation
            self._out.post(self.administrator, DiskLocksReport(body.generation, self._incarnation, self.held()))
        elif body.incarnation != self._incarnation:
            return  # for the matrixd before us
        elif isinstance(body, DiskUnlocked):
            self._happen(body.serial, Event.UNLOCKED)
        else:
            self._happen(body.serial, _ANSWERS[body.answer], body.reason)

    # -- internals ---------------------------------------------------------------------------------------------

    def _happen(self, serial: int, event: Event, reason: str = "") -> None:
        local = self._locals.get(serial)
        state, action = TABLE[State.GONE if local is None else local.state, event]
        if local is not None:
            local.state = state
            if state is State.GONE:
                del self._locals[serial]
        if action in (Action.TELL, Action.TELL_UNLOCK):
            self._tell(serial, event, reason)
        if action in (Action.UNLOCK, Action.TELL_UNLOCK) and self.administrator is not None:
            self._out.post(self.administrator, DiskUnlock(self._incarnation, serial))
        elif action is Action.ASK and self.administrator is not None:
            assert local is not None
            self._out.post(self.administrator, DiskLockAsk(self._incarnation, local.lock, local.wait))

    def _tell(self, serial: int, event: Event, reason: str) -> None:
        if event is Event.GRANTED:
            self._out.tell(DiskLockGranted(serial))
        elif event is Event.QUEUED:
            self._out.tell(DiskLockQueued(serial, reason))
        elif event is Event.REFUSED:
            self._out.tell(DiskLockRefused(serial, reason))
        else:
            self._out.tell(DiskLockLost(serial, reason))
