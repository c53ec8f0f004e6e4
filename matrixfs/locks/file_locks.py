"""Cluster-wide file locks and application locks of one mount: the async face of ``dlm.owned`` (architecture 6).

What flock(2), fcntl(2) and ``matrixctl lock`` need, by object and owner; the owner's node is this one.  Locks of
different kinds never meet.  While the lockspace recovers, calls wait and then go on; locks held stay held.  The locks
of a node that dies are free when the survivors have rebuilt, which is after it was fenced (R5).

A deadlock of POSIX or NAMED locks over any number of nodes ends with EDEADLK for the youngest of its waits (within one
arbiter: for the one that closed it).  OFD locks come as POSIX and are looked at too; FLOCK is not, as on Linux.
"""

from __future__ import annotations

import errno
import os
from typing import Any

import trio

from dlm.owned.client import OwnedAnswer, Result, Span
from dlm.owned.deadlock import FIRST_PROBE
from dlm.owned.messages import Conflict, Kind
from dlm.owned.ranges import END_MAX, Owner
from dlm.service import LockService
from membership.seams import Clock

__all__ = ["END_MAX", "Conflict", "FileLocks", "Kind", "Owner"]

_ERRNO = {
    Result.AGAIN: errno.EAGAIN,
    Result.DEADLOCK: errno.EDEADLK,
    Result.NOLOCKS: errno.ENOLCK,
    Result.WITHDRAWN: errno.EINTR,
}


class _Waiter:
    """A call whose answer is not there yet."""

    __slots__ = ("answer", "event")

    def __init__(self) -> None:
        self.event = trio.Event()
        self.answer = OwnedAnswer(0, Result.WITHDRAWN)  # until ``event`` is set


class FileLocks:
    """See the module.  Objects are u64 (inode numbers; for NAMED the hash of a name), owners any u64.

    Args:
        manager: this mount's peer of the lockspace.
        clock: time, for the age of waits.
    """

    def __init__(self, manager: LockService, clock: Clock) -> None:
        self._manager = manager
        self._client = manager.owned.client
        self._clock = clock
        self._waiters: dict[int, _Waiter] = {}
        self._blocking = 0  # calls of ``set`` that may wait for others
        self._work = trio.Event()
        manager.owned_answered = self._answered

    async def set(
        self,
        kind: Kind,
        object_: int,
        owner_id: int,
        pid: int,
        start: int,
        end: int,
        exclusive: bool,
        *,
        wait: bool,
    ) -> None:
        """Lock ``start`` to ``end`` (included) in this mode, replacing what the owner has there (FLOCK: 0, END_MAX).

        Cancelled while it waits: the request is withdrawn.  If its grant crossed that, the lock is kept and this
        returns as if nothing had happened.

        Raises:
            OSError: EAGAIN (not ``wait``, and somebody holds it), EDEADLK, ENOLCK (too many locks), EINVAL.
        """
        span = _span(kind, object_, owner_id, start, end)
        call = self._client.lock(span, pid, self._clock.monotonic(), exclusive=exclusive, wait=wait)
        waiter = self._begin(call)
        self._blocking += wait
        self._work.set()
        try:
            await waiter.event.wait()
        except trio.Cancelled:
            self._client.cancel(call)
            self._manager.settle()
            with trio.CancelScope(shield=True):
                await waiter.event.wait()
            if waiter.answer.result != Result.GRANTED:
                raise
        finally:
            self._blocking -= wait
            del self._waiters[call]
        _check(waiter.answer)

    async def unset(self, kind: Kind, object_: int, owner_id: int, start: int, end: int) -> None:
        """Unlock ``start`` to ``end`` (included); on return a try from any node finds it free.

        It is given up also when this is cancelled.

        Raises:
            OSError: ENOLCK (cutting a range in two would make too many), EINVAL.
        """
        _check(await self._answer(self._client.unlock(_span(kind, object_, owner_id, start, end), self._now())))

    async def test(
        self, kind: Kind, object_: int, owner_id: int, start: int, end: int, exclusive: bool
    ) -> Conflict | None:
        """The first lock that stands against this one, or None.  Raises OSError EINVAL."""
        span = _span(kind, object_, owner_id, start, end)
        return (await self._answer(self._client.test(span, self._now(), exclusive=exclusive))).conflict

    async def drop(self, kind: Kind, object_: int, owner_id: int) -> None:
        """Unlock all that this owner has on this object, as closing it does.  Raises OSError EINVAL."""
        await self.unset(kind, object_, owner_id, 0, END_MAX)

    def holds(self, kind: Kind, object_: int, owner_id: int) -> bool:
        """Whether this owner holds or asks for anything here; knows this node only, costs no message."""
        return self._client.holds(kind, object_, owner_id)

    def held(self, object_: int) -> int:
        """How many locks this mount holds on the object."""
        tables = (self._client.tables.get((kind, object_)) for kind in Kind)
        return sum(table.count for table in tables if table is not None)

    def dump(self) -> list[dict[str, Any]]:
        """Locks of this mount: kind, object, node, owner, pid, start, end, exclusive, waiting (seconds, or None)."""
        return list(self._client.dump(self._now()))

    def dump_mastered(self) -> list[dict[str, Any]]:
        """Locks of all mounts on objects this one arbitrates; the same but ``waits_for``: [node, owner] or None."""
        return list(self._manager.owned.arbiter.dump())

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look for deadlocks while anybody waits; until cancelled."""
        task_status.started()
        while True:
            if not self._blocking:
                self._work = trio.Event()
                await self._work.wait()
            await self._clock.sleep(FIRST_PROBE)
            self._manager.owned.chaser.tick(self._now())
            self._manager.settle()

    def _now(self) -> float:
        return self._clock.monotonic()

    def _begin(self, call: int) -> _Waiter:
        waiter = self._waiters[call] = _Waiter()
        self._manager.settle()
        return waiter

    async def _answer(self, call: int) -> OwnedAnswer:
        waiter = self._begin(call)
        try:
            await waiter.event.wait()
        finally:
            del self._waiters[call]
        return waiter.answer

    def _answered(self, answer: OwnedAnswer) -> None:
        waiter = self._waiters.get(answer.call)
        if waiter is not None:
            waiter.answer = answer
            waiter.event.set()


def _span(kind: Kind, object_: int, owner_id: int, start: int, end: int) -> Span:
    if not 0 <= start <= end <= END_MAX:
        raise OSError(errno.EINVAL, f"lock from byte {start} to {end}")
    return Span(kind, object_, owner_id, start, end)


def _check(answer: OwnedAnswer) -> None:
    code = _ERRNO.get(answer.result)
    if code is not None:
        raise OSError(code, os.strerror(code))
