"""One peer of a lockspace (pure): client side and master side, joined by views (002-04, R5, R6).

States, by the control calls of the administrator's recovery::

    running --suspend(a)--> suspended --rebuild(view a)--> rebuilding --all reports--> rebuilt --resume(a)--> running
       ^________________________ any higher attempt goes back to suspended or rebuilding ________________________|

What is done with a lock message of a peer:

L1. Of an older attempt: dropped.  What it said is in the rebuild's reports.
L2. Of a newer attempt: kept until we get there (bounded), since the sender may be a step ahead.
L3. Running: processed.  Suspended: only releases, into the old copy, which still speaks for the dead.
L4. Rebuilding or rebuilt: only the rebuild's own messages; others wait for RESUME, in each sender's order (bounded).

Nothing is sent between SUSPEND and RESUME but the rebuild, and nothing is granted.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

from dlm.arbiters import Arbiters
from dlm.client import PLAIN_GRANTS, ClientEvent, ClientSide, Grant, GrantedEvent, Lock
from dlm.counts import Counts
from dlm.dump import describe
from dlm.exchange import Exchange
from dlm.master import MasterSide
from dlm.messages import (
    NEVER,
    AboutResource,
    AnyMessage,
    Cancel,
    Member,
    Order,
    Rebuild,
    RebuildDone,
    Release,
    Request,
)
from dlm.modes import EX
from dlm.names import Resource
from dlm.owned.client import OwnedAnswer
from dlm.owned.core import OwnedCore
from dlm.owned.messages import AboutOwned, OwnedReport
from dlm.recovery import Doubts, History, Memory, Packer, Rebuilding
from dlm.resource import Enqueue, Record, first_come
from membership.views import Instance, LockspaceView

WORK_ENTRIES = 256  # locks or records handled between two turns of the others, about 2 ms
HELD_BACK_MAX = 65536  # messages kept per peer (L4)
_EARLY_MAX = 16384  # messages kept per peer (L2): reports of two million locks
_REPORTS = (Rebuild, RebuildDone)  # tuples: ``A | B`` in an ``isinstance`` is built anew by every call
_GIVING_UP = (Release, Cancel)


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
        self.last_rebuild = {"reports": 0, "records": 0}  # sent by this node, made by it
        self._target = 0  # highest attempt heard of
        self._arbiters = Arbiters(node, (node,), placement_shift)
        self._incarnations: dict[int, int] = {}
        self._rebuilding: Rebuilding | None = None
        self._doubts: Doubts | None = None
        self._memory = Memory()
        self._history = History()
        self._client = ClientSide(self._post_to_master)
        self._enqueue = enqueue
        self.counts: defaultdict[int, Counts] = defaultdict(Counts)  # by domain
        self._master = MasterSide(self._post, self._arbiters, enqueue, self.counts)
        self._exchange = Exchange(node, self._client, self._master, self.statistics, self.counts)
        self._writers_arbitrate = False  # T5
        self._work: Iterator[None] | None = None
        self.owned = OwnedCore(node, self._post, self._master_of_object, self.statistics)
        self._complete = False  # the present copy was rebuilt from everybody
        self._send: list[Envelope] = []
        self._local: list[Order | AboutOwned] = []  # messages to ourselves, handled before the call returns
        self._rebuilt: list[RebuiltEvent] = []
        self._held_back: dict[int, list[AnyMessage]] = {}  # L4
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
        if resource not in client.locks and self.state == "running" and self._arbiters.of(resource) == self.node:
            assert mode, f"{resource}: NL is no request"
            master = self._master
            if resource not in master.records and master.doubts is None and not extras:
                record = master.records[resource] = Record(resource)
                record.granted[self.node] = mode
                record.serials[self.node] = 0
                client.locks[resource] = Lock(mode)
                counts = self.counts[resource[0]]
                counts.requests += 1
                counts.local_grants += 1
                return PLAIN_GRANTS[mode]
        self.counts[resource.domain].requests += 1
        before = len(client.events)
        own = client.ask_others(resource, mode, priority, extras, self._arbiters.of) if extras else ()
        client.request(resource, mode, try_=try_, priority=priority, extras=own)
        self.settle()
        for i in range(before, len(client.events)):
            event = client.events[i]
            if isinstance(event, GrantedEvent) and event.resource == resource:
                del client.events[i]
                self.counts[resource.domain].local_grants += 1
                return event.grant
        return None

    def release(self, resource: Resource, mode: int, value: bytes | None = None) -> None:
        """Go down to ``mode`` (0: give it up), leaving ``value`` in the value block if not None.  Never waits."""
        lock = self._client.locks[resource]
        if value is None and not mode and lock.wanted == NEVER and self.state == "running":
            record = self._master.records.get(resource)
            if (
                record is not None
                and record.only_held_by(self.node, lock.serial)
                and self._master.doubts is None
                and resource not in self._arbiters.moved
            ):
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
        """Whether the map names this node: it pays to allocate what lies there.

        It says nothing of what is in use: of two members, the one that wrote last arbitrates (``arbiters``).
        """
        return self._arbiters.directory.master(resource) == self.node

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
        if self._complete:  # the records are the memory's from here on
            self._memory.remember(self._master.records, self._incarnations, self._arbiters.given())
        self.state = "rebuilding"
        self.attempt = view.attempt
        self._complete = False
        self._master.purge()
        self._incarnations = {instance.node: instance.incarnation for instance in view.instances}
        self._arbiters = self._master.arbiters = Arbiters(self.node, self._incarnations, self.placement_shift)
        self._writers_arbitrate = self._arbiters.peer is not None and not view.dead
        self._doubts = Doubts(view, self.placement_shift)
        self._rebuilding = Rebuilding(self._incarnations)
        self._held_back = {}
        history = [[Member(*one) for one in old] for old in self._history.views]
        self._history.enter(view)
        self._work = self._report(history, self.owned.batches())
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
        held_back, self._held_back = self._held_back, {}
        for sender, messages in held_back.items():
            for message in messages:
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
        elif isinstance(message, _REPORTS):
            if self._rebuilding is not None and self.state == "rebuilding":
                self._rebuilding.receive(sender, message)
                self._make_when_all_is_there()
        elif self.state in ("rebuilding", "rebuilt"):
            self._hold_back(sender, message)
        elif self.state == "running":
            self._process(sender, message)
            self.settle()
        elif isinstance(message, Release) and self._complete:
            self._master.receive(sender, message, grants=False)

    def work(self, entries: int = WORK_ENTRIES) -> bool:
        """Do the next small piece of a rebuild; return whether there is more, for when others had their turn."""
        if self._work is not None:
            work = self._work
            for _ in range(entries):
                if next(work, self) is self:
                    if self._work is work:
                        self._work = None
                    break
        return self._work is not None

    @property
    def rebuilding(self) -> bool:
        """Whether reports of other members are awaited."""
        return self._rebuilding is not None

    @property
    def working(self) -> bool:
        """Whether ``work`` has something to do."""
        return self._work is not None

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
        """How much there is: locks of this node, resources it arbitrates, those whose arbiter the map does not name;
        and how often arbitration moved, and a message crossed such a move.
        """
        return {
            **self._master.statistics,
            "locks": len(self._client.locks),
            "resources": len(self._master.records),
            "moved": len(self._arbiters.moved),
        }

    def arbitrated(self) -> Iterator[tuple[Resource, int]]:
        """What this node has records of, with who it believes arbitrates it: itself, always (for the simulation)."""
        if self._complete:
            for resource in self._master.records:
                yield resource, self._arbiters.of(resource)

    def dump(self, resources: Iterable[Resource] | None = None, now: float = 0.0) -> list[dict[str, Any]]:
        """Plain data for matrixctl (R14): of these resources, in order; of all that this node arbitrates or uses.

        ``now`` in monotonic seconds, as told to ``stamp``.
        """
        if resources is None:
            resources = dict.fromkeys((*self._master.records, *self._client.locks))
        return [describe(resource, self._client, self._master, now) for resource in resources]

    @property
    def unstamped(self) -> bool:
        """Whether somebody began to wait since the last ``stamp``."""
        return self._master.ages.unstamped

    def stamp(self, now: float) -> None:
        """Tell the time (monotonic seconds): who began to wait since the last time has waited from now on."""
        self._master.ages.stamp(now)

    def contended(self) -> list[Resource]:
        """The resources mastered here that somebody waits for."""
        return [resource for resource, record in self._master.records.items() if record.converting or record.waiting]

    # --- inside ---

    def _suspend(self) -> None:
        self.state = "suspended"
        self._client.suspended = self.owned.client.suspended = True
        self._work = None

    def _post(self, node: int, message: AnyMessage) -> None:
        if node == self.node:
            assert not isinstance(message, _REPORTS)
            self._local.append(message)
            return
        self.statistics["sent_" + type(message).__name__] += 1
        self._send.append(Envelope(node, self.attempt, message))

    def _master_of_object(self, object_: int) -> int:
        return self._arbiters.directory.master_of_key(object_ >> self.placement_shift)

    def _post_to_master(self, message: AboutResource) -> None:
        self._post(self._arbiters.of(message.resource), message)

    def settle(self) -> None:
        """Deliver what we sent to ourselves, and what that causes; to be called after calls of ``owned``."""
        local = self._local
        i = 0
        while i < len(local):
            self._process(self.node, local[i])
            i += 1
        local.clear()

    def _process(self, sender: int, message: AnyMessage) -> None:
        assert not isinstance(message, _REPORTS)
        if isinstance(message, Request):
            if sender == self.node and self._arbiters.of(message.resource) != sender:
                self._post_to_master(message)  # it moved a moment ago
            else:
                self._master.receive(sender, message, grants=True)
        elif isinstance(message, _GIVING_UP):
            if self._arbiters.of(message.resource) == self.node:
                self._master.receive(sender, message, grants=True)
            elif sender == self.node:
                self._post_to_master(message)
            else:
                self._master.statistics["crossed"] += 1  # T3
        elif isinstance(message, AboutOwned):
            self.owned.receive(sender, message)
        else:
            self._exchange.receive(sender, message)

    def _hold_back(self, sender: int, message: AnyMessage) -> None:
        """L4.  A peer that resumed before us may have asked for much; more than the bound only a liar says."""
        kept = self._held_back.setdefault(sender, [])
        if len(kept) < HELD_BACK_MAX:
            kept.append(message)
        else:
            self.statistics["held_back_dropped"] += 1

    def _keep_early(self, sender: int, attempt: int, message: AnyMessage) -> None:
        kept = self._early.setdefault(sender, [])
        if kept and kept[-1][0] < attempt:
            kept.clear()  # a peer never goes back to a smaller attempt
        if len(kept) < _EARLY_MAX:
            kept.append((attempt, message))
        else:
            self.statistics["early_dropped"] += 1

    def _report(self, history: list[list[Member]], owned: dict[int, list[list[OwnedReport]]]) -> Iterator[None]:
        """Tell every member, ourselves included, what it must know as a master."""
        assert self._doubts is not None
        packers = {node: Packer(partial(self._tell, node)) for node in self._incarnations}
        master = self._arbiters.of
        me = self.node
        self.last_rebuild = {"reports": 0, "records": 0}
        for lock in self._client.reports():
            self.last_rebuild["reports"] += 1
            node = master(lock.resource)
            packers[node].lock(lock)
            if self._writers_arbitrate and lock.held == EX and node != me:
                packers[me].lock(lock)
            yield
        for record in self._memory.reports(frozenset(self._doubts.pending)):
            if record is not None:
                self.last_rebuild["reports"] += 1
                packers[master(record.resource)].record(record)
            yield
        for node, packer in packers.items():
            packer.done(owned.get(node, []), history)
        self._make_when_all_is_there()

    def _tell(self, node: int, message: Rebuild | RebuildDone) -> None:
        if node == self.node:
            assert self._rebuilding is not None
            self._rebuilding.receive(node, message)
        else:
            self._post(node, message)

    def _make_when_all_is_there(self) -> None:
        if self._rebuilding is not None and not self._rebuilding.waiting_for:
            self._work = self._make()

    def _make(self) -> Iterator[None]:
        """All members have reported: make the master copies."""
        assert self._doubts is not None
        assert self._rebuilding is not None
        rebuilding, self._rebuilding = self._rebuilding, None
        if self._doubts:
            for old in rebuilding.history:
                self._history.add(old)  # a joiner learns it too
        yield from self._master.replace(rebuilding.make_records(self._doubts, self._enqueue), self._doubts)
        self.owned.replace(rebuilding.owned)
        if self._writers_arbitrate:
            for resource in self._master.begin_with_writers():
                self._client.untell(resource)
        self.last_rebuild["records"] = len(self._master.records)
        self._complete = True
        self.state = "rebuilt"
        self._rebuilt.append(RebuiltEvent(self.attempt))
