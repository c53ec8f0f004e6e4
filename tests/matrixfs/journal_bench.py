"""A journal on a simulated disk, and blocks to put into it: what the tests of the journal share."""

from __future__ import annotations

import stat

from matrixfs.fs.blocks import Block
from matrixfs.fs.journal import Journal
from matrixfs.fs.replay import read_journal_header, replay
from matrixfs.ondisk.inode import InodeRecord
from matrixfs.ondisk.superblock import Superblock
from membership.errors import CorruptRecord
from membership.label import BLOCK_BYTES
from tests.damage.volume import Volume, small_volume
from tests.sim.disk import SimDisk
from tests.sim.network import SimClock

OWNER = (0, 1)


class Note(Block):
    """A metadata block whose content is one number."""

    def __init__(self, superblock: Superblock, offset: int) -> None:
        super().__init__(superblock.group_start + 1 + offset, 0)
        self.content = 0

    def encode(self, owner: bytes) -> bytes:
        return InodeRecord(
            owner=owner, address=self.address, generation=self.generation, mode=stat.S_IFREG, size=self.content
        ).encode()


class Bench:
    """A journal on a simulated disk, and blocks to put into it."""

    def __init__(self, volume: Volume, journal: Journal) -> None:
        self.disk = volume.disk
        self.superblock = volume.superblock
        self.journal = journal
        self.notes = [Note(volume.superblock, offset) for offset in range(600)]

    def change(self, offset: int, content: int) -> Note:
        note = self.notes[offset]
        note.content = content
        self.journal.add(note)
        return note

    async def in_place(self, offset: int, disk: SimDisk | None = None) -> int | None:
        return await content_at(disk or self.disk, self.notes[offset].address)

    async def after_crash(self, offsets: list[int], mode: str = "drop", at: int | None = None) -> list[int | None]:
        """What the blocks hold when the power went at an entry of the log, and the journal was replayed."""
        image = self.disk.crash_image(len(self.disk.log) if at is None else at, mode)
        await replay(image, self.superblock, 0, expect=OWNER)
        return [await self.in_place(offset, image) for offset in offsets]


async def content_at(disk: SimDisk, address: int) -> int | None:
    data = await disk.read(address * BLOCK_BYTES, BLOCK_BYTES)
    try:
        return InodeRecord.decode_untrusted(data, "t", address=address).size
    except CorruptRecord:
        return None


async def bench_of(journal_blocks: int = 64, **options: object) -> Bench:
    volume = await small_volume(blocks=4096, **options)
    superblock = volume.superblock
    superblock.journal_blocks = journal_blocks  # a shorter log than the area has room for
    journal = Journal(volume.disk, superblock, 0, SimClock())
    journal.open(await read_journal_header(volume.disk, superblock, 0), *OWNER, salt=99)
    volume.disk.mark()
    return Bench(volume, journal)


def frames(bench: Bench) -> list[int]:
    """Positions in the log of the disk's writes that were frames."""
    start = bench.superblock.journal_block(0)
    found = [write.offset // BLOCK_BYTES - start for write in bench.disk.writes]
    return [position for position in found if 0 < position < bench.superblock.journal_blocks]
