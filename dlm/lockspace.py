"""One peer of a lockspace (pure): client side and master side, joined by views (002-04, R5, R6).

States, by the control calls of the administrator's recovery::

    running --suspend(a)--> suspended --rebuild(view a)--> rebuilding --all reports--> rebuilt --resume(a)--> running
       ^________________________ any higher attempt goes back to suspended or rebuilding ________________________|

What is done with a lock message of a peer:

L1. Of an older attempt: dropped.  What it said is in the rebuild's reports.
L2. Of a newer attempt: kept until we get there (bounded), since the sender may be a step ahead.
L3. Running: processed.  Suspended: only releases, into the old copy, which still speaks for the dead.
L4. Rebuilding or rebuilt: only the rebuild's own messages; others wait for RESUME, in order.

Nothing is sent between SUSPEND and RESUME but the rebuild, and nothing is granted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

from dlm.client import PLAIN_GRANTS, ClientEvent, ClientSide, Grant, GrantedEvent, Lock
from dlm.directory import Directory
from dlm.master import MasterSide
from dlm.messages import (
    EXTRAS_MAX,
    NEVER,
    AboutResource,
    AnyMessage,
    Cancel,
    Granted,
    LockReport,
    Member,
    Order,
    Prefetched,
    Rebuild,
    RebuildDone,
    RecordReport,
    Release,
    Request,
)
from dlm.modes import NAMES
from dlm.names import Resource
from dlm.owned.client import OwnedAnswer
from dlm.owned.core import OwnedCore
from dlm.owned.messages import AboutOwned
from dlm.recovery import Doubts, History, Memory, Rebuilding, batches
from dlm.resource import Enqueue, Record, first_come
from membership.views import Instance, LockspaceView

_EARLY_MAX = 16384  # messages kept per peer (L2): reports of two million locks


class Envelope(NamedTuple):
    """A message to send, with the attempt it is spoken under."""

    node: int
    attempt: int
    message: AnyMessage


class RebuiltEvent(NamedTuple):
    """We have every member's reports: acknowledge the rebuild."""

    attempt: int


class Effects(NamedTuple):
    """What to do, in this order; the DLM persists nothing."""

    send: list[Envelope]
    events: list[ClientEvent | RebuiltEvent | OwnedAnswer]


