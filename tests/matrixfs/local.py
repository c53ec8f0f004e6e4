"""One filesystem mounted alone, on a simulated disk, with a lock manager that grants everything at once.

For tests of the filesystem's core that need no second node.  ``mounted`` gives the product's own volume, journal and
lock cache; a mount that is cut off instead of left is replayed by the next ``mounted``.
"""

from __future__ import annotations

import stat
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import trio

from dlm.client import PLAIN_GRANTS, Grant
from dlm.names import Resource
from matrixfs.fs import namespace
from matrixfs.fs.inode import Inode
from matrixfs.fs.journal import Journal
from matrixfs.fs.mkfs import format_volume
from matrixfs.fs.opening import read_superblock
from matrixfs.fs.replay import read_journal_header, replay
from matrixfs.fs.volume import Volume
from matrixfs.locks.cache import LockCache
from matrixfs.ondisk.superblock import ROOT_INODE
from tests.sim.disk import SimDisk
from tests.sim.network import SimClock, SimRng

MIB = 1 << 20


async def eventually(condition: Callable[[], object]) -> None:
    """Wait for what a background task will do."""
    while not condition():  # noqa: ASYNC110 - nobody sets an event for it
        await trio.sleep(0.001)


class GrantsAll:
    """A lock manager without peers."""

    def __init__(self) -> None:
        self.held: dict[Resource, int] = {}
        self.cache: LockCache

    def request(
        self, resource: Resource, mode: int, *, try_: bool = False, extras: Sequence[Resource] = ()
    ) -> Grant:
        self.held[resource] = mode
        for extra in extras:
            self.held[extra] = mode
            self.cache.granted(extra, PLAIN_GRANTS[mode])
        return PLAIN_GRANTS[mode]

    def release(self, resource: Resource, mode: int, value: bytes | None) -> None:
        self.held[resource] = mode

    def cancel(self, resource: Resource) -> None:
        raise AssertionError("everything is granted at once")


class Local:
    """A mount."""

    def __init__(self, disk: SimDisk, volume: Volume, locks: LockCache, manager: GrantsAll) -> None:
        self.disk = disk
        self.volume = volume
        self.locks = locks
        self.manager = manager
        self.failures: list[BaseException] = []

    async def file(self, name: bytes, parent: int = ROOT_INODE) -> Inode:
        """A new empty file."""
        return await namespace.create(self.volume, parent, name, stat.S_IFREG | 0o644, 0, 0)

    async def directory(self, name: bytes, parent: int = ROOT_INODE) -> Inode:
        """A new directory."""
        return await namespace.mkdir(self.volume, parent, name, 0o755, 0, 0)

    async def give_up(self, ino: int) -> None:
        """A peer wants an inode's lock: all that is cached under it goes."""
        lock = self.volume.inode_lock(ino)
        self.locks.revoke(lock.resource, 0)
        await eventually(lambda: not lock.mode)


async def small_disk(
    *, size: int = 16 * MIB, journal_blocks: int | None = 64, seed: int = 1, quotas: bool = False
) -> SimDisk:
    """A disk with an empty filesystem of two journals."""
    disk = SimDisk(size, 4096, seed)
    await format_volume(
        disk, name="t", journals=2, journal_blocks=journal_blocks, clock=SimClock(), rng=SimRng(seed), quotas=quotas
    )
    disk.mark()
    return disk


@asynccontextmanager
async def mounted(
    disk: SimDisk | None = None, *, clean: bool = True, index: int = 0, **options: int
) -> AsyncIterator[Local]:
    """A mount of ``disk``, or of a new one; left cleanly at the end of the block, or cut off if not ``clean``.

    ``index``: its journal.
    """
    disk = disk or await small_disk(**options)
    superblock = await read_superblock(disk)
    for number in range(superblock.journals):
        await replay(disk, superblock, number, expect=None)
    failures: list[BaseException] = []
    clock, manager = SimClock(), GrantsAll()
    locks = LockCache(clock, failures.append)
    locks.attach(manager)
    manager.cache = locks
    journal = Journal(disk, superblock, index, clock)
    journal.open(await read_journal_header(disk, superblock, index), 0, 1, disk.rng.getrandbits(63))
    volume = Volume(disk, superblock, locks, journal, clock, SimRng(2), lambda _: True, 0)
    local = Local(disk, volume, locks, manager)
    local.failures = failures
    async with trio.open_nursery() as nursery:
        await nursery.start(locks.run)
        await nursery.start(volume.run)
        yield local
        if clean:
            await volume.close()
        nursery.cancel_scope.cancel()
    assert not failures
