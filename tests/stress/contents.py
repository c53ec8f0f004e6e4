"""Judges what looks at one place of a file saw: a slot or a page, with its data, holes and the end of the file.

A place has no order of its own between nodes: the kernel shows a write under way to readers on its own node, from its
page cache, before it asks us, so while a write lasts who looks here and there may see it come and go.  What must hold:
nobody sees a value that was replaced before the look began, and nobody one that came after the look had ended.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple

from tests.stress.files import END, ZEROS
from tests.stress.history import Op
from tests.stress.worker import PAGES

LATE_NS = 1_000_000_000  # what is replaced for longer is never excused
SHOWN_OF_A_PLACE = 3
Problem = str

_BEGIN = Op(-2.0, -2.0, 0, 0, "begin", (), 0)  # empty
_GROWN = Op(-1.0, -1.0, 0, 0, "begin", (), 0)
_BY_READ = ("read", "page_read")


class Stale(NamedTuple):
    """A look that saw what had been replaced before it began."""

    look: str  # "read", "fstat", "sendfile" or "mapping"
    what: str  # "pages": old bytes; "size": an end or a hole that had been filled, or bytes behind the end
    late_ns: float
    text: str

    @property
    def name(self) -> str:
        """As tables count it."""
        return f"{self.look}: stale {self.what}"


@dataclass
class Excuses:
    """What counts as a known limit (docs/testing.md) instead of a problem; ``strict``: nothing does."""

    strict: bool = False
    counts: Counter[str] = field(default_factory=Counter)
    stale: list[Stale] = field(default_factory=list)

    def grant(self, name: str) -> bool:
        """Whether a known limit excuses it; counts it."""
        if not self.strict:
            self.counts[name] += 1
        return not self.strict


@dataclass
class Place:
    """All that happened to one place, and to the file around it.

    Attributes:
        values: who put each value there.
        cuts: who made the file end in front of it.
        grows: who made the file end behind it.
        looks: with each value that they saw.
        others: everything done to the file, for excuses.
    """

    what: str
    others: Sequence[Op]
    values: dict[bytes, Op] = field(default_factory=dict)
    cuts: list[Op] = field(default_factory=lambda: [_BEGIN])
    grows: list[Op] = field(default_factory=list)
    looks: list[tuple[Op, bytes]] = field(default_factory=list)


def slots_of(identity: int, ops: Sequence[Op], count: int) -> list[Place]:
    """What happened to each slot of a file."""
    places = [Place(f"file {identity}, slot {slot}", ops) for slot in range(count)]
    for slot, place in enumerate(places):
        for op in ops:
            if op.kind == "write":
                _, first, slots, value = op.args
                if first <= slot < first + slots:
                    place.values[value] = op
                if slot < first + slots:
                    place.grows.append(op)
            elif op.kind == "truncate" or (op.kind == "open" and op.args[2] & os.O_TRUNC):
                (place.cuts if (op.args[1] if op.kind == "truncate" else 0) <= slot else place.grows).append(op)
            elif op.kind in ("read", "sendfile") and op.args[1] <= slot < op.args[1] + op.args[2]:
                place.looks += [(op, value) for value in op.result[slot - op.args[1]]]
    return places


def pages_of(ops: Sequence[Op]) -> list[Place]:
    """What happened to each page of the mapped file, whose size never changes."""
    ops = [op for op in ops if op.kind in _ON_PAGES and not op.failed]
    places = [Place(f"page {page}", ops, grows=[_GROWN]) for page in range(PAGES)]
    for op in ops:
        place = places[op.args[0]]
        if op.kind in ("page_write", "map_write"):
            place.values[op.args[1]] = op
        else:
            place.looks += [(op, value) for value in op.result]
    return places


_ON_PAGES = ("page_write", "page_read", "map_write", "map_read", "held_map_read")


class _Judge:
    """Of one place."""

    def __init__(self, place: Place, excuses: Excuses) -> None:
        self._place = place
        self._excuses = excuses
        data = list(place.values.values())
        self._data = _Replacers(data)
        self._cuts = _Replacers(place.cuts)
        self._grows = _Replacers(place.grows)
        self._data_and_cuts = _Replacers(data + place.cuts)

    def look(self, op: Op, value: bytes) -> Problem:
        """What is wrong with having seen ``value``; "" for nothing."""
        place = self._place
        if value == END:
            return self._stale(op, "size", "an end", _replaced(place.cuts, self._grows, op))
        if value == ZEROS:
            saw, over = "zeros", _replaced(place.cuts, self._data, op)
        else:
            write = place.values.get(value)
            if write is None:
                return f"nobody wrote {value!r}, which {op} saw"
            if write.start > op.end:
                return f"{op} saw {write}, which came later"
            saw, over = str(write), _replaced([write], self._data_and_cuts, op)
        behind = _replaced(place.grows, self._cuts, op)
        return self._stale(op, "pages", saw, over) or self._stale(op, "size", "bytes behind the end", behind)

    def _stale(self, op: Op, what: str, saw: str, over: Op | None) -> Problem:
        if over is None:
            return ""
        late = op.start - over.end
        look = "read" if op.kind in _BY_READ else "sendfile" if op.kind == "sendfile" else "mapping"
        stale = Stale(look, what, late, f"{op} saw {saw}, replaced {late / 1e6:.1f} ms before by {over}")
        self._excuses.stale.append(stale)
        if look == "sendfile" and what == "size":  # nothing asks for it, so it has no age either
            limit = True
        else:
            limit = late < LATE_NS and (self._beside_a_read(op) if look == "read" else self._beside_a_mapping(op, over))
        return "" if limit and self._excuses.grant(stale.name) else stale.text

    def _beside_a_read(self, op: Op) -> bool:
        """Whether somebody, on whatever node, changed the file while the read lasted."""
        return any(
            other.kind in _CHANGES and other.start <= op.end and op.start <= other.end and other is not op
            for other in self._place.others
        )

    def _beside_a_mapping(self, op: Op, over: Op) -> bool:
        """Whether something was under way on the look's own node between the change and the look."""
        return any(
            other.node == op.node and other.start <= op.start and over.start <= other.end and other is not op
            for other in self._place.others
        )