class LockspaceCore:
    """See the module.

    Args:
        node: this node's id.
        incarnation: of this process.
        placement_shift: objects that agree above this bit share a master (``directory``).
        enqueue: the order in which this node, as a master, serves who waits (``resource``).
    """

    def __init__(self, node: int, incarnation: int, placement_shift: int, enqueue: Enqueue = first_come) -> None:
        self.node = node
        self.incarnation = incarnation
        self.placement_shift = placement_shift
        self.attempt = 0  # of the view whose master copy we have
        self.state = "suspended"
        self.statistics: Counter[str] = Counter()
        self._target = 0  # highest attempt heard of
        self._directory = Directory((node,), placement_shift)
        self._incarnations: dict[int, int] = {}
        self._rebuilding: Rebuilding | None = None
        self._doubts: Doubts | None = None
        self._memory = Memory()
        self._history = History()
        self._client = ClientSide(self._post_to_master)
        self._enqueue = enqueue
        self._master = MasterSide(self._post, enqueue, self.statistics)
        self.owned = OwnedCore(node, self._post, self._master_of_object, self.statistics)
        self._complete = False  # the present copy was rebuilt from everybody
        self._send: list[Envelope] = []
        self._local: list[Order | AboutOwned] = []  # messages to ourselves, handled before the call returns
        self._rebuilt: list[RebuiltEvent] = []
        self._held_back: list[tuple[int, AnyMessage]] = []  # L4
        self._early: dict[int, list[tuple[int, AnyMessage]]] = {}  # L2

    # --- client calls ---

    def request(
        self,
        resource: Resource,
        mode: int,
        *,
        try_: bool = False,
        priority: int = 0,
        extras: Sequence[Resource] = (),
    ) -> Grant | None:
        """Ask for a lock, or for a mode that covers the one held; ``service`` describes the arguments.

        Any extras are neither held nor asked for: an event answers each.

        Returns:
            The grant when this node is the master and nobody stands against it, else None: an event follows.
        """
        client = self._client
        if resource not in client.locks and self.state == "running" and self._directory.master(resource) == self.node:
            assert mode, f"{resource}: NL is no request"
            master = self._master
            if resource not in master.records and master.doubts is None and not extras:
                record = master.records[resource] = Record(resource)
                record.granted[self.node] = mode
                record.serials[self.node] = 0
                client.locks[resource] = Lock(mode)
                self.statistics["local_grants"] += 1
                return PLAIN_GRANTS[mode]
        before = len(client.events)
        own = self._ask_others(resource, mode, priority, extras) if extras else ()
        client.request(resource, mode, try_=try_, priority=priority, extras=own)
        self.settle()
        for i in range(before, len(client.events)):
            event = client.events[i]
            if isinstance(event, GrantedEvent) and event.resource == resource:
                del client.events[i]
                self.statistics["local_grants"] += 1
                return event.grant
        return None

    def _ask_others(
        self, resource: Resource, mode: int, priority: int, extras: Sequence[Resource]
    ) -> Sequence[Resource]:
        """Ask each other master for its share of the extras; return what may go with the request itself."""
        shares: dict[int, list[Resource]] = {self._directory.master(resource): []}
        for extra in extras:
            if extra in self._client.locks:
                self._client.leave_out(extra)
            else:
                shares.setdefault(self._directory.master(extra), []).append(extra)
        own, *others = shares.values()
        for share in (own[EXTRAS_MAX:], *others):
            for i in range(0, len(share), EXTRAS_MAX + 1):
                first, *further = share[i : i + EXTRAS_MAX + 1]
                self._client.request(first, mode, try_=True, priority=priority, extras=further)
        return own[:EXTRAS_MAX]

    def release(self, resource: Resource, mode: int, value: bytes | None = None) -> None:
        """Go down to ``mode`` (0: give it up), leaving ``value`` in the value block if not None.  Never waits."""
        lock = self._client.locks[resource]
        if value is None and not mode and lock.wanted == NEVER and self.state == "running":
            record = self._master.records.get(resource)
            if record is not None and record.only_held_by(self.node, lock.serial) and self._master.doubts is None:
                del self._master.records[resource], self._client.locks[resource]
                return
        self._client.release(resource, mode, value)
        if self._local:
            self.settle()

    def cancel(self, resource: Resource) -> None:
        """Forget the outstanding request, if any; nothing will answer it."""
        self._client.cancel(resource)
        self.settle()

    def master_is_local(self, resource: Resource) -> bool:
        """Whether a request costs no message, if nobody stands against it."""
        return self._directory.master(resource) == self.node

    def held(self, resource: Resource) -> int:
        """Mode this node holds."""
        lock = self._client.locks.get(resource)
        return 0 if lock is None else lock.held

    # --- views ---

    def suspend(self, attempt: int) -> None:
        """SUSPEND: no grants from now on.  An attempt that is not newer than all known is ignored."""
        if attempt > self._target:
            self._target = attempt
            self._suspend()

    def rebuild(self, view: LockspaceView) -> None:
        """REBUILD: purge and report; a RebuiltEvent follows.  Stale and repeated views are ignored."""
        if view.attempt < self._target or view.attempt <= self.attempt:
            return
        assert Instance(self.node, self.incarnation) in view.instances, "a view without ourselves"
        self._target = view.attempt
        self._suspend()
        if self._complete:
            self._memory.remember(self._master.records, self._incarnations)
        self.state = "rebuilding"
        self.attempt = view.attempt
        self._complete = False
        self._master.records = {}
        self._incarnations = {instance.node: instance.incarnation for instance in view.instances}
        self._directory = Directory(self._incarnations, self.placement_shift)
        self._doubts = Doubts(view, self.placement_shift)
        self._rebuilding = Rebuilding(self._incarnations)
        self._held_back = []
        self._report()
        self._history.enter(view)
        self._finish_rebuild()
        early, self._early = self._early, {}
        for sender, messages in early.items():
            for attempt, message in messages:
                self.receive(sender, attempt, message)

    def resume(self, attempt: int) -> None:
        """RESUME: grants flow again.  Ignored unless this very attempt is rebuilt here."""
        if attempt != self.attempt or attempt != self._target or self.state != "rebuilt":
            return
        self.state = "running"
        self._memory.forget()
        self._client.resume(attempt)
        self._master.resume()
        self.owned.client.resume()
        self.settle()
        held_back, self._held_back = self._held_back, []
        for sender, message in held_back:
            self.receive(sender, attempt, message)

    def release_ghosts(self, instance: Instance) -> None:
        """RELEASE_GHOSTS: the instance's journal is replayed; what it held is free.  Idempotent."""
        if self._doubts is not None:
            self._doubts.release(instance)
            if not self._doubts and self.state == "running":
                self._history = History()
        self._master.release_ghosts(instance, grants=self.state == "running")
        self.settle()

    def leave(self) -> None:
        """Before a clean unmount: nothing is held or asked for any more, and nothing is granted from now on."""
        assert not self._client.in_use(), f"leaving with {self._client.in_use()[:5]}"
        self._target = 1 << 64  # above any attempt: later views are not ours
        self._suspend()

    # --- messages ---

    def receive(self, sender: int, attempt: int, message: AnyMessage) -> None:
        """A peer's message, spoken under ``attempt`` (L1 to L4)."""
        self.statistics["received_" + type(message).__name__] += 1
        if attempt > self.attempt:
            self._keep_early(sender, attempt, message)
        elif attempt < self.attempt or sender not in self._incarnations:
            self.statistics["stale"] += 1
        elif isinstance(message, Rebuild | RebuildDone):
            if self._rebuilding is not None and self.state == "rebuilding":
                self._rebuilding.receive(sender, message)
                self._finish_rebuild()
        elif self.state in ("rebuilding", "rebuilt"):
            self._held_back.append((sender, message))
        elif self.state == "running":
            self._process(sender, message)
            self.settle()
        elif isinstance(message, Release) and self._complete:
            self._master.receive(sender, message, grants=False)

    def take_effects(self) -> Effects:
        """What the calls since the last time want done."""
        effects = Effects(self._send, [*self._client.events, *self._rebuilt, *self.owned.take_events()])
        self._send = []
        self._rebuilt = []
        self._client.events = []
        return effects

    @property
    def pending(self) -> bool:
        """Whether there is anything to take."""
        return bool(self._send or self._client.events or self._rebuilt or self.owned.client.events)

    def sizes(self) -> dict[str, int]:
        """How much there is: locks of this node, and resources it masters."""
        return {"locks": len(self._client.locks), "resources": len(self._master.records)}

    def dump(self, resources: Iterable[Resource] | None = None) -> list[dict[str, Any]]:
        """These resources, or all that this node masters or uses, as plain data for matrixctl (R14)."""
        if resources is None:
            resources = dict.fromkeys((*self._master.records, *self._client.locks))
        return [self._dump_one(resource) for resource in resources]

    def contended(self) -> list[Resource]:
        """The resources mastered here that somebody waits for."""
        return [resource for resource, record in self._master.records.items() if record.converting or record.waiting]

    # --- inside ---

    def _suspend(self) -> None:
        self.state = "suspended"
        self._client.suspended = self.owned.client.suspended = True

    def _post(self, node: int, message: AnyMessage) -> None:
        if node == self.node:
            assert not isinstance(message, Rebuild | RebuildDone)
            self._local.append(message)
            return
        self.statistics["sent_" + type(message).__name__] += 1
        self._send.append(Envelope(node, self.attempt, message))

    def _master_of_object(self, object_: int) -> int:
        return self._directory.master_of_key(object_ >> self.placement_shift)

    def _post_to_master(self, message: AboutResource) -> None:
        self._post(self._directory.master(message.resource), message)

    def settle(self) -> None:
        """Deliver what we sent to ourselves, and what that causes; to be called after calls of ``owned``."""
        local = self._local
        i = 0
        while i < len(local):
            self._process(self.node, local[i])
            i += 1
        local.clear()

    def _process(self, sender: int, message: AnyMessage) -> None:
        assert not isinstance(message, Rebuild | RebuildDone)
        if isinstance(message, Request | Release | Cancel):
            self._master.receive(sender, message, grants=True)
            return
        if isinstance(message, AboutOwned):
            self.owned.receive(sender, message)
            return
        master = self._directory.master  # nobody else may grant or revoke
        if not isinstance(message, Prefetched) and sender == master(message.resource):
            self._client.receive(message)
        if isinstance(message, Granted | Prefetched):
            for extra in message.extras:
                if sender == master(extra.resource):
                    self._client.receive_extra(message.mode, extra)

    def _keep_early(self, sender: int, attempt: int, message: AnyMessage) -> None:
        kept = self._early.setdefault(sender, [])
        if kept and kept[-1][0] < attempt:
            kept.clear()  # a peer never goes back to a smaller attempt
        if len(kept) < _EARLY_MAX:
            kept.append((attempt, message))
        else:
            self.statistics["early_dropped"] += 1

    def _report(self) -> None:
        """Tell every member, ourselves included, what it must know as a master."""
        assert self._doubts is not None
        assert self._rebuilding is not None
        master = self._directory.master
        locks = _by_node(self._client.reports(), master)
        records = _by_node(self._memory.reports(frozenset(self._doubts.pending)), master)
        history = [[Member(*one) for one in old] for old in self._history.views]
        owned = self.owned.batches()
        for node in self._incarnations:
            count = 0
            of_owners = (Rebuild([], [], reports) for reports in owned.get(node, []))
            for batch in (*batches(locks.get(node, []), records.get(node, [])), *of_owners):
                self._tell(node, batch)
                count += 1
            self._tell(node, RebuildDone(count, history))

    def _tell(self, node: int, message: Rebuild | RebuildDone) -> None:
        if node == self.node:
            assert self._rebuilding is not None
            self._rebuilding.receive(node, message)
        else:
            self._post(node, message)

    def _finish_rebuild(self) -> None:
        if self._rebuilding is None or self._rebuilding.waiting_for:
            return
        assert self._doubts is not None
        if self._doubts:
            for old in self._rebuilding.history:
                self._history.add(old)  # a joiner learns it too
        self._master.replace(self._rebuilding.make_records(self._doubts, self._enqueue), self._doubts)
        self.owned.replace(self._rebuilding.owned)
        self._rebuilding = None
        self._complete = True
        self.state = "rebuilt"
        self._rebuilt.append(RebuiltEvent(self.attempt))

    def _dump_one(self, resource: Resource) -> dict[str, Any]:
        entry: dict[str, Any] = {"resource": str(resource), "master": self._directory.master(resource)}
        lock = self._client.locks.get(resource)
        if lock is not None:
            entry["held"] = NAMES[lock.held]
            entry["wanted"] = NAMES[lock.wanted] if lock.wanted >= 0 else None
            entry["revoked_to"] = NAMES[lock.revoked] if lock.revoked >= 0 else None
        record = self._master.records.get(resource)
        if record is not None:
            entry["granted"] = {node: NAMES[mode] for node, mode in record.granted.items()}
            entry["waiting"] = [[w.node, NAMES[w.mode]] for w in (*record.converting, *record.waiting)]
            entry["ghosts"] = [[*instance, NAMES[mode]] for instance, mode in record.ghosts.items()]
            entry["value_valid"] = record.value.valid
        return entry


_Report = TypeVar("_Report", LockReport, RecordReport)


def _by_node(reports: Iterable[_Report], master: Callable[[Resource], int]) -> dict[int, list[_Report]]:
    sorted_out: dict[int, list[_Report]] = {}
    for report in reports:
        sorted_out.setdefault(master(report.resource), []).append(report)
    return sorted_out
