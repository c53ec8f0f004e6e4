"""The lock service: a trio shell around ``LockspaceCore`` over a Transport (002-04).

Calls act at once and send at once; what they cause comes back through ``LockClient``: at the end of the call
that caused it, or from ``run``; for ``request`` only from ``run``, so who gets None can register its waiter
afterwards.  No grant but of an extra is ever under way between the core and the client while the client runs: what
the client believes it holds is what this node holds.

Losing a link is told to ``link_lost``: messages may be gone with it, and only a new attempt brings them back.
"""

from __future__ import annotations

import gc
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import trio

from dlm.client import ClientEvent, DeniedEvent, Grant, GrantedEvent, RevokeEvent
from dlm.counts import Counts
from dlm.lockspace import LockspaceCore, RebuiltEvent
from dlm.messages import decode_untrusted, encode
from dlm.names import Resource
from dlm.owned.client import OwnedAnswer
from dlm.owned.core import OwnedCore
from dlm.resource import Enqueue, first_come
from membership.errors import BadMessage
from membership.seams import Delivery, LinkDown, Transport, TransportEvent
from membership.views import Instance, LockspaceView

BULK_MAX = 8192  # messages that wait while a rebuild is under way: reports of a million locks


class LockClient(Protocol):
    """Who uses the locks: the lock cache.  All calls are synchronous and must not raise."""

    def granted(self, resource: Resource, grant: Grant) -> None:
        """A request that returned None is granted."""
        ...

    def denied(self, resource: Resource) -> None:
        """A try that returned None failed."""
        ...

    def revoke(self, resource: Resource, mode: int) -> None:
        """Release down to ``mode`` as soon as it is safe, also while a request of yours waits.  May be repeated."""
        ...


