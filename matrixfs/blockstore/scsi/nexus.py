"""A nexus that outlives its sessions: a disk that vanishes and comes back.

When a session ends, its operations and new ones wait while the target is asked again and again, by the same identity.
A login by the same initiator name and ISID makes the target end what is left of the old session and drop its tasks
(session reinstatement, RFC 7143 6.3.5); ABORT TASK SET on top of it costs nothing.  Not every target does either: tgt
makes a second session beside the old one, but its one thread reads what an old connection left before it answers a
new login.  What proves that nothing of a node lands later is a fence that the storage confirmed, never this.

=========  ====================  ==============  ==============  ================  =============
state      ``UP`` (logged in,    ``LOST``        ``OTHER``       ``FENCE``         ``CLOSE``
           same disk, owner
           agreed)
=========  ====================  ==============  ==============  ================  =============
NEW        -> UP                 refused (N1)    refused         -> FENCED         -> CLOSED
UP         (bug)                 -> OUTAGE       -> REPLACED     -> FENCED         -> CLOSED
OUTAGE     -> UP                 stays           -> REPLACED     -> FENCED         -> CLOSED
REPLACED   refused               stays           stays           -> FENCED         -> CLOSED
FENCED     refused               stays           stays           stays             -> CLOSED
CLOSED     refused               stays           stays           stays             stays
=========  ====================  ==============  ==============  ================  =============

Invariants:
    N1  ``open`` tries once and says what is wrong: an outage is what comes after.
    N2  Nobody gets a session before its unit was found to be the same disk and ``on_reconnected`` has agreed.
    N3  FENCED is final: who was fenced comes back as somebody else (a new incarnation opens the store anew).
    N4  Whoever waits, waits until the outage has lasted ``outage`` seconds, then fails; attempts go on, so later
        callers find the disk when it is back.
"""

from __future__ import annotations

import errno
import logging
import math
from collections.abc import Awaitable, Callable
from enum import Enum
from functools import partial
from typing import Final

import trio

from matrixfs.blockstore.scsi import status
from matrixfs.blockstore.scsi.address import Address, Identity
from matrixfs.blockstore.scsi.session import COMMAND_SECONDS_MAX, Session
from matrixfs.blockstore.scsi.status import ReservationConflict, SessionLost, UnitAttention
from matrixfs.blockstore.scsi.unit import Unit, examine
from membership.errors import DeviceError, Fenced, MatrixError, OperatorError

OUTAGE_SECONDS_MAX: Final = 30.0
_CHECK_SECONDS: Final = 0.25
_PAUSE_SECONDS_FIRST: Final = 0.05
_PAUSE_SECONDS_MAX: Final = 1.0
_STABLE_SECONDS: Final = 5.0

log = logging.getLogger(__name__)


class State(Enum):
    """Of a nexus."""

    NEW = "new"
    UP = "up"
    OUTAGE = "outage"
    REPLACED = "replaced"
    FENCED = "fenced"
    CLOSED = "closed"


class Event(Enum):
    """What happens to it."""

    UP = "up"
    LOST = "lost"
    OTHER = "other"
    FENCE = "fence"
    CLOSE = "close"


_FINAL: Final = (State.REPLACED, State.FENCED, State.CLOSED)
TRANSITIONS: Final[dict[tuple[State, Event], State]] = {
    (State.NEW, Event.UP): State.UP,
    (State.OUTAGE, Event.UP): State.UP,
    (State.UP, Event.LOST): State.OUTAGE,
    (State.OUTAGE, Event.LOST): State.OUTAGE,
    (State.UP, Event.OTHER): State.REPLACED,
    (State.OUTAGE, Event.OTHER): State.REPLACED,
    **{(state, Event.FENCE): State.FENCED for state in State if state is not State.CLOSED},
    **{(state, Event.CLOSE): State.CLOSED for state in State},
    **{(state, event): state for state in _FINAL for event in (Event.LOST, Event.OTHER)},
    (State.CLOSED, Event.FENCE): State.CLOSED,
}


