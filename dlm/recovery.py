"""How master copies survive a change of members (pure): memory, doubts, rebuild (R5, R6; 002-04, 002-30).

Every attempt throws all master copies away and builds them from what the members report:

1. **Locks.** Every member reports what it holds and waits for; that is the truth about the living.
2. **Exact ghosts.** What a dead instance held is known to its master.  An old master remembers, since the last
   view it *resumed*, the greatest write mode each instance had in any of its copies, and reports the dead.
   Too much is safe: it waits for a replay.  A ghost that conflicts with a living holder is taken down to what
   fits beside it, because the holder got its lock only after the dead one had flushed and let go.
   In a view of two members the resource may be arbitrated by its writer (``arbiters``): who should be its master
   reports that the writer, if dead, had EX.
3. **Unknown resources.** A dead instance ``d`` may hold what it got from a master that is gone too.  If under any
   of ``d.views``, or of the views since (a later master had inherited the ghost; the members' ``History`` knows
   them), the resource's master is not a member of the new view *as the same instance*, ``d`` is taken to hold
   the strongest write mode that the living holders leave room for (none beside PR, PW or EX).  This includes
   masters that left cleanly or came back empty.  It is an ordinary ghost, released with ``d``'s journal.
4. **Values.** Invalid if a ghost might have written (PW, EX).  Else current if a living holder of CW, PR, PW or
   EX has it.  Else the newest of: what a writer released while suspended, and what the master of the newest
   *completed* copy knew to be current.  Else invalid: its holder must read the disk.

The barrier: complete when every member's RebuildDone is there and all its batches came.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

from dlm.directory import Directory
from dlm.messages import (
    BATCH_ENTRIES_MAX,
    GHOSTS_MAX,
    HISTORY_MAX,
    NO_VALUE,
    Ghost,
    LockReport,
    Member,
    Rebuild,
    RebuildDone,
    RecordReport,
    Value,
)
from dlm.modes import EX, NL, VALUE_CURRENT_MASK, VALUE_WRITE_MASK, WRITE_MASK, strongest_write_beside
from dlm.names import Resource
from dlm.owned.messages import OwnedReport
from dlm.resource import Enqueue, Record, Waiter, first_come
from membership.views import Instance, LockspaceView

NOBODY = Instance(0, (1 << 64) - 1)  # never a member: who masters everything in a history that got too long
_BATCH_BYTES = 32768  # estimated; far below PAYLOAD_BYTES_MAX


class _Copy(NamedTuple):
    """Master copies that were complete, and who held them: see ``Memory.remember``."""

    records: Mapping[Resource, Record]
    incarnations: Mapping[int, int]
    given: Mapping[Resource, int]


class Memory:
    """What this node knew as a master, until the next RESUME.

    The last copy is kept as it is.  Of those before it, which happens when an attempt is given up between its
    barrier and its RESUME, only the writers count.
    """

    def __init__(self) -> None:
        self._held: dict[Resource, dict[Instance, int]] = {}
        self._copy = _Copy({}, {}, {})

    def remember(
        self,
        records: Mapping[Resource, Record],
        incarnations: Mapping[int, int],
        given: Mapping[Resource, int] | None = None,
    ) -> None:
        """Take over a copy that was completely rebuilt and is about to be purged.

        Args:
            records: the copy.
            incarnations: of the members of its view, by node.
            given: what this node should master and another one does, with its writer (``arbiters``).
        """
        old = self._copy
        for resource in (*old.records, *old.given):
            for instance, mode in _writers(resource, old).items():
                held = self._held.setdefault(resource, {})
                held[instance] = max(mode, held.get(instance, 0))
        self._copy = _Copy(records, incarnations, given or {})

    def reports(self, dead: Collection[Instance]) -> Iterator[RecordReport | None]:
        """What the new masters must hear of it when ``dead`` are dead; None where there is nothing to say."""
        copy = self._copy
        for resource, record in copy.records.items():
            value = record.value
            if value.valid and any(VALUE_WRITE_MASK >> mode & 1 for mode in record.granted.values()):
                value = NO_VALUE  # a writer knows better
            held = _writers(resource, copy) if dead else {}
            yield from _record_reports(resource, value, held, dead)
        for resource in copy.given:
            yield from _record_reports(resource, NO_VALUE, _writers(resource, copy), dead)
        for resource, held in self._held.items():
            yield from _record_reports(resource, NO_VALUE, held, dead)

    def forget(self) -> None:
        """RESUME came: the rebuilt copies everywhere hold all of it."""
        self._held = {}
        self._copy = _Copy({}, {}, {})


def _writers(resource: Resource, copy: _Copy) -> dict[Instance, int]:
    """Who had the resource in a mode that may dirty it."""
    if resource in copy.given:
        node = copy.given[resource]
        return {Instance(node, copy.incarnations[node]): EX}  # or less: it needs not tell us
    record = copy.records[resource]
    held = {instance: mode for instance, mode in record.ghosts.items() if WRITE_MASK >> mode & 1}
    for node, mode in record.granted.items():
        if WRITE_MASK >> mode & 1:
            held[Instance(node, copy.incarnations[node])] = mode
    return held


def _record_reports(
    resource: Resource, value: Value, held: Mapping[Instance, int], dead: Collection[Instance]
) -> Iterator[RecordReport | None]:
    ghosts = [Ghost(*instance, mode) for instance, mode in held.items() if instance in dead]
    if not ghosts and not value.valid:
        yield None
        return
    for i in range(0, max(len(ghosts), 1), GHOSTS_MAX):
        yield RecordReport(resource, value, ghosts[i : i + GHOSTS_MAX])


class History:
    """The views this node took part in while some dead instance was waiting for its replay (rule 3)."""

    def __init__(self) -> None:
        self.views: dict[tuple[Instance, ...], None] = {}

    def enter(self, view: LockspaceView) -> None:
        """A rebuild begins; ``view`` itself is for the next one."""
        if not view.dead:
            self.views = {}
            return
        self.add(view.instances)

    def add(self, instances: tuple[Instance, ...]) -> None:
        """Note one view.  Too many: note instead that nobody knows anything, which is safe."""
        self.views[instances] = None
        if len(self.views) > HISTORY_MAX:
            self.views = {(NOBODY,): None}


class Doubts:
    """Which dead instances might hold a resource that nobody can vouch for (rule 3)."""

    def __init__(self, view: LockspaceView, placement_shift: int) -> None:
        self._members = frozenset(view.instances)
        self._placement_shift = placement_shift
        self._maps: dict[tuple[Instance, ...], tuple[Directory, frozenset[int]]] = {}
        self._pending: dict[Instance, list[tuple[Directory, frozenset[int]]]] = {}
        for dead in view.dead:
            self._pending[dead.instance] = []
            for old in dead.views:
                self._doubt(dead.instance, old)

    def doubt_all(self, old: tuple[Instance, ...]) -> None:
        """A view of a member's history: it counts for all who are still dead."""
        for instance in self._pending:
            self._doubt(instance, old)

    def _doubt(self, instance: Instance, old: tuple[Instance, ...]) -> None:
        lost = frozenset(one.node for one in old if one not in self._members)
        if lost:
            nodes = [one.node for one in old]
            made = self._maps.setdefault(old, (Directory(nodes, self._placement_shift), lost))
            if made not in self._pending[instance]:
                self._pending[instance].append(made)

    def __bool__(self) -> bool:
        """Whether anybody's journal is still to be replayed."""
        return bool(self._pending)

    @property
    def pending(self) -> Collection[Instance]:
        """Dead instances not released yet."""
        return self._pending.keys()

    def of(self, resource: Resource) -> list[Instance]:
        """Dead instances that might hold ``resource`` unseen."""
        return [
            instance
            for instance, maps in self._pending.items()
            if any(directory.master(resource) in lost for directory, lost in maps)
        ]

    def release(self, instance: Instance) -> None:
        """The instance's journal is replayed."""
        self._pending.pop(instance, None)


