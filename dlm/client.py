"""The client side of a lockspace (pure): what this node holds and has asked for.

One client per node (the lock cache), so a lock is a resource.  One request at a time per resource; each gets
one answer.  A cancelled request stays until its answer comes, and a grant that crossed the cancellation is given
back.  While suspended nothing is sent: calls change the lock, the rebuild or RESUME tells the master.

Values: the holder stamps what it writes with (view it last resumed, sequence after the one it was granted with),
so stamps of a resource only grow, over views and masters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

from dlm.messages import (
    EXTRAS_MAX,
    NEVER,
    NO_VALUE,
    SEQUENCE_MAX,
    VALUE_BYTES_MAX,
    AboutResource,
    Cancel,
    Denied,
    Extra,
    Granted,
    LockReport,
    Release,
    Request,
    Revoke,
    Value,
)
from dlm.modes import MODES, VALUE_WRITE_MASK, covers
from dlm.names import Resource


class Grant(NamedTuple):
    """What a client is told with a lock.

    ``value`` is None when no valid value block exists: read the disk.  ``finish`` other than NEVER: go down to
    that mode when done, as if ``revoke(resource, finish)`` had been called; no such call follows (003-39).
    """

    mode: int
    value: bytes | None
    finish: int


PLAIN_GRANTS = tuple(Grant(mode, None, NEVER) for mode in MODES)


class GrantedEvent(NamedTuple):
    """A request that had to wait is granted."""

    resource: Resource
    grant: Grant


class DeniedEvent(NamedTuple):
    """A try failed."""

    resource: Resource


class RevokeEvent(NamedTuple):
    """Someone waits: go down to ``mode``."""

    resource: Resource
    mode: int


ClientEvent: TypeAlias = GrantedEvent | DeniedEvent | RevokeEvent


class Ask(NamedTuple):
    """A request of our own."""

    mode: int
    try_: bool
    priority: int


class Lock:
    """State of one resource at its client."""

    __slots__ = (
        "cancelled", "crossing", "held", "next", "priority", "release_untold", "revoked", "serial", "try_", "value",
        "wanted", "wanted_serial", "wanted_told", "written",
    )  # fmt: skip

    def __init__(self, held: int = 0) -> None:
        self.held = held
        self.serial = 0  # of the last grant seen
        self.value: Value = NO_VALUE
        self.revoked = NEVER  # mode we were told to go down to, and did not yet
        self.wanted = NEVER  # mode requested and not answered
        self.wanted_serial = 0
        self.try_ = False
        self.priority = 0
        self.cancelled = False  # ``wanted`` is of no interest any more
        self.crossing = False  # we wrote ``value`` while ``wanted`` was under way: its grant may not know
        self.next: Ask | None = None  # what was asked for after cancelling
        # While suspended only:
        self.wanted_told = False  # the master (or the rebuild) knows of ``wanted``
        self.release_untold = False  # the master does not know how low ``held`` is
        self.written = False  # ``value`` was written; kept until RESUME, for the next attempt's sake


class ClientSide:
    """All locks of this node.

    Args:
        post: sends a message to the resource's master; never called while suspended.
    """

    def __init__(self, post: Callable[[AboutResource], None]) -> None:
        self._post = post
        self.locks: dict[Resource, Lock] = {}
        self.events: list[ClientEvent] = []
        self.suspended = True
        self.attempt = 0  # last one resumed
        self._serial = 0
        self._touched: dict[Resource, None] = {}  # locks that RESUME must look at, in order

    def request(
        self, resource: Resource, mode: int, *, try_: bool, priority: int = 0, extras: Sequence[Resource] = ()
    ) -> None:
        """Ask for ``mode``, which must cover what is held; an event answers.

        ``extras`` are asked for with the same message, of the same master; none is held or asked for already.
        """
        lock = self.locks.get(resource)
        if lock is None:
            lock = self.locks[resource] = Lock()
        assert mode != lock.held, f"{resource}: {mode} is held"
        assert covers(mode, lock.held), f"{resource}: {lock.held} to {mode} is no up-conversion"
        if lock.wanted != NEVER:
            assert lock.cancelled, f"{resource}: a second request"
            assert lock.next is None, f"{resource}: a third request"
            lock.next = Ask(mode, try_, priority)
            if extras:  # they need not wait for that
                self.request(extras[0], mode, try_=True, priority=priority, extras=extras[1:])
            return
        self._ask(resource, lock, Ask(mode, try_, priority), extras)

    def release(self, resource: Resource, mode: int, value: bytes | None) -> None:
        """Go down to ``mode``; ``value`` is a new value block, allowed to who held PW or EX."""
        lock = self.locks[resource]
        assert mode != lock.held, f"{resource}: {mode} is held"
        assert covers(lock.held, mode), f"{resource}: {lock.held} to {mode} is no down-conversion"
        if value is not None:
            assert VALUE_WRITE_MASK >> lock.held & 1, f"{resource}: value written under {lock.held}"
            assert len(value) <= VALUE_BYTES_MAX, f"{resource}: value of {len(value)} bytes"
            sequence = min(lock.value.sequence + 1, SEQUENCE_MAX) if lock.value.attempt == self.attempt else 1
            lock.value = Value(value, True, self.attempt, sequence)
            lock.crossing = lock.wanted_told
        elif not mode and not lock.crossing and not lock.written:
            lock.value = NO_VALUE  # may be overwritten by others from now on
        lock.held = mode
        if lock.revoked != NEVER and covers(lock.revoked, mode):
            lock.revoked = NEVER
        if self.suspended:
            lock.release_untold = True
            lock.written = lock.written or value is not None
            self._touched[resource] = None
            return
        self._post(Release(resource, mode, lock.serial, lock.value if value is not None else None))
        self._drop_if_idle(resource, lock)

    def ask_others(
        self,
        resource: Resource,
        mode: int,
        priority: int,
        extras: Sequence[Resource],
        master_of: Callable[[Resource], int],
    ) -> Sequence[Resource]:
        """Ask each other master for its share of the extras; return what may go with the request itself."""
        shares: dict[int, list[Resource]] = {master_of(resource): []}
        for extra in extras:
            if extra in self.locks:
                self._leave_out(extra)
            else:
                shares.setdefault(master_of(extra), []).append(extra)
        own, *others = shares.values()
        for share in (own[EXTRAS_MAX:], *others):
            for i in range(0, len(share), EXTRAS_MAX + 1):
                first, *further = share[i : i + EXTRAS_MAX + 1]
                self.request(first, mode, try_=True, priority=priority, extras=further)
        return own[:EXTRAS_MAX]

    def _leave_out(self, resource: Resource) -> None:
        """Deny an extra of whose last use the master may not know the end yet."""
        lock = self.locks[resource]
        assert not lock.held, f"{resource}: an extra that is held"
        assert lock.next is None, f"{resource}: an extra that is asked for"
        assert lock.cancelled or lock.wanted == NEVER, f"{resource}: an extra that is asked for"
        self.events.append(DeniedEvent(resource))

    def cancel(self, resource: Resource) -> None:
        """Forget the outstanding request, if any: no event will answer it."""
        lock = self.locks.get(resource)
        if lock is None or lock.wanted == NEVER:
            return
        lock.next = None
        if lock.cancelled:
            return
        if not lock.wanted_told:
            lock.wanted = NEVER
            self._drop_if_idle(resource, lock)
            return
        lock.cancelled = True
        if self.suspended:
            self._touched[resource] = None
        else:
            self._post(Cancel(resource, lock.wanted_serial))

    def receive(self, message: Granted | Denied | Revoke) -> None:
        """A master's message.  One that answers nothing we asked is dropped."""
        lock = self.locks.get(message.resource)
        if lock is None:
            return
        if isinstance(message, Revoke):
            self._revoke(message.resource, lock, message.mode)
        elif lock.wanted != NEVER and message.serial == lock.wanted_serial:
            if isinstance(message, Granted):
                if message.mode == lock.wanted:  # else the master talks nonsense: the next view asks again
                    self._granted(message, lock)
            else:
                self._answered(message.resource, lock, DeniedEvent(message.resource))

    def awaits(self, granted: Granted) -> bool:
        """Whether it is the answer to our outstanding request."""
        lock = self.locks.get(granted.resource)
        return lock is not None and (lock.wanted, lock.wanted_serial) == (granted.mode, granted.serial)

    def newest(self, resource: Resource, value: Value) -> Value:
        """The newer of a granted value and what we wrote while the grant was under way."""
        lock = self.locks[resource]
        return lock.value if lock.crossing and lock.value.stamp > value.stamp else value

    def ask_again(self, resource: Resource) -> None:
        """Who was asked does not arbitrate any more: say once more, to who does, what was said in vain."""
        lock = self.locks.get(resource)
        if lock is None or lock.wanted == NEVER or not lock.wanted_told:
            return
        self._send_request(resource, lock, [])
        if lock.cancelled:
            self._post(Cancel(resource, lock.wanted_serial))

    def untell(self, resource: Resource) -> None:
        """What was reported in this rebuild about a request of ours is forgotten: RESUME must ask.  While suspended."""
        lock = self.locks.get(resource)
        if lock is None or lock.wanted == NEVER:
            return
        lock.wanted_told = False
        self._touched[resource] = None
        if lock.cancelled:
            self._answered(resource, lock, None)

    def in_use(self) -> list[Resource]:
        """What is held, or asked for and not cancelled."""
        return [
            resource
            for resource, lock in self.locks.items()
            if lock.held or (lock.wanted != NEVER and not lock.cancelled) or lock.next is not None
        ]

    def reports(self) -> Iterator[LockReport]:
        """Everything a new master must know; requests count as told from here on.  Only while suspended.

        What is done to a lock before its report is in the report, what is done later is told at RESUME: so the
        caller may take the reports at leisure.
        """
        assert self.suspended
        for resource, lock in list(self.locks.items()):
            if self.locks.get(resource) is not lock:
                continue  # gone meanwhile
            if lock.cancelled:  # answers of older views will not come
                lock.wanted, lock.cancelled = NEVER, False
                if lock.next is not None:
                    self._ask(resource, lock, lock.next)
                    lock.next = None
            lock.release_untold = lock.crossing = False
            lock.wanted_told = lock.wanted != NEVER
            if lock.held or lock.wanted_told or lock.written:
                if lock.written:
                    self._touched[resource] = None
                value = lock.value if lock.held or lock.written else NO_VALUE
                yield LockReport(
                    resource, lock.held, lock.serial, value, lock.written,
                    lock.wanted, lock.wanted_serial, lock.try_, lock.priority,
                )  # fmt: skip
            else:
                self._drop_if_idle(resource, lock)

    def resume(self, attempt: int) -> None:
        """Grants flow again: tell the masters what changed since the reports."""
        self.suspended = False
        self.attempt = attempt
        touched, self._touched = self._touched, {}
        for resource in touched:
            lock = self.locks.get(resource)
            if lock is None:
                continue
            if lock.release_untold:
                self._post(Release(resource, lock.held, lock.serial, lock.value if lock.written else None))
            lock.release_untold = lock.written = False
            if lock.cancelled:
                self._post(Cancel(resource, lock.wanted_serial))
            elif lock.wanted != NEVER and not lock.wanted_told:
                self._send_request(resource, lock, [])
            self._drop_if_idle(resource, lock)

    def _ask(self, resource: Resource, lock: Lock, ask: Ask, extras: Sequence[Resource] = ()) -> None:
        self._note(lock, ask)
        further = [(extra, self._note_extra(extra, ask)) for extra in extras]
        if self.suspended:  # RESUME asks for each alone
            self._touched.update(dict.fromkeys((resource, *extras)))
        else:
            self._send_request(resource, lock, [Extra(extra, serial) for extra, serial in further])

    def _note(self, lock: Lock, ask: Ask) -> None:
        self._serial += 1
        lock.wanted, lock.try_, lock.priority = ask
        lock.wanted_serial = self._serial
        lock.wanted_told = lock.cancelled = False

    def _note_extra(self, resource: Resource, ask: Ask) -> int:
        """The serial under which an extra is asked for."""
        assert resource not in self.locks, f"{resource}: an extra that is held or asked for"
        lock = self.locks[resource] = Lock()
        self._note(lock, Ask(ask.mode, True, ask.priority))
        lock.wanted_told = not self.suspended
        return lock.wanted_serial

    def _send_request(self, resource: Resource, lock: Lock, extras: list[Extra]) -> None:
        lock.wanted_told = True
        self._post(Request(resource, lock.wanted, lock.wanted_serial, lock.try_, lock.priority, extras))

    def _granted(self, message: Granted, lock: Lock) -> None:
        resource = message.resource
        lock.serial = message.serial
        if not lock.crossing or message.value.stamp >= lock.value.stamp:
            lock.value = message.value
        if lock.cancelled:
            self._post(Release(resource, lock.held, lock.serial, None))
            if message.finish != NEVER:
                self._revoke(resource, lock, message.finish)
            self._answered(resource, lock, None)
            return
        lock.held = message.mode
        lock.revoked = message.finish
        value = lock.value.data if lock.value.valid else None
        self._answered(resource, lock, GrantedEvent(resource, Grant(message.mode, value, message.finish)))

    def _answered(self, resource: Resource, lock: Lock, event: ClientEvent | None) -> None:
        """The outstanding request is over; go on with the one made after cancelling it."""
        if event is not None and not lock.cancelled:
            self.events.append(event)
        lock.wanted = NEVER
        lock.wanted_told = lock.cancelled = lock.crossing = False
        if lock.next is not None:
            ask, lock.next = lock.next, None
            self._ask(resource, lock, ask)
        self._drop_if_idle(resource, lock)

    def _revoke(self, resource: Resource, lock: Lock, mode: int) -> None:
        if not covers(mode, lock.held) and (lock.revoked == NEVER or mode < lock.revoked):
            lock.revoked = mode
            self.events.append(RevokeEvent(resource, mode))

    def _drop_if_idle(self, resource: Resource, lock: Lock) -> None:
        if not (lock.held or lock.written) and lock.wanted == NEVER and not lock.release_untold:
            del self.locks[resource]
