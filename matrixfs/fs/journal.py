"""A mount's journal: transactions of block images, group commit, in-place writing, revokes.

Invariants (asserts and tests cite the numbers):

- **J1** A transaction holds whole operations: blocks are changed and added with no checkpoint in between,
  and a commit encodes all of its blocks with no checkpoint in between.
- **J2** A block is written in place only after the transaction with its image is durable in the log.
- **J3** An image in the log may be replayed only while this node holds the block's lock in EX.  So, before
  EX is given up, the block is durable in place and its images are trimmed or revoked (``release``).
- **J4** File data that a transaction makes reachable is on the store before the commit: the data was
  written before the extent was added, and the commit flushes the store first.
- **J5** A freed block is given out again only when the freeing transaction is durable, and no write in
  place of its old content is in flight.
- **J6** The log is trimmed up to a frame only when all images in older frames are in place, flushed.
- **J7** The header says DIRTY, durably, before a frame is written, and CLEAN only when the log is empty.  A journal
  that was just taken, or that rests, is CLEAN until the next commit.

Blocks of file data may go the same way (``data_journal``).  They have no generation: DJ1 to DJ5 are for that.

Crash points: before the frame is durable the operation never happened; after it, replay completes it.
A frame is one write, checked by its checksums, so a torn one is no frame.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

import trio
from fastcrc import crc32

from matrixfs.fs.blocks import Block
from matrixfs.fs.data_images import DataBlock, DataImages
from matrixfs.fs.parallel import for_each
from matrixfs.ondisk.journal import (
    CLEAN,
    DATA,
    DIRTY,
    IMAGES_MAX,
    REVOKES_ALONE_MAX,
    REVOKES_MAX,
    FrameRecord,
    JournalHeader,
    escaped,
    pack_frame_body,
)
from matrixfs.ondisk.superblock import Superblock
from membership.errors import Fenced
from membership.label import BLOCK_BYTES
from membership.records import next_generation
from membership.seams import Clock, SectorDevice

log = logging.getLogger(__name__)

TRANSACTION_BLOCKS_MAX = 400  # more dirty blocks than this start a commit by themselves
COMMIT_INTERVAL = 2.0  # seconds: age at which a change is committed though nobody asked
DURABLE_BLOCKS_MAX = 4  # up to so many blocks are made durable one by one; more are written, then flushed together
PLACE_BATCH = 64  # blocks written in place between two looks at who else waits


class Transaction:
    """Blocks changed together.  ``done`` once it is durable."""

    __slots__ = ("blocks", "done", "finished", "freed", "revokes")

    def __init__(self) -> None:
        self.blocks: dict[int, Block] = {}
        self.revokes: set[int] = set()
        self.freed: list[tuple[frozenset[int], Callable[[], None]]] = []
        self.done = False
        self.finished = trio.Event()

    @property
    def empty(self) -> bool:
        """Nothing to commit."""
        return not (self.blocks or self.revokes or self.freed)


class Pending(NamedTuple):
    """An image that is in the log and not yet in place."""

    image: bytes
    sequence: int


class LiveFrame(NamedTuple):
    """A frame in the log that is not trimmed yet."""

    sequence: int
    position: int


class Release:
    """Blocks whose locks are given up in one round."""

    __slots__ = ("addresses", "done")

    def __init__(self) -> None:
        self.addresses: set[int] = set()
        self.done = False


class Journal:
    """The journal of this mount.

    Args:
        device: the filesystem's area.
        superblock: its layout.
        index: which journal is ours.
        clock: for the commit interval.
    """

    def __init__(self, device: SectorDevice, superblock: Superblock, index: int, clock: Clock) -> None:
        self._device = device
        self._superblock = superblock
        self._clock = clock
        self.index = index
        self._start = superblock.journal_block(index)
        self._length = superblock.journal_length(index)
        self._header = JournalHeader(owner=superblock.owner, address=self._start, index=index)
        self.running = Transaction()
        self._committing: Transaction | None = None
        self._head = 1  # where the next frame goes
        self._sequence = 1  # of the next frame
        self._frames: deque[LiveFrame] = deque()
        self._begun: LiveFrame | None = None  # first frame of the transaction being written
        self._pending: dict[int, Pending] = {}
        self._logged: dict[int, int] = {}  # block -> sequence of its last transaction in the untrimmed log
        self.data = DataImages()
        self.large = min(TRANSACTION_BLOCKS_MAX, self._length // 8)  # blocks
        self._placing: set[int] = set()  # blocks being written in place now
        self._after_placing: list[Callable[[], None]] = []
        self._place_lock = trio.Lock()
        self._release = Release()  # the next round
        self._release_lock = trio.Lock()
        self._wanted = trio.Event()  # the running transaction grew too large
        self._failed = False
        self._data_writes = 0  # counts writes of file data,
        self._data_flushed = 0  # and those of them that a flush is known to cover
        self.statistics = dict.fromkeys(
            ("commits", "blocks_logged", "revokes", "blocks_placed", "flushes", "releases", "checkpoints"), 0
        )

    def open(self, header: JournalHeader, node: int, incarnation: int, salt: int) -> None:
        """Take the clean journal with this ``header``; it is written with the first commit (J7)."""
        assert header.state == CLEAN
        self._header = header
        header.node, header.incarnation, header.salt = node, incarnation, salt

    async def run(self) -> None:
        """Commit what is old or much, write it in place, trim the log; until cancelled."""
        while True:
            with trio.move_on_after(COMMIT_INTERVAL):
                await self._wanted.wait()
            self._wanted = trio.Event()
            await self.commit()
            if self.running.empty or self._used() > self._length // 2:
                await self.checkpoint()

    async def close(self) -> None:
        """Leave nothing in the log, and say so.  No operation may be running."""
        await self.rest()
        assert self.resting

    @property
    def resting(self) -> bool:
        """Whether all is durable and in place, and the header says so (J7)."""
        left = self._pending or self._frames or self._committing or self._data_unflushed
        return self._header.state == CLEAN and self.running.empty and not left

    async def rest(self) -> None:
        """Leave nothing in the log, and say so; ``resting`` tells whether that is so, or something came between."""
        await self.sync()
        await self.checkpoint()
        async with self._place_lock:  # a checkpoint may still be writing the header
            left = self._pending or self._frames or self._committing or not self.running.empty
            if self._header.state != CLEAN and not left:
                self._header.state = CLEAN
                await self._write_header()

    async def _wake(self) -> None:
        async with self._place_lock:
            if self._header.state == CLEAN:
                self._header.state = DIRTY
                self._header.sequence_first, self._header.block_first = self._sequence, self._head
                await self._write_header()

    # --- changes (no checkpoint in any of these: J1) -------------------------------------------------

    def add(self, block: Block) -> None:
        """``block`` changed, or will change before the next checkpoint; its lock is held in EX."""
        running = self.running
        if block.transaction is not running:
            block.transaction = running
            block.generation += 1
            running.blocks[block.address] = block
            if len(running.blocks) >= self.large:
                self._wanted.set()

    def free(self, block: Block, reuse: Callable[[], None]) -> None:
        """``block`` is metadata no more.  ``reuse`` is called when it may be given out again (J5)."""
        self.running.blocks.pop(block.address, None)
        block.transaction = None
        self.running.revokes.add(block.address)
        self.running.freed.append((frozenset((block.address,)), reuse))

    def free_data(self, start: int, length: int, reuse: Callable[[], None]) -> None:
        """Blocks of file data are named no more.  ``reuse`` is called when they may be given out again (J5, DJ3)."""
        images = frozenset(block.address for block in self.data.within(start, length))
        for address in images:
            self.running.blocks.pop(address, None)
            self.data.forget(address)
        self.running.revokes |= images
        self.running.freed.append((images, reuse))

    def data_written(self) -> None:
        """File data was written to the store: the next commit flushes first (J4)."""
        self._data_writes += 1

    @property
    def _data_unflushed(self) -> bool:
        """Whether file data may be lost with the store's power; a flush that did not return yet proves nothing."""
        return self._data_flushed < self._data_writes

    # --- waiting for durability ------------------------------------------------------------------------

    def holds(self, block: Block) -> bool:
        """Whether the block's last change is not durable yet."""
        return block.transaction is not None and not block.transaction.done

    async def commit(self) -> None:
        """Return when all that was added before the call is durable.  Raises DeviceError, Fenced."""
        target = self.running
        if target.empty and not self._failed:
            if self._committing is None:
                return
            target = self._committing
        while not target.done:
            if self._failed:
                raise Fenced("the journal failed earlier: this mount is withdrawn")
            if self._committing is not None:
                await self._committing.finished.wait()
            else:
                assert target is self.running
                await self._commit_running()

    async def admit(self) -> None:
        """The last wait before an operation's change: until the running transaction has room for it.

        Nothing may be awaited between the return and the change, or many operations get in on the same room.
        """
        while len(self.running.blocks) > 2 * self.large:
            await self.commit()

    async def sync(self) -> None:
        """Commit, and flush file data even if no metadata changed with it."""
        await self.commit()
        if self._data_unflushed:
            await self._flush()

    async def _flush(self) -> None:
        covered = self._data_writes  # what is written during the flush is not
        self.statistics["flushes"] += 1
        await self._device.flush()
        self._data_flushed = max(self._data_flushed, covered)

    async def _commit_running(self) -> None:
        transaction, self.running = self.running, Transaction()
        self._committing = transaction
        try:
            images = [  # no checkpoint (J1)
                (
                    block.address,
                    DATA if isinstance(block, DataBlock) else block.generation,
                    block.encode(self._superblock.owner),
                )
                for block in transaction.blocks.values()
            ]
            parts = _split(images, sorted(transaction.revokes))
            await self._wake()
            await self._make_room(sum(1 + len(part[0]) for part in parts))
            if self._data_unflushed:
                await self._flush()
            frames = [
                await self._write_frame(number, len(parts), part_images, part_revokes)
                for number, (part_images, part_revokes) in enumerate(parts)
            ]
            self._committed(transaction, images, frames)
        except BaseException:
            self._failed = True  # its changes are lost: nothing that builds on them may become durable
            raise
        finally:
            self._begun = None
            self._committing = None
            transaction.finished.set()

    async def _write_frame(
        self, part: int, parts: int, images: list[tuple[int, int, bytes]], revokes: list[int]
    ) -> LiveFrame:
        length = 1 + len(images)
        if self._head + length > self._length:
            self._head = 1
        written = LiveFrame(self._sequence, self._head)
        if part == 0:
            self._begun = written
        logged = [(block, *escaped(generation, image)) for block, generation, image in images]
        payload = b"".join(image for _, _, image in logged)
        frame = FrameRecord(
            owner=self._superblock.owner,
            address=self._start + self._head,
            generation=self._sequence,
            salt=self._header.salt,
            sequence=self._sequence,
            part=part,
            parts=parts,
            images=len(images),
            revokes=len(revokes),
            payload_crc=crc32.iscsi(payload),
            body=pack_frame_body([(block, generation) for block, generation, _ in logged], revokes),
        )
        await self._device.write((self._start + self._head) * BLOCK_BYTES, frame.encode() + payload, durable=True)
        self._head += length
        self._sequence += 1
        self.statistics["blocks_logged"] += len(images)
        self.statistics["revokes"] += len(revokes)
        return written

    def _committed(
        self, transaction: Transaction, images: list[tuple[int, int, bytes]], frames: list[LiveFrame]
    ) -> None:
        """The transaction is durable: its images may go in place (J2), what it freed be given out (J5)."""
        transaction.done = True
        self.statistics["commits"] += 1
        self._frames.extend(frames)
        first = frames[0].sequence
        for block, _, image in images:
            self._pending[block] = Pending(image, first)
            self._logged[block] = first
        for address in transaction.revokes:
            if address not in transaction.blocks:
                self._pending.pop(address, None)
                self._logged.pop(address, None)
        self.data.settle(self._logged, transaction.revokes)
        for addresses, reuse in transaction.freed:
            if addresses & self._placing:
                self._after_placing.append(reuse)
            else:
                reuse()

    # --- in place, and trimming ---------------------------------------------------------------------------

    async def release(self, addresses: Iterable[int]) -> None:
        """Make J3 true for blocks whose lock is about to be given up: no holder may change them now.

        Locks that are given up at the same time share one round of writes: whoever comes first leads it.
        """
        self.statistics["releases"] += 1
        mine = self._release
        mine.addresses.update(addresses)
        while not mine.done:
            if self._failed:
                raise Fenced("the journal failed earlier: this mount is withdrawn")
            async with self._release_lock:
                if not mine.done:
                    self._release = Release()
                    await self._release_all(mine)

    async def _release_all(self, release: Release) -> None:
        addresses = sorted(release.addresses)
        few = len(addresses) <= DURABLE_BLOCKS_MAX
        async with self._place_lock:  # also waits for older images of these blocks on their way to the store
            if await self._place(addresses, durable=few) and not few:
                await self._flush()
        live = [address for address in addresses if address in self._logged]
        if live:
            self.running.revokes.update(live)
            await self.commit()
        release.done = True

    async def place(self, addresses: Iterable[int]) -> None:
        """Make blocks durable in place, which nobody but this journal's owner writes; their last change is committed.

        So their images stay in the log, and who changes something else in them goes on.
        """
        async with self._place_lock:
            await self._place(sorted(addresses), durable=True)

    async def checkpoint(self) -> None:
        """Write all committed images in place, flush, and trim the log (J6)."""
        if not self._pending and not self._frames:
            return
        self.statistics["checkpoints"] += 1
        async with self._place_lock:
            batch = list(self._pending)
            for at in range(0, len(batch), PLACE_BATCH):
                await self._place(batch[at : at + PLACE_BATCH], durable=False)
            await self._flush()
            # No checkpoint up to the trimming: what is committed but not placed, and what is half written, must stay.
            needed = self._begun.sequence if self._begun else self._sequence
            await self._trim(min((pending.sequence for pending in self._pending.values()), default=needed))

    async def _place(self, addresses: list[int], *, durable: bool) -> int:
        """Write images in place, and return how many.

        Under ``_place_lock``, so that an older image never lands after a newer one.
        """
        todo = [(address, self._pending[address]) for address in addresses if address in self._pending]
        self._placing.update(address for address, _ in todo)
        try:
            await for_each(
                todo,
                lambda item: self._device.write(item[0] * BLOCK_BYTES, item[1].image, durable=durable),
                workers=PLACE_BATCH,
            )
        finally:
            self._placing.clear()
            actions, self._after_placing = self._after_placing, []
            for action in actions:
                action()
        for address, pending in todo:
            if self._pending.get(address) is pending:
                del self._pending[address]
        self.statistics["blocks_placed"] += len(todo)
        return len(todo)

    async def _trim(self, sequence: int) -> None:
        """Forget the frames before ``sequence``; their images are all in place and flushed."""
        while self._frames and self._frames[0].sequence < sequence:
            self._frames.popleft()
        oldest = self._oldest() or LiveFrame(self._sequence, self._head)
        if oldest.sequence == self._header.sequence_first:
            return
        self._header.sequence_first, self._header.block_first = oldest
        await self._write_header()
        self._logged = {block: logged for block, logged in self._logged.items() if logged >= oldest.sequence}
        self.data.settle(self._logged)

    async def _write_header(self) -> None:
        header = self._header
        header.generation = next_generation(header.generation)
        await self._device.write(self._start * BLOCK_BYTES, header.encode(), durable=True)

    def _oldest(self) -> LiveFrame | None:
        """The oldest frame that must stay: also one of a transaction that is only half written."""
        return self._frames[0] if self._frames else self._begun

    def _used(self) -> int:
        """Blocks between the oldest live frame and the head."""
        oldest = self._oldest()
        return (self._head - oldest.position) % (self._length - 1) if oldest else 0

    async def _make_room(self, blocks: int) -> None:
        """Wait until frames of ``blocks`` in all fit, however they fall at the end of the log."""
        assert blocks < self._length, f"a transaction of {blocks} blocks can't fit a journal of {self._length}"
        while self._length - 1 - self._used() <= blocks + min(blocks, IMAGES_MAX + 1):
            await self.checkpoint()
            if not self._frames:
                self._head = 1  # an empty log: begin it anew, so that nothing is lost to its end
                return


def _split(
    images: list[tuple[int, int, bytes]], revokes: list[int]
) -> list[tuple[list[tuple[int, int, bytes]], list[int]]]:
    """Images and revokes in portions that fit a frame each."""
    if not images:
        portions = range(0, max(1, len(revokes)), REVOKES_ALONE_MAX)
        return [([], revokes[at : at + REVOKES_ALONE_MAX]) for at in portions]
    parts = [(images[at : at + IMAGES_MAX], revokes[:0]) for at in range(0, len(images), IMAGES_MAX)]
    last = parts[-1][0]
    parts[-1] = (last, revokes[:REVOKES_MAX])
    rest = revokes[REVOKES_MAX:]
    parts.extend(([], rest[at : at + REVOKES_ALONE_MAX]) for at in range(0, len(rest), REVOKES_ALONE_MAX))
    return parts
