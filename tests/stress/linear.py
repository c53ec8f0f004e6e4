"""Decides whether a history of overlapping operations is linearizable: Wing & Gong's search, just in time (Lowe 2017).

An operation has a call, a return and a result.  The history is linearizable when every operation can be given one
instant between its call and its return so that, in the order of these instants, each result is what the object's
sequential behaviour says.  Operations that never returned may have had their effect at any time after the call, or
none.

How: walk through calls and returns in order of time and keep every *configuration* that explains what was seen so
far: the object's state, and which of the operations under way have already had their instant.  A return throws away
the configurations in which its operation can't have had it.  None left: not linearizable.  What keeps that small:

- An operation that changes nothing (``apply`` gives back the very state) takes its instant as soon as its result is
  true; that never rules anything out.
- Others take theirs only when a return needs them, and only those whose objects meet the returning one's.
- Equal configurations count once.

With values that are written once this is nearly linear in the length of the history; the search of bad histories is
bounded by the number of processes, not by their length.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

FOREVER = float("inf")
CONFIGURATIONS_MAX = 200_000
SHOWN = 14  # operations that a report shows

State = Hashable
Apply = Callable[[Any], Any]  # the state after, or None: this result is impossible in that state
Configuration = tuple[State, frozenset[int]]


@dataclass(slots=True, eq=False)
class Step:
    """One operation on the object, with its result built in.

    Attributes:
        start, end: the call and the return on one clock; ``FOREVER`` when it never returned.
        apply: see ``Apply``.
        changes: False for one that only looks; it may still narrow down what was not known of the state.
        keys: parts of the object it looks at; operations without a common part commute.
        label: for reports.
        crash: not an operation but an instant at which the state changes for all, say because a node died.
        optional: it never returned, and had its effect by ``end`` or never.
    """

    start: float
    end: float
    apply: Apply
    changes: bool = True
    keys: frozenset[Any] = frozenset()
    label: object = ""
    crash: bool = False
    optional: bool = False


@dataclass
class Violation:
    """Why a history is not linearizable."""

    step: Step
    states: list[State]  # possible before the operation that can't be explained returned
    around: list[Step] = field(default_factory=list)

    def __str__(self) -> str:
        began = self.around[0].start if self.around else self.step.start
        lines = [f"not linearizable: {self.step.label}, possible states before: {self.states[:4]!r}"]
        for step in self.around:
            end = "        never" if step.end == FOREVER else f"{(step.end - began) / 1e6:13.6f}"
            mark = "-->" if step is self.step else "   "
            lines.append(f"{mark} {(step.start - began) / 1e6:13.6f} .. {end} ms  {step.label}")
        return "\n".join(lines)


class TooHard(Exception):
    """More configurations than the search keeps: the history is too concurrent to be decided."""


class _Search:
    def __init__(self, initial: State) -> None:
        self.configurations: set[Configuration] = {(initial, frozenset())}
        self.pending: dict[int, Step] = {}

    def call(self, number: int, step: Step) -> None:
        self.pending[number] = step
        if not step.changes:
            self.configurations = {
                (state, done | {number}) if step.apply(state) is state else (state, done)
                for state, done in self.configurations
            }

    def returned(self, number: int) -> bool:
        """Whether any configuration is left."""
        near = self._near(number)
        left: set[Configuration] = set()
        if self.pending[number].optional:
            left |= {(state, done) for state, done in self.configurations if number not in done}
        seen = set(self.configurations)
        stack = list(self.configurations)
        while stack:
            state, done = stack.pop()
            if number in done:
                left.add((state, done - {number}))
                continue
            for other in near:
                if other not in done and (after := self.pending[other].apply(state)) is not None:
                    found = self._settle(after, done | {other}, near)
                    if found not in seen:
                        seen.add(found)
                        stack.append(found)
                        if len(seen) > CONFIGURATIONS_MAX:
                            raise TooHard(f"{len(seen)} configurations, {len(self.pending)} operations under way")
        if not left:
            return False
        del self.pending[number]
        self.configurations = left
        return True

    def _settle(self, state: State, done: frozenset[int], near: Sequence[int]) -> Configuration:
        """Give their instant to all operations that change nothing and fit this state."""
        fits = [
            other
            for other in near
            if other not in done and not (step := self.pending[other]).changes and step.apply(state) is state
        ]
        return state, done.union(fits) if fits else done

    def _near(self, number: int) -> list[int]:
        """Operations under way that share a key with this one, directly or through others."""
        near, keys = [number], set(self.pending[number].keys)
        rest = {other: step for other, step in self.pending.items() if other != number}
        grown = True
        while grown:
            grown = False
            for other, step in list(rest.items()):
                if not keys.isdisjoint(step.keys):
                    near.append(other)
                    keys |= step.keys
                    del rest[other]
                    grown = True
        return near

    def crash(self, apply: Apply) -> None:
        self.configurations = {(apply(state), done) for state, done in self.configurations}


def check(steps: Iterable[Step], initial: State) -> Violation | None:
    """The first operation whose result no order explains; None if the history is linearizable.

    Raises TooHard.
    """
    ordered = sorted(steps, key=lambda step: step.start)
    events = [(step.start, 0, number) for number, step in enumerate(ordered)]
    events += [(step.end, 1, number) for number, step in enumerate(ordered) if step.end != FOREVER and not step.crash]
    events.sort()  # calls first among equals: what touches may overlap
    search = _Search(initial)
    for _, is_return, number in events:
        step = ordered[number]
        if step.crash:
            search.crash(step.apply)
        elif not is_return:
            search.call(number, step)
        else:
            before = search.configurations
            if not search.returned(number):
                return Violation(step, sorted({state for state, _ in before}, key=repr), _around(ordered, step))
    return None


def _around(ordered: Sequence[Step], wrong: Step) -> list[Step]:
    """What touched the same parts until then, most recent last."""
    related = [
        step
        for step in ordered
        if step.start <= wrong.end and (step.crash or not wrong.keys or not step.keys.isdisjoint(wrong.keys))
    ]
    latest = [step for step in related if step.changes][-SHOWN:]
    reads = [step for step in related if not step.changes][-SHOWN:]
    return sorted({*latest, *reads, wrong}, key=lambda step: step.start)
