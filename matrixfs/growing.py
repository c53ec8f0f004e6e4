"""Growing a mounted filesystem: what one mount process does when ``matrixctl fs grow`` asks it to.

The order of it (a crash after any step leaves a filesystem that needs no repair):

1. Take the SHAPE lock: one grows at a time, and whoever comes next knows the superblock that we write.
2. Measure the store; write the label that says how much of it is data: its copy to the new end, then block 0.
3. ``fs.grow.prepare``: bitmaps of the new groups, the superblock's copy.
4. ``Member.at_barrier``: with everybody suspended, the superblock.
5. Enlarge the group that was last, commit.
6. Journals, if more are wanted: room in groups, ``fs.grow.prepare_journals``, the superblock once more as in 4.

The label comes before the superblock, since an area may be larger than its filesystem, never smaller.  It is read
again by each matrixd within seconds (membership/disks.py), and by each mount that finds the superblock larger than
what it knows of the area (``current_superblock``).

Source: issue 5 ("the filesystem grown live"); decision 0021.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Final

import trio

from matrixfs.blockstore.device.file import FileDevice
from matrixfs.fs.grow import plan, prepare, prepare_journals
from matrixfs.fs.journal_space import JournalSpace
from matrixfs.fs.opening import read_superblock
from matrixfs.locks.modes import EX
from matrixfs.locks.resources import SHAPE, Resource
from matrixfs.ondisk.superblock import JOURNALS_MAX
from membership.control_wire import Message, take, take_natural
from membership.errors import CorruptRecord, MatrixError, OperatorError
from membership.label import BLOCK_BYTES, Label, read_label
from membership.orders import Told

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matrixfs.answers import Handler
    from matrixfs.blockstore.device.api import Store
    from matrixfs.blockstore.device.window import Window
    from matrixfs.fs.volume import Volume
    from matrixfs.locks.lock import Lock
    from matrixfs.member import Member
    from matrixfs.ondisk.superblock import Superblock
    from membership.seams import SectorDevice

LOCK_SECONDS: Final = 5.0  # to wait for who else grows the filesystem

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Progress:
    """How far the last request is, for who asked."""

    serial: int = 0  # counts requests
    step: str = ""  # what is being done; "" nothing, it is over
    error: str = ""  # why it failed
    exit_code: int = 0  # of that error
    blocks_before: int = 0  # that files could have
    blocks: int = 0  # that files can have
    journals: int = 0  # that there are


class Grower:
    """See the module.

    Args:
        member: the mount; its volume may not be there yet.
        store: the whole store, to be measured.
        disk: the same, with the right to write.
        area: the data area on it, which everything else works on.
    """

    flushes = False  # callouts of the SHAPE lock: nothing is cached under it
    upgrades = False
    _shape = Resource(SHAPE, 0)

    def __init__(self, member: Member, store: Store, disk: SectorDevice, area: Window) -> None:
        self._member = member
        self._store = store
        self._disk = disk
        self._area = area
        self._send: trio.MemorySendChannel[int]  # journals that there shall be
        self._send, self._receive = trio.open_memory_channel(0)
        self._working = trio.Lock()
        self.progress = Progress()

    def handlers(self) -> Mapping[str, Handler]:
        """The questions, for ``Answers``."""
        return {"fs": self.shape, "fs.enlarge": self.enlarge, "fs.grow": self.grow}

    async def run(self) -> None:
        """Carry out what is asked for; until cancelled.  Raises what ``at_barrier`` does."""
        async for journals in self._receive:
            async with self._working:
                await self._grow_or_note(self._volume(), journals)

    async def close(self) -> None:
        """Before the mount leaves: wait for what is under way, begin nothing more."""
        self._send.close()
        await self._working.acquire()

    async def surrender(self, lock: Lock, mode: int) -> None:
        """Callout: a peer wants to grow it."""

    # --- questions -----------------------------------------------------------------------------------------

    async def shape(self, _arguments: Message) -> Message:
        """How large the filesystem and its store are, and how far the last growth is.  Raises MatrixError."""
        volume = self._volume()
        label = await read_label(self._disk)
        superblock = volume.superblock
        return {
            "disk": label.disk_uuid,
            "file": isinstance(self._store, FileDevice),
            "store_bytes": await self._store.measure(),
            "data_block": label.data_block,
            "blocks_total": superblock.blocks_total,
            "blocks": superblock.capacity(),
            "groups": superblock.groups,
            "journals": superblock.journals,
            "progress": asdict(self.progress),
        }

    async def enlarge(self, arguments: Message) -> None:
        """Make the file that is the store of ``fs`` ``size`` bytes long.  Raises OperatorError, BadMessage."""
        if not self._is_meant(arguments):
            return
        size = take_natural(arguments, "size", 63)
        if not isinstance(self._store, FileDevice):
            raise OperatorError(f"{self._store.name} is no file: enlarge it where it is made, and leave --size out")
        present = await self._store.measure()
        if size < present:
            raise OperatorError(f"{self._store.name} has {present} bytes: a filesystem can't shrink")
        self._store.enlarge(size)
        await self._store.measure()

    def grow(self, arguments: Message) -> int:
        """Begin to grow ``fs`` over its store, and to ``journals``; the serial number of this request.

        Raises OperatorError, BadMessage.
        """
        if not self._is_meant(arguments):
            return 0
        journals, present = take_natural(arguments, "journals", 31), self._volume().superblock.journals
        if journals and not present <= journals <= JOURNALS_MAX:
            raise OperatorError(f"it has {present} journals: it may get more, {JOURNALS_MAX} in all, never fewer")
        try:
            self._send.send_nowait(journals)
        except (trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError):
            raise OperatorError("this mount is being grown already, or unmounted: try again in a moment") from None
        self.progress = Progress(self.progress.serial + 1, "begin")
        return self.progress.serial

    def _is_meant(self, arguments: Message) -> bool:
        """Whether the question is for this mount: all mounts of the node get it."""
        return take(arguments, "fs", str) == self._volume().superblock.name

    def _volume(self) -> Volume:
        if self._member.volume is None:
            raise OperatorError("the tree is still being mounted: try again")
        return self._member.volume

    # --- the work -------------------------------------------------------------------------------------------

    async def _grow_or_note(self, volume: Volume, journals: int) -> None:
        progress = self.progress
        try:
            await self._grow(volume, journals, progress)
        except MatrixError as error:
            log.error("growing failed: %s", error)
            progress.error, progress.exit_code = str(error), error.exit_code
        finally:
            progress.step = ""

    async def _grow(self, volume: Volume, journals: int, progress: Progress) -> None:
        progress.step = "wait for the lock"
        lock = volume.locks.lock(self._shape, self)
        if not await lock.hold(EX, exclusive=True, timeout=LOCK_SECONDS):
            raise OperatorError("another mount grows or freezes it just now: try again after that (matrixctl status)")
        try:
            await volume.changes.enter()
            try:
                await self._grow_area(volume, progress)
                await self._add_journals(volume, journals, progress)
            finally:
                volume.changes.leave()
        finally:
            lock.drop(EX, exclusive=True)

    async def _grow_area(self, volume: Volume, progress: Progress) -> None:
        before = replace(volume.superblock)
        progress.blocks_before = progress.blocks = before.capacity()
        label = await read_label(self._disk)
        after = plan(before, await self._data_blocks(label))
        if after is None:
            return
        progress.step = "write the label"
        await self._write_label(label, after.blocks_total)
        self._area.extend(after.blocks_total * BLOCK_BYTES)
        progress.step = "write bitmaps"
        growth = await prepare(self._area, before, after)
        progress.step = "have all mounts look"
        await self._member.at_barrier(lambda: growth.apply(self._area))
        progress.step = "enlarge the last group"
        await volume.allocator.enlarge(before.groups - 1)
        await volume.journal.commit()
        progress.blocks = after.capacity()
        await self._tell(f"grown from {before.blocks_total} to {after.blocks_total} blocks")

    async def _add_journals(self, volume: Volume, journals: int, progress: Progress) -> None:
        before = replace(volume.superblock)
        progress.journals = before.journals
        if journals <= before.journals:
            return
        progress.step = "make journals"
        space = JournalSpace(volume)
        try:
            await space.take(journals - before.journals)
            growth = await prepare_journals(self._area, before, space.runs, space.length, volume.rng)

            async def add() -> None:
                await growth.apply(self._area)
                volume.superblock.take_over(growth.after)  # no checkpoint up to the marks in the bitmaps
                space.use()

            progress.step = "have all mounts look"
            await self._member.at_barrier(add)
            await volume.journal.commit()
        finally:
            space.close()
        progress.journals = journals
        await self._tell(f"{journals - before.journals} journals added, {journals} in all")

    async def _tell(self, text: str) -> None:
        log.info("%s", text)
        await self._member.reply(Told(text))

    async def _data_blocks(self, label: Label) -> int:
        """Blocks that the store has for data now."""
        return await self._store.measure() // BLOCK_BYTES - 1 - label.data_block

    async def _write_label(self, label: Label, data_blocks: int) -> None:
        """The label of a disk whose store was enlarged; its copy first, so that one of both is good at any time."""
        if data_blocks <= label.data_blocks:
            return  # an earlier attempt came so far
        label.data_blocks = data_blocks
        for block in (label.data_block + data_blocks, 0):
            label.address = block
            await self._disk.write(block * BLOCK_BYTES, label.encode(), durable=True)


async def current_superblock(store: Store, disk: SectorDevice, area: Window) -> Superblock:
    """The superblock in ``area``, which is extended first if the filesystem has grown.

    Args:
        store: measured then.
        disk: the whole of it, for its label.
        area: the data area, as far as it is known.

    Raises:
        OperatorError: made by a newer version, or this node sees a smaller store than the one that wrote it.
        CorruptRecord: damaged.
        DeviceError, Fenced: I/O failed.
    """
    try:
        return await read_superblock(area)
    except CorruptRecord as error:
        if error.check != "size":
            raise
    await store.measure()
    label = await read_label(disk)
    area.extend(label.data_blocks * BLOCK_BYTES)
    return await read_superblock(area)
