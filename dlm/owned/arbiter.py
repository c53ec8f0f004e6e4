"""The arbiter's side of owned locks (pure): who holds what of the objects that this node masters, and who waits.

One request, by what is held::

    request            nobody in the way   somebody is
    Acquire, no wait   hold, Acquired      Refused AGAIN
    Acquire, wait      hold, Acquired      a cycle of waits here: Refused DEADLOCK; else blocked
    Withdraw           (answered before)   blocked: Refused WITHDRAWN
    Free               Freed, then the blocked ones that touch the range are looked at, in their order
    Inquire            Inquired None       Inquired with the first of them

- A blocked request is granted when it conflicts with nothing *held*: those before it in the queue don't count.
  So nobody waits for somebody who only waits, and there are no deadlocks but those of the applications (Linux).
- Acquire never takes anything away, also not from its own owner: exclusive stays exclusive until a Free.  So a
  client whose answer got lost with a view holds at most what the arbiter gave it (``client``).
- A dead node's locks are not in the rebuilt tables, because nobody reports them.
- Two living reports that conflict can't come from clients that keep the rules.  If they come, both stay, and the
  counter ``owned_conflicts`` says so: nobody else gets the range, and which of the two lies can't be known.
- Bounded against floods by ``NODE_RANGES_MAX`` and ``NODE_WAITS_MAX`` per node and ``OBJECT_RANGES_MAX``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

from dlm.owned.messages import (
    AboutOwned,
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
    Withdraw,
)
from dlm.owned.ranges import Owner, RangeTable
from dlm.owned.stamps import Stamps

NODE_RANGES_MAX = 1 << 18
NODE_WAITS_MAX = 1 << 14
OBJECT_RANGES_MAX = 1 << 16
_SPLITS_MAX = 1024  # a Free may need one range more
_WALK_MAX = 4096  # owners looked at for one cycle

Key: TypeAlias = tuple[Kind, int]  # kind, object
Wait: TypeAlias = tuple[int, int]  # node, serial


class Table:
    """One object in one kind."""

    __slots__ = ("blocked", "ranges")

    def __init__(self) -> None:
        self.ranges = RangeTable()
        self.blocked: dict[Wait, Acquire] = {}  # in the order of their coming

    def in_the_way(self, wait: Wait) -> Iterator[Owner]:
        """Owners that hold what a blocked request wants."""
        request = self.blocked[wait]
        found = self.ranges.conflicts(Owner(wait[0], request.owner), request.start, request.end, request.exclusive)
        return (owner for owner, _ in found)


class Arbiter:
    """See the module.

    Args:
        post: sends a message to a node, this one included.
        stamps: this node's clock of waits.
        statistics: counters to add to.
    """

    def __init__(self, post: Callable[[int, AboutOwned], None], stamps: Stamps, statistics: Counter[str]) -> None:
        self._post = post
        self._stamps = stamps
        self._statistics = statistics
        self.tables: dict[Key, Table] = {}
        self._waits: dict[tuple[Kind, Owner], dict[Wait, Table]] = {}
        self._ranges_of: Counter[int] = Counter()
        self._waits_of: Counter[int] = Counter()
        self._last: dict[int, int] = {}  # node -> serial of its newest request

    def receive(self, sender: int, message: ToArbiter) -> None:
        """A client's message."""
        if isinstance(message, Withdraw):
            self._withdraw(sender, message)
            return
        if message.serial <= self._last.get(sender, -1):
            self._statistics["owned_repeated"] += 1
            return
        self._last[sender] = message.serial
        key = (message.kind, message.object)
        table = self.tables.get(key)
        if table is None:
            table = self.tables[key] = Table()
        if isinstance(message, Acquire):
            self._acquire(sender, message, table)
        elif isinstance(message, Free):
            self._free(sender, message, table)
        else:
            self._inquire(sender, message, table)
        self._drop_if_idle(key, table)

    def replace(self, reports: Iterable[tuple[int, OwnedReport]]) -> None:
        """A rebuild is complete: these (node, report) are all that is held."""
        self.tables, self._waits, self._last = {}, {}, {}
        self._ranges_of, self._waits_of = Counter(), Counter()
        for node, report in reports:
            if self._ranges_of[node] >= NODE_RANGES_MAX + _SPLITS_MAX:
                self._statistics["owned_reports_refused"] += 1
                continue
            key = (report.kind, report.object)
            table = self.tables.get(key)
            if table is None:
                table = self.tables[key] = Table()
            owner = Owner(node, report.owner)
            if table.ranges.conflict(owner, report.start, report.end, report.exclusive):
                self._statistics["owned_conflicts"] += 1
            self._ranges_of[node] += table.ranges.strengthen(
                owner, report.pid, report.start, report.end, report.exclusive
            )

    def waits_of(self, kind: Kind, owner: Owner) -> dict[Wait, Table]:
        """The owner's blocked requests here."""
        return self._waits.get((kind, owner), {})

    def blocked(self, kind: Kind, owner: Owner, object_: int, serial: int) -> Table | None:
        """The table in which this request of the owner is blocked."""
        table = self.tables.get((kind, object_))
        request = table.blocked.get((owner.node, serial)) if table is not None else None
        return table if request is not None and request.owner == owner.id else None

    def dump(self) -> Iterator[dict[str, Any]]:
        """What is held and waited for here, as plain data: one entry for each range and each blocked request."""
        for (kind, object_), table in self.tables.items():
            for owner, held in table.ranges:
                yield _entry(kind, object_, owner, held.pid, held.start, held.end, held.exclusive, None)
            for wait, request in table.blocked.items():
                waits_for = [list(owner) for owner in table.in_the_way(wait)]
                owner = Owner(wait[0], request.owner)
                span = (request.start, request.end, request.exclusive)
                yield _entry(kind, object_, owner, request.pid, *span, waits_for)

    def sizes(self) -> dict[str, int]:
        """How much there is."""
        return {
            "owned_objects": len(self.tables),
            "owned_ranges": self._ranges_of.total(),
            "owned_waits": self._waits_of.total(),
        }

    # --- one request ---

    def _acquire(self, sender: int, request: Acquire, table: Table) -> None:
        self._stamps.see(request.stamp)
        owner = Owner(sender, request.owner)
        if table.ranges.conflict(owner, request.start, request.end, request.exclusive) is None:
            if self._ranges_of[sender] >= NODE_RANGES_MAX or table.ranges.count >= OBJECT_RANGES_MAX:
                self._refuse(sender, request.serial, Reason.NOLOCKS)
            else:
                self._hold(owner, request, table)
        elif not request.wait:
            self._refuse(sender, request.serial, Reason.AGAIN)
        elif self._waits_of[sender] >= NODE_WAITS_MAX:
            self._refuse(sender, request.serial, Reason.NOLOCKS)
        else:
            wait = (sender, request.serial)
            table.blocked[wait] = request
            self._waits.setdefault((request.kind, owner), {})[wait] = table
            self._waits_of[sender] += 1
            if request.kind != Kind.FLOCK and self._closes_cycle(request.kind, owner, table, wait):
                self._unblock(table, wait)
                self._refuse(sender, request.serial, Reason.DEADLOCK)
            else:
                self._statistics["owned_blocked"] += 1

    def _hold(self, owner: Owner, request: Acquire, table: Table) -> None:
        self._ranges_of[owner.node] += table.ranges.strengthen(
            owner, request.pid, request.start, request.end, request.exclusive
        )
        self._post(owner.node, Acquired(request.serial, self._stamps.last))

    def _refuse(self, node: int, serial: int, reason: Reason) -> None:
        self._statistics["owned_refused_" + reason.name.lower()] += 1
        self._post(node, Refused(serial, reason))

    def _free(self, sender: int, request: Free, table: Table) -> None:
        owner = Owner(sender, request.owner)
        if self._ranges_of[sender] >= NODE_RANGES_MAX + _SPLITS_MAX and not _whole(table, owner, request):
            self._post(sender, Freed(request.serial, done=False))
            return
        change = table.ranges.weaken if request.shared else table.ranges.unset
        self._ranges_of[sender] += change(owner, request.start, request.end)
        self._post(sender, Freed(request.serial))
        for wait, blocked in list(table.blocked.items()):
            if blocked.start <= request.end and blocked.end >= request.start and not any(table.in_the_way(wait)):
                self._unblock(table, wait)
                self._hold(Owner(wait[0], blocked.owner), blocked, table)

    def _inquire(self, sender: int, request: Inquire, table: Table) -> None:
        found = table.ranges.conflict(Owner(sender, request.owner), request.start, request.end, request.exclusive)
        conflict = None
        if found is not None:
            owner, held = found
            conflict = Conflict(owner.node, held.pid, held.start, held.end, held.exclusive)
        self._post(sender, Inquired(request.serial, conflict))

    def _withdraw(self, sender: int, message: Withdraw) -> None:
        key = (message.kind, message.object)
        table = self.tables.get(key)
        wait = (sender, message.serial)
        if table is not None and wait in table.blocked:
            self._unblock(table, wait)
            self._refuse(sender, message.serial, Reason.WITHDRAWN)
            self._drop_if_idle(key, table)

    # --- waits ---

    def _unblock(self, table: Table, wait: Wait) -> None:
        request = table.blocked.pop(wait)
        index = (request.kind, Owner(wait[0], request.owner))
        del self._waits[index][wait]
        if not self._waits[index]:
            del self._waits[index]
        self._waits_of[wait[0]] -= 1

    def _closes_cycle(self, kind: Kind, owner: Owner, table: Table, wait: Wait) -> bool:
        """Whether somebody in the way of ``wait`` waits, here, for its owner; through however many others."""
        seen: set[Owner] = set()
        ahead = list(table.in_the_way(wait))
        while ahead and len(seen) < _WALK_MAX:
            other = ahead.pop()
            if other == owner:
                return True
            if other not in seen:
                seen.add(other)
                for theirs, where in self.waits_of(kind, other).items():
                    ahead.extend(where.in_the_way(theirs))
        return False

    def _drop_if_idle(self, key: Key, table: Table) -> None:
        if not table.ranges.count and not table.blocked:
            self.tables.pop(key, None)


def _whole(table: Table, owner: Owner, request: Free) -> bool:
    """Whether the request cuts no range in two."""
    touched = table.ranges.of(owner, request.start, request.end)
    return all(request.start <= held.start and held.end <= request.end for held in touched)


def _entry(
    kind: Kind, object_: int, owner: Owner, pid: int, start: int, end: int, exclusive: bool, waits_for: object
) -> dict[str, Any]:
    entry = {"kind": kind.name, "object": object_, "node": owner.node, "owner": owner.id, "pid": pid}
    entry |= {"start": start, "end": end, "exclusive": exclusive, "waits_for": waits_for}
    return entry
