"""The ranges held on one object in one kind of lock (pure): what POSIX says fcntl(2) locks do.

An owner's ranges are disjoint and sorted by start; neighbours of equal mode are one range, so a table's content is
exactly a map from byte to mode.  Owners stand in the order in which they came, which is the order in which
Linux looks for the holder that F_GETLK names (``tests/dlm/test_owned_linux.py`` compares with the kernel).

Ranges include their end, as F_GETLK has it; ``END_MAX`` is "to the end of the file, however it grows".  Cost: an
owner's own ranges are found by bisection; other owners are looked at one by one, as Linux does.

The table itself allows conflicts between owners: whoever sets asks ``conflict`` first.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeAlias

END_MAX = (1 << 63) - 1

Mode: TypeAlias = bool | None  # True exclusive, False shared, None not held


class Owner(NamedTuple):
    """Whom a lock belongs to: a process or an open file of one node."""

    node: int
    id: int  # u64 of the node's choosing


class Held(NamedTuple):
    """One range of one owner.  A tuple, so that (start,) bisects."""

    start: int
    end: int
    exclusive: bool
    pid: int


class RangeTable:
    """See the module.  All methods take valid ranges: 0 <= start <= end <= END_MAX."""

    __slots__ = ("_exclusive", "_held", "count")

    def __init__(self) -> None:
        self._held: dict[Owner, list[Held]] = {}
        self._exclusive = 0  # how many of the ranges are
        self.count = 0  # ranges of all owners

    def __iter__(self) -> Iterator[tuple[Owner, Held]]:
        for owner, ranges in self._held.items():
            for held in ranges:
                yield owner, held

    def set(self, owner: Owner, pid: int, start: int, end: int, exclusive: bool) -> int:
        """The owner holds this range in this mode, whatever it held of it before; return how ``count`` changed."""
        return self._change(owner, start, end, pid, lambda _: exclusive)

    def strengthen(self, owner: Owner, pid: int, start: int, end: int, exclusive: bool) -> int:
        """As ``set``, but what is exclusive stays so."""
        return self._change(owner, start, end, pid, lambda mode: exclusive or bool(mode))

    def weaken(self, owner: Owner, start: int, end: int) -> int:
        """What the owner holds of this range is shared from now on."""
        return self._change(owner, start, end, None, lambda mode: None if mode is None else False)

    def unset(self, owner: Owner, start: int, end: int) -> int:
        """The owner holds nothing of this range from now on."""
        return self._change(owner, start, end, None, lambda _: None)

    def conflict(self, owner: Owner, start: int, end: int, exclusive: bool) -> tuple[Owner, Held] | None:
        """The first range of another owner that can't stand beside this one, or None."""
        return next(self.conflicts(owner, start, end, exclusive), None)

    def conflicts(self, owner: Owner, start: int, end: int, exclusive: bool) -> Iterator[tuple[Owner, Held]]:
        """For every other owner in the way, the first of its ranges that is."""
        if not exclusive and not self._exclusive:
            return
        for other, ranges in self._held.items():
            if other == owner or ranges[0].start > end or ranges[-1].end < start:
                continue
            for held in ranges[_first(ranges, start) :]:
                if held.start > end:
                    break
                if exclusive or held.exclusive:
                    yield other, held
                    break

    def of(self, owner: Owner, start: int = 0, end: int = END_MAX) -> list[Held]:
        """The owner's ranges that touch this one, uncut."""
        ranges = self._held.get(owner, [])
        return ranges[_first(ranges, start) : bisect_left(ranges, (end + 1,))]

    def covers(self, owner: Owner, start: int, end: int) -> bool:
        """Whether the owner holds every byte of this range, in whatever mode."""
        for held in self.of(owner, start, end):
            if held.start > start:
                return False
            start = held.end + 1
        return start > end

    def _change(self, owner: Owner, start: int, end: int, pid: int | None, new: Callable[[Mode], Mode]) -> int:
        """Map the mode of every byte of a range; ``pid``, if not None, is written to what changes."""
        ranges = self._held.get(owner, [])
        low, high = _first(ranges, start), bisect_left(ranges, (end + 1,))
        pieces: list[Held] = []

        def add(start: int, end: int, mode: Mode, pid: int | None) -> None:
            if mode is None or start > end:
                return
            assert pid is not None, "a lock of nobody"
            if pieces and pieces[-1].end == start - 1 and pieces[-1].exclusive == mode:
                start = pieces.pop().start
            pieces.append(Held(start, end, mode, pid))

        if low and ranges[low - 1].end == start - 1:
            low -= 1
            add(*ranges[low])
        at = start
        for held in ranges[low + len(pieces) : high]:
            add(held.start, start - 1, held.exclusive, held.pid)
            add(at, held.start - 1, new(None), pid)
            at = min(held.end, end) + 1
            mode = new(held.exclusive)
            add(max(held.start, start), at - 1, mode, held.pid if pid is None or mode == held.exclusive else pid)
            add(end + 1, held.end, held.exclusive, held.pid)
        add(at, end, new(None), pid)
        if high < len(ranges) and ranges[high].start == end + 1:
            add(*ranges[high])
            high += 1
        return self._splice(owner, ranges, low, high, pieces)

    def _splice(self, owner: Owner, ranges: list[Held], low: int, high: int, pieces: list[Held]) -> int:
        change = len(pieces) - (high - low)
        self._exclusive += sum(one.exclusive for one in pieces) - sum(one.exclusive for one in ranges[low:high])
        self.count += change
        ranges[low:high] = pieces
        if ranges:
            self._held[owner] = ranges
        else:
            self._held.pop(owner, None)
        return change


def _first(ranges: list[Held], start: int) -> int:
    """Index of the first range that ends at ``start`` or later."""
    index = bisect_left(ranges, (start,))
    return index - 1 if index and ranges[index - 1].end >= start else index