_CHANGES = ("write", "truncate", "open", "page_write", "map_write")


def check_place(place: Place, excuses: Excuses) -> list[Problem]:
    """What can't be, of all that was seen there."""
    judge = _Judge(place, excuses)
    found = [problem for op, value in place.looks if (problem := judge.look(op, value))]
    return [f"{place.what}: {problem}" for problem in found[:SHOWN_OF_A_PLACE]]


class _Replacers:
    """Operations that replace what a place had, found by time."""

    def __init__(self, ops: Iterable[Op]) -> None:
        ordered = sorted(ops, key=lambda op: op.start)
        self._starts = [op.start for op in ordered]
        self._first = list(accumulate(reversed(ordered), lambda a, b: b if b.end < a.end else a))[::-1]

    def between(self, after: float, before: float) -> Op | None:
        """The one that ended first of those that began after the one time, if it ended before the other."""
        at = bisect_right(self._starts, after)
        if at == len(self._first) or self._first[at].end >= before:
            return None
        return self._first[at]


def _replaced(causes: Iterable[Op], replacers: _Replacers, look: Op) -> Op | None:
    """Of the things that may be seen, the one that was replaced last, if all were: by whom.  None: not all were."""
    latest: Op | None = None
    for cause in causes:
        if cause.start > look.end:
            continue
        over = replacers.between(cause.end, look.start)
        if over is None:
            return None
        if latest is None or over.end > latest.end:
            latest = over
    return latest


def told(stale: Sequence[Stale]) -> str:
    """How many of which kind, and how late."""
    kinds: dict[str, list[float]] = {}
    for each in stale:
        kinds.setdefault(each.name, []).append(each.late_ns / 1e6)
    return "; ".join(
        f"{name} {len(late)} times, {min(late):.1f} to {max(late):.1f} ms late" for name, late in kinds.items()
    )
