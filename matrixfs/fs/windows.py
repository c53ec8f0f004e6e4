"""Room kept free behind files that grow, so that several growing at once don't lie block by block between each other.

Whoever appends to a file and has it made durable bit by bit (logs, mailboxes) gets a few blocks each time.  From the
second time on the blocks behind it are kept for it: a *window*, twice as large each time, as ext3's reservation
windows.  A window is memory of the node that holds the group and nowhere else: its blocks are free, so a crash leaks
nothing, they count as available, and when there are no others everybody may have them.  A file that is written once
has none, so small files lie close together.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

SIZE_MIN = 8  # blocks
SIZE_MAX = 2048
OWNERS_MAX = 64  # in a group; the one that grew longest ago loses its window
SHARE = 8  # a window is at most this part of what is available


@dataclass(slots=True)
class _Window:
    at: int  # where its owner is expected to go on
    length: int  # blocks left
    size: int  # blocks it had


class Windows:
    """The windows of one group; positions are blocks from the group's first one."""

    def __init__(self) -> None:
        self._windows: OrderedDict[int, _Window] = OrderedDict()

    def take(self, owner: int, at: int, count: int) -> tuple[int, int] | None:
        """The (first, length) of at most ``count`` blocks of the owner's window; None if it doesn't go on there."""
        window = self._windows.get(owner)
        if window is None or window.at != at or not window.length:
            return None
        taken = min(count, window.length)
        window.at += taken
        window.length -= taken
        self._windows.move_to_end(owner)
        return at, taken

    def size(self, owner: int, count: int, available: int) -> int:
        """Blocks to keep for an owner that takes ``count`` now; 0: too few are available."""
        window = self._windows.get(owner)
        size = max(SIZE_MIN, 2 * count, 2 * window.size if window is not None else 0)
        return min(size, SIZE_MAX, available // SHARE)

    def open(self, owner: int, at: int, length: int, size: int) -> list[tuple[int, int]]:
        """Keep blocks for an owner; the (first, length) of what is not kept any more."""
        ended = [self._windows.pop(owner, None)]
        self._windows[owner] = _Window(at, length, size)
        if len(self._windows) > OWNERS_MAX:
            ended.append(self._windows.popitem(last=False)[1])
        return [(window.at, window.length) for window in ended if window is not None and window.length]

    def close_all(self) -> list[tuple[int, int]]:
        """Keep nothing; the (first, length) of what was kept."""
        ended = [(window.at, window.length) for window in self._windows.values() if window.length]
        self._windows.clear()
        return ended