class Rebuilding:
    """One attempt at this node: collects reports, then makes the records."""

    def __init__(self, members: Collection[int]) -> None:
        self.waiting_for = set(members)
        self._batches = dict.fromkeys(members, 0)
        self._locks: dict[Resource, list[tuple[int, LockReport]]] = {}
        self._records: dict[Resource, list[RecordReport]] = {}
        self._history: dict[tuple[Instance, ...], None] = {}
        self.owned: list[tuple[int, OwnedReport]] = []  # (sender, report), for ``dlm.owned``

    def receive(self, sender: int, message: Rebuild | RebuildDone) -> None:
        """Take one message.  A batch that was lost on the way keeps the barrier shut: the next attempt sends anew."""
        if sender not in self.waiting_for:
            return
        if isinstance(message, RebuildDone):
            if self._batches[sender] == message.batches:
                self.waiting_for.discard(sender)
                self._history.update(dict.fromkeys(tuple(Instance(*one) for one in old) for old in message.history))
            return
        self._batches[sender] += 1
        for lock in message.locks:
            self._locks.setdefault(lock.resource, []).append((sender, lock))
        for record in message.records:
            self._records.setdefault(record.resource, []).append(record)
        self.owned.extend((sender, report) for report in message.owned)

    @property
    def history(self) -> Iterable[tuple[Instance, ...]]:
        """All members' histories together."""
        return self._history

    def make_records(self, doubts: Doubts, enqueue: Enqueue = first_come) -> Iterator[Record]:
        """The new master copies, also those that are empty.  ``doubts`` learns the histories."""
        assert not self.waiting_for
        for old in self._history:
            doubts.doubt_all(old)
        nothing: list[RecordReport] = []
        while self._locks:  # and give the memory back piece by piece
            resource, locks = self._locks.popitem()
            yield make_record(resource, locks, self._records.pop(resource, nothing), doubts, enqueue)
        while self._records:
            resource, records = self._records.popitem()
            yield make_record(resource, [], records, doubts, enqueue)


