"""Writing buffered file data to the store: delayed allocation, data before the metadata that names it (J4).

Blocks that the data needs were promised before it was buffered (``promises``): a flush finds them.
"""

from __future__ import annotations

import contextlib
import errno
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import trio

from matrixfs.fs import data_journal, extents, new_blocks, remap, tree
from matrixfs.fs.blocks import ExtentList
from matrixfs.fs.inode import Inode, no_extents
from matrixfs.fs.parallel import for_each
from matrixfs.fs.promises import Claim, tree_bound
from matrixfs.locks.lock import Lock
from matrixfs.locks.modes import EX
from matrixfs.ondisk.extent import Extent
from membership.label import BLOCK_BYTES
from membership.seams import Buffer

if TYPE_CHECKING:
    from matrixfs.fs.quotas import Quotas
    from matrixfs.fs.volume import Volume

log = logging.getLogger(__name__)

RUN_BLOCKS = 1024  # blocks written at once: 4 MiB
FILE_BYTES_MAX = 4 << 20  # buffered bytes of one file beyond which its writer writes back
TOTAL_BYTES_MAX = 128 << 20  # and of all files
AGE_MAX = 3.0  # seconds that data stays buffered though nobody asks
WRITES_AT_ONCE = 4
DURABLE_BLOCKS_MAX = 16  # an overwrite up to this size is made durable by itself, without a flush
WRITE_RANGES_MAX = 3  # ranges more that a write makes: a part of it, the rest of one cut in two, zeros before it
EXTENTS_SPARE = 4  # that an operation may add beside what is buffered: a hole is punched between two
CHUNK_BLOCKS = 256  # written in one request: 1 MiB, aligned, so that large writes need no copy here