class LockService:
    """One node's peer of one lockspace.

    Args:
        node: this node's id.
        incarnation: of this process.
        transport: links to the other mounts of the filesystem; the service reads all its events.
        placement_shift: objects that agree above this bit share a master.
        client: gets the callbacks.
        link_lost: told the node at the other end of a broken link, and whether its host says that nobody listens.
        link_up: told the node at the other end of a link that stands.
        enqueue: order in which this node serves who waits for what it masters: ``first_come`` or ``by_priority``.
    """

    def __init__(
        self,
        node: int,
        incarnation: int,
        transport: Transport,
        placement_shift: int,
        client: LockClient,
        link_lost: Callable[[int, bool], None] = lambda _node, _refused: None,
        link_up: Callable[[int], None] = lambda _: None,
        enqueue: Enqueue = first_come,
    ) -> None:
        self._core = LockspaceCore(node, incarnation, placement_shift, enqueue)
        self._transport = transport
        self._client = client
        self._link_lost = link_lost
        self._link_up = link_up
        self._events: list[ClientEvent | RebuiltEvent | OwnedAnswer] = []
        self.owned_answered: Callable[[OwnedAnswer], None] = lambda _: None  # set by who calls ``owned``
        self._kick = trio.Event()
        self._work = trio.Event()
        self._bulk: deque[Delivery] = deque()  # in order, for ``_work_forever``
        self._waiting: dict[int, trio.Event] = {}  # attempt being rebuilt -> set when rebuilt or overtaken
        self._rebuilt = 0
        self._suspended = 0.0  # since when, in trio's time
        self._phases = {"done": 0.0, "resume": 0.0}  # seconds of the last rebuild, from SUSPEND

    # --- locks ---

    def request(
        self,
        resource: Resource,
        mode: int,
        *,
        try_: bool = False,
        priority: int = 0,
        extras: Sequence[Resource] = (),
    ) -> Grant | None:
        """Ask for ``mode``, which must cover the mode held.  One request per resource at a time.

        Args:
            resource: what to lock.
            mode: 1 to 5.
            try_: be denied rather than wait.
            priority: 0 to 255, greater first, where the lockspace serves by priority (``enqueue``).
            extras: resources that this node neither holds nor has asked for: take them too, in the same mode, if
                nobody stands against it (003-42).  They cost no message of their own, but one for each further
                master.  ``granted`` or ``denied`` answers each, from ``run``.

        Returns:
            The grant, if this node is the master and nobody stands against it; else None, and one of
            ``granted`` and ``denied`` (tries only) follows.
        """
        grant = self._core.request(resource, mode, try_=try_, priority=priority, extras=extras)
        if grant is None or extras:
            self._flush()
            if self._events:  # a try that our own share of the masters denied, or extras
                self._kick.set()
        return grant

    def release(self, resource: Resource, mode: int, value: bytes | None = None) -> None:
        """Go down to ``mode`` (0: give up); ``value``, if not None, replaces the value block (under PW or EX)."""
        self._core.release(resource, mode, value)
        if self._core.pending:
            self._act()

    def cancel(self, resource: Resource) -> None:
        """Withdraw the outstanding request: no callback will answer it, and a new one may be made at once."""
        untold = [e for e in self._events if isinstance(e, DeniedEvent | GrantedEvent) and e.resource == resource]
        self._events = [e for e in self._events if e not in untold]
        if any(isinstance(event, GrantedEvent) for event in untold):  # an extra, granted by this node
            self._core.release(resource, 0)
        self._core.cancel(resource)
        self._act()

    def held(self, resource: Resource) -> int:
        """Mode this node holds, 0 for none."""
        return self._core.held(resource)

    def master_is_local(self, resource: Resource) -> bool:
        """Whether a request costs no message, if nobody stands against it."""
        return self._core.master_is_local(resource)

    # --- owned locks ---

    @property
    def owned(self) -> OwnedCore:
        """Locks of processes and open files; call ``settle`` after calls of it, and ``owned_answered`` is told."""
        return self._core.owned

    def settle(self) -> None:
        """Send what calls of ``owned`` want sent, and call back."""
        self._core.settle()
        self._act()

    # --- views, called for matrixd ---

    def suspend(self, attempt: int) -> None:
        """SUSPEND: on return no lock is granted any more.  Stale attempts are ignored."""
        if self._core.state == "running":
            self._suspended = trio.current_time()
        self._core.suspend(attempt)
        self._overtake(attempt)

    async def rebuild(self, view: LockspaceView) -> bool:
        """REBUILD: connect to the members and exchange what everybody holds.

        Returns:
            True when this node is rebuilt (acknowledge), False when a newer attempt came in between.
        """
        self._overtake(view.attempt)
        self._core.rebuild(view)
        if self._core.attempt != view.attempt:
            return False
        self._transport.set_peers([member for member in view.members if member.node != self._core.node])
        if self._rebuilt < view.attempt:
            event = self._waiting.setdefault(view.attempt, trio.Event())
            self._act()
            await event.wait()
        return self._rebuilt == view.attempt

    def resume(self, attempt: int) -> None:
        """RESUME: grants flow again.  Stale attempts are ignored."""
        suspended = self._core.state != "running"
        self._core.resume(attempt)
        if suspended and self._core.state == "running":
            self._phases["resume"] = trio.current_time() - self._suspended
        self._act()

    def release_ghosts(self, instance: Instance) -> None:
        """RELEASE_GHOSTS: the journal of a dead instance is replayed."""
        self._core.release_ghosts(instance)
        self._act()

    def leave(self) -> None:
        """Before a clean unmount, when all locks are released: take no further part."""
        self._core.leave()

    # --- looking in ---

    def statistics(self) -> dict[str, int]:
        """Sums over the domains, messages by type and direction, locks and resources; the last rebuild, with the
        time from SUSPEND to when it was done here (``rebuild_done_ms``), and to RESUME (``rebuild_resume_ms``).
        """
        core = self._core
        totals = Counter(Counts().as_dict())
        for counts in core.counts.values():
            totals.update(counts.as_dict())
        return {
            **totals,
            **core.statistics,
            "round_trips": core.statistics["sent_Request"],
            **core.sizes(),
            **core.owned.arbiter.sizes(),
            **{f"rebuild_{name}": number for name, number in core.last_rebuild.items()},
            **{f"rebuild_{name}_ms": round(seconds * 1000) for name, seconds in self._phases.items()},
        }

    def domains(self) -> dict[int, dict[str, int]]:
        """The counters of ``dlm.counts.Counts`` for each domain in use."""
        return {domain: counts.as_dict() for domain, counts in self._core.counts.items()}

    def dump(self, resources: Iterable[Resource] | None = None) -> list[dict[str, Any]]:
        """These resources, or all that this node arbitrates or uses, as plain data."""
        return self._core.dump(resources, trio.current_time())

    def contended(self) -> list[Resource]:
        """The resources mastered here that somebody waits for."""
        return self._core.contended()

    # --- the task ---

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Pump messages and callbacks until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tell_forever)
            nursery.start_soon(self._work_forever)
            task_status.started()
            await self._transport.serve(self._take)

    def _take(self, event: TransportEvent) -> None:
        """An event of the transport, in the task that read it."""
        if isinstance(event, Delivery):
            if not self._core.rebuilding and not self._bulk:
                self._deliver(event)
                return
            self._bulk.append(event)  # a message is a hundred reports then: not all of them in one go
            if len(self._bulk) > BULK_MAX:
                self._deliver(self._bulk.popleft())
            self._work.set()
        elif isinstance(event, LinkDown):
            self._core.statistics["links_lost"] += 1
            self._link_lost(event.node, event.refused)
        else:
            self._link_up(event.node)

    def _deliver(self, delivery: Delivery) -> None:
        try:
            attempt, message = decode_untrusted(delivery.payload)
        except BadMessage:
            self._core.statistics["bad_messages"] += 1
            return
        self._core.receive(delivery.node, attempt, message)
        self._act()

    async def _work_forever(self) -> None:
        """Rebuild in small pieces, so that links and leases live meanwhile."""
        while True:
            await self._work.wait()
            self._work = trio.Event()
            while self._bulk or self._core.working:
                if self._bulk:
                    self._deliver(self._bulk.popleft())
                self._core.work()
                self._act()
                await self._let_others_run()
            gc.unfreeze()  # else what of it dies in a cycle later would stay for ever

    async def _let_others_run(self) -> None:
        # What a rebuild makes lives for long and is much: without this the garbage collector walks all of it, for
        # 100 ms at a stretch (100,000 locks).  Until the rebuild is done, only garbage in cycles stays.
        gc.freeze()
        await trio.lowlevel.checkpoint()

    async def _tell_forever(self) -> None:
        """Call back for ``request``, outside of it."""
        while True:
            await self._kick.wait()
            self._kick = trio.Event()
            self._tell()

    def _flush(self) -> None:
        """Send what the core wants sent; collect what the client must be told."""
        if self._core.working:
            self._work.set()
        if self._core.unstamped:
            self._core.stamp(trio.current_time())
        if not self._core.pending:
            return
        effects = self._core.take_effects()
        for node, attempt, message in effects.send:
            self._transport.send(node, encode(attempt, message))
        self._events += effects.events

    def _act(self) -> None:
        self._flush()
        self._tell()

    def _tell(self) -> None:
        # No checkpoint until all are told.  A callback may call us; what that causes comes after what is left here.
        while self._events:
            event = self._events.pop(0)
            if isinstance(event, GrantedEvent):
                self._client.granted(event.resource, event.grant)
            elif isinstance(event, RevokeEvent):
                self._client.revoke(event.resource, event.mode)
            elif isinstance(event, DeniedEvent):
                self._client.denied(event.resource)
            elif isinstance(event, OwnedAnswer):
                self.owned_answered(event)
            else:
                self._rebuilt = event.attempt
                self._phases["done"] = trio.current_time() - self._suspended
                self._finish(event.attempt)

    def _overtake(self, attempt: int) -> None:
        for older in [waiting for waiting in self._waiting if waiting < attempt]:
            self._finish(older)

    def _finish(self, attempt: int) -> None:
        event = self._waiting.pop(attempt, None)
        if event is not None:
            event.set()
