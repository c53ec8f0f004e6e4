"""One mounted filesystem: its parts, and the way from an inode number to the inode under its lock."""

from __future__ import annotations

import errno
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

import trio

from matrixfs.fs.allocation import Allocator
from matrixfs.fs.atimes import Atimes
from matrixfs.fs.changes import Changes
from matrixfs.fs.inode import Inode, decode_inode_untrusted, is_other_block
from matrixfs.fs.journal import Journal
from matrixfs.fs.opens import Opens
from matrixfs.fs.quotas import Quotas
from matrixfs.fs.room import Room
from matrixfs.fs.surrender import InodeCallouts
from matrixfs.fs.trim import Trims
from matrixfs.fs.writeback import WriteBack
from matrixfs.locks.cache import LockCache
from matrixfs.locks.lock import Lock
from matrixfs.locks.resources import INODE, RENAME, Resource
from matrixfs.ondisk.superblock import Superblock
from membership.label import BLOCK_BYTES
from membership.seams import Buffer, Clock, Rng, SectorDevice

CLOCKS_APART_MAX_NS = 10**10  # between nodes; what is further ahead was not set by a write
VERSION_MASK = (1 << 64) - 1  # data versions are compared for being the same only
SETTLE_INTERVAL = 1.0  # seconds between rounds that make freed inode numbers usable again

log = logging.getLogger(__name__)


class KernelCaches(Protocol):
    """Makes what the kernel caches unreachable; must never wait long for a local operation (coherence.md)."""

    async def purge_inode(self, ino: int) -> None:
        """Attributes and pages of an inode."""
        ...

    async def purge_names(self, directory_ino: int) -> None:
        """Names of a directory, negative ones too."""
        ...

    def attributes_changed(self, ino: int) -> None:
        """Attributes changed without a request of the kernel; never blocks."""
        ...

    async def shed(self, ino: int) -> None:
        """Have the kernel forget an inode that nobody uses, if its being known counts as open."""
        ...

    def keep(self, ino: int) -> bool:
        """An inode lost its last name: whether from now on its being known counts as open, and did not before."""
        ...

    def knows_directory(self, ino: int) -> bool:
        """Whether a directory of that number is known, be it a removed one: another inode would break it."""
        ...


class NoKernelCaches:
    """For a volume that no kernel looks at: simulation and offline tools."""

    async def purge_inode(self, ino: int) -> None:
        """Nothing is cached."""

    async def purge_names(self, directory_ino: int) -> None:
        """Nothing is cached."""

    def attributes_changed(self, ino: int) -> None:
        """Nothing is cached."""

    async def shed(self, ino: int) -> None:
        """Nothing is known."""

    def keep(self, ino: int) -> bool:
        """Nothing is known."""
        return False

    def knows_directory(self, ino: int) -> bool:
        """Nothing is known."""
        return False


