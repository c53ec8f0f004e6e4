"""How master copies survive a change of members (pure): memory, doubts, rebuild (R5, R6; 002-04, 002-30).

Every attempt throws all master copies away and builds them from what the members report:

1. **Locks.** Every member reports what it holds and waits for; that is the truth about the living.
2. **Exact ghosts.** What a dead instance held is known to its master.  An old master remembers, since the last
   view it *resumed*, the greatest write mode each instance had in any of its copies, and reports the dead.
   Too much is safe: it waits for a replay.  A ghost that conflicts with a living holder is taken down to what
   fits beside it, because the holder got its lock only after the dead one had flushed and let go.
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

from collections.abc import Collection, Iterable, Iterator, Mapping

from dlm.directory import Directory
from dlm.messages import (
    BATCH_ENTRIES_MAX,
    GHOSTS_MAX,
    HISTORY_MAX,
    NO_VALUE,
    Ghost,
    LockReport,
    Rebuild,
    RebuildDone,
    RecordReport,
    Value,
)
from dlm.modes import NL, VALUE_CURRENT_MASK, VALUE_WRITE_MASK, WRITE_MASK, strongest_write_beside
from dlm.names import Resource
from dlm.owned.messages import OwnedReport
from dlm.resource import Enqueue, Record, Waiter, first_come
from membership.views import Instance, LockspaceView

NOBODY = Instance(0, (1 << 64) - 1)  # never a member: who masters everything in a history that got too long
_BATCH_BYTES = 32768  # estimated; far below PAYLOAD_BYTES_MAX


class Memory:
    """What this node knew as a master, until the next RESUME."""

    def __init__(self) -> None:
        self._held: dict[Resource, dict[Instance, int]] = {}
        self._values: dict[Resource, Value] = {}

    def remember(self, records: Mapping[Resource, Record], incarnations: Mapping[int, int]) -> None:
        """Take over a copy that was completely rebuilt and is about to be purged.

        Args:
            records: the copy.
            incarnations: of the members of its view, by node.
        """
        self._values = {}
        for resource, record in records.items():
            for node, mode in record.granted.items():
                self._note(resource, Instance(node, incarnations[node]), mode)
            for instance, mode in record.ghosts.items():
                self._note(resource, instance, mode)
            writer = any(VALUE_WRITE_MASK >> mode & 1 for mode in record.granted.values())
            if record.value.valid and not writer:  # a writer knows better
                self._values[resource] = record.value

    def reports(self, dead: Collection[Instance]) -> Iterator[RecordReport]:
        """What the new masters must hear of it when ``dead`` are dead."""
        ghosts_of: dict[Resource, list[Ghost]] = {}
        for resource, held in self._held.items():
            ghosts = [Ghost(*instance, mode) for instance, mode in held.items() if instance in dead]
            if ghosts:
                ghosts_of[resource] = ghosts
        for resource in dict.fromkeys((*ghosts_of, *self._values)):
            ghosts = ghosts_of.get(resource, [])
            value = self._values.get(resource, NO_VALUE)
            for i in range(0, max(len(ghosts), 1), GHOSTS_MAX):
                yield RecordReport(resource, value, ghosts[i : i + GHOSTS_MAX])

    def forget(self) -> None:
        """RESUME came: the rebuilt copies everywhere hold all of it."""
        self._held = {}
        self._values = {}

    def _note(self, resource: Resource, instance: Instance, mode: int) -> None:
        if WRITE_MASK >> mode & 1:
            held = self._held.setdefault(resource, {})
            held[instance] = max(mode, held.get(instance, 0))


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

    def make_records(self, doubts: Doubts, enqueue: Enqueue = first_come) -> dict[Resource, Record]:
        """The new master copies; those that would be empty are left out.  ``doubts`` learns the histories."""
        assert not self.waiting_for
        for old in self._history:
            doubts.doubt_all(old)
        made = {}
        for resource in dict.fromkeys((*self._locks, *self._records)):
            locks, records = self._locks.get(resource, []), self._records.get(resource, [])
            record = make_record(resource, locks, records, doubts, enqueue)
            if not record.idle:
                made[resource] = record
        return made


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


def batches(locks: Iterable[LockReport], records: Iterable[RecordReport]) -> Iterator[Rebuild]:
    """Pack reports into messages that respect every cap."""
    batch, size = Rebuild([], []), 0
    for lock in locks:
        batch.locks.append(lock)
        size += 100 + len(lock.value.data)
        if size >= _BATCH_BYTES or len(batch.locks) >= BATCH_ENTRIES_MAX:
            yield batch
            batch, size = Rebuild([], []), 0
    for record in records:
        batch.records.append(record)
        size += 80 + len(record.value.data) + 12 * len(record.ghosts)
        if size >= _BATCH_BYTES or len(batch.records) >= BATCH_ENTRIES_MAX:
            yield batch
            batch, size = Rebuild([], []), 0
    if size:
        yield batch
