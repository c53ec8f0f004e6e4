"""Files open on this node, and the end of files without a name (anchors.md 7.4).

A file that loses its last name becomes an orphan: listed in the orphan directory of the node that removed the
name, deleted by whichever node first holds its INODE and its OPEN lock in EX.  A node that has the file open prevents
that, by one lock or the other: as long as it holds the INODE lock nobody else gets that in EX, and before it gives
that up it takes the OPEN lock in PR, and keeps it until the last close.  So opening a file that is cached costs no
message at all.  Where the kernel opens and closes without telling (``-o localflocks``, coherence.md 6), a file counts
as open as long as the kernel knows it; before the OPEN lock is taken for one, the kernel is told to forget it, which
it does unless the file is in use: so a file that merely was looked at costs no message either.  On every mount the
same goes for what has just lost its last name there: the kernel tells of no O_PATH and of no working directory, but
what it removed, and nobody uses, it forgets at once.  Deletion is tried

- by the node that removed the last name, when its kernel has forgotten the file;
- by a node that closes an orphan for the last time;
- by every node for its own list at mount, and by a replayer for the list of the dead node.
"""

from __future__ import annotations

import logging
import math
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from matrixfs.fs import directories, extents, xattrs
from matrixfs.fs.held import Held
from matrixfs.fs.inode import Inode
from matrixfs.fs.quotas import owner_of
from matrixfs.fs.sanity import check_used
from matrixfs.locks.lock import Lock
from matrixfs.locks.modes import EX, PR
from matrixfs.locks.resources import OPEN, Resource
from matrixfs.ondisk.superblock import ORPHANS_START
from membership.errors import MatrixError

if TYPE_CHECKING:
    from matrixfs.fs.volume import Volume

log = logging.getLogger(__name__)

DELETE_TIMEOUT = 0.2  # seconds to wait for nodes that only cache the OPEN lock to give it up
DELETES_AT_ONCE = 4
BATCH_MAX = 32  # files whose OPEN locks are asked for together
GATHER_SECONDS = 0.01
SHED_INTERVAL = 2.0  # seconds between looks at files that count as open and may not be in use


