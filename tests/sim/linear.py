"""Is a history of calls linearizable?  Wing and Gong's search, with a memory of what was tried (Lowe).

A history is a list of operations with the times of their call and their return.  It is linearizable if every
operation can be given an instant between the two, so that the results are those of a sequential object.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass


@dataclass
class Operation:
    """``apply`` returns the next state, or None when the result could not come of that state."""

    text: str
    called: int
    returned: int
    apply: Callable[[Hashable], Hashable | None]
    optional: bool = False  # nobody was told: it may have happened, until ``returned``
    not_after: Operation | None = None  # it did not happen after this one


def linearize(operations: Sequence[Operation], state: Hashable) -> list[Operation] | None:
    """An order that explains the history from ``state`` on, or None if there is none."""
    operations = sorted(operations, key=lambda one: (one.called, one.returned))
    order: list[int] = []
    tried: set[tuple[frozenset[int], Hashable]] = set()

    def choices(done: frozenset[int]) -> list[int]:
        left = [i for i in range(len(operations)) if i not in done]
        soonest = min((operations[i].returned for i in left if not operations[i].optional), default=1 << 60)
        latest = max((operations[i].called for i in done), default=-1)
        return [
            i
            for i in left
            if operations[i].called < soonest
            and not (operations[i].optional and operations[i].returned <= latest)
            and not any(operations[j] is operations[i].not_after for j in done)
        ]

    def finished(done: frozenset[int]) -> bool:
        return all(operations[i].optional or i in done for i in range(len(operations)))

    stack = [(frozenset[int](), state, iter(choices(frozenset())))]
    while stack:
        done, state, ahead = stack[-1]
        if finished(done):
            return [operations[i] for i in order]
        for i in ahead:
            following = operations[i].apply(state)
            key = (done | {i}, following)
            if following is not None and key not in tried:
                tried.add(key)
                order.append(i)
                stack.append((key[0], following, iter(choices(key[0]))))
                break
        else:
            stack.pop()
            if order:
                order.pop()
    return None