class WriteBack:
    """The files of a volume with buffered data."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._since: dict[int, float] = {}  # inode number -> when its oldest buffered byte was written
        self._promised: dict[int, tuple[int, int]] = {}  # inode number -> blocks promised; those of its quotas
        self.errors: dict[int, int] = {}  # inode number -> errno to report at the next fsync or close
        self.length = 0  # buffered bytes
        self._makes_way = False  # ``_make_way`` is under way

    async def admit(self, inode: Inode, offset: int, length: int) -> Claim:
        """Before ``length`` bytes are buffered at ``offset``: have room for them, until the end of the claim.

        Raises OSError ENOSPC, EDQUOT.
        """
        blocks = length // BLOCK_BYTES + 2
        quotas = self._volume.quotas
        if quotas is not None and not quotas.has_room(inode, blocks):
            await self._ask_quotas(quotas, inode, offset, length)
        promises = self._volume.allocator.promises
        more = self._more(inode, length)
        if inode.dirty is not None and not promises.covered(more):
            # Who waits for a peer's group has nothing buffered: else the peer, giving it up, may wait for that.
            await self.flush(inode)
            more = self._more(inode, length)
        try:
            return await promises.make(more)
        except OSError:
            if await self._has_blocks(inode, offset, length):
                return Claim(promises, 0)
            return await self._by_exact_need(inode, offset, length)

    def _more(self, inode: Inode, length: int) -> int:
        """At most so many blocks more are to be promised if ``length`` bytes are buffered in one place."""
        after = self._bound(inode, length // BLOCK_BYTES + 1 + 1, WRITE_RANGES_MAX)  # a part of one, zeros before it
        return after - self._promised.get(inode.ino, (0, 0))[0]

    @staticmethod
    def _bound(inode: Inode, more: int = 0, ranges_more: int = 0) -> int:
        """Blocks that writing back an inode uses at most; with ``more``, in more ranges."""
        dirty, root = inode.dirty, inode.root
        ranges = ranges_more + (dirty.ranges if dirty is not None else 0)
        blocks = more + 2 * ranges_more + (dirty.blocks_bound() if dirty is not None else 0)
        if isinstance(root, bytes):
            blocks += 1  # what lies in the inode moves out
        if blocks + EXTENTS_SPARE > inode.extents_free:
            blocks += tree_bound(inode.depth, blocks, ranges)
        return blocks

    async def _ask_quotas(self, quotas: Quotas, inode: Inode, offset: int, length: int) -> None:
        """Room is short, or not known yet.  Promises are upper bounds: near a limit only exact ones do."""
        try:
            await quotas.check(inode, length // BLOCK_BYTES + 2, is_bound=True)
        except OSError as error:
            if error.errno != errno.EDQUOT:
                raise
            await self.flush(inode)
            await self.ask_quotas_exactly(inode, await self._missing(inode, offset, length))

    async def ask_quotas_exactly(self, inode: Inode, blocks: int) -> None:
        """Make sure that an exclusively held file that has nothing buffered may have blocks.  OSError EDQUOT."""
        quotas = self._volume.quotas
        if quotas is not None and blocks:
            await self._idle_ones()  # promises are upper bounds
            await quotas.check(inode, blocks)

    async def _missing(self, inode: Inode, offset: int, length: int) -> int:
        """How many blocks an exclusively held file that has nothing buffered needs for these bytes."""
        first, end = offset // BLOCK_BYTES, -(-(offset + length) // BLOCK_BYTES)
        if isinstance(inode.root, bytes):  # what lies in the inode moves out
            return end - first + (-(-min(len(inode.root), offset) // BLOCK_BYTES) if first else 0)
        found = await extents.pieces(self._volume, inode, first, end - first)
        return sum(piece.length for piece in found if not piece.physical)

    async def _has_blocks(self, inode: Inode, offset: int, length: int) -> bool:
        """Whether an exclusively held file has blocks for these bytes already."""
        if inode.inline:
            return False
        first, end = offset // BLOCK_BYTES, -(-(offset + length) // BLOCK_BYTES)
        return all(piece.physical for piece in await extents.pieces(self._volume, inode, first, end - first))

    async def _by_exact_need(self, inode: Inode, offset: int, length: int) -> Claim:
        """As ``admit``, where upper bounds find no room."""
        await self.flush(inode)
        blocks = await self._missing(inode, offset, length)
        if not isinstance(inode.root, bytes):
            path = await tree.descend(self._volume, inode, offset // BLOCK_BYTES)
            assert isinstance(path.leaf, ExtentList)
            is_in_leaf = path.upper is None or offset + length <= path.upper * BLOCK_BYTES
            if not is_in_leaf or len(path.leaf) + blocks + EXTENTS_SPARE > path.leaf.capacity:
                blocks += tree_bound(inode.depth, length // BLOCK_BYTES + 2, 1)
        return await self.make_room(inode, blocks)

    async def make_room(self, inode: Inode, blocks: int) -> Claim:
        """Have room for so many blocks more for an exclusively held file, until the claim's end.  OSError ENOSPC."""
        promises = self._volume.allocator.promises
        with contextlib.suppress(OSError):
            return await promises.make(blocks)
        if self._since:  # promises are upper bounds: the exact need may be smaller
            await self._idle_ones()
            await self.flush(inode)
        with contextlib.suppress(OSError):
            return await promises.make(blocks)
        await self._volume.journal.commit()  # what was freed may be used again
        return await promises.make(blocks)

    def noted(self, inode: Inode, length: int) -> None:
        """``length`` bytes more are buffered for an exclusively held inode."""
        assert inode.dirty is not None
        self._since.setdefault(inode.ino, self._volume.clock.monotonic())
        self.length += length
        self._promise(inode)

    @property
    def idle(self) -> bool:
        """Nothing is buffered."""
        return not self._since

    def _promise(self, inode: Inode) -> None:
        """Promise what the buffered bytes of a file may need now."""
        before, quota_before = self._promised.pop(inode.ino, (0, 0))
        blocks = quota_blocks = 0
        if inode.dirty is not None:
            blocks, quota_blocks = self._bound(inode), inode.dirty.blocks_bound()
            self._promised[inode.ino] = (blocks, quota_blocks)
        self._volume.allocator.promises.add(blocks - before)
        if quota_blocks != quota_before and self._volume.quotas is not None:
            self._volume.quotas.promise(inode, quota_blocks - quota_before)

    def used(self, inode: Inode, blocks: int) -> None:
        """A file has blocks that were promised.  Part of the change that says so."""
        promised, quota_blocks = self._promised.get(inode.ino, (0, 0))
        blocks = min(blocks, promised)
        if blocks:
            self._promised[inode.ino] = (promised - blocks, quota_blocks)
            self._volume.allocator.promises.add(-blocks)

    def drop(self, inode: Inode) -> None:
        """Forget what is buffered: the file was emptied, deleted, or can't be written."""
        if inode.dirty is not None:
            self.length -= inode.dirty.length
            inode.dirty = None
            self._promise(inode)
            self._since.pop(inode.ino, None)

    def shrunk(self, inode: Inode, before: int) -> None:
        """The buffered bytes of a file changed from ``before``, for example by a truncation."""
        assert inode.dirty is not None
        self.length += inode.dirty.length - before
        self._promise(inode)

    def pressing(self, inode: Inode) -> bool:
        """Whether the writer should write back now."""
        return inode.dirty is not None and (
            inode.dirty.length >= FILE_BYTES_MAX or self.length >= TOTAL_BYTES_MAX or self._presses_quotas(inode)
        )

    def _presses_quotas(self, inode: Inode) -> bool:
        quotas = self._volume.quotas
        return quotas is not None and quotas.is_pressing(inode)

    async def relieve(self, inode: Inode) -> None:
        """Write back what presses: the writer's file, and where it presses a quota others of its owners.  OSError."""
        await self.flush(inode)
        if self._presses_quotas(inode):
            await self._idle_ones()

    # --- rounds --------------------------------------------------------------------------------------------

    def begin(self) -> bool:
        """Write back, beside the caller, as long as a group waits for it; False where there is no background work."""
        if not self._makes_way:
            self._makes_way = self._volume.spawn(self._make_way)
        return self._makes_way

    async def _make_way(self) -> None:
        promises = self._volume.allocator.promises
        await self._volume.changes.enter()
        try:
            while promises.is_pressed:
                await self._idle_ones()  # first: who uses a file may wait for what another node holds
                await self.all()
                if self.idle and promises.is_pressed:
                    await promises.moved()
                await trio.lowlevel.checkpoint()
        finally:
            self._volume.changes.leave()
            self._makes_way = False

    async def run(self) -> None:
        """Write back what is old; until cancelled."""
        while await self._volume.pause(1.0):
            now = self._volume.clock.monotonic()
            old = [ino for ino, since in self._since.items() if now - since >= AGE_MAX]
            if old:
                await self._volume.changes.enter()
                try:
                    await self._some(old)
                finally:
                    self._volume.changes.leave()

    async def all(self) -> None:
        """Write back everything buffered at the time of the call."""
        await self._some(list(self._since))

    async def _some(self, numbers: list[int]) -> None:
        async def one(ino: int) -> None:
            lock = self._volume.inode_lock(ino)
            if lock.mode < EX:
                return  # surrendered meanwhile, and flushed with that
            await lock.hold(EX, exclusive=True)
            await self._flush_held(lock)

        await for_each(numbers, one, workers=WRITES_AT_ONCE)

    async def _idle_ones(self) -> None:
        """Write back what nobody is using: the caller holds a file, so it must not wait for another's lock."""
        for ino in list(self._since):
            lock = self._volume.inode_lock(ino)
            if lock.try_hold(EX, exclusive=True):
                await self._flush_held(lock)

    async def _flush_held(self, lock: Lock) -> None:
        try:
            if lock.subject is not None:
                await self.flush_or_note(lock.subject)
        finally:
            lock.drop(EX, exclusive=True)

    # --- one file --------------------------------------------------------------------------------------------

    async def flush_or_note(self, inode: Inode) -> None:
        """Flush where nobody can be told of a lack of space: it is reported at the next fsync or close."""
        try:
            await self.flush(inode)
        except OSError as error:
            log.error("inode %d: buffered data is lost: %s", inode.ino, error)
            self.errors[inode.ino] = error.errno or errno.EIO
            self.drop(inode)
            inode.size = inode.size_on_disk if not inode.inline else len(inode.root)  # type: ignore[arg-type]

    async def flush_beside(self, inode: Inode, metadata: Callable[[], Awaitable[object]]) -> None:
        """Flush where nobody can be told, and await ``metadata``, which makes the inode's blocks durable.

        The one while the other, if the data goes over blocks that the file has already and its size stays.  No
        transaction makes such data reachable, so J4 asks for no order (docs/decisions/0014): after a crash each sector
        is the old one or the new one, as it is when the power goes before the flush.

        Raises:
            DeviceError, Fenced, CorruptionError: the mount withdraws.
        """
        overwritten = await self._overwritten(inode)
        if not overwritten:
            if inode.dirty is not None:
                await self.flush_or_note(inode)
            await metadata()
            return

        async def data() -> None:
            for extent in overwritten:
                await self._write(inode, extent, mapped=True, durable=True)

        await for_each((data, metadata), lambda part: part(), workers=2)
        self.drop(inode)

    async def _overwritten(self, inode: Inode) -> list[Extent]:
        """The blocks of a small change that leaves the file's extents and size as they are; else none."""
        dirty = inode.dirty
        if dirty is None or inode.inline or inode.size != inode.size_on_disk:
            return []
        if data_journal.wanted(self._volume, inode):
            return []
        if dirty.blocks_bound() > DURABLE_BLOCKS_MAX:
            return []
        found: list[Extent] = []
        for first, count in list(dirty.block_runs(RUN_BLOCKS)):
            found += await extents.pieces(self._volume, inode, first, count)
        return found if all(extent.written for extent in found) else []

    async def flush(self, inode: Inode) -> None:
        """Write all buffered data of an inode that nobody else can change now.

        Raises:
            OSError: ENOSPC; what is not written stays buffered.
            DeviceError, Fenced: the mount withdraws.
        """
        dirty = inode.dirty
        if dirty is None:
            return
        told = inode.blocks512
        base = inode.root if isinstance(inode.root, bytes) else None
        if base is not None:  # the file outgrows its inode: its old bytes are written with the new ones
            merged = bytearray(base)
            dirty.overlay(0, merged)
            before = dirty.length
            dirty.write(0, merged)
            self.length += dirty.length - before
        images: data_journal.Images = []
        if data_journal.wanted(self._volume, inode):
            images = await data_journal.write_runs(self._volume, inode)
        else:
            for first, count in list(dirty.block_runs(RUN_BLOCKS)):
                await self._flush_run(inode, first, count)
        await self._volume.journal.admit()
        # No checkpoint from here: the size follows the data (J4).
        data_journal.stage(self._volume, inode, images)
        if inode.inline:
            inode.root = no_extents()
        inode.size_on_disk = inode.size
        self._volume.journal.add(inode)
        self.drop(inode)
        if inode.blocks512 != told:
            self._volume.kernel.attributes_changed(inode.ino)

    async def _flush_run(self, inode: Inode, first: int, count: int) -> None:
        """Write ``count`` blocks from ``first``, all touched by buffered data."""
        volume = self._volume
        if inode.inline:
            pieces = [Extent(first, 0, count)]
        else:
            pieces = await extents.pieces(volume, inode, first, count)
        near = 0
        for piece in pieces:
            if piece.written:  # the file has these blocks already: no metadata waits for the data (J4 doesn't apply)
                durable = piece.length <= DURABLE_BLOCKS_MAX
                await self._write(inode, piece, mapped=True, durable=durable)
                if not durable:
                    self._volume.journal.data_written()
                near = piece.physical + piece.length
            elif piece.physical:
                await self.write_reserved(inode, piece)
                near = piece.physical + piece.length
            else:
                near = await new_blocks.allocate(
                    volume, inode, piece, near, lambda extent: self.write_in_place(inode, extent)
                )

    async def write_in_place(self, inode: Inode, extent: Extent) -> None:
        """Write blocks whose old content is nobody's, before a transaction makes them reachable (J4)."""
        await self._write(inode, extent, mapped=False)
        self._volume.journal.data_written()

    async def write_reserved(self, inode: Inode, piece: Extent) -> None:
        """Write blocks that are unwritten, and then say that they are not.  Needs no space.

        No checkpoint at its end.
        """
        volume = self._volume
        await self.write_in_place(inode, piece)
        try:
            await remap.set_flags(volume, inode, piece, 0)
        except OSError:  # ENOSPC, no block for the tree: then the whole extent, which needs none
            piece = await self._whole_within_size(inode, piece)
            await self.write_in_place(inode, piece)
            await remap.set_flags(volume, inode, piece, 0)
        new_blocks.size_follows(volume, inode, piece.end)

    async def _whole_within_size(self, inode: Inode, piece: Extent) -> Extent:
        """The extent that ``piece`` is of, cut at the end of the file: behind it nothing may be written."""
        extent = await remap.whole(self._volume, inode, piece.logical)
        end = -(-inode.size // BLOCK_BYTES)
        if end >= extent.end:
            return extent
        await remap.remove(self._volume, inode, end, extent.end)
        return extent.part(extent.logical, end)

    async def _write(self, inode: Inode, extent: Extent, *, mapped: bool, durable: bool = False) -> None:
        """Write these blocks of the file, in parallel pieces; ``mapped``: the store holds their old content."""
        logical, physical, length, _ = extent
        await data_journal.withdraw(self._volume, physical, length)
        end = logical + length
        starts = [logical, *range((logical // CHUNK_BLOCKS + 1) * CHUNK_BLOCKS, end, CHUNK_BLOCKS)]

        async def one(start: int) -> None:
            count = min(end, (start // CHUNK_BLOCKS + 1) * CHUNK_BLOCKS) - start
            place = physical + start - logical
            data = await self.content(inode, Extent(start, place if mapped else 0, count))
            await self._volume.device.write(place * BLOCK_BYTES, data, durable=durable)

        await for_each(starts, one, workers=WRITES_AT_ONCE)

    def new_content(self, inode: Inode, extent: Extent) -> Buffer:
        """The bytes of blocks that held nothing: buffered ones, and zeros."""
        assert inode.dirty is not None
        start, length = extent.logical * BLOCK_BYTES, extent.length * BLOCK_BYTES
        whole = inode.dirty.view(start, length)
        if whole is not None:
            return whole
        buffer = bytearray(length)
        inode.dirty.overlay(start, buffer)
        return buffer

    async def content(self, inode: Inode, extent: Extent) -> Buffer:
        """The blocks' new bytes: buffered ones, over those of the store where a block is only partly buffered."""
        dirty = inode.dirty
        assert dirty is not None
        first, physical, count, _ = extent
        whole = dirty.view(first * BLOCK_BYTES, count * BLOCK_BYTES)
        if whole is not None or not physical:
            return self.new_content(inode, extent) if whole is None else whole
        buffer = bytearray(count * BLOCK_BYTES)
        for block in range(first, first + count):
            if not dirty.covers(block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES):
                at = (block - first) * BLOCK_BYTES
                old = await self._volume.journal.data.read(self._volume.device, physical + block - first, 1)
                buffer[at : at + BLOCK_BYTES] = old
        dirty.overlay(first * BLOCK_BYTES, buffer)
        return buffer
