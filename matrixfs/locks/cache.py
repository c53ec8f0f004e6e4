"""The cache of locks: asks the DLM, keeps what it got, gives it up when a peer asks.

A lock is in one of these states (``mode`` is what the DLM granted), and moves as the table says; ``-`` can't happen:

========= ========= ========= ========= ========= ========= ========= ========= ========= =========
state     use       more      grant     deny      revoke    contend   drop      over      done
========= ========= ========= ========= ========= ========= ========= ========= ========= =========
absent    -         requested -         -         absent    absent    -         -         -
cached    held      requested -         -         demoting  kept      -         -         -
held      held      requested -         -         revoking  kept      cached    -         -
requested -         requested held      requested requested requested -         -         -
kept      kept      demoting  -         -         kept      kept      kept      demoting  -
revoking  revoking  revoking  -         -         revoking  revoking  demoting  -         -
demoting  demoting  demoting  -         -         demoting  demoting  -         -         absent
========= ========= ========= ========= ========= ========= ========= ========= ========= =========

absent: mode NL.  cached, held: granted, without and with local holders.  requested: more was asked of the DLM, perhaps
only tried (``deny``).  kept: a peer waits, and the holder has its turn.  revoking: no new local holder gets in.
demoting: the surrender callout flushes and purges.
use: somebody here wants a mode that is granted.  more: one that isn't.  revoke, contend: a peer waits; contend: within
a turn.  drop: the last local holder ends.  over: the turn does.  done: the callout returned, and nobody here waits.

A revoke of a lock that is being used is put off until its holder has had its turn (``turns``), so that nodes make
progress instead of passing the lock back and forth for single operations.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol
from weakref import WeakValueDictionary

import trio

from dlm.client import Grant
from dlm.messages import NEVER
from dlm.modes import EX, NL, PR
from dlm.names import Resource
from matrixfs.locks.counters import Counters
from matrixfs.locks.hottest import Hottest
from matrixfs.locks.lock import Batch, Callouts, Lock, Waiter
from matrixfs.locks.reclaim import INTERVAL, Reclaim
from matrixfs.locks.report import waits
from matrixfs.locks.resources import CHANGE, describe
from matrixfs.locks.trace import Trace
from matrixfs.locks.turns import CONTENDED, Turn, Turns
from membership.errors import MatrixError
from membership.mount_watch import Pulse
from membership.seams import Clock

log = logging.getLogger(__name__)

LEAVE_PARALLEL = 64
LISTED_MIN = 8  # locks that peers want at a time: no single file's use, but a listing
AROUND = 64  # object numbers to each side


class LockManager(Protocol):
    """What the cache asks of the DLM peer (``dlm.service.LockService``)."""

    def request(
        self, resource: Resource, mode: int, *, try_: bool = False, extras: Sequence[Resource] = ()
    ) -> Grant | None:
        """Ask for ``mode``; the grant at once when this node arbitrates, else None and a callback later.

        A ``try_`` is denied rather than kept waiting; ``extras`` are tried along with it, a callback answers each.
        """
        ...

    def release(self, resource: Resource, mode: int, value: bytes | None) -> None:
        """Keep only ``mode``."""
        ...

    def cancel(self, resource: Resource) -> None:
        """Withdraw the outstanding request; no callback will answer it."""
        ...


class LockCache:
    """All locks of one mount.

    Args:
        clock: for ages and the minimum hold.
        on_fatal: told when a surrender failed: the mount must withdraw, its locks stay as they are (R9).
        trace: notes what happens to locks.
        stalled: whether memory is short; asked every second.
    """

    def __init__(
        self,
        clock: Clock,
        on_fatal: Callable[[BaseException], None],
        trace: Trace | None = None,
        stalled: Callable[[], bool] = lambda: False,
    ) -> None:
        self._clock = clock
        self._on_fatal = on_fatal
        self.trace = Trace(clock) if trace is None else trace
        self._locks: dict[Resource, Lock] = {}  # cached or in use
        # All that anybody still refers to: an operation may keep a Lock while it leaves and re-enters the cache.
        self._known: WeakValueDictionary[Resource, Lock] = WeakValueDictionary()
        self._turns = Turns()
        self._hottest = Hottest()
        self._counters = Counters()
        self._reclaim = Reclaim(self._locks, stalled)
        self._manager: LockManager | None = None
        self._nursery: trio.Nursery | None = None
        self._failed = False
        self._owed: dict[Resource, float] = {}  # what a peer wants back, and since when; oldest first
        self._asked = 0  # requests that are not answered yet
        self._demotions = 0

    def attach(self, manager: LockManager) -> None:
        """Set the DLM peer."""
        self._manager = manager

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the demotions and the reclaim until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                while True:
                    await self._clock.sleep(INTERVAL)
                    for lock, keep in self._reclaim.round(self._clock.monotonic()):
                        self._give_up(lock, keep)
            finally:
                self._nursery = None  # the mount ends: what is still held stays held

    def lock(self, resource: Resource, callouts: Callouts) -> Lock:
        """The cache's lock of ``resource``, made if need be (at NL, without a message)."""
        lock = self._locks.get(resource) or self._known.get(resource)
        if lock is None:
            lock = self._known[resource] = Lock(self, resource, callouts)
            lock.turn = self._turns.find(resource)
        return lock

    def find(self, resource: Resource) -> Lock | None:
        """The lock if it is in the cache."""
        return self._locks.get(resource)

    # --- local users -----------------------------------------------------------------------

    async def wait_for(self, lock: Lock, mode: int, exclusive: bool, timeout: float | None) -> bool:
        """Queue behind the lock's other local waiters; see ``Lock.hold``."""
        waiter = Waiter(mode, exclusive, self._clock.monotonic())
        lock.waiters.append(waiter)
        self.advance(lock)
        if waiter.admitted:  # granted by this node's own share of the lock manager: no checkpoint
            return True
        waiter.task = trio.lowlevel.current_task()
        if timeout is None:
            await trio.lowlevel.wait_task_rescheduled(lambda _: self._abandon(lock, waiter))
            self._waited(lock, waiter)
            return True
        with trio.move_on_after(timeout):
            await trio.lowlevel.wait_task_rescheduled(lambda _: self._abandon(lock, waiter))
            self._waited(lock, waiter)
            return True
        self._withdraw(lock)
        return False

    def _waited(self, lock: Lock, waiter: Waiter) -> None:
        now = self._clock.monotonic()
        counters = self._counters.of(lock.resource)
        counters.waits += 1
        counters.waiting.note(now - waiter.since)
        self._hottest.waited(lock.resource, now - waiter.since, now)

    def _withdraw(self, lock: Lock) -> None:
        """A waiter gave up: don't ask for more than the others need, they might wait for it for ever."""
        if lock.requested and lock.batch is None and all(waiter.mode < lock.requested for waiter in lock.waiters):
            assert self._manager is not None
            self._manager.cancel(lock.resource)
            lock.requested = NL
            self._asked -= 1
            self.advance(lock)
            self._forget_if_unused(lock)

    def _forget_if_unused(self, lock: Lock) -> None:
        if lock.mode == NL and lock.idle:
            self._locks.pop(lock.resource, None)

    def _abandon(self, lock: Lock, waiter: Waiter) -> trio.lowlevel.Abort:
        if waiter.admitted:  # the wake-up is on its way
            return trio.lowlevel.Abort.FAILED
        lock.waiters.remove(waiter)
        self.advance(lock)
        return trio.lowlevel.Abort.SUCCEEDED

    def advance(self, lock: Lock) -> None:
        """Do what the lock's state allows now: admit, request, or begin the demotion.  No checkpoint."""
        if not lock.revoking:
            lock.admit()
            if not lock.waiters or lock.requested or lock.mode >= lock.waiters[0].mode:
                return
            if lock.revoke_to is None:
                self._request(lock, lock.waiters[0].mode)
                return
            self._begin_to_revoke(lock)  # put off so far; but a turn in too low a mode is of no use here
        assert lock.revoke_to is not None
        if not lock.demoting and lock.drained(lock.revoke_to) and self._nursery is not None:
            lock.demoting = True
            self._nursery.start_soon(self._demote, lock)

    def _request(self, lock: Lock, mode: int) -> None:
        assert self._manager is not None
        turn = lock.turn
        if turn is not None and lock.callouts.upgrades:
            mode = turn.ask(mode)
        lock.requested = mode
        lock.requested_at = self._clock.monotonic()
        self._locks[lock.resource] = lock
        counters = self._counters.of(lock.resource)
        counters.requests += 1
        self._asked += 1
        self.trace.note("request", lock.resource, mode)
        grant = self._manager.request(lock.resource, mode)
        if grant is not None:
            counters.granted_at_once += 1
            self._take(lock, grant)

    # --- callbacks of the DLM ----------------------------------------------------------------

    def granted(self, resource: Resource, grant: Grant) -> None:
        """The DLM granted a request.  No checkpoint until the first local waiter holds the lock."""
        lock = self._locks[resource]
        counters = self._counters.of(resource)
        if lock.batch is not None:
            lock.batch.answer(lock)
            counters.prefetched += 1
        elif lock.turn is not None:
            counters.hand_overs_taken += 1
        self._take(lock, grant)

    def _take(self, lock: Lock, grant: Grant) -> None:
        self.trace.note("granted", lock.resource, grant.mode)
        counters = self._counters.of(lock.resource)
        counters.uses += lock.uses
        lock.mode = grant.mode
        lock.requested = NL
        self._asked -= 1
        lock.granted_at = lock.used_at = self._clock.monotonic()
        counters.granting.note(lock.granted_at - lock.requested_at)
        lock.uses = lock.uses_seen = 0
        lock.wrote = False
        if not lock.revoking:
            lock.admit()
        if grant.finish != NEVER:
            self.revoke(lock.resource, grant.finish)
        self.advance(lock)

    def denied(self, resource: Resource) -> None:
        """Somebody stands against a prefetched lock; who wants it now must ask for it properly."""
        lock = self._locks[resource]
        assert lock.batch is not None, f"{describe(resource)}: denied without a try"
        self._counters.of(resource).prefetch_denied += 1
        self._asked -= 1
        lock.batch.answer(lock)
        lock.requested = NL
        self.advance(lock)
        self._forget_if_unused(lock)

    def revoke(self, resource: Resource, mode: int) -> None:
        """A peer waits for this node to hold no more than ``mode``."""
        lock = self._locks.get(resource)
        if lock is None or lock.mode <= mode:
            return  # crossed with our release
        self.trace.note("revoke", resource, mode)
        counters = self._counters.of(resource)
        counters.revokes += 1
        if resource[0] != CHANGE:  # who froze the filesystem owes that lock to nobody
            self._owed.setdefault(resource, self._clock.monotonic())
        if mode == PR and len(self._owed) >= LISTED_MIN:
            self._share_around(resource)
        if lock.revoke_to is not None:  # under way, or put off
            lock.revoke_to = min(mode, lock.revoke_to)
            return
        lock.revoke_to = mode
        turn = self._turn(lock)
        if turn is None:
            self._begin_to_revoke(lock)
        else:
            counters.deferred += 1
            self.trace.note("deferred", resource, mode)
            assert self._nursery is not None
            self._nursery.start_soon(self._keep, lock, turn)

    def _turn(self, lock: Lock) -> Turn | None:
        """The lock's turn, if the holder has one and would use it."""
        if not lock.uses or lock.requested or self._nursery is None:
            return None
        now = self._clock.monotonic()
        if lock.turn is None and now < lock.granted_at + CONTENDED:
            lock.turn = self._turns.open(lock.resource)
        turn = lock.turn
        return turn if turn is not None and turn.credit and now < lock.granted_at + turn.length else None

    async def _keep(self, lock: Lock, turn: Turn) -> None:
        """Put a revoke off until the turn is over."""
        before = lock.uses
        end = lock.granted_at + turn.length
        early = False
        while not lock.revoking and not early:
            used, left = lock.uses, end - self._clock.monotonic()
            if left <= 0:
                break
            await self._clock.sleep(min(left, turn.patience))
            early = lock.uses == used and not lock.in_use
        turn.kept(lock.uses - before, early=early)
        if lock.revoke_to is not None and not lock.revoking:
            self._begin_to_revoke(lock)

    def _begin_to_revoke(self, lock: Lock) -> None:
        lock.revoking = True
        lock.revoked_at = self._clock.monotonic()
        self.advance(lock)

    async def _demote(self, lock: Lock) -> None:
        """Surrender down to ``revoke_to``, again if a peer asked for less meanwhile, then tell the DLM."""
        assert self._manager is not None
        lock.surrendering = True
        self.trace.note("demoting", lock.resource, lock.mode)
        try:
            while True:
                mode = lock.revoke_to
                assert mode is not None
                await lock.callouts.surrender(lock, mode)
                if lock.revoke_to == mode:
                    break
        except Exception as error:  # whatever it was: what is dirty is not safe, so the lock must not move
            if not self._failed:
                self._failed = True
                bug = error if not isinstance(error, MatrixError) else None  # a traceback only of our own
                log.error("surrender of %s failed: %s", describe(lock.resource), error, exc_info=bug)
                self._on_fatal(error)
            return
        # No checkpoint from here: the DLM's view and ours change together.
        self._count_demotion(lock, mode)
        lock.mode = mode
        lock.uses = lock.uses_seen = 0
        lock.wrote = False
        lock.revoke_to = None
        lock.revoking = lock.demoting = lock.surrendering = False
        self._manager.release(lock.resource, mode, None)
        self.advance(lock)
        self._forget_if_unused(lock)

    def _count_demotion(self, lock: Lock, mode: int) -> None:
        now = self._clock.monotonic()
        self._demotions += 1
        self.trace.note("demoted", lock.resource, mode)
        counters = self._counters.of(lock.resource)
        counters.uses += lock.uses
        counters.flushes += lock.mode == EX
        counters.purges += mode < PR
        wanted_since = self._owed.pop(lock.resource, None)
        if wanted_since is not None:
            counters.hand_overs_given += 1
            counters.releasing.note(now - wanted_since)
            self._hottest.handed_over(lock.resource, now)
        if lock.turn is not None:
            unwritten = lock.mode == EX and not lock.wrote
            lock.turn.handed_over(now - lock.revoked_at, idle=unwritten, missed=bool(lock.waiters))
            self._turns.keep(lock.resource, lock.turn)

    # --- several at once -------------------------------------------------------------------------

    async def prefetch(self, locks: Iterable[Lock], mode: int) -> None:
        """Ask for those of ``locks`` that this node knows nothing of, in one message per master (003-42).

        Returns when each is granted, or left out since somebody stands against it; nothing is held.  Who then wants
        one that was left out waits for it as always.
        """
        assert self._manager is not None
        wanted = [lock for lock in locks if lock.mode == NL and lock.idle]
        if not wanted:
            return
        batch = Batch(len(wanted))
        now = self._clock.monotonic()
        for lock in wanted:
            lock.requested = mode
            lock.requested_at = now
            lock.batch = batch
            self._locks[lock.resource] = lock
            self._counters.of(lock.resource).requests += 1
            self._asked += 1
        self.trace.note("prefetch", wanted[0].resource, mode)
        grant = self._manager.request(
            wanted[0].resource, mode, try_=True, extras=[lock.resource for lock in wanted[1:]]
        )
        if grant is not None:
            self.granted(wanted[0].resource, grant)
        await batch.answered.wait()

    # --- giving up on our own account ------------------------------------------------------------

    def discard(self, lock: Lock) -> None:
        """Give up an idle lock whose object is gone for good, or that is not needed any more."""
        if lock.mode > NL and lock.idle:
            lock.revoke_to = NL
            self._begin_to_revoke(lock)

    def _give_up(self, lock: Lock, keep: int) -> bool:
        """Go down to ``keep``: the lock was idle a moment ago.  Whether it still was."""
        if lock.mode <= keep or not lock.idle or lock.revoke_to is not None:
            return False
        self._counters.of(lock.resource).reclaimed += 1
        self.trace.note("reclaim", lock.resource, keep)
        lock.revoke_to = keep
        self._begin_to_revoke(lock)
        return True

    def _share_around(self, resource: Resource) -> None:
        """Peers want to read much at once: somebody lists what this node wrote, and wants the objects beside it next.

        Going down from EX together they share the journal's rounds, and a batch of the peer finds them free.
        """
        domain, number = resource[0], resource[1]
        for other in range(number - AROUND, number + AROUND):
            lock = self._locks.get(Resource(domain, other))
            if lock is not None and lock.mode == EX and self._give_up(lock, PR):
                self._counters.of(resource).shared_ahead += 1

    async def leave(self) -> None:
        """Give up every lock, flushing all: the end of a clean unmount.  No local operation may be running."""
        limit = trio.CapacityLimiter(LEAVE_PARALLEL)

        async def give_up(lock: Lock) -> None:
            async with limit:
                while lock.mode > NL and not self._failed:
                    if lock.revoke_to is None or not lock.revoking:
                        lock.revoke_to = NL
                        self._begin_to_revoke(lock)
                    await self._clock.sleep(0.001)

        async with trio.open_nursery() as nursery:
            for lock in sorted(self._locks.values(), key=lambda each: each.resource):
                if lock.mode > NL:
                    nursery.start_soon(give_up, lock)

    # --- whether it gets on (membership/mount_watch.py) ---

    def pulse(self) -> Pulse:
        """What a peer has waited for longest, and whether anything moves."""
        moved = self._counters.total("requests") - self._asked + self._demotions
        for resource, since in self._owed.items():
            lock = self._locks.get(resource)
            dirty = getattr(lock.subject, "dirty", None) if lock is not None else None
            seconds = self._clock.monotonic() - since
            return Pulse(moved, self._asked > 0, seconds, describe(resource), dirty.length if dirty else 0)
        return Pulse(moved, self._asked > 0)

    # --- what an administrator sees -----------------------------------------------------------------

    def contended(self) -> list[Lock]:
        """Locks that a local task waits for, or a peer."""
        return [lock for lock in self._locks.values() if lock.waiters or lock.revoke_to is not None]

    def waits(self) -> list[dict[str, object]]:
        """The longest waits, see ``report``."""
        return waits(self._locks.values(), self._clock.monotonic())

    def statistics(self) -> dict[str, Any]:
        """Counters: sums over all kinds of locks, and under ``types`` all by kind (``counters``)."""
        modes = [lock.mode for lock in self._locks.values()]
        return {
            "cached": len(modes),
            "cached_shared": modes.count(PR),
            "cached_exclusive": modes.count(EX),
            "requests": self._counters.total("requests"),
            "demotions": self._demotions,
            "revokes_deferred": self._counters.total("deferred"),
            "reclaimed": self._counters.total("reclaimed"),
            "memory_stalls": self._reclaim.stalls,
            "types": self._counters.dump(self._locks.values()),
        }

    def hottest(self, count: int) -> list[dict[str, Any]]:
        """What somebody waits for, and the most contended resources of the last seconds, see ``hottest``."""
        waiters = {resource: len(lock.waiters) for resource, lock in self._locks.items() if lock.waiters}
        return self._hottest.dump(count, self._clock.monotonic(), waiters)
