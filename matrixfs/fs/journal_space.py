"""Room for journals that are added to a mounted filesystem: extents in allocation groups, held until they are named.

The blocks are taken from their groups, so nobody else gets them; ``use`` marks them in the bitmaps in the moment in
which the superblock that names them is written.  If a crash comes between the two, whoever loads such a group next
marks them (``Allocator.load``), as the superblock says where journals are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from matrixfs.locks.modes import EX
from matrixfs.ondisk.superblock import JOURNAL_BLOCKS_MIN, RUNS_MAX
from membership.errors import CorruptionError, OperatorError
from membership.label import BLOCK_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from matrixfs.fs.groups import Group
    from matrixfs.fs.volume import Volume

GROUP_SHARE = 4  # so many journals fit into a group: the superblock has room for few runs


class JournalSpace:
    """Extents for new journals.  ``close`` in any case; then blocks that were not used are free again."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._held: list[Group] = []
        self._taken: list[tuple[Group, int, int]] = []  # group, start, length
        superblock = volume.superblock
        fitting = ((1 << superblock.group_shift) - 1) // GROUP_SHARE
        self.length = max(JOURNAL_BLOCKS_MIN, min(superblock.journal_blocks, fitting))  # blocks of a journal

    @property
    def runs(self) -> list[tuple[int, int]]:
        """(first block, journals) of each."""
        return [(start, length // self.length) for _, start, length in self._taken]

    async def take(self, journals: int) -> None:
        """Find room.

        Raises:
            OperatorError: there is none, or the superblock has no room to name it.
            DeviceError, Fenced: I/O failed.
        """
        groups = self._volume.superblock.groups
        for first in sorted({max(0, groups - 2 * journals), 0}, reverse=True):  # what was added last is emptiest
            left = await self._take_from(range(first, groups), journals)
            if not left:
                return
            self.close()
        size = self.length * BLOCK_BYTES >> 10
        raise OperatorError(
            f"no room for {journals} journals of {size} KiB, each in one piece: grow the filesystem, or remove files"
        )

    async def _take_from(self, indexes: Iterable[int], journals: int) -> int:
        """Take what is there, in the lock order; how many found no room."""
        slots = RUNS_MAX - len(self._volume.superblock.runs()[1:])
        allocator = self._volume.allocator
        for index in indexes:
            if not journals or len(self._taken) == slots:
                break
            lock = allocator.lock(index)
            await lock.hold(EX)
            try:
                group = await allocator.load(lock)
            except CorruptionError:
                lock.drop(EX)
                continue
            except BaseException:
                lock.drop(EX)
                raise
            start, free = group.longest()
            count = min(journals, free // self.length)
            if not count or (count < journals and (slots - len(self._taken)) * count < journals):
                lock.drop(EX)
                continue
            self._held.append(group)
            self._taken.append((group, start, count * self.length))
            taken = group.take(count * self.length, start)
            assert taken == (start, count * self.length)
            journals -= count
        return journals

    def use(self) -> None:
        """The superblock names them now.  Part of a change: no checkpoint since it does."""
        for group, start, length in self._taken:
            group.use(start, length)
            self._volume.journal.add(group)
        self._taken.clear()

    def close(self) -> None:
        """Give back what was not used, and the groups."""
        for group, start, length in self._taken:
            group.untake(start, length)
        self._taken.clear()
        for group in self._held:
            self._volume.allocator.drop(group)
        self._held.clear()