class Opens:
    """The OPEN locks of one mount, and the deletion of orphans."""

    flushes = False  # the lock is held as long as the file is open: a peer's open must not wait for that
    upgrades = False  # and an open must not wait for the last close elsewhere

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._counts: dict[int, int] = {}
        self._registered: set[int] = set()  # files whose OPEN lock is held
        self._nameless: set[int] = set()  # open files that were made without a name, and may get one
        self._removed: set[int] = set()  # what lost its last name here and counts as open
        self._send, self._receive = trio.open_memory_channel[int](math.inf)  # only numbers, each once
        self._closed = False
        self._queued: set[int] = set()
        self._gathering = trio.Lock()
        self._at_work = 0  # deletions begun
        self._one_ended = trio.lowlevel.ParkingLot()
        self.deleted = 0
        self.left_to_others = 0

    def _lock(self, ino: int) -> Lock:
        return self._volume.locks.lock(Resource(OPEN, ino), self)

    async def surrender(self, lock: Lock, mode: int) -> None:
        """Callout: nothing is cached under an OPEN lock; it is held as long as the file is open here."""

    # --- open files -----------------------------------------------------------------------------------------

    def opened(self, ino: int) -> None:
        """Count an open.  The caller then reads the inode: from there on its INODE lock stands for the open."""
        self._counts[ino] = self._counts.get(ino, 0) + 1

    def closed(self, ino: int) -> None:
        """Count a close; the last one drops the OPEN lock, and has the file deleted if it has no name."""
        count = self._counts[ino] - 1
        if count:
            self._counts[ino] = count
            return
        del self._counts[ino]
        self._nameless.discard(ino)
        self._removed.discard(ino)
        registered = ino in self._registered
        if registered:
            self._registered.discard(ino)
            self._lock(ino).drop(PR)
        inode: Inode | None = self._volume.inode_lock(ino).subject
        if (inode is None and registered) or (inode is not None and inode.nlink == 0):
            self.try_delete(ino)

    async def register(self, ino: int) -> None:
        """Before the INODE lock goes: let the OPEN lock stand for the file being open here.

        Waits for no local operation, and for no node longer than it takes to hand over an idle lock: who wants the
        OPEN lock in EX holds the INODE lock in EX first.
        """
        if ino not in self._counts or ino in self._registered:
            return
        await self._volume.kernel.shed(ino)
        if ino not in self._counts:
            return
        lock = self._lock(ino)
        await lock.hold(PR)
        if ino in self._counts:
            self._registered.add(ino)
        else:
            lock.drop(PR)

    def removed(self, ino: int) -> None:
        """An exclusively held inode loses its last name: it counts as open while the kernel knows it.

        Part of a change.  That is where the kernel can be made to forget what is not in use: a name of it that
        another node removed may stay cached for long.
        """
        if self._volume.kernel.keep(ino):
            self.opened(ino)
        if self.is_open(ino):
            self._removed.add(ino)

    def made_nameless(self, ino: int) -> None:
        """A file was made that has no name, but may get one as long as it is open here."""
        self._nameless.add(ino)

    def named(self, ino: int) -> None:
        """It got one."""
        self._nameless.discard(ino)

    def is_nameless(self, ino: int) -> bool:
        """Whether it was made so, and has no name yet.  One that was removed is not."""
        return ino in self._nameless

    def is_open(self, ino: int) -> bool:
        """Whether it is open on this node."""
        return ino in self._counts

    # --- deletion -------------------------------------------------------------------------------------------

    def try_delete(self, ino: int) -> None:
        """Have it deleted in the background if it is an orphan that nobody has open."""
        if ino not in self._queued and not self._closed and not self.is_open(ino):
            self._queued.add(ino)
            self._send.send_nowait(ino)

    async def adopt(self, journal: int) -> int:
        """Try the orphans that the owner of ``journal`` left; how many there are that are not open here."""
        with Held(self._volume) as held:
            directory = await held.shared(ORPHANS_START + journal)
            numbers = [entry.inode async for entry in directories.entries_from(self._volume, directory, 0)]
        for number in numbers:
            await self._shed_removed(number)
            self.try_delete(number)
        return sum(not self.is_open(number) for number in numbers)

    async def drained(self, seconds: float) -> None:
        """Wait until what is queued has been deleted or left to others, at most ``seconds``."""
        with trio.move_on_after(seconds):
            while (self._queued or self._at_work) and not self._closed:
                await self._one_ended.park()

    def close(self) -> None:
        """Begin no further deletion: what is queued stays in the list of orphans, for the next mount."""
        self._closed = True
        self._send.close()
        self._one_ended.unpark_all()

    async def run(self) -> None:
        """Delete what is queued; until ``close``."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._shed)
            for _ in range(DELETES_AT_ONCE):
                nursery.start_soon(self._work)

    async def _shed(self) -> None:
        """Of what counts as open because the kernel knows it: have it forget what is not in use."""
        while await self._volume.pause(SHED_INTERVAL):
            for ino in list(self._registered):
                await self._volume.kernel.shed(ino)
            for ino in list(self._removed):
                await self._shed_removed(ino)

    async def _shed_removed(self, ino: int) -> None:
        if ino in self._removed and self._counts[ino] == 1:  # else it is open for certain
            await self._volume.kernel.shed(ino)

    async def _work(self) -> None:
        while batch := await self._next_batch():
            self._at_work += len(batch)
            if len(batch) > 1:
                await self._volume.locks.prefetch([self._lock(ino) for ino in batch if not self.is_open(ino)], EX)
            for ino in batch:
                self._queued.discard(ino)
                try:
                    if not self._closed:
                        await self._delete(ino)
                except OSError as error:
                    log.debug("inode %d: not deleted: %s", ino, error)
                except MatrixError as error:
                    log.error("inode %d can't be deleted: %s", ino, error)
                finally:
                    self._at_work -= 1
                    self._one_ended.unpark_all()

    async def _next_batch(self) -> list[int]:
        """Files to delete, several if many are removed: their locks then cost a message for all.  [] at the end."""
        batch: list[int] = []
        async with self._gathering:
            with suppress(trio.EndOfChannel, trio.WouldBlock):
                batch.append(await self._receive.receive())
                await self._volume.clock.sleep(GATHER_SECONDS)
                while len(batch) < BATCH_MAX:
                    batch.append(self._receive.receive_nowait())
        return batch

    async def _delete(self, ino: int) -> None:
        """Delete an inode if it has no name and nobody has it open."""
        if self.is_open(ino):
            return
        volume = self._volume
        with Held(volume) as held:  # most files that are closed have names: don't take their lock from a peer
            if (await held.shared(ino)).nlink:
                return
        with Held(volume) as held:
            inode = await held.exclusive(ino)
            if inode.nlink or not inode.orphaned_by or self.is_open(ino):
                return
            if not await self._nobody_has_it_open(ino):
                self.left_to_others += 1
                return
            await empty(volume, inode)
            orphans = await held.exclusive(ORPHANS_START + inode.orphaned_by - 1)
            place = await directories.locate(volume, orphans, orphan_name(ino))
            await held.quota((owner_of(inode), 0, 0))
            groups = await held.groups({volume.superblock.group_of(ino)})
            await volume.journal.admit()
            # No checkpoint from here (J1).
            check_used(volume.superblock, groups, [(ino, 1)])
            if place.entry is not None:
                directories.remove(volume, orphans, place)
            if volume.quotas is not None:
                volume.quotas.charge(inode, -inode.blocks, -1)
                inode.blocks = 0
            inode.mode = inode.nlink = inode.orphaned_by = inode.flags = 0
            inode.root = b""
            inode.size = inode.size_on_disk = 0
            volume.journal.add(inode)
            for group in groups.values():
                group.generation_floor = max(group.generation_floor, inode.generation)
                volume.allocator.retire(group, inode.lock)
        volume.locks.discard(self._lock(ino))
        self.deleted += 1

    async def _nobody_has_it_open(self, ino: int) -> bool:
        """Whether this node got the OPEN lock alone; then no other node has the file open, nor will open it."""
        lock = self._lock(ino)
        if not await lock.hold(EX, exclusive=True, timeout=DELETE_TIMEOUT):
            return False
        lock.drop(EX, exclusive=True)
        return True


async def empty(volume: Volume, inode: Inode) -> None:
    """Free all blocks that an exclusively held orphan has.  It stays a sound inode of its type, for fsck."""
    volume.write_back.drop(inode)
    volume.write_back.errors.pop(inode.ino, None)
    if inode.is_directory:
        await extents.drop_tree(volume, inode)
    elif not isinstance(inode.root, bytes):
        await extents.truncate(volume, inode, 0)
    await xattrs.drop(volume, inode)


def orphan_name(ino: int) -> bytes:
    """The name of an inode in an orphan directory."""
    return b"%016x" % ino
