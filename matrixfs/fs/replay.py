"""Replay of a dead node's journal: bring home what its committed transactions left outside (R5, R7; 002-30, 002-32).

The format is ``matrixfs/ondisk/journal.py``.  Three steps: read the log and check all of it, write the
newest image of each block, declare the journal clean.

P1. Nothing is written before the whole log was read and every image in it was found good.
P2. A frame that is not there, or torn, ends the log: its writer was never told that it is durable.  But a
    transaction that begins *behind* it proves that the frame was durable once, because the writer starts no
    transaction before all frames of the earlier ones are durable: that log has a hole, which is corruption.
P3. A transaction counts only with all its parts; revokes of one that doesn't count don't count either.
P4. An image replays only over something older.  What lies in place and is sound metadata of the same or a
    greater generation was written by a later holder of the block's lock.  File data has no generation: its image
    is written whatever lies there, since a log holds an image of data, not revoked, only of blocks that nobody
    but its node could have written since (``data_journal`` DJ2 to DJ4).
P5. The header says CLEAN only when every image is durable in place; until then replay can start again from
    the beginning, after a crash at any write, and ends with the same blocks.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fastcrc import crc32

from matrixfs.fs.parallel import for_each
from matrixfs.ondisk.directory import DirectoryLeafRecord
from matrixfs.ondisk.extent import ExtentLeafRecord
from matrixfs.ondisk.group import GroupRecord
from matrixfs.ondisk.index import IndexRecord
from matrixfs.ondisk.inode import InodeRecord
from matrixfs.ondisk.journal import (
    CLEAN,
    DIRTY,
    IMAGES_MAX,
    FrameRecord,
    JournalHeader,
    is_data,
    unescaped,
    unpack_frame_body_untrusted,
)
from matrixfs.ondisk.quota import QuotaRecord
from matrixfs.ondisk.superblock import QUOTA_INODE, Superblock
from matrixfs.ondisk.xattr import AttributeRecord
from membership.errors import CorruptionError, CorruptRecord
from membership.label import BLOCK_BYTES
from membership.records import GENERATION_MAX, Record, check_header_untrusted, next_generation
from membership.seams import Buffer, SectorDevice

JOURNALLED: dict[bytes, type[Record]] = {
    kind.MAGIC: kind
    for kind in (
        InodeRecord, IndexRecord, DirectoryLeafRecord, ExtentLeafRecord, AttributeRecord, GroupRecord, QuotaRecord
    )
}
WORKERS = 32  # in-place reads and writes in flight
WINDOW_BLOCKS = 512  # of the log, read at once: 2 MiB


@dataclass(frozen=True, slots=True)
class ReplayReport:
    """What a replay did; all zero for a journal that was clean."""

    frames: int = 0
    transactions: int = 0
    images: int = 0  # in complete transactions, superseded ones included
    written: int = 0  # blocks
    skipped: int = 0  # blocks that were the same or newer in place
    revoked: int = 0  # images withdrawn by a later revoke


@dataclass(slots=True)
class _Frame:
    """A sound frame, taken apart."""

    sequence: int
    part: int
    parts: int
    images: list[tuple[int, int]]  # block, generation
    revokes: list[int]
    payload: memoryview


@dataclass(slots=True)
class _Log:
    """What the committed transactions say, newest last."""

    frames: int = 0
    transactions: int = 0
    images: int = 0
    revoked: int = 0
    sequence_next: int = 0
    newest: dict[int, tuple[int, Buffer]] = field(default_factory=dict)  # block: generation, image


async def read_journal_header(device: SectorDevice, superblock: Superblock, index: int) -> JournalHeader:
    """The header of journal ``index``.

    Raises:
        CorruptRecord: it is damaged, or points outside its journal.
        DeviceError, Fenced: I/O failed.
    """
    block = superblock.journal_block(index)
    where = f"{device.name}: block {block} (header of journal {index})"
    data = await device.read(block * BLOCK_BYTES, BLOCK_BYTES)
    header = JournalHeader.decode_untrusted(data, where, owner=superblock.owner, address=block)
    if header.index != index:
        raise CorruptRecord(where, "journal number", index, header.index)
    if header.state not in (CLEAN, DIRTY):
        raise CorruptRecord(where, "journal state", f"{CLEAN} or {DIRTY}", header.state)
    # The position just behind the end is what a full lap leaves: the next frame is at 1 then.
    length = superblock.journal_length(index)
    if not 1 <= header.block_first <= length:
        raise CorruptRecord(where, "first frame", f"1..{length}", header.block_first)
    if header.sequence_first > GENERATION_MAX:
        raise CorruptRecord(where, "first sequence", f"at most {GENERATION_MAX}", header.sequence_first)
    return header


async def replay(
    device: SectorDevice, superblock: Superblock, index: int, *, expect: tuple[int, int] | None
) -> ReplayReport:
    """Replay journal ``index`` and declare it clean.  Idempotent; restartable after a crash at any write.

    Args:
        device: the data area.
        superblock: of the filesystem there.
        index: number of the journal.
        expect: (node, incarnation) of the dead owner.  A dirty journal of anybody else is refused; a clean one
            of anybody else means that the dead owner never came to write its header, so there is nothing to do.
            None: whoever the owner was.

    Raises:
        CorruptionError: the log contradicts itself, or belongs to somebody else; nothing was written.
        DeviceError, Fenced: I/O failed; the journal is still dirty.
    """
    header = await read_journal_header(device, superblock, index)
    if header.state == CLEAN:
        return ReplayReport()
    if expect is not None and (header.node, header.incarnation) != expect:
        where = f"{device.name}: block {header.address} (header of journal {index})"
        found = f"node {header.node} incarnation {header.incarnation}"
        raise CorruptionError(where, "journal owner", f"node {expect[0]} incarnation {expect[1]}", found)
    log = await _LogReader(device, superblock, header).read_log()
    written = await _write_newer(device, superblock, log)
    await device.flush()
    header.state = CLEAN
    header.generation = next_generation(header.generation)
    header.sequence_first = log.sequence_next
    header.block_first = 1
    await device.write(header.address * BLOCK_BYTES, header.encode(), durable=True)
    skipped = len(log.newest) - written
    return ReplayReport(log.frames, log.transactions, log.images, written, skipped, log.revoked)


def check_image_untrusted(superblock: Superblock, data: Buffer, block: int, where: str) -> int:
    """Check that a block is sound metadata of this filesystem at ``block``; return its generation.

    Raises CorruptRecord, and nothing else, whatever the bytes are.
    """
    kind = JOURNALLED.get(bytes(data[:8]))
    if kind is None:
        raise CorruptRecord(where, "magic", "a metadata block", bytes(data[:8]))
    _, _, generation = check_header_untrusted(
        data, where, magic=kind.MAGIC, size=kind.SIZE, version=kind.VERSION, owner=superblock.owner, address=block
    )
    return generation


class _LogReader:
    """Reads the frames of one journal in order, checking everything it reads."""

    def __init__(self, device: SectorDevice, superblock: Superblock, header: JournalHeader) -> None:
        self._device = device
        self._superblock = superblock
        self._header = header
        self._blocks = superblock.journal_length(header.index)
        self._place = f"{device.name}: journal {header.index}"
        self._window = memoryview(b"")
        self._window_start = 0

    async def read_log(self) -> _Log:
        """All complete transactions.  Raises CorruptionError (P1, P2)."""
        log = _Log(sequence_next=self._header.sequence_first)
        position, sequence = self._header.block_first, self._header.sequence_first
        pending: list[_Frame] = []
        while True:
            found = await self._find_frame(position, sequence)
            if found is None:
                await self._check_no_hole(position, sequence)
                return log
            frame, position = found
            sequence += 1
            self._check_part(frame, pending)
            pending.append(frame)
            if len(pending) == frame.parts:
                for member in pending:
                    self._commit(log, member)
                log.transactions += 1
                log.sequence_next = sequence
                pending.clear()

    async def _find_frame(self, position: int, sequence: int) -> tuple[_Frame, int] | None:
        """The frame numbered ``sequence`` and the position behind it; None where the log ends."""
        for start in dict.fromkeys((position, 1)):
            if start >= self._blocks:
                continue
            read = await self._read_frame(start, sequence)
            if read is not None:
                return read, start + 1 + len(read.images)
        return None

    async def _read_frame(self, position: int, sequence: int) -> _Frame | None:
        """The frame at ``position`` if it is the one numbered ``sequence`` and whole.

        A block that isn't it is no error: the log ends somewhere.  One that carries our checksum and is
        still impossible is: raises CorruptRecord.
        """
        head = self._head(await self._read(position, 1), position)
        if head is None or head.sequence != sequence:
            return None
        where = f"{self._place}, frame {sequence} in block {head.address}"
        if head.generation != sequence or position + 1 + head.images > self._blocks:
            raise CorruptRecord(where, "frame", f"generation {sequence}, end within the journal", head.generation)
        images, revokes = unpack_frame_body_untrusted(head, where)
        payload = await self._read(position + 1, head.images) if images else memoryview(b"")
        if crc32.iscsi(payload) != head.payload_crc:
            return None  # torn
        for i, (block, generation) in enumerate(images):
            self._check_image(payload[i * BLOCK_BYTES : (i + 1) * BLOCK_BYTES], block, generation, where)
        return _Frame(sequence, head.part, head.parts, images, revokes, payload)

    def _head(self, data: Buffer, position: int) -> FrameRecord | None:
        """The frame head in ``data`` if it is one of this mount's."""
        address = self._header.address + position
        try:
            head = FrameRecord.decode_untrusted(data, self._place, owner=self._superblock.owner, address=address)
        except CorruptRecord:
            return None
        return head if head.salt == self._header.salt else None

    def _check_image(self, image: memoryview, block: int, generation: int, where: str) -> None:
        """Raise CorruptRecord unless the image may be written to ``block``."""
        superblock = self._superblock
        if is_data(generation) and superblock.may_journal_data:
            if not superblock.is_data_range(block, 1):
                raise CorruptRecord(where, "image address", "a block of a group", block)
            return
        in_groups = superblock.group_start <= block < superblock.blocks_total - 1
        is_system = block == QUOTA_INODE or superblock.is_inode_number(block)  # turned on: first the tree, then the bit
        if superblock.is_in_a_journal(block) or not (in_groups or is_system):
            raise CorruptRecord(where, "image address", "a metadata block", block)
        found = check_image_untrusted(superblock, image, block, f"{where}, image of block {block}")
        if found != generation:
            raise CorruptRecord(where, f"generation of the image of block {block}", generation, found)

    def _check_part(self, frame: _Frame, pending: list[_Frame]) -> None:
        """Raise CorruptRecord unless ``frame`` goes on where ``pending`` stopped."""
        parts = pending[0].parts if pending else frame.parts
        if frame.part != len(pending) or frame.parts != parts or frame.part >= frame.parts:
            where = f"{self._place}, frame {frame.sequence}"
            raise CorruptRecord(where, "part", f"{len(pending)} of {parts}", f"{frame.part} of {frame.parts}")

    @staticmethod
    def _commit(log: _Log, frame: _Frame) -> None:
        """Take one frame of a complete transaction into account."""
        log.frames += 1
        log.images += len(frame.images)
        for block in frame.revokes:
            # Earlier frames only: the same frame may hold the block's first image in its next life.
            if log.newest.pop(block, None) is not None:
                log.revoked += 1
        for i, (block, generation) in enumerate(frame.images):
            image = frame.payload[i * BLOCK_BYTES : (i + 1) * BLOCK_BYTES]
            log.newest[block] = (generation, unescaped(generation, image))

    async def _check_no_hole(self, position: int, sequence: int) -> None:
        """Raise CorruptionError when a transaction begins behind frame ``sequence``, where the log ended (P2).

        The frame after it would start within ``IMAGES_MAX`` + 1 blocks, or within so many of the beginning.
        """
        for start in dict.fromkeys((position, 1)):
            count = min(IMAGES_MAX + 2, self._blocks - start)
            data = await self._read(start, count) if count > 0 else memoryview(b"")
            for i in range(0, len(data), BLOCK_BYTES):
                if bytes(data[i : i + 8]) != FrameRecord.MAGIC:
                    continue
                head = self._head(data[i : i + BLOCK_BYTES], start + i // BLOCK_BYTES)
                if head is not None and head.sequence - head.part > sequence:
                    raise CorruptionError(self._place, "frame", f"frame {sequence}", f"only frame {head.sequence}")

    async def _read(self, position: int, count: int) -> memoryview:
        """Blocks of the log, out of a window that is read ahead: most frames are a few blocks, and others wait."""
        start = self._window_start
        if not start <= position <= position + count <= start + len(self._window) // BLOCK_BYTES:
            length = min(max(count, WINDOW_BLOCKS), self._blocks - position)
            data = await self._device.read((self._header.address + position) * BLOCK_BYTES, length * BLOCK_BYTES)
            self._window, self._window_start = memoryview(data), position
        at = (position - self._window_start) * BLOCK_BYTES
        return self._window[at : at + count * BLOCK_BYTES]


async def _write_newer(device: SectorDevice, superblock: Superblock, log: _Log) -> int:
    """Write each image that is newer than what lies in place (P4); return how many were."""
    written = 0

    async def write_if_newer(block: int) -> None:
        nonlocal written
        generation, image = log.newest[block]
        if is_data(generation) or await _generation_in_place(device, superblock, block) < generation:
            await device.write(block * BLOCK_BYTES, image)
            written += 1

    await for_each(sorted(log.newest), write_if_newer, workers=min(WORKERS, len(log.newest)))
    return written


async def _generation_in_place(device: SectorDevice, superblock: Superblock, block: int) -> int:
    """Generation of the metadata at ``block``; -1 when there is none, or a torn one."""
    data = await device.read(block * BLOCK_BYTES, BLOCK_BYTES)
    try:
        return check_image_untrusted(superblock, data, block, device.name)
    except CorruptRecord:
        return -1
