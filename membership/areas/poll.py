"""Has enough been answered?  Majorities of membership areas, also while the set of areas changes (pure; 002-42).

Invariants:

Q1. An answer counts once per area.  Enough is a majority of each group; there are two groups while the set of areas is
    being changed (the old one and the new one), else one.  So any two operations that had enough share an area.
Q2. What can't become enough any more is known as soon as the areas that failed make it so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

T = TypeVar("T")
Group = frozenset[bytes]  # uuids of disks


def majority(group: Collection[bytes]) -> int:
    """How many of a group are enough."""
    return len(group) // 2 + 1


def is_enough(disks: Collection[bytes], groups: Sequence[Group]) -> bool:
    """Q1."""
    return all(len(group.intersection(disks)) >= majority(group) for group in groups)


class Poll(Generic[T]):
    """One operation on all areas: who answered what, who failed."""

    def __init__(self, groups: Sequence[Group]) -> None:
        self.answers: dict[bytes, T] = {}
        self.failures: dict[bytes, str] = {}
        self._groups = tuple(groups)
        self._all: Group = frozenset().union(*groups)

    def answered(self, disk: bytes, value: T) -> None:
        """The operation came to its end there."""
        self.answers[disk] = value

    def failed(self, disk: bytes, reason: str) -> None:
        """It did not."""
        self.failures[disk] = reason

    @property
    def has_enough(self) -> bool:
        """Q1."""
        return is_enough(self.answers, self._groups)

    @property
    def is_hopeless(self) -> bool:
        """Q2."""
        return not is_enough(self._all - self.failures.keys(), self._groups)

    @property
    def is_complete(self) -> bool:
        """Everybody has answered or failed."""
        return self._all <= self.answers.keys() | self.failures.keys()