class Nexus:
    """See the module.

    Args:
        address: the LUN.
        identity: who we are; no other nexus of this cluster may have the same.
        timeout: seconds for which a command may go without an answer, before its session is given up.
        outage: seconds for which operations wait for the target.

    Attributes:
        on_reconnected: awaited with each new session but the first, before anyone else gets it.  The owner of a
            reservation key registers again here if the target forgot it and he is still admitted, or raises Fenced,
            which is final; a DeviceError is taken for one more lost session.
        reconnects: how often the target came back.
    """

    def __init__(
        self,
        address: Address,
        identity: Identity,
        *,
        timeout: float = COMMAND_SECONDS_MAX,
        outage: float = OUTAGE_SECONDS_MAX,
    ) -> None:
        self._address = address
        self._identity = identity
        self._timeout = timeout
        self._outage = outage
        self._state = State.NEW
        self._reason = "is not open"
        self._session: Session
        self._unit: Unit
        self._lost_at = 0.0
        self._up_at = -math.inf
        self._pause = _PAUSE_SECONDS_FIRST
        self._changed = trio.Event()
        self.on_reconnected: Callable[[Session], Awaitable[None]] | None = None
        self.reconnects = 0

    @property
    def where(self) -> str:
        """The LUN, for messages."""
        return str(self._address)

    @property
    def state(self) -> State:
        """See the module."""
        return self._state

    @property
    def reason(self) -> str:
        """Why it is not up."""
        return self._reason

    @property
    def unit(self) -> Unit:
        """The disk, as it was when it was opened."""
        return self._unit

    @property
    def identity(self) -> Identity:
        """The initiator port."""
        return self._identity

    async def open(self) -> None:
        """Log in and look at the unit (N1).

        Raises:
            OperatorError: nobody listens there, no such target or LUN, no access, no disk, or no libiscsi.
            Fenced: it was fenced meanwhile.
        """
        try:
            self._session, self._unit = await self._connect(again=False)
        except Fenced:
            raise
        except DeviceError as error:
            raise OperatorError(str(error)) from None
        self._step(Event.UP)
        trio.lowlevel.spawn_system_task(self._keep, name=f"iSCSI nexus {self._address}")

    async def session(self, *, check: Callable[[], None] | None = None) -> Session:
        """A live session, at once or when the outage is over.

        Args:
            check: asked now and then meanwhile; what it raises ends the wait.

        Raises:
            Fenced: this nexus was fenced.
            DeviceError: the outage lasts too long, another disk stands there, or it is closed.
        """
        while self._state is not State.UP or self._session.ended.is_set():
            if self._state is State.UP:
                self._lose()
            if self._state is not State.OUTAGE:
                raise self._refusal()
            if check is not None:
                check()
            left = self._lost_at + self._outage - trio.current_time()
            if left <= 0:
                raise DeviceError(f"{self._address}: gone for {self._outage:g} s: {self._reason}", errno.ETIMEDOUT)
            with trio.move_on_after(min(left, _CHECK_SECONDS)):
                await self._changed.wait()
        return self._session

    def _refusal(self) -> MatrixError:
        text = f"{self._address}: {self._reason}"
        if self._state is State.FENCED:
            return Fenced(text)
        return DeviceError(text, errno.EBADF if self._state in {State.CLOSED, State.NEW} else errno.ENXIO)

    def fence(self, reason: str) -> None:
        """The right is lost: everybody gets Fenced from now on.  Idempotent, final."""
        if self._state not in {State.FENCED, State.CLOSED}:
            log.error("%s: fenced: %s", self._address, reason)
            self._reason = reason
            self._step(Event.FENCE)

    async def aclose(self) -> None:
        """Log out.  Who still waits fails with DeviceError.  Idempotent."""
        opened = self._state not in {State.NEW, State.CLOSED}
        self._reason = "is closed"
        self._step(Event.CLOSE)
        if opened:
            await self._session.aclose()

    # -- inside

    def _step(self, event: Event) -> None:
        self._state = TRANSITIONS[self._state, event]
        self._changed.set()
        self._changed = trio.Event()

    def _lose(self) -> None:
        """UP, and its session has ended."""
        self._lost_at, self._reason = trio.current_time(), self._session.reason
        log.warning("%s: lost: %s", self._address, self._reason)
        self._step(Event.LOST)

    async def _keep(self) -> None:
        """System task: watch the session; make the next."""
        while self._state in {State.UP, State.OUTAGE}:
            if self._state is State.UP:
                await self._session.ended.wait()
                if self._state is State.UP:
                    self._lose()
            if self._state is State.OUTAGE:
                await self._come_back()

    async def _come_back(self) -> None:
        if trio.current_time() - self._up_at > _STABLE_SECONDS:
            self._pause = _PAUSE_SECONDS_FIRST
        else:  # it may be another process of our identity that throws us out, as we do it
            await trio.sleep(self._pause)
        while self._state is State.OUTAGE:
            try:
                await self._try()
            except MatrixError as error:
                if self._state is State.OUTAGE:  # else it was fenced or closed meanwhile
                    self._failed(error)
            if self._state is State.OUTAGE:
                await trio.sleep(self._pause)
            self._pause = min(2 * self._pause, _PAUSE_SECONDS_MAX)

    def _failed(self, error: MatrixError) -> None:
        """An attempt came to nothing."""
        if isinstance(error, Fenced):
            self.fence(str(error))
            return
        self._reason = str(error).removeprefix(f"{self._address}: ")
        if isinstance(error, _Replaced):
            log.error("%s: it came back, but %s", self._address, error)
            self._step(Event.OTHER)

    async def _try(self) -> None:
        """One attempt to get a session that may be used (N2)."""
        session, unit = await self._connect(again=True)
        try:
            difference = self._unit.difference(unit)
            if difference is not None:
                raise _Replaced(difference)
            await self._end_old_tasks(session)
            if self.on_reconnected is not None:
                await self.on_reconnected(session)
        except BaseException as error:
            session.drop(str(error))
            raise
        if self._state is not State.OUTAGE:  # fenced or closed meanwhile
            session.drop(self._reason)
            return
        self._session, self._up_at = session, trio.current_time()
        self.reconnects += 1
        log.warning("%s: back after %.1f s", self._address, trio.current_time() - self._lost_at)
        self._step(Event.UP)

    async def _connect(self, *, again: bool) -> tuple[Session, Unit]:
        """A session, and what its unit is.  Raises Fenced, DeviceError, OperatorError."""
        session = await Session.login(self._address, self._identity, timeout=self._timeout)
        try:
            if again:
                session.attention = partial(self._attend, session)
            unit = await examine(session)
            # What a target has to say to a nexus at its first login was meant for a predecessor of this process.
            session.attention = partial(self._attend, session)
        except BaseException as error:
            session.drop(str(error))
            raise
        return session, unit

    async def _end_old_tasks(self, session: Session) -> None:
        try:
            await session.abort_task_set()
        except SessionLost:
            raise
        except DeviceError as error:
            log.info("%s (the login itself has to end them)", error)

    def _attend(self, session: Session, attention: UnitAttention) -> None:
        """A unit attention that is more than a reason to send the command again."""
        code = attention.sense.ascq
        if code in {status.RESERVATIONS_PREEMPTED, status.REGISTRATIONS_PREEMPTED}:
            self.fence(f"another node took its registration away ({attention.sense})")
            raise ReservationConflict(str(attention))
        if code == status.CAPACITY_CHANGED:
            session.drop("its capacity has changed")
            raise SessionLost(str(attention))


class _Replaced(DeviceError):
    """Another disk, or not the whole disk."""
