"""One cached lock: its cluster-wide mode, its local holders, and what is cached under it."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

import trio

from dlm.modes import EX, NL, PR
from dlm.names import Resource

if TYPE_CHECKING:
    from matrixfs.locks.cache import LockCache
    from matrixfs.locks.turns import Turn


class Callouts(Protocol):
    """What a lock type does on surrender (002-08).

    ``flushes``: giving up EX changes what local readers look at, so they must be out first, even where PR is kept.
    ``upgrades``: a reader who is expected to write may be given EX at once; only where no hold outlives an operation,
    or a reader would wait for ever.
    """

    flushes: bool
    upgrades: bool

    async def surrender(self, lock: Lock, mode: int) -> None:
        """Make true what ``mode`` demands: flush below EX, purge below PR.

        Must not wait for a local operation that may itself wait for this lock (coherence.md, "What
        follows" 1).  Raises DeviceError, Fenced: the mount withdraws.
        """
        ...


class Waiter:
    """A local task that wants the lock; the age is what ``matrixctl`` prints (R14)."""

    __slots__ = ("admitted", "exclusive", "mode", "since", "task")

    def __init__(self, mode: int, exclusive: bool, since: float) -> None:
        self.mode = mode
        self.exclusive = exclusive
        self.since = since
        self.admitted = False  # it holds the lock
        self.task: trio.lowlevel.Task | None = None  # once it sleeps


class Batch:
    """Locks asked for together; each is answered at once, granted or not."""

    __slots__ = ("answered", "left")

    def __init__(self, count: int) -> None:
        self.left = count
        self.answered = trio.Event()  # all of them

    def answer(self, lock: Lock) -> None:
        """One of them is answered."""
        lock.batch = None
        self.left -= 1
        if not self.left:
            self.answered.set()


class Lock:
    """A DLM lock of this node, with two scopes for its local users (002-07).

    Process scope: an ``exclusive`` hold keeps out all other local holders.  Server scope: holds that
    aren't exclusive share the lock's mode with each other.
    """

    __slots__ = (
        "__weakref__",
        "batch",
        "blocks",
        "cache",
        "callouts",
        "demoting",
        "exclusive",
        "granted_at",
        "hint",
        "mode",
        "readers",
        "requested",
        "requested_at",
        "resource",
        "revoke_to",
        "revoked_at",
        "revoking",
        "subject",
        "surrendering",
        "turn",
        "used_at",
        "uses",
        "uses_seen",
        "waiters",
        "writers",
        "wrote",
    )

    def __init__(self, cache: LockCache, resource: Resource, callouts: Callouts) -> None:
        self.cache = cache
        self.resource = resource
        self.callouts = callouts
        self.mode = NL  # granted by the DLM
        self.requested = NL  # asked of the DLM and not answered,
        self.requested_at = 0.0  # monotonic seconds,
        self.batch: Batch | None = None  # but only tried, with others: perhaps nobody wants it
        self.readers = 0  # shared local holds in PR
        self.writers = 0  # shared local holds in EX
        self.exclusive = False  # one exclusive local hold
        self.waiters: deque[Waiter] = deque()
        self.revoke_to: int | None = None  # a peer wants us at this mode or below
        self.revoking = False  # no new local holders: the demotion comes first
        self.demoting = False  # the demotion has begun,
        self.surrendering = False  # and the surrender callout runs: what is cached elsewhere is being purged
        self.granted_at = 0.0
        self.revoked_at = 0.0  # when ``revoking`` began
        self.uses = 0  # local holds since the grant or the last demotion,
        self.wrote = False  # and whether one of them was for EX or exclusive
        self.uses_seen = 0  # at the last look of ``reclaim``,
        self.used_at = 0.0  # and when that last found it changed
        self.turn: Turn | None = None  # once it is contended
        self.subject: Any = None  # the object cached under the lock
        self.hint: tuple[int, bytes] | None = None  # directory and name it was last reached by: some 140 bytes (paths)
        self.blocks: dict[int, Any] = {}  # metadata blocks cached under the lock, by block number

    @property
    def number(self) -> int:
        """The object's number: inode or group."""
        return self.resource[1]

    @property
    def in_use(self) -> bool:
        """Whether a local holder or waiter is there."""
        return bool(self.readers or self.writers or self.exclusive or self.waiters)

    @property
    def idle(self) -> bool:
        """No local holder, waiter or transition."""
        return not (self.in_use or self.requested or self.revoking)

    def try_hold(self, mode: int, exclusive: bool = False) -> bool:
        """Hold without waiting if the cached mode suffices: a plain call, no message, no checkpoint."""
        if self.mode < mode or self.revoking or self.exclusive or self.waiters:
            return False
        if exclusive:
            if self.readers or self.writers:
                return False
            self.exclusive = self.wrote = True
        elif mode == EX:
            self.writers += 1
            self.wrote = True
        else:
            self.readers += 1
        self.uses += 1
        return True

    async def hold(self, mode: int, exclusive: bool = False, timeout: float | None = None) -> bool:
        """Hold, waiting as long as it takes.

        Args:
            mode: PR or EX.
            exclusive: process scope: no other local holder beside.
            timeout: seconds; None waits for ever.

        Returns:
            False only when ``timeout`` passed.
        """
        if self.try_hold(mode, exclusive):
            return True
        return await self.cache.wait_for(self, mode, exclusive, timeout)

    def drop(self, mode: int, exclusive: bool = False) -> None:
        """End a hold; the lock stays cached (002-06)."""
        if exclusive:
            assert self.exclusive
            self.exclusive = False
        elif mode == EX:
            assert self.writers > 0
            self.writers -= 1
        else:
            assert self.readers > 0
            self.readers -= 1
        if self.waiters or self.revoking:
            self.cache.advance(self)

    def drained(self, mode: int) -> bool:
        """Whether no local holder needs more than ``mode``."""
        if self.exclusive or self.writers:
            return False
        return not self.readers or (mode >= PR and not (self.mode == EX and self.callouts.flushes))

    def admit(self) -> None:
        """Let waiting local tasks in, first come first served, as far as the granted mode allows."""
        while self.waiters:
            waiter = self.waiters[0]
            if self.mode < waiter.mode or self.exclusive:
                return
            if waiter.exclusive:
                if self.readers or self.writers:
                    return
                self.exclusive = self.wrote = True
            elif waiter.mode == EX:
                self.writers += 1
                self.wrote = True
            else:
                self.readers += 1
            self.uses += 1
            self.waiters.popleft()
            waiter.admitted = True
            if waiter.task is not None:
                trio.lowlevel.reschedule(waiter.task)
