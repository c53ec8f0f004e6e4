"""The locks of one operation."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self

from matrixfs.fs.allocation import Reservation
from matrixfs.fs.blocks import Block
from matrixfs.fs.groups import Group
from matrixfs.fs.inode import Inode
from matrixfs.locks.lock import Lock
from matrixfs.locks.modes import EX, PR
from membership.errors import CorruptRecord

if TYPE_CHECKING:
    from matrixfs.fs.quotas import Demand, Entered
    from matrixfs.fs.volume import Volume


class Held:
    """The locks of one operation, dropped together at its end.  Take them in the lock order."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._locks: list[tuple[Lock, int, bool]] = []
        self._groups: list[Group] = []
        self._quotas: Entered = []
        self._changes = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for group in self._groups:
            self._volume.allocator.drop(group)
        self.charged()
        for lock, mode, exclusive in reversed(self._locks):
            lock.drop(mode, exclusive)
        if self._changes:
            self._volume.changes.leave()

    async def changing(self) -> None:
        """Get leave to change something (``changes``); before any lock is held, also to read."""
        if not self._changes:
            assert not self._locks, "a lock is held to read, and the operation begins to change something"
            await self._volume.changes.enter()
            self._changes = True

    async def lock(self, lock: Lock, mode: int, exclusive: bool) -> None:
        """Hold any lock, once; before the first one in EX, leave to change something.

        Raises CorruptRecord when it is held already: on a damaged store one inode may stand in two places of the tree,
        and would be waited for by itself.
        """
        if any(held is lock for held, _, _ in self._locks):
            raise CorruptRecord(f"inode {lock.number}", "place in the tree", "one", "two")
        if mode == EX:
            await self.changing()
        if not lock.try_hold(mode, exclusive):
            await lock.hold(mode, exclusive)
        self._locks.append((lock, mode, exclusive))

    async def shared(self, ino: int) -> Inode:
        """Hold an inode to read it."""
        lock = self._volume.inode_lock(ino)
        await self.lock(lock, PR, False)
        inode: Inode | None = lock.subject
        return inode if inode is not None and inode.mode else await self._volume.load(lock)

    async def exclusive(self, ino: int) -> Inode:
        """Hold an inode to change it."""
        lock = self._volume.inode_lock(ino)
        await self.lock(lock, EX, True)
        inode: Inode | None = lock.subject
        return inode if inode is not None and inode.mode else await self._volume.load(lock)

    async def quota(self, *demands: Demand) -> None:
        """Hold what counts whatever these owners may use more, once, after all inodes.  OSError EDQUOT, ENOSPC."""
        quotas = self._volume.quotas
        if quotas is not None:
            assert not self._quotas
            assert not self._groups, "groups come after quotas"
            self._quotas = await quotas.enter(demands)

    def charged(self) -> None:
        """The change that quotas were held for is done: what follows may take them anew."""
        if self._quotas and self._volume.quotas is not None:
            self._volume.quotas.leave(self._quotas)
            self._quotas = []

    async def group(self, count: int, near: int = 0, wanted: int = 0) -> Group:
        """Hold a group with at least ``count`` free blocks.  OSError ENOSPC."""
        assert self._volume.changes.permitted, "to hold a group is to change it"
        group = await self._volume.allocator.hold(count, near, wanted)
        self._groups.append(group)
        return group

    async def groups(self, indexes: set[int]) -> dict[int, Group]:
        """Hold these groups, to give blocks back."""
        assert self._volume.changes.permitted, "to hold a group is to change it"
        held = await self._volume.allocator.hold_all(indexes)
        self._groups.extend(held)
        return {group.index: group for group in held}


async def reserve(volume: Volume, held: Held, count: int, near: int) -> Reservation:
    """The last wait before a change: blocks for it, and room in the journal.  For 0 blocks no group is held.

    Raises OSError ENOSPC.
    """
    group = await held.group(count, near) if count else None
    spare = Reservation(volume.journal, group, count)  # before the wait: others would take them
    try:
        await volume.journal.admit()
    except BaseException:
        spare.give_back()
        raise
    return spare


def free_metadata(volume: Volume, group: Group, block: Block) -> None:
    """A tree block is named no more.  Part of a change; its group is held."""
    group.generation_floor = max(group.generation_floor, block.generation)
    group.release(block.address, 1)
    volume.journal.add(group)
    address = block.address
    volume.journal.free(block, lambda: volume.allocator.reuse(group, address, 1))