def make_record(
    resource: Resource,
    locks: list[tuple[int, LockReport]],
    records: list[RecordReport],
    doubts: Doubts,
    enqueue: Enqueue = first_come,
) -> Record:
    """One master copy from its reports (rules 1 to 4)."""
    record = Record(resource)
    held_mask = 0
    for node, lock in locks:
        if lock.held:
            held_mask |= 1 << lock.held
            record.granted[node] = lock.held
            record.serials[node] = lock.serial
    for node, lock in locks:
        if lock.wanted > NL:
            record.request(Waiter(node, lock.wanted, lock.wanted_serial, lock.try_, lock.priority), enqueue)
    strongest = strongest_write_beside(held_mask)
    for report in records:
        for ghost in report.ghosts:
            instance = Instance(ghost.node, ghost.incarnation)
            mode = min(ghost.mode, strongest)  # write modes are a chain
            if mode and instance in doubts.pending:
                record.ghosts[instance] = max(mode, record.ghosts.get(instance, 0))
    add_doubts(record, doubts, held_mask)
    record.value = _rebuilt_value(record, locks, records)
    return record


def add_doubts(record: Record, doubts: Doubts, held_mask: int = 0) -> None:
    """Rule 3.  ``held_mask``: modes of the living holders."""
    strongest = strongest_write_beside(held_mask)
    if strongest and doubts:
        for instance in doubts.of(record.resource):
            record.ghosts[instance] = max(strongest, record.ghosts.get(instance, 0))


def _rebuilt_value(record: Record, locks: list[tuple[int, LockReport]], records: list[RecordReport]) -> Value:
    """Rule 4."""
    if not records and not any(lock.value.attempt for _, lock in locks):
        return NO_VALUE  # most resources have none, and there may be a million of them
    reported = [lock.value for _, lock in locks]
    known = [report.value for report in records]
    newest = max((*reported, *known, NO_VALUE), key=lambda value: value.stamp)
    invalid = Value(newest.data, False, *newest.stamp)
    if any(VALUE_WRITE_MASK >> mode & 1 for mode in record.ghosts.values()):
        return invalid
    trusted = [lock.value for _, lock in locks if VALUE_CURRENT_MASK >> lock.held & 1]
    if not trusted:
        trusted = [lock.value for _, lock in locks if lock.written] + known
    best = max(trusted, key=lambda value: (value.stamp, value.valid), default=NO_VALUE)
    return best if best.valid and best.stamp >= newest.stamp else invalid


class Packer:
    """Packs reports for one member into messages that respect every cap.

    Args:
        tell: sends a message to the member.
    """

    def __init__(self, tell: Callable[[Rebuild | RebuildDone], None]) -> None:
        self._tell = tell
        self._batch = Rebuild([], [])
        self._bytes = 0  # estimated
        self._sent = 0

    def lock(self, report: LockReport) -> None:
        """Add the report of a client."""
        self._batch.locks.append(report)
        self._bytes += 100 + len(report.value.data)
        if self._bytes >= _BATCH_BYTES or len(self._batch.locks) >= BATCH_ENTRIES_MAX:
            self._flush()

    def record(self, report: RecordReport) -> None:
        """Add the report of an old master."""
        self._batch.records.append(report)
        self._bytes += 80 + len(report.value.data) + 12 * len(report.ghosts)
        if self._bytes >= _BATCH_BYTES or len(self._batch.records) >= BATCH_ENTRIES_MAX:
            self._flush()

    def done(self, owned: Iterable[list[OwnedReport]], history: list[list[Member]]) -> None:
        """That was all, but for the reports of owned locks, packed already."""
        if self._bytes:
            self._flush()
        for reports in owned:
            self._batch = Rebuild([], [], reports)
            self._flush()
        self._tell(RebuildDone(self._sent, history))

    def _flush(self) -> None:
        self._tell(self._batch)
        self._sent += 1
        self._batch, self._bytes = Rebuild([], []), 0
