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
from matrixfs.fs.promises import Promises
from matrixfs.locks.cache import LockCache
from matrixfs.locks.lock import Lock
from matrixfs.locks.modes import EX, NL
from matrixfs.locks.resources import GROUP, Resource
from matrixfs.ondisk.superblock import Superblock
from membership.errors import CorruptionError
from membership.label import BLOCK_BYTES
from membership.seams import Clock, SectorDevice

if TYPE_CHECKING:
    from matrixfs.fs.trim import Trims

log = logging.getLogger(__name__)

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
    def left(self) -> int:
        """Blocks that are not used yet."""
        return len(self._blocks)

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
        self.give_back()

    def give_back(self) -> None:
        """What was not used may be taken by others."""
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
        self._loaded: dict[int, Lock] = {}  # of groups that are cached
        self._free_counts = FreeCounts(device, superblock, clock, self._cached)
        self._broken: set[int] = set()
        self.promises = Promises(self)
        self.trims: Trims | None = None  # told what is free

    # --- holding groups -------------------------------------------------------------------------------

    def lock(self, index: int) -> Lock:
        """The lock of group ``index``."""
        return self._locks.lock(Resource(GROUP, self._superblock.group_block(index)), self)

    def _cached(self, index: int) -> Group | None:
        lock = self._loaded.get(index)
        return lock.subject if lock is not None else None

    async def load(self, lock: Lock) -> Group:
        """The group of a lock that is held in EX.  Raises CorruptRecord, DeviceError."""
        index = self._superblock.group_of(lock.number)
        if lock.subject is None:
            data = await self._device.read(lock.number * BLOCK_BYTES, BLOCK_BYTES)
            if lock.subject is None:  # another task may have loaded it meanwhile
                lock.subject = decode_group_untrusted(data, self._superblock, index)
        group: Group = lock.subject
        self._loaded[index] = lock
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

    async def hold(self, count: int, near: int = 0, wanted: int = 0, *, promised: bool = False) -> Group:
        """Hold a group with room; end with ``drop``.  No checkpoint at its end.

        Args:
            count: blocks that must be available.
            near: a block whose group is best; 0 for no wish.
            wanted: blocks that would be welcome.
            promised: they were promised; else promised ones are left alone (promises, PR3).

        Raises:
            OSError: ENOSPC when no group has ``count``.
        """
        at_leasts = sorted({max(count + SPARE, wanted), count}, reverse=True)
        if promised and not self.promises.covered(wanted):
            at_leasts = [count]
            group = await self._at_once(count, wanted)
            if group is not None:
                return group
        for at_least in at_leasts:
            group = await self._search(count, near, at_least, promised=promised)
            if group is not None:
                return group
        if not promised and self.promises.total and self.promises.covered(count):
            # Groups that were passed over as long as too few were held to keep what is promised.
            group = await self._search(count, near, count, promised=False)
            if group is not None:
                return group
        if self.trims is not None and await self.trims.over():
            return await self.hold(count, near, wanted, promised=promised)
        raise OSError(errno.ENOSPC, "no space left on the filesystem")

    async def _at_once(self, count: int, wanted: int) -> Group | None:
        """A group that has ``count`` blocks and is ours now, also if a peer wants it: for what was promised.

        Room is short: a peer may have to wait for the caller's file before it gives up its own groups (PR4).
        """
        while True:
            groups = (group for group in self.at_hand() if group.available >= count)
            for group in sorted(groups, key=lambda group: -min(group.available, wanted)):
                if self.lock(group.index).try_hold(EX):
                    return group
            found = self.promises.enter_any(count)
            if found is not None or not any(_will_yield(lock, count) for lock in self._loaded.values()):
                return found
            await self.promises.moved()

    async def _search(self, count: int, near: int, at_least: int, *, promised: bool) -> Group | None:
        """Hold the best group that has ``at_least`` blocks, or has ``count`` and more are only welcome."""
        choosy = at_least > count  # a wish is no reason to take groups away from peers, or to search for long
        for visit, index in enumerate(self._candidates(near)):
            lock = self.lock(index)
            if choosy and (visit >= WISH_VISITS_MAX or not (lock.mode == EX or self._arbitrated(index))):
                break
            if index in self._broken:
                continue
            await lock.hold(EX)
            try:
                group = await self.load(lock)
            except CorruptionError as error:
                self.give_up_on(lock, error)
                lock.drop(EX)
                continue
            except BaseException:
                lock.drop(EX)
                raise
            if group.available >= at_least and (promised or self.promises.spare(group, count)):
                self._home = index
                return group
            lock.drop(EX)
        return None

    def give_up_on(self, lock: Lock, error: CorruptionError) -> None:
        """A group is damaged: don't look at it again."""
        index = self._superblock.group_of(lock.number)
        log.error("group %d is not used any more: %s", index, error)
        self._broken.add(index)

    def drop(self, group: Group) -> None:
        """End a hold."""
        if not self.promises.leave(group.index):
            self.lock(group.index).drop(EX)

    async def hold_all(self, indexes: Iterable[int]) -> list[Group]:
        """Hold several groups, in the lock order.  Raises CorruptRecord, DeviceError: then none is held."""
        held: list[Group] = []
        for index in sorted(set(indexes)):
            lock = self.lock(index)
            yielding = self.promises.enter(index)
            if yielding is not None:
                held.append(yielding)
                continue
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
            self.give_up_on(self.lock(index), error)

    def _candidates(self, near: int) -> Iterator[int]:
        """Groups in the order to try them: near, home, those this node arbitrates, the others."""
        groups = self._superblock.groups
        first = home = self._home
        if near >= self._superblock.group_start:
            near_index = self._superblock.group_of(near)
            if self.lock(near_index).mode == EX:
                first = near_index
        preferred = self.lock(first).mode == EX or self._arbitrated(first)
        if preferred:
            yield first
        others: list[int] = []
        for step in range(groups):
            index = (home + step) % groups
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
        return sum(lock.subject.available for lock in self._loaded.values())

    def at_hand(self) -> Iterator[Group]:
        """The groups held here that no peer wants: home first, as it mostly has enough.  No checkpoint meanwhile."""
        home = self._loaded.get(self._home)
        if home is not None and _is_ours(home):
            yield home.subject
        for lock in self._loaded.values():
            if lock is not home and _is_ours(lock):
                yield lock.subject

    def others(self) -> Iterator[Lock]:
        """The groups that are not at hand, in the order to take them."""
        for index in self._candidates(0):
            lock = self.lock(index)
            if index not in self._broken and not _is_ours(lock):
                yield lock

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
        await self.promises.make_way(lock, group)
        assert group.taken == 0, f"group {group.index} surrendered with {group.taken} blocks taken"
        await self.settle()
        if self._journal.holds(group):
            await self._journal.commit()
        await self._journal.release([group.address])
        if mode == NL:
            self._free_counts.given_up(group.index, group.free)
            lock.subject = None
            self._loaded.pop(group.index, None)

    # --- counting ------------------------------------------------------------------------------------------

    async def count_free(self) -> int:
        """Free blocks of all groups (``free_counts``), less what buffered writes will need."""
        return max(0, await self._free_counts.total() - self.promises.total)


def _is_ours(lock: Lock) -> bool:
    """Whether a group may be counted on: its lock is held, and no peer wants it."""
    return lock.mode == EX and lock.subject is not None and not lock.revoking


def _will_yield(lock: Lock, count: int) -> bool:
    """Whether a group that a peer wants has so much, and whoever holds it here has to end before it yields."""
    wanted = lock.mode == EX and lock.revoking and not lock.surrendering
    return wanted and lock.subject is not None and lock.subject.available >= count
