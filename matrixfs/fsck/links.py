"""Names counted of inodes that have other than one: 16 bytes a slot, at most two thirds of the slots full (F6).

A hash table of two arrays of integers, because a tree of millions of hard links has as many of these.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import NamedTuple

SLOTS_MIN = 1024
FOUND_MAX = (1 << 28) - 1
_GOLDEN = 0x9E3779B97F4A7C15  # spreads neighbouring numbers (Knuth, 6.4)
_MASK = (1 << 64) - 1


class Names(NamedTuple):
    """What was seen of an inode."""

    nlink: int  # as the inode says
    found: int
    kind: int


class LinkCounts:
    """Names by inode number; 0 is no inode's number."""

    def __init__(self) -> None:
        self._count = 0
        self._make(SLOTS_MIN)

    def _make(self, slots: int) -> None:
        self._shift = 64 - (slots.bit_length() - 1)
        self._keys = array("Q", bytes(8 * slots))
        self._values = array("Q", bytes(8 * slots))

    def __len__(self) -> int:
        return self._count

    @property
    def size_bytes(self) -> int:
        """Memory that the table takes."""
        return 16 * len(self._keys)

    def get(self, number: int) -> Names | None:
        """What is known of an inode; None when it was not put."""
        slot = self._slot(number)
        if not self._keys[slot]:
            return None
        value = self._values[slot]
        return Names(value >> 32, value >> 4 & FOUND_MAX, value & 15)

    def put(self, number: int, names: Names) -> None:
        """Set what is known of an inode."""
        slot = self._slot(number)
        if not self._keys[slot]:
            if 3 * self._count >= 2 * len(self._keys):
                self._grow()
                slot = self._slot(number)
            self._count += 1
            self._keys[slot] = number
        self._values[slot] = names.nlink << 32 | min(names.found, FOUND_MAX) << 4 | names.kind

    def items(self) -> Iterator[tuple[int, Names]]:
        """All of them, in an order that depends only on the numbers and how many there are."""
        for number in self._keys:
            if number:
                names = self.get(number)
                assert names is not None
                yield number, names

    def _slot(self, number: int) -> int:
        """Where a number is, or would go."""
        slot = (number * _GOLDEN & _MASK) >> self._shift
        last = len(self._keys) - 1
        while self._keys[slot] not in {0, number}:
            slot = slot + 1 & last
        return slot

    def _grow(self) -> None:
        keys, values = self._keys, self._values
        self._make(2 * len(keys))
        for at, number in enumerate(keys):
            if number:
                slot = self._slot(number)
                self._keys[slot], self._values[slot] = number, values[at]
