"""Where quotas lie: the quota inode's tree, whose blocks are metadata of their own (``ondisk/quota.py``).

Invariants:
    QS1 A journal's counters are written by the mount that has the journal, and by nobody else.  So their blocks are
        cached as long as the mount lives, and their images in the log need no revoke: replay never brings back an
        older one over what somebody else wrote.
    QS2 A block that the tree names is in place: a new one is made durable before the quota inode's lock goes.  Others
        read it without a lock that covers all of it, so it may be torn while its owner writes: it is read again.
    QS3 Limits are cached under the quota inode's lock, as its tree is.  That lock comes after those of the ids.
    QS4 Blocks of quotas are never freed while a mount lives.

Source: issue 5 ("Quotas"); decision 0023.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeVar

from matrixfs.fs import tree
from matrixfs.fs.blocks import Block, ExtentList
from matrixfs.fs.held import Held, reserve
from matrixfs.fs.inode import Inode, decode_inode_untrusted
from matrixfs.fs.parallel import for_each
from matrixfs.locks.modes import EX, PR
from matrixfs.locks.resources import QUOTA, Resource
from matrixfs.ondisk.extent import Extent
from matrixfs.ondisk.quota import (
    COUNTERS_PER_BLOCK,
    LIMITS_PER_BLOCK,
    NO_LIMITS,
    Counter,
    Limits,
    QuotaRecord,
    counters_key,
    limits_key,
    meaning_of,
    pack_counters,
    pack_limits,
    unpack_counters_untrusted,
    unpack_limits_untrusted,
)
from matrixfs.ondisk.superblock import QUOTA_INODE, Superblock
from membership.errors import CorruptRecord
from membership.label import BLOCK_BYTES
from membership.seams import Buffer

if TYPE_CHECKING:
    from matrixfs.fs.volume import Volume

READS_AT_ONCE = 16
TORN_READS_MAX = 20  # of one block; its owner writes it every few seconds at most
TORN_PAUSE = 0.01  # seconds between them


class CounterBlock(Block):
    """One journal's counters of some ids, as lists of [blocks, inodes]."""

    __slots__ = ("counters", "key")

    def __init__(self, address: int, generation: int, key: int, counters: Iterable[Counter] = ()) -> None:
        super().__init__(address, generation)
        self.key = key
        self.counters = [[*counter] for counter in counters] or [[0, 0] for _ in range(COUNTERS_PER_BLOCK)]

    def encode(self, owner: bytes) -> bytes:
        """See ``Block.encode``."""
        return QuotaRecord(
            owner=owner, address=self.address, generation=self.generation,
            key=self.key, body=pack_counters(self.counters),
        ).encode()  # fmt: skip


class LimitsBlock(Block):
    """The limits of some ids."""

    __slots__ = ("key", "limits")

    def __init__(self, address: int, generation: int, key: int, limits: Iterable[Limits] = ()) -> None:
        super().__init__(address, generation)
        self.key = key
        self.limits = list(limits) or [NO_LIMITS] * LIMITS_PER_BLOCK

    def encode(self, owner: bytes) -> bytes:
        """See ``Block.encode``."""
        return QuotaRecord(
            owner=owner, address=self.address, generation=self.generation,
            key=self.key, body=pack_limits(self.limits),
        ).encode()  # fmt: skip


_B = TypeVar("_B", CounterBlock, LimitsBlock)


def record_untrusted(data: Buffer, superblock: Superblock, address: int, key: int) -> tuple[QuotaRecord, str]:
    """A block of quotas, and where it lies for messages.  Raises CorruptRecord."""
    where = f"block {address} (quotas, key {key:#x})"
    found = QuotaRecord.decode_untrusted(data, where, owner=superblock.owner, address=address)
    if found.key != key:
        raise CorruptRecord(where, "key", hex(key), hex(found.key))
    return found, where


def decode_counters_untrusted(data: Buffer, superblock: Superblock, address: int, key: int) -> CounterBlock:
    """The counters in a block that was read.  Raises CorruptRecord."""
    found, where = record_untrusted(data, superblock, address, key)
    return CounterBlock(address, found.generation, key, unpack_counters_untrusted(found.body, where))


