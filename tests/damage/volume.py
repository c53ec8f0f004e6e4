"""What the tests of mkfs, replay and fsck share: a clock that stands still, and filesystems made by hand."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import trio
from fastcrc import crc32

from matrixfs.blockstore import Window, data_window, initialize_disk
from matrixfs.fs.mkfs import format_volume
from matrixfs.fs.replay import read_journal_header
from matrixfs.ondisk.journal import DATA, DIRTY, FrameRecord, JournalHeader, pack_frame_body
from matrixfs.ondisk.superblock import Superblock
from membership.label import BLOCK_BYTES, DATA_BLOCK, DEFAULT_TIMING
from membership.records import Record
from membership.seams import SectorDevice
from tests.sim.disk import SimDisk


class FixedClock:
    """Wall time stands still; monotonic time is trio's, so a MockClock moves it."""

    def monotonic(self) -> float:
        return trio.current_time()

    def wall_ns(self) -> int:
        return 1_700_000_000_000_000_000

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds)


async def small_volume(seed: int = 1, *, blocks: int = 2304, journals: int = 2, sector_bytes: int = 512) -> Volume:
    """A fresh filesystem of some 9 MiB on a simulated disk: groups of 256 blocks, the last one short."""
    disk = SimDisk(blocks * BLOCK_BYTES, sector_bytes, seed)
    superblock = await format_volume(
        disk, name="web", journals=journals, journal_blocks=None, clock=FixedClock(), rng=random.Random(seed)
    )
    disk.mark()
    return Volume(disk, superblock)


async def small_store(seed: int = 1, *, blocks: int = 2304, journals: int = 2) -> Volume:
    """The same as the data area of a whole cluster disk with a label."""
    disk = SimDisk((DATA_BLOCK + blocks + 1) * BLOCK_BYTES, 512, seed)
    rng = random.Random(seed)
    label = await initialize_disk(disk, "web", DEFAULT_TIMING, rng, FixedClock())
    window = data_window(disk, label)
    superblock = await format_volume(
        window, name="web", journals=journals, journal_blocks=None, clock=FixedClock(), rng=rng
    )
    disk.mark()
    return Volume(disk, superblock, DATA_BLOCK)


@dataclass
class Volume:
    """A filesystem on a simulated disk."""

    disk: SimDisk
    superblock: Superblock
    first: int = 0  # block of the disk where the area begins

    @property
    def device(self) -> SectorDevice:
        """The area alone."""
        return Window(self.disk, self.first * BLOCK_BYTES, self.superblock.blocks_total * BLOCK_BYTES)

    async def read(self, block: int) -> bytes:
        return await self.disk.read((self.first + block) * BLOCK_BYTES, BLOCK_BYTES)

    async def write(self, block: int, data: bytes) -> None:
        await self.disk.write((self.first + block) * BLOCK_BYTES, data, durable=True)

    def on(self, disk: SimDisk) -> Volume:
        """The same on another disk, for example a crashed one."""
        return Volume(disk, self.superblock, self.first)


@dataclass
class DataImage:
    """File data as a frame lists it."""

    address: int
    content: bytes
    generation: int = DATA

    def encode(self) -> bytes:
        return self.content


@dataclass
class LogWriter:
    """Writes a journal's frames by the format's book, one durable write each."""

    volume: Volume
    index: int
    position: int = 1
    sequence: int = 1
    node: int = 5
    incarnation: int = 77
    salt: int = 0xABCDEF
    header: JournalHeader = field(init=False)

    @property
    def start(self) -> int:
        return self.volume.superblock.journal_block(self.index)

    async def open(self) -> None:
        self.header = await read_journal_header(self.volume.device, self.volume.superblock, self.index)
        self.header.state, self.header.salt = DIRTY, self.salt
        self.header.node, self.header.incarnation = self.node, self.incarnation
        await self.trim()

    async def trim(self) -> None:
        """Declare all before here to be in place."""
        self.header.sequence_first, self.header.block_first = self.sequence, self.position
        self.header.generation += 1
        await self.volume.write(self.start, self.header.encode())

    async def frame(
        self,
        images: Sequence[Record | DataImage] = (),
        revokes: Sequence[int] = (),
        part: int = 0,
        parts: int = 1,
        wrong: dict[str, Any] | None = None,
    ) -> int:
        """Append a frame; ``wrong`` replaces fields of its head.  Returns its block."""
        if self.position + 1 + len(images) > self.volume.superblock.journal_blocks:
            self.position = 1
        payload = b"".join(image.encode() for image in images)
        fields: dict[str, Any] = {
            "salt": self.salt,
            "sequence": self.sequence,
            "generation": self.sequence,
            "part": part,
            "parts": parts,
            "images": len(images),
            "revokes": len(revokes),
            "payload_crc": crc32.iscsi(payload),
            "body": pack_frame_body([(image.address, image.generation) for image in images], revokes),
        }
        block = self.start + self.position
        head = FrameRecord(owner=self.volume.superblock.owner, address=block, **{**fields, **(wrong or {})})
        await self.volume.write(block, head.encode() + payload)
        self.position += 1 + len(images)
        self.sequence += 1
        return block
