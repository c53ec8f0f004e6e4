"""The client's side of owned locks (pure): what this node's owners hold, and their calls under way.

The mirror (``tables``) holds exactly what arbiters have told us, in the order they told it::

    call      posts                              mirror changes at      answered with
    lock      Acquire                            Acquired               GRANTED, AGAIN, DEADLOCK, NOLOCKS, WITHDRAWN
      shared, over something of our own that is exclusive: then Free(shared), whose Freed answers
      all of it held already: nothing to acquire, Free(shared) if some of it is exclusive
      FLOCK shared to exclusive: Free before Acquire, as Linux drops the old lock first
    unlock    Free, or nothing if we hold nothing  Freed                DONE, NOLOCKS
    test      Inquire                                                   DONE with a conflict or None
    cancel    Withdraw                                                  the lock's own answer: WITHDRAWN, or its grant

So at any time: what the mirror says, less what calls under way give up, is part of what the arbiter has for us.
Hence two living clients never report conflicting ranges, whenever a view breaks in (``report``):

- What calls under way give up is given up before we report; nothing can fail it.  It is answered at RESUME,
  because until then an old arbiter that has not heard of the new view may still refuse others for its sake.
- Locks and tests under way are asked again at RESUME, with their serials, in their order.  What an old arbiter
  granted and we did not hear of is gone with its tables; until then others may have been refused for its sake.
- A lock withdrawn while suspended is answered at once: nobody heard of it, or will forget it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import Any, NamedTuple

from dlm.owned.messages import (
    Acquire,
    Acquired,
    Conflict,
    Free,
    Freed,
    Inquire,
    Inquired,
    Kind,
    OwnedReport,
    Reason,
    Refused,
    ToArbiter,
    ToClient,
    Withdraw,
)
from dlm.owned.ranges import END_MAX, Owner, RangeTable
from dlm.owned.stamps import Stamps

RANGES_MAX = 1 << 17  # of this node on all objects; half of what an arbiter bears


class Result(IntEnum):
    """How a call ends."""

    GRANTED = 0
    DONE = 1
    AGAIN = 2
    DEADLOCK = 3
    NOLOCKS = 4
    WITHDRAWN = 5


_RESULT_OF = {
    Reason.AGAIN: Result.AGAIN,
    Reason.DEADLOCK: Result.DEADLOCK,
    Reason.NOLOCKS: Result.NOLOCKS,
    Reason.WITHDRAWN: Result.WITHDRAWN,
}


class OwnedAnswer(NamedTuple):
    """The one answer to a call."""

    call: int
    result: Result
    conflict: Conflict | None = None


class Span(NamedTuple):
    """What a call is about."""

    kind: Kind
    object: int
    owner: int
    start: int
    end: int

    def touches(self, other: Span) -> bool:
        """Whether the two have a byte of one owner in common."""
        return self[:3] == other[:3] and self.start <= other.end and other.start <= self.end


class Call:
    """One request to an arbiter, and the call it works for (0: nobody waits for its answer)."""

    __slots__ = ("applied", "call", "doomed", "message", "since", "span", "told", "withdrawn")

    def __init__(self, call: int, span: Span, message: Acquire | Free | Inquire, since: float) -> None:
        self.call = call
        self.span = span
        self.message = message
        self.since = since  # seconds, the caller's clock
        self.told = False  # the arbiter of the present view knows it
        self.applied = False  # a Free that the last report took for done
        self.withdrawn = False
        self.doomed = False  # withdrawn as the victim of a deadlock


class OwnedClient:
    """See the module.

    Args:
        node: this node's id.
        post: sends a message to the arbiter of an object; never called while suspended.
        stamps: this node's clock of waits.
        statistics: counters to add to.
    """

    def __init__(
        self, node: int, post: Callable[[int, ToArbiter], None], stamps: Stamps, statistics: Counter[str]
    ) -> None:
        self._node = node
        self._post = post
        self._stamps = stamps
        self._statistics = statistics
        self.tables: dict[tuple[Kind, int], RangeTable] = {}
        self.calls: dict[int, Call] = {}  # by serial, so in their order
        self.events: list[OwnedAnswer] = []
        self.suspended = True
        self._serial = 0
        self._count = 0  # ranges held
        self._of: dict[tuple[Kind, int], dict[int, Call]] = {}  # calls under way by owner

    # --- calls; each returns its number, which its answer bears ---

    def lock(self, span: Span, pid: int, now: float, *, exclusive: bool, wait: bool) -> int:
        """Get this range in this mode, whatever the owner held of it before."""
        self._statistics["owned_locks"] += 1
        if self._count >= RANGES_MAX:
            return self._at_once(Result.NOLOCKS)
        owner = Owner(self._node, span.owner)
        table = self.tables.get(span[:2])
        mine = table.of(owner, span.start, span.end) if table is not None else []
        if mine and table is not None:
            if table.covers(owner, span.start, span.end) and not self._pending(span):
                if all(held.exclusive == exclusive for held in mine):
                    return self._at_once(Result.GRANTED)
                if not exclusive:
                    return self._weaken(0, span, now)
            if span.kind == Kind.FLOCK and exclusive:
                self._call(0, span, Free(*span[:2], self._next(), *span[2:]), now)
        serial = self._next()
        stamp = self._stamps.next()
        return self._call(serial, span, Acquire(*span[:2], serial, *span[2:], exclusive, wait, pid, stamp), now)

    def unlock(self, span: Span, now: float) -> int:
        """Give up what the owner holds of this range."""
        table = self.tables.get(span[:2])
        if not self._pending(span) and (table is None or not table.of(Owner(self._node, span.owner), *span[3:])):
            return self._at_once(Result.DONE)
        self._statistics["owned_unlocks"] += 1
        serial = self._next()
        return self._call(serial, span, Free(*span[:2], serial, *span[2:]), now)

    def test(self, span: Span, now: float, *, exclusive: bool) -> int:
        """Find out who stands against a lock."""
        self._statistics["owned_tests"] += 1
        serial = self._next()
        return self._call(serial, span, Inquire(*span[:2], serial, *span[2:], exclusive), now)

    def cancel(self, call: int) -> None:
        """Withdraw a lock; its answer may still be a grant that crossed this.  Other calls can't be withdrawn."""
        if call in self.calls:  # else it is granted, and being weakened
            self._withdraw(call, self.calls[call])

    def doom(self, serial: int) -> None:
        """A deadlock was found and confirmed: this wait is its victim."""
        call = self.calls.get(serial)
        if call is not None and isinstance(call.message, Acquire) and not call.withdrawn:
            call.doomed = True
            self._withdraw(serial, call)

    # --- messages ---

    def receive(self, message: ToClient) -> None:
        """An arbiter's answer, which the caller knows to be from the right one (``arbiter_object``)."""
        call = self.calls.get(message.serial)
        if call is None or not call.told or not isinstance(message, _ANSWERS[type(call.message)]):
            self._statistics["owned_unasked"] += 1
            return
        self._forget(message.serial)
        if isinstance(message, Acquired):
            self._acquired(call, message)
        elif isinstance(message, Freed):
            if message.done:
                self._apply(call)
            shared = isinstance(call.message, Free) and call.message.shared
            done = Result.GRANTED if shared else Result.DONE
            self._answer(call, done if message.done else Result.NOLOCKS)
        elif isinstance(message, Refused):
            self._answer(call, Result.DEADLOCK if call.doomed else _RESULT_OF[message.reason])
        else:
            self._answer(call, Result.DONE, message.conflict)

    def object_of(self, serial: int) -> int | None:
        """The object of a call under way, from which follows who may answer it."""
        call = self.calls.get(serial)
        return None if call is None else call.span.object

    # --- views ---

    def reports(self) -> Iterator[OwnedReport]:
        """What new arbiters must know.  Only while suspended; see the module."""
        assert self.suspended
        for serial, call in list(self.calls.items()):
            call.told = False
            if call.withdrawn:  # whoever heard of it forgets it now
                self._forget(serial)
                self._answer(call, Result.DEADLOCK if call.doomed else Result.WITHDRAWN)
            elif isinstance(call.message, Free) and not call.applied:
                self._apply(call)
                call.applied = True
        for (kind, object_), table in self.tables.items():
            for owner, held in table:
                yield OwnedReport(kind, object_, owner.id, held.start, held.end, held.exclusive, held.pid)

    def resume(self) -> None:
        """Grants flow again: answer what is settled, ask for the rest."""
        self.suspended = False
        for serial, call in list(self.calls.items()):
            if call.applied:
                self._forget(serial)
                shared = isinstance(call.message, Free) and call.message.shared
                self._answer(call, Result.GRANTED if shared else Result.DONE)
            elif not call.told:
                self._tell(call)

    # --- looking in ---

    def waits(self, kind: Kind, owner: int) -> Iterator[Call]:
        """Locks of the owner that are asked for and not withdrawn."""
        calls = self._of.get((kind, owner), {}).values()
        return (call for call in calls if isinstance(call.message, Acquire) and not call.withdrawn)

    def holds(self, kind: Kind, object_: int, owner: int) -> bool:
        """Whether the owner holds or wants anything of the object."""
        whole = Span(kind, object_, owner, 0, END_MAX)
        table = self.tables.get((kind, object_))
        return self._pending(whole) or (table is not None and bool(table.of(Owner(self._node, owner))))

    def dump(self, now: float) -> Iterator[dict[str, Any]]:
        """What is held and waited for, as plain data."""
        for (kind, object_), table in self.tables.items():
            for owner, held in table:
                entry = {"kind": kind.name, "object": object_, "node": owner.node, "owner": owner.id, "pid": held.pid}
                entry |= {"start": held.start, "end": held.end, "exclusive": held.exclusive, "waiting": None}
                yield entry
        for call in self.calls.values():
            if isinstance(call.message, Acquire):
                kind, object_, owner_id, start, end = call.span
                entry = {"kind": kind.name, "object": object_, "node": self._node, "owner": owner_id}
                entry |= {"pid": call.message.pid, "start": start, "end": end, "exclusive": call.message.exclusive}
                yield entry | {"waiting": max(0.0, now - call.since)}

    # --- inside ---

    def _next(self) -> int:
        self._serial += 1
        return self._serial

    def _at_once(self, result: Result) -> int:
        call = self._next()
        self.events.append(OwnedAnswer(call, result))
        return call

    def _call(self, call: int, span: Span, message: Acquire | Free | Inquire, now: float) -> int:
        made = self.calls[message.serial] = Call(call, span, message, now)
        self._of.setdefault((span.kind, span.owner), {})[message.serial] = made
        if not self.suspended:
            self._tell(made)
        return call

    def _forget(self, serial: int) -> None:
        span = self.calls.pop(serial).span
        mine = self._of[span.kind, span.owner]
        del mine[serial]
        if not mine:
            del self._of[span.kind, span.owner]

    def _tell(self, call: Call) -> None:
        call.told = True
        self._post(call.span.object, call.message)

    def _weaken(self, call: int, span: Span, now: float) -> int:
        """What the owner has of this is shared from now on; answers ``call``, or (0) is a call of its own."""
        serial = self._next()
        return self._call(call or serial, span, Free(*span[:2], serial, *span[2:], shared=True), now)

    def _withdraw(self, serial: int, call: Call) -> None:
        if not isinstance(call.message, Acquire) or call.withdrawn:
            return
        call.withdrawn = True
        if self.suspended:
            self._forget(serial)
            self._answer(call, Result.DEADLOCK if call.doomed else Result.WITHDRAWN)
        else:
            self._post(call.span.object, Withdraw(*call.span[:2], serial))

    def _answer(self, call: Call, result: Result, conflict: Conflict | None = None) -> None:
        if call.call:
            self.events.append(OwnedAnswer(call.call, result, conflict))

    def _acquired(self, call: Call, message: Acquired) -> None:
        self._stamps.see(message.stamp)
        request, span = call.message, call.span
        assert isinstance(request, Acquire)
        owner = Owner(self._node, span.owner)
        table = self.tables.setdefault(span[:2], RangeTable())
        self._count += table.strengthen(owner, request.pid, span.start, span.end, request.exclusive)
        if not request.exclusive and any(held.exclusive for held in table.of(owner, span.start, span.end)):
            self._weaken(call.call, span, call.since)
        else:
            self._answer(call, Result.GRANTED)

    def _apply(self, call: Call) -> None:
        """Do to the mirror what a Free says."""
        assert isinstance(call.message, Free)
        table = self.tables.get(call.span[:2])
        if table is None:
            return
        owner = Owner(self._node, call.span.owner)
        change = table.weaken if call.message.shared else table.unset
        self._count += change(owner, call.span.start, call.span.end)
        if not table.count:
            del self.tables[call.span[:2]]

    def _pending(self, span: Span) -> bool:
        """Whether a call of this owner that could change the range is under way."""
        calls = self._of.get((span.kind, span.owner), {}).values()
        return any(span.touches(call.span) for call in calls if not isinstance(call.message, Inquire))


_ANSWERS: dict[type, tuple[type, ...]] = {Acquire: (Acquired, Refused), Free: (Freed,), Inquire: (Inquired,)}
