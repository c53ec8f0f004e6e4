"""Which blocks to use: allocation groups, each under one cluster lock, each node preferring its own.

A node prefers groups whose locks it arbitrates itself: the lock of a new inode (whose number lies in the
group) then costs no message either, because one placement key covers the group and its inodes.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Self

import trio

from matrixfs.fs.free_counts import FreeCounts
from matrixfs.fs.groups import Group, decode_group_untrusted
from matrixfs.fs.journal import Journal
from matrixfs.locks.cache import LockCache
from matrixfs.locks.lock import Lock
from matrixfs.locks.modes import EX, NL
from matrixfs.locks.resources import GROUP, Resource
from matrixfs.ondisk.inode import DEPTH_MAX
from matrixfs.ondisk.superblock import Superblock
from membership.errors import CorruptionError
from membership.label import BLOCK_BYTES
from membership.seams import Clock, SectorDevice

if TYPE_CHECKING:
    from matrixfs.fs.trim import Trims

log = logging.getLogger(__name__)

TREE_BLOCKS_MAX = DEPTH_MAX + 2  # blocks that adding one extent may need for its tree
SPARE = 8  # blocks kept over what is asked, so that an operation rarely fails over to another group
NUMBERS_PASSED_MAX = 8  # free blocks that are no good as a new inode's number, before one is taken all the same
WISH_VISITS_MAX = 8  # groups looked at for more blocks than are needed


class Reservation:
    """Blocks taken from a held group for one operation; what is not used goes back at its end."""

    def __init__(self, journal: Journal, group: Group | None, count: int) -> None:
        assert group is not None or count == 0
        self._journal = journal
        self._group = group
        self._blocks = [group.take(1)[0] for _ in range(count)] if group is not None else []

    @property
    def group(self) -> Group:
        """Where the blocks lie."""
        assert self._group is not None
        return self._group

    @property
    def first(self) -> int:
        """The block that ``pop`` gives next."""
        return self._blocks[0]

    @property
    def second(self) -> int:
        """The block that the ``pop`` after that gives."""
        return self._blocks[1]

    def pass_over(self, is_known: Callable[[int], bool]) -> None:
        """Rather have a first block, the number of an inode to make, that is not known: a few are looked at."""
        passed: list[int] = []
        while is_known(self.first) and len(passed) < NUMBERS_PASSED_MAX and self.group.available > SPARE:
            passed.append(self.first)
            self._blocks[0] = self.group.take(1)[0]
        for block in passed:
            self.group.untake(block, 1)

    def pop(self) -> int:
        """Use one block.  Part of a change: no checkpoint up to the change that names it (J1)."""
        block = self._blocks.pop(0)
        self.group.use(block, 1)
        self._journal.add(self.group)
        return block

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for block in self._blocks:
            self.group.untake(block, 1)
        self._blocks.clear()


class Allocator:
    """The groups of one mount.

    Args:
        clock: for how old an answer to statfs(2) may be.
        is_local: whether this node arbitrates a resource.
        start: group to begin with where no group is better: differs between nodes.
    """

    flushes = True
    upgrades = False  # always EX

    def __init__(
        self,
        device: SectorDevice,
        superblock: Superblock,
        locks: LockCache,
        journal: Journal,
        clock: Clock,
        is_local: Callable[[Resource], bool],
        start: int,
    ) -> None:
        self._device = device
        self._superblock = superblock
        self._locks = locks
        self._journal = journal
        self._is_local = is_local
        self._home = start % superblock.groups
        self._retired: dict[int, tuple[Group, Lock]] = {}
        self._settling = trio.Lock()
        self._free_counts = FreeCounts(device, superblock, clock, self._cached)
        self._broken: set[int] = set()
        self.promised = 0  # blocks that buffered writes will need
        self.trims: Trims | None = None  # told what is free

    # --- holding groups -------------------------------------------------------------------------------

    def lock(self, index: int) -> Lock:
        """The lock of group ``index``."""
        return self._locks.lock(Resource(GROUP, self._superblock.group_block(index)), self)

    def _cached(self, index: int) -> Group | None:
        lock = self._locks.find(Resource(GROUP, self._superblock.group_block(index)))
        return lock.subject if lock is not None else None

    async def load(self, lock: Lock) -> Group:
        """The group of a lock that is held in EX.  Raises CorruptRecord, DeviceError."""
        index = self._superblock.group_of(lock.number)
        if lock.subject is None:
            data = await self._device.read(lock.number * BLOCK_BYTES, BLOCK_BYTES)
            if lock.subject is None:  # another task may have loaded it meanwhile
                lock.subject = decode_group_untrusted(data, self._superblock, index)
        group: Group = lock.subject
        self._catch_up(group)
        self._free_counts.used(index)
        return group

    def _catch_up(self, group: Group) -> None:
        """What a growth of the filesystem left to whoever holds the group next (fs/grow.py).  No checkpoint (J1).

        So who holds a group may change it, and needs leave for that first (fs/changes.py).
        """
        changed = False
        for start, length in self._superblock.runs_in(group.index):
            changed |= group.claim(start, length)
        size = self._superblock.group_size(group.index)
        if group.blocks < size:
            group.enlarge(size)
            changed = True
        if changed:
            self._journal.add(group)

    async def hold(self, count: int, near: int = 0, wanted: int = 0) -> Group:
        """Hold a group with room; end with ``drop``.

        Args:
            count: blocks that must be available.
            near: a block whose group is best; 0 for no wish.
            wanted: blocks that would be welcome.

        Raises:
            OSError: ENOSPC when no group has ``count``.
        """
        for at_least in sorted({max(count + SPARE, wanted), count}, reverse=True):
            for visit, index in enumerate(self._candidates(near)):
                lock = self.lock(index)
                choosy = at_least > count  # a wish is no reason to take groups away from peers, or to search for long
                if choosy and (visit >= WISH_VISITS_MAX or not (lock.mode == EX or self._arbitrated(index))):
                    break
                if index in self._broken:
                    continue
                await lock.hold(EX)
                try:
                    group = await self.load(lock)
                except CorruptionError as error:
                    log.error("group %d is not used any more: %s", index, error)
                    self._broken.add(index)
                    lock.drop(EX)
                    continue
                except BaseException:
                    lock.drop(EX)
                    raise
                if group.available >= at_least:
                    self._home = index
                    return group
                lock.drop(EX)
        if self.trims is not None and await self.trims.over():
            return await self.hold(count, near, wanted)
        raise OSError(errno.ENOSPC, "no space left on the filesystem")

    def drop(self, group: Group) -> None:
        """End a hold."""
        self.lock(group.index).drop(EX)

    async def hold_all(self, indexes: Iterable[int]) -> list[Group]:
        """Hold several groups, in the lock order.  Raises CorruptRecord, DeviceError: then none is held."""
        held: list[Group] = []
        for index in sorted(set(indexes)):
            lock = self.lock(index)
            try:
                await lock.hold(EX)
                try:
                    held.append(await self.load(lock))
                except BaseException:
                    lock.drop(EX)
                    raise
            except BaseException:
                for group in held:
                    self.drop(group)
                raise
        return held

    async def enlarge(self, index: int) -> None:
        """Group ``index`` was the last one before the filesystem was grown.  Raises DeviceError, Fenced."""
        try:
            self.drop((await self.hold_all([index]))[0])  # ``load`` does it
        except CorruptionError as error:
            log.error("group %d is not used any more: %s", index, error)
            self._broken.add(index)

    def _candidates(self, near: int) -> Iterator[int]:
        """Groups in the order to try them: near, home, those this node arbitrates, the others."""
        groups = self._superblock.groups
        first = self._home
        if near >= self._superblock.group_start:
            near_index = self._superblock.group_of(near)
            if self.lock(near_index).mode == EX:
                first = near_index
        preferred = self.lock(first).mode == EX or self._arbitrated(first)
        if preferred:
            yield first
        others: list[int] = []
        for step in range(groups):
            index = (self._home + step) % groups
            if preferred and index == first:
                continue
            if self._arbitrated(index):
                yield index
            else:
                others.append(index)
        yield from sorted(others, key=lambda index: self.lock(index).mode != EX)

    def _arbitrated(self, index: int) -> bool:
        return self._is_local(Resource(GROUP, self._superblock.group_block(index)))

    @property
    def available(self) -> int:
        """Blocks that can be had from the groups held here."""
        cached = (self._cached(index) for index in range(self._superblock.groups))
        return sum(group.available for group in cached if group is not None)

    # --- promises for buffered writes ------------------------------------------------------------------

    async def promise(self, blocks: int) -> None:
        """Make sure that ``blocks`` more buffered blocks will find room: hold more groups, if need be.

        Raises:
            OSError: ENOSPC, as long as the data is still the application's.
        """
        need = self.promised + blocks
        home = self.lock(self._home)
        if home.mode == EX and home.subject is not None and _for_data(home.subject) >= need:
            return
        available = 0
        for mine_only in (True, False):
            for index in self._candidates(0):
                lock = self.lock(index)
                group: Group | None = lock.subject
                if lock.mode == EX and group is not None:
                    available += _for_data(group) if mine_only else 0
                elif not mine_only and index not in self._broken:
                    await lock.hold(EX)
                    try:
                        available += _for_data(await self.load(lock))
                    except CorruptionError:
                        self._broken.add(index)
                    finally:
                        lock.drop(EX)
                if available >= need:
                    return
        if self.trims is not None and await self.trims.over():
            await self.promise(blocks)
            return
        raise OSError(errno.ENOSPC, "no space left on the filesystem")

    # --- giving back --------------------------------------------------------------------------------------

    def free_data(self, group: Group, start: int, length: int) -> None:
        """File data blocks are named no more.  Part of a change."""
        group.release(start, length)
        self._journal.add(group)
        self._journal.free_data(start, length, lambda: self.reuse(group, start, length))

    def reuse(self, group: Group, start: int, length: int) -> None:
        """Freed blocks may be given out again (J5)."""
        group.reuse(start, length)
        if self.trims is not None:
            self.trims.freed(group.index, start, length)

    def retire(self, group: Group, lock: Lock) -> None:
        """An inode's block is free, but its lock still covers the tombstone: reuse after ``settle``."""
        group.release(lock.number, 1)
        self._journal.add(group)
        self._retired[lock.number] = (group, lock)

    @property
    def settled(self) -> bool:
        """No tombstone waits for ``settle``, or is in the middle of it."""
        return not self._retired and not self._settling.locked()

    async def settle(self) -> None:
        """Make tombstones durable in place and let their numbers be used again."""
        async with self._settling:  # whoever gives a group away must wait for a round under way
            retired, self._retired = self._retired, {}
            if not retired:
                return
            await self._journal.commit()
            await self._journal.release(retired)
            for number, (group, lock) in retired.items():
                self.reuse(group, number, 1)
                lock.blocks.clear()
                lock.subject = None
                self._locks.discard(lock)

    async def surrender(self, lock: Lock, mode: int) -> None:
        """Callout: a peer wants the group (``mode`` below EX)."""
        group: Group | None = lock.subject
        if group is None:
            return
        assert group.taken == 0, f"group {group.index} surrendered with {group.taken} blocks taken"
        await self.settle()
        if self._journal.holds(group):
            await self._journal.commit()
        await self._journal.release([group.address])
        if mode == NL:
            self._free_counts.given_up(group.index, group.free)
            lock.subject = None

    # --- counting ------------------------------------------------------------------------------------------

    async def count_free(self) -> int:
        """Free blocks of all groups (``free_counts``), less what buffered writes will need."""
        return max(0, await self._free_counts.total() - self.promised)


def _for_data(group: Group) -> int:
    """Blocks that a group can give to file data: writing back leaves it enough for the file's tree."""
    available: int = group.available
    return max(0, available - TREE_BLOCKS_MAX)
