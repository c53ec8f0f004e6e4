"""Blocks promised to what is buffered: write(2) says ENOSPC, and nothing that it took is lost to it later.

A group's *room* is what it has available over ``TREE_BLOCKS_MAX``: who finds some gets a block of data there, and all
that naming it may take.

- **PR1** The room of the groups held here (EX, and no peer wants them) is at least what is promised.  A promise is an
  upper bound for what writing back one file may take: its blocks, those of its tree, and those that a step of it sets
  aside for a moment.  It shrinks as the blocks are used.  So whatever order files are written in, one block at a time
  if need be, there is a group with room for the next.
- **PR2** A write is promised its blocks before it is buffered, and they count from that moment (``Claim``).  Where the
  bound can't be had the file is written back, then others, then what was freed is committed; then what the write needs
  in truth decides, and writes over blocks that a file has need nothing.
- **PR3** Whoever was promised nothing (names, attributes, trees of directories, ...) leaves promised room alone, and
  gets ENOSPC; ``room`` writes back before an application hears of it.
- **PR4** A group that a peer wants, and that promises rest on, is given up when they have been written back, into that
  very group too: meanwhile write-back, and who frees, gets it without its lock.  The callout waits for files that are
  in use, so not for ever: one of them may wait for what the peer holds.  After ``YIELD_SECONDS`` the group goes, and
  PR1 is broken until write-back has got room from any group of the filesystem.

Freed blocks that rest (J5) are no room.  Blocks that a discard holds back are had again by waiting (TR3).

Source: issue 5 (ENOSPC only when full, no acknowledged write lost to it); ext4's delayed allocation.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self

import trio

from matrixfs.locks.modes import EX
from matrixfs.ondisk.inode import DEPTH_MAX
from membership.errors import CorruptionError

if TYPE_CHECKING:
    from matrixfs.fs.allocation import Allocator
    from matrixfs.fs.groups import Group
    from matrixfs.locks.lock import Lock

log = logging.getLogger(__name__)

TREE_BLOCKS_MAX = DEPTH_MAX + 2  # blocks that adding one extent may need for its tree
SPLIT_BLOCKS = 64  # extents beside each other fill at least so much of each new leaf
YIELD_SECONDS = 3.0


def tree_bound(depth: int, blocks: int, runs: int) -> int:
    """Blocks that a tree may take, and hold back for a moment, for extents in so many runs of blocks.

    Two leaves for each run, where it begins and ends, and what it fills; indexes over them; twice a path for the rest.
    """
    leaves = 1 + 2 * runs + blocks // SPLIT_BLOCKS
    return leaves + leaves // 32 + 2 * (depth + 3)


def room_of(group: Group) -> int:
    """Blocks that a group can give to file data: writing back leaves it enough for the file's tree."""
    available: int = group.available
    return max(0, available - TREE_BLOCKS_MAX)


class Claim:
    """Blocks promised to an operation until they are used, or noted as a file's; the rest goes back at its end."""

    __slots__ = ("_promises", "blocks")

    def __init__(self, promises: Promises, blocks: int) -> None:
        self._promises = promises
        self.blocks = blocks
        promises.add(blocks)

    def used(self, blocks: int) -> None:
        """So many of them are used.  No checkpoint."""
        blocks = min(blocks, self.blocks)
        self.blocks -= blocks
        self._promises.add(-blocks)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.used(self.blocks)


@dataclass(slots=True)
class _Yielding:
    """A group that a peer wants."""

    group: Group
    users: int = 0
    is_open: bool = True  # for more of them