class Volume:
    """What the operations of ``matrixfs.fs`` work on.

    Args:
        device: the filesystem's area, behind the fencing gate.
        superblock: already checked.
        locks: the lock cache, attached to its DLM peer.
        journal: this mount's, already open.
        clock: for file times.
        rng: for numbers that must not repeat.
        is_local: whether this node arbitrates a resource.
        node: node id, so that nodes begin to allocate in different groups.
    """

    def __init__(
        self,
        device: SectorDevice,
        superblock: Superblock,
        locks: LockCache,
        journal: Journal,
        clock: Clock,
        rng: Rng,
        is_local: Callable[[Resource], bool],
        node: int,
    ) -> None:
        self.device = device
        self.superblock = superblock
        self.locks = locks
        self.journal = journal
        self.clock = clock
        self.rng = rng
        self.kernel: KernelCaches = NoKernelCaches()
        self.journal_data = False  # -o data=journal
        start = (node * 2654435761) % (1 << 32) * superblock.groups >> 32
        self.allocator = Allocator(device, superblock, locks, journal, clock, is_local, start)
        self.atimes = Atimes(self)
        self.opens = Opens(self)
        self.write_back = WriteBack(self)
        self.allocator.promises.write_back = self.write_back.begin
        self.changes = Changes(self)
        self.room = Room(self)
        self.trims = self.allocator.trims = Trims(self)
        self.inode_callouts = InodeCallouts(self)
        self.quotas = Quotas(self) if superblock.has_quotas else None
        self._closing = False
        self._pauses: set[trio.CancelScope] = set()
        self._background: trio.Nursery | None = None
        self._background_ended: trio.Event | None = None  # None: ``run`` was not called

    # --- inodes under their locks ---------------------------------------------------------------------------

    def inode_lock(self, ino: int) -> Lock:
        """The lock of inode ``ino``; ESTALE for a number that no inode can have."""
        lock = self.locks.find(Resource(INODE, ino))
        if lock is None:
            if not self.superblock.is_inode_number(ino):
                raise OSError(errno.ESTALE, f"{ino} is no inode number")
            lock = self.locks.lock(Resource(INODE, ino), self.inode_callouts)
        return lock

    async def load(self, lock: Lock) -> Inode:
        """The inode of a held lock.

        Raises:
            OSError: ESTALE when it was deleted.
            CorruptRecord, DeviceError, Fenced: its block can't be read.
        """
        inode: Inode | None = lock.subject
        if inode is None:
            self.take_in(lock, await self.device.read(lock.number * BLOCK_BYTES, BLOCK_BYTES))
            inode = lock.subject
        assert inode is not None
        if inode.mode == 0:
            raise OSError(errno.ESTALE, "deleted")
        return inode

    def take_in(self, lock: Lock, data: Buffer) -> None:
        """Cache the inode of a held lock from its block, unless another reader was faster.

        Raises:
            OSError: ESTALE when its block is used for something else.
            CorruptRecord: it is damaged.
        """
        if lock.subject is None:
            if is_other_block(data, self.superblock, lock.number):
                raise OSError(errno.ESTALE, "deleted, and its block is used for something else")
            lock.subject = decode_inode_untrusted(data, self.superblock, lock)
            lock.blocks[lock.number] = lock.subject

    def use(self, inode: Inode, blocks: int) -> None:
        """An exclusively held inode has so many blocks more, or less.  Part of a change.

        A count that is wrong on the store stays within bounds, until fsck corrects it.
        """
        before, inode.blocks = inode.blocks, max(0, inode.blocks + blocks)
        if self.quotas is not None:
            self.quotas.charge(inode, inode.blocks - before)

    def rename_lock(self) -> Lock:
        """The one lock under which directories move."""
        return self.locks.lock(Resource(RENAME, 0), self.inode_callouts)

    # --- times -----------------------------------------------------------------------------------------------

    def touch(self, inode: Inode, *, data: bool) -> None:
        """The inode changed; with ``data``, so did its contents: mtime then is another one (coherence.md, point 2).

        It grows strictly as long as nodes' clocks are together; one set far ahead (``touch -d``) comes back to now.
        """
        now = self.clock.wall_ns()
        self.atimes.take_along(inode)
        inode.ctime_ns = now
        if data:
            ahead_ns = inode.mtime_ns - now
            inode.mtime_ns = inode.mtime_ns + 1 if 0 <= ahead_ns < CLOCKS_APART_MAX_NS else now
            inode.data_version = (inode.data_version + 1) & VERSION_MASK
        self.journal.add(inode)

    def forgotten(self, ino: int) -> None:
        """The kernel refers to the inode no more; what we cache of it stays, under its lock."""

    # --- background ------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Commit, check-point, write back, delete orphans, settle freed numbers; until cancelled."""
        self._background_ended = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.journal.run)
            task_status.started()
            async with trio.open_nursery() as background:
                self._background = background
                background.start_soon(self.atimes.run)
                background.start_soon(self.opens.run)
                background.start_soon(self.trims.run)
                background.start_soon(self.write_back.run)
                if self.quotas is not None:
                    background.start_soon(self.quotas.run)
                background.start_soon(self._settle)
            self._background_ended.set()

    def spawn(self, work: Callable[[], Awaitable[None]]) -> bool:
        """Begin background work, which ends by itself; False if the volume closes, or ``run`` was not called."""
        if self._background is None or self._closing:
            return False
        self._background.start_soon(work)
        return True

    async def pause(self, seconds: float) -> bool:
        """Sleep between two rounds of background work; False, at once, when the volume closes: no further round."""
        with trio.CancelScope() as scope:
            self._pauses.add(scope)
            try:
                if not self._closing:
                    await self.clock.sleep(seconds)
            finally:
                self._pauses.discard(scope)
        return not self._closing

    async def _settle(self) -> None:
        while await self.pause(SETTLE_INTERVAL):
            await self.allocator.settle()

    async def _end_background(self) -> None:
        """Let background work end what it has begun, since it takes locks and changes blocks."""
        self._closing = True
        self.opens.close()
        for scope in self._pauses:
            scope.cancel()
        if self._background_ended is not None:
            await self._background_ended.wait()

    async def sync(self) -> None:
        """Everything written so far is durable on return."""
        await self.write_back.all()
        await self.journal.sync()

    async def close(self) -> None:
        """Flush all, give up all locks, leave a clean journal.  No operation may be running."""
        await self._end_background()
        await self.atimes.close()
        await self.sync()
        await self.allocator.settle()
        await self.trims.round()
        await self.locks.leave()
        await self.journal.close()