def decode_limits_untrusted(data: Buffer, superblock: Superblock, address: int, key: int) -> LimitsBlock:
    """The limits in a block that was read.  Raises CorruptRecord."""
    found, where = record_untrusted(data, superblock, address, key)
    return LimitsBlock(address, found.generation, key, unpack_limits_untrusted(found.body, where))


class QuotaStore:
    """The quota inode of one mount."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        # No INODE lock: no name, handle or damaged directory may lead to this inode.
        self.lock = volume.locks.lock(Resource(QUOTA, QUOTA_INODE, 1), volume.inode_callouts)
        self._own: dict[int, CounterBlock] = {}

    # --- counters ------------------------------------------------------------------------------------------

    async def own(self, kind: int, number: int) -> CounterBlock:
        """The block of this mount's journal for the counter of an id, made if need be.

        Raises OSError ENOSPC, CorruptRecord, DeviceError, Fenced.
        """
        key = counters_key(self._volume.journal.index, kind, number)
        return self._own.get(key) or await self._load_own(key)

    async def _load_own(self, key: int) -> CounterBlock:
        places = await self._places([key])
        block = await self._read_counters(key, places[key]) if places else await self._add(key, CounterBlock)
        return self._own.setdefault(key, block)  # another task may have been faster

    async def others(self, kind: int, number: int) -> Counter:
        """The sum of all other journals' counters of an id, as they are in place.

        Exact while the id's lock is held in EX.  Raises CorruptRecord, DeviceError, Fenced.
        """
        own = self._volume.journal.index
        keys = [
            counters_key(journal, kind, number) for journal in range(self._volume.superblock.journals) if journal != own
        ]
        at = number % COUNTERS_PER_BLOCK
        found: list[list[int]] = []

        async def read(item: tuple[int, int]) -> None:
            found.append((await self._read_counters(*item)).counters[at])

        await for_each((await self._places(keys)).items(), read, workers=READS_AT_ONCE)
        return Counter(sum(blocks for blocks, _ in found), sum(inodes for _, inodes in found))

    async def _read_counters(self, key: int, address: int) -> CounterBlock:
        for attempt in range(TORN_READS_MAX):
            data = await self._volume.device.read(address * BLOCK_BYTES, BLOCK_BYTES)
            try:
                return decode_counters_untrusted(data, self._volume.superblock, address, key)
            except CorruptRecord:
                if attempt == TORN_READS_MAX - 1:
                    raise
            await self._volume.clock.sleep(TORN_PAUSE)
        raise AssertionError("unreachable")

    # --- limits ------------------------------------------------------------------------------------------------

    async def limits(self, kind: int, number: int) -> Limits:
        """The limits of an id, or at id 0 the grace periods.  Raises CorruptRecord, DeviceError, Fenced."""
        key = limits_key(kind, number)
        await self.lock.hold(PR)
        try:
            block = await self._limits_block(await self._inode(), key)
            return block.limits[number % LIMITS_PER_BLOCK] if block is not None else NO_LIMITS
        finally:
            self.lock.drop(PR)

    async def set_limits(self, kind: int, number: int, limits: Limits) -> None:
        """Change the limits of an id whose lock is held in EX.  Raises OSError ENOSPC and as ``limits``."""
        key = limits_key(kind, number)
        await self.lock.hold(EX, exclusive=True)
        try:
            inode = await self._inode()
            block = await self._limits_block(inode, key) or await self._insert(inode, key, LimitsBlock)
            await self._volume.journal.admit()
            # No checkpoint from here (J1).
            inode.lock.blocks[block.address] = block
            block.limits[number % LIMITS_PER_BLOCK] = limits
            self._volume.journal.add(block)
        finally:
            self.lock.drop(EX, exclusive=True)

    async def _limits_block(self, inode: Inode, key: int) -> LimitsBlock | None:
        path = await tree.descend(self._volume, inode, key)
        assert isinstance(path.leaf, ExtentList)
        extent = path.leaf.at(key)
        if extent is None:
            return None
        address = extent.physical + key - extent.logical
        block: Block | None = inode.lock.blocks.get(address)
        if block is None:
            data = await self._volume.device.read(address * BLOCK_BYTES, BLOCK_BYTES)
            found = decode_limits_untrusted(data, self._volume.superblock, address, key)
            block = inode.lock.blocks.setdefault(address, found)
        if not isinstance(block, LimitsBlock):
            raise CorruptRecord(f"block {address}", "quotas", "limits", "another block of their tree")
        return block

    # --- the tree ------------------------------------------------------------------------------------------------

    async def extents(self) -> list[Extent]:
        """All blocks that there are.  Raises CorruptRecord, DeviceError, Fenced."""
        found: list[Extent] = []
        await self.lock.hold(PR)
        try:
            inode = await self._inode()
            key: int | None = 0
            while key is not None:
                path = await tree.descend(self._volume, inode, key)
                assert isinstance(path.leaf, ExtentList)
                found += path.leaf.extents
                key = path.upper
        finally:
            self.lock.drop(PR)
        return found

    async def check(self) -> None:
        """Read all of it.  Raises CorruptRecord, DeviceError, Fenced."""
        for extent in await self.extents():
            for key in range(extent.logical, extent.end):
                meaning = meaning_of(key)
                if meaning is None:
                    raise CorruptRecord(f"inode {QUOTA_INODE} (quotas)", "key", "a type of quotas", hex(key))
                if meaning.journal < 0:
                    await self.all_limits(key)
                else:
                    await self.counted(key, extent.physical + key - extent.logical)

    async def counted(self, key: int, address: int) -> list[list[int]]:
        """All counters of a block, whoever's it is.  Raises CorruptRecord, DeviceError, Fenced."""
        own = self._own.get(key)
        return own.counters if own is not None else (await self._read_counters(key, address)).counters

    async def all_limits(self, key: int) -> list[Limits]:
        """All limits of a block that is there.  Raises CorruptRecord, DeviceError, Fenced."""
        await self.lock.hold(PR)
        try:
            block = await self._limits_block(await self._inode(), key)
            return list(block.limits) if block is not None else []
        finally:
            self.lock.drop(PR)

    async def _inode(self) -> Inode:
        """The quota inode, whose lock is held."""
        if self.lock.subject is None:
            data = await self._volume.device.read(QUOTA_INODE * BLOCK_BYTES, BLOCK_BYTES)
            found = decode_inode_untrusted(data, self._volume.superblock, self.lock)
            if found.inline or not stat.S_ISREG(found.mode):
                raise CorruptRecord(f"inode {QUOTA_INODE} (quotas)", "layout", "the tree of a file", "another")
            if self.lock.subject is None:  # another reader may have been faster
                self.lock.subject = self.lock.blocks[QUOTA_INODE] = found
        inode: Inode = self.lock.subject
        return inode

    async def _places(self, keys: Iterable[int]) -> dict[int, int]:
        """Where the blocks with these keys lie; those that there are."""
        found: dict[int, int] = {}
        await self.lock.hold(PR)
        try:
            inode = await self._inode()
            for key in keys:
                leaf = (await tree.descend(self._volume, inode, key)).leaf
                assert isinstance(leaf, ExtentList)
                extent = leaf.at(key)
                if extent is not None:
                    found[key] = extent.physical + key - extent.logical
        finally:
            self.lock.drop(PR)
        return found

    async def _add(self, key: int, kind: type[CounterBlock]) -> CounterBlock:
        await self.lock.hold(EX, exclusive=True)
        try:
            if key in self._own:
                return self._own[key]
            block = self._own[key] = await self._insert(await self._inode(), key, kind)
            return block
        finally:
            self.lock.drop(EX, exclusive=True)

    async def _insert(self, inode: Inode, key: int, kind: type[_B]) -> _B:
        """Make a block; the quota inode is held exclusively.  In place on return (QS2)."""
        volume = self._volume
        path = await tree.descend(volume, inode, key)
        with Held(volume) as held:
            with await reserve(volume, held, 1 + tree.blocks_needed(path, Extent(key, 1, 1)), 0) as spare:
                # No checkpoint from here (J1).
                block = kind(spare.pop(), spare.group.generation_floor, key)
                inode.blocks += 1
                tree.insert(volume, inode, path, Extent(key, block.address, 1), spare)
                volume.journal.add(block)
                volume.journal.add(inode)
        await volume.journal.commit()
        await volume.journal.place([block.address])
        return block
