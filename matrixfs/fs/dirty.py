"""Bytes written to a file and not yet on the store: the mount's write-back cache (coherence.md, point 3)."""

from __future__ import annotations

from collections.abc import Iterator

from sortedcontainers import SortedDict

from membership.label import BLOCK_BYTES
from membership.seams import Buffer

EXTEND_MAX = 1 << 20  # appends are collected in one buffer up to this size


class DirtyRanges:
    """Disjoint ranges of a file's bytes, by offset.

    ``length`` is the sum of all; adjacent small writes share one buffer, large ones are kept as they came.
    """

    __slots__ = ("_ranges", "length")

    def __init__(self) -> None:
        self._ranges: SortedDict[int, bytes | bytearray] = SortedDict()
        self.length = 0

    def __bool__(self) -> bool:
        return bool(self._ranges)

    def write(self, offset: int, data: Buffer) -> None:
        """Note ``data`` at ``offset``; it replaces what was there."""
        if not data:
            return
        self.cut(offset, offset + len(data))
        ranges = self._ranges
        at = ranges.bisect_left(offset) - 1
        if at >= 0:
            start, before = ranges.peekitem(at)
            if start + len(before) == offset and len(before) + len(data) <= EXTEND_MAX:
                if not isinstance(before, bytearray):
                    before = ranges[start] = bytearray(before)
                before += data
                self.length += len(data)
                return
        ranges[offset] = bytes(data)
        self.length += len(data)

    def cut(self, start: int, end: int) -> None:
        """Forget what lies in [start, end)."""
        ranges = self._ranges
        at = ranges.bisect_right(start) - 1
        if at >= 0:
            first, data = ranges.peekitem(at)
            if first < start < first + len(data):
                ranges[first] = data[: start - first]
                if first + len(data) > end:
                    ranges[end] = data[end - first :]
                    self.length -= end - start
                    return
                self.length -= first + len(data) - start
        for first in list(ranges.irange(start, end, inclusive=(True, False))):
            data = ranges.pop(first)
            self.length -= len(data)
            if first + len(data) > end:
                rest = data[end - first :]
                ranges[end] = rest
                self.length += len(rest)

    def overlay(self, offset: int, buffer: bytearray) -> None:
        """Copy what lies within ``buffer``, which shows the file from ``offset`` on, over it."""
        end = offset + len(buffer)
        for start, data in self._within(offset, end):
            low, high = max(start, offset), min(start + len(data), end)
            buffer[low - offset : high - offset] = memoryview(data)[low - start : high - start]

    def slice(self, offset: int, length: int) -> bytes | None:
        """The bytes if one range holds them all, else None."""
        found = self.view(offset, length)
        return None if found is None else bytes(found)

    def view(self, offset: int, length: int) -> memoryview | None:
        """The same without a copy; nothing may be written while it is used."""
        at = self._ranges.bisect_right(offset) - 1
        if at >= 0:
            start, data = self._ranges.peekitem(at)
            if start + len(data) >= offset + length:
                return memoryview(data)[offset - start : offset - start + length]
        return None

    def covers(self, offset: int, end: int) -> bool:
        """Whether every byte of [offset, end) is dirty."""
        for start, data in self._within(offset, end):
            if start > offset:
                return False
            offset = start + len(data)
            if offset >= end:
                return True
        return offset >= end

    def _within(self, offset: int, end: int) -> Iterator[tuple[int, bytes | bytearray]]:
        ranges = self._ranges
        at = max(ranges.bisect_right(offset) - 1, 0)
        for start in ranges.islice(at):
            if start >= end:
                return
            data = ranges[start]
            if start + len(data) > offset:
                yield start, data

    def block_runs(self, blocks_max: int) -> Iterator[tuple[int, int]]:
        """The (first block, number of blocks) runs that hold dirty bytes, none longer than ``blocks_max``."""
        run_start = run_end = -1
        for start, data in self._ranges.items():
            first, end = start // BLOCK_BYTES, -(-(start + len(data)) // BLOCK_BYTES)
            if first <= run_end:
                run_end = max(run_end, end)
            else:
                if run_end > run_start:
                    yield from _pieces(run_start, run_end, blocks_max)
                run_start, run_end = first, end
        if run_end > run_start:
            yield from _pieces(run_start, run_end, blocks_max)

    def run_at(self, block: int) -> tuple[int, int] | None:
        """The first run of dirty blocks, (first, end), that ends behind ``block``."""
        for first, count in self.block_runs(1 << 62):
            if first + count > block:
                return first, first + count
        return None

    @property
    def ranges(self) -> int:
        """How many there are."""
        return len(self._ranges)

    def blocks_bound(self) -> int:
        """At most so many blocks are dirty: what must be free for them (a range touches length / 4096 + 2)."""
        return self.length // BLOCK_BYTES + 2 * len(self._ranges)


def _pieces(start: int, end: int, blocks_max: int) -> Iterator[tuple[int, int]]:
    while start < end:
        length = min(blocks_max, end - start)
        yield start, length
        start += length