class Promises:
    """The promises of one mount.

    Args:
        allocator: whose groups.
    """

    def __init__(self, allocator: Allocator) -> None:
        self._allocator = allocator
        self._yielding: dict[int, _Yielding] = {}
        self._moved = trio.Event()
        self.total = 0
        self.write_back: Callable[[], bool] = lambda: False  # begin to, beside the caller; whether that was possible

    def add(self, blocks: int) -> None:
        """So many more, or less, are promised; room for more was asked for.  No checkpoint."""
        self.total += blocks
        if self._yielding:
            self._wake()

    def _wake(self) -> None:
        self._moved.set()
        self._moved = trio.Event()

    async def moved(self) -> None:
        """Wait until a group begins to be given up, or until what is promised changes while one waits for that."""
        await self._moved.wait()

    @property
    def is_pressed(self) -> bool:
        """Whether a group waits for promises to be written back."""
        return bool(self._yielding)

    # --- room ---------------------------------------------------------------------------------------------------

    def covered(self, more: int = 0) -> bool:
        """Whether groups held here have room for what is promised and ``more``.  No checkpoint."""
        need = self.total + more
        return need <= 0 or self._is_room(need, self._allocator.at_hand())

    @staticmethod
    def _is_room(need: int, groups: Iterator[Group]) -> bool:
        for group in groups:
            need -= room_of(group)
            if need <= 0:
                return True
        return False

    def spare(self, group: Group, count: int) -> bool:
        """Whether a held group has ``count`` blocks that nobody was promised (PR3).  No checkpoint."""
        if group.available < count:
            return False
        lost = min(count, room_of(group))
        if not self.total or not lost or room_of(group) >= self.total + lost:
            return True
        others = (other for other in self._allocator.at_hand() if other is not group)
        return self._is_room(self.total + lost - room_of(group), others)

    async def make(self, blocks: int) -> Claim:
        """Promise ``blocks`` more: hold more groups, if need be (PR1).  No checkpoint at its end.

        Raises:
            OSError: ENOSPC, as long as the data is still the application's.
        """
        allocator, blocks = self._allocator, max(0, blocks)
        if self.covered(blocks):
            return Claim(self, blocks)
        for lock in allocator.others():
            await lock.hold(EX)
            try:
                await allocator.load(lock)
            except CorruptionError as error:
                allocator.give_up_on(lock, error)
            finally:
                lock.drop(EX)
            if self.covered(blocks):
                return Claim(self, blocks)
        if allocator.trims is not None and await allocator.trims.over():
            return await self.make(blocks)
        raise OSError(errno.ENOSPC, "no space left on the filesystem")

    # --- a peer wants a group (PR4) -----------------------------------------------------------------------------

    def enter(self, index: int, count: int = 0) -> Group | None:
        """Use a group that waits to be given up, if it does and has ``count``; end with ``leave``.  No checkpoint."""
        found = self._yielding.get(index)
        if found is None or not found.is_open or found.group.available < count:
            return None
        found.users += 1
        return found.group

    def enter_any(self, count: int) -> Group | None:
        """``enter`` one that has ``count`` blocks."""
        groups = (self.enter(index, count) for index in self._yielding)
        return next((group for group in groups if group is not None), None)

    def leave(self, index: int) -> bool:
        """End a use of a group without its lock; False if that is not how it is held."""
        found = self._yielding.get(index)
        if found is None:
            return False
        found.users -= 1
        self._wake()
        return True

    async def make_way(self, lock: Lock, group: Group) -> None:
        """The group is to be given up: have what was promised room elsewhere, or written back.

        Nobody holds its lock here, so whoever drops it meanwhile has it without (``leave``).
        """
        assert not lock.writers
        self._wake()  # whoever waits for that looks again when this waits: at this group, or others have room
        if self.covered():
            return
        yielding = self._yielding[group.index] = _Yielding(group)
        try:
            with trio.move_on_after(YIELD_SECONDS if self.write_back() else 0):
                while not self.covered():
                    await self._moved.wait()
            yielding.is_open = False
            if not self.covered():
                log.warning("group %d goes to a peer, with %d blocks promised", group.index, self.total)
            while yielding.users:
                await self._moved.wait()
        finally:
            del self._yielding[group.index]
            self._wake()
