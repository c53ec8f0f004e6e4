"""Images spoilt field by field with every checksum right: what a hostile or mad writer could leave (R11, issue 5).

- Z1. What is spoilt comes from the declarations: structures are found in an image by their magic, fields by their
  offsets (``membership/records.py``).  A new structure or field is fuzzed by itself, once ``build.sample`` has one.
- Z2. A field of bytes is spoilt in cells of up to 8 bytes, at any offset of the part in use.
- Z3. The checksum of the record is repaired, and that of the journal frame which carries it as an image.
- Z4. Values are those on which code trips: 0, 1, the greatest, one more, one less, another bit, and the numbers of
  blocks that mean something else (so that trees get loops, blocks two owners, names wrong inodes).
"""

from __future__ import annotations

import importlib
import pkgutil
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from fastcrc import crc32

import matrixfs.ondisk
from matrixfs.ondisk.journal import IMAGES_MAX, FrameRecord
from membership.label import BLOCK_BYTES, DATA_BLOCK, HEARTBEAT_BLOCK, NODE_SLOTS
from membership.records import HEADER_BYTES, Field, Record, raw
from tests.sim.disk import Media, Pages, SimDisk

CHECKSUM_AT = 12
CELL_BYTES = 8
SLACK_BYTES = 48  # behind the part of a field of bytes that is in use
MASK = (1 << 64) - 1
HEADER_FIELDS = {
    "magic": Field(0, "Q", 1, "int", ""), "version": Field(8, "H", 1, "int", ""),
    "owner": raw(16, 16, "").metadata["field"], "address": Field(32, "Q", 1, "int", ""),
    "generation": Field(40, "Q", 1, "int", ""),
}  # fmt: skip


def structures() -> dict[bytes, type[Record]]:
    """Every declared record, by magic."""
    for module in pkgutil.iter_modules(matrixfs.ondisk.__path__):
        importlib.import_module(f"matrixfs.ondisk.{module.name}")
    found = {}
    for kind in Record.__subclasses__():
        if "MAGIC" in vars(kind) and kind.__module__.startswith(("matrixfs.ondisk.", "membership.")):
            found[kind.MAGIC] = kind
    return found


@dataclass(frozen=True)
class Place:
    """A structure in an image."""

    block: int  # of the disk
    kind: type[Record]
    frame: int  # block of the journal frame that carries it as an image; 0: none does


@dataclass(frozen=True)
class Change:
    """One spoilt field."""

    place: Place
    field: str
    at: int  # byte of the record
    size: int
    value: int

    def __str__(self) -> str:
        where = f"{self.place.kind.__name__} in block {self.place.block}"
        return f"{where}: {self.field} at {self.at}, {self.size} bytes = {self.value:#x}"


@dataclass
class Image:
    """A store that is to be spoilt again and again."""

    disk: SimDisk
    places: list[Place] = field(default_factory=list)
    numbers: tuple[int, ...] = ()  # blocks of the area that mean something

    async def scan(self) -> Image:
        """Find all structures (Z1)."""
        kinds = structures()
        frame, images = 0, 0
        for block in range(self.disk.size_bytes // BLOCK_BYTES):
            data = await self.block(block)
            kind = kinds.get(data[:8])
            if images:
                images -= 1
            else:
                frame = 0
            if kind is FrameRecord and not images:
                frame, images = block, int.from_bytes(data[68:70], "little")
                assert images <= IMAGES_MAX
                self.places.append(Place(block, kind, 0))
            elif kind is not None and not HEARTBEAT_BLOCK <= block < HEARTBEAT_BLOCK + NODE_SLOTS:
                self.places.append(Place(block, kind, frame))
        self.numbers = tuple(sorted({place.block - DATA_BLOCK for place in self.places if place.block >= DATA_BLOCK}))
        return self

    async def block(self, number: int) -> bytes:
        return await self.disk.read(number * BLOCK_BYTES, BLOCK_BYTES)

    def disk_of(self, media: Media) -> SimDisk:
        """A disk in that state."""
        disk = SimDisk(self.disk.size_bytes, self.disk.sector_bytes)
        disk.restore(media)
        return disk

    async def spoil(self, change: Change) -> None:
        data = bytearray(await self.block(change.place.block))
        data[change.at : change.at + change.size] = change.value.to_bytes(change.size, "little")
        await self.put(change.place, data)

    async def put(self, place: Place, data: bytearray) -> None:
        """Write a structure with its checksum right (Z3)."""
        seal(data)
        await self.disk.write(place.block * BLOCK_BYTES, bytes(data), durable=True)
        if place.frame:
            head = bytearray(await self.block(place.frame))
            images = int.from_bytes(head[68:70], "little")
            payload = await self.disk.read((place.frame + 1) * BLOCK_BYTES, images * BLOCK_BYTES)
            head[72:76] = crc32.iscsi(payload).to_bytes(4, "little")
            await self.put(Place(place.frame, FrameRecord, 0), head)

    async def changes(self, place: Place, values_of: Values, rng: random.Random) -> list[Change]:
        """Changes of every field of a structure, with some values each."""
        data = await self.block(place.block)
        found = []
        for name, described in {**HEADER_FIELDS, **place.kind.FIELDS}.items():
            for at, size in cells(data, described, rng):
                old = int.from_bytes(data[at : at + size], "little")
                found += [
                    Change(place, name, at, size, value)
                    for value in values_of(old, size, place.block - DATA_BLOCK, self.numbers, rng)
                    if value != old
                ]
        return found


def seal(data: bytearray) -> None:
    data[CHECKSUM_AT : CHECKSUM_AT + 4] = bytes(4)
    data[CHECKSUM_AT : CHECKSUM_AT + 4] = crc32.iscsi(data).to_bytes(4, "little")


def cells(data: bytes, described: Field, rng: random.Random) -> Iterator[tuple[int, int]]:
    """(offset, bytes) of what is spoilt in a field (Z2)."""
    if described.kind in {"int", "array"}:
        step = described.size // described.count
        yield from ((described.at + step * i, step) for i in range(described.count))
        return
    end = described.at + described.size
    used = len(data[described.at : end].rstrip(b"\0"))
    at = described.at
    while at < min(end, described.at + used + SLACK_BYTES):
        size = rng.choice((1, 2, 4, CELL_BYTES, CELL_BYTES, CELL_BYTES))
        yield at, min(size, end - at)
        at += size


class Values:
    """Values for a cell (Z4): ``count`` of them by chance, or with 0 all."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __call__(self, old: int, size: int, own: int, numbers: tuple[int, ...], rng: random.Random) -> list[int]:
        top = (1 << 8 * size) - 1
        flipped = old ^ 1 << rng.randrange(8 * size)
        meant = [own, 1, 2, *(rng.choice(numbers) for _ in range(3)), rng.choice(numbers) + 1]
        wanted = {0, 1, top, top >> 1, top - 1, old + 1, old - 1, flipped, *(meant if size >= 4 else ())}
        values = sorted(value for value in wanted if 0 <= value <= top and value != old)
        return rng.sample(values, min(self.count, len(values))) if self.count else values


def area_disk(disk: SimDisk, seed: int = 1) -> SimDisk:
    """The data area of a store as a disk of its own."""
    start = DATA_BLOCK * BLOCK_BYTES
    pages = disk.media._visible._pages  # noqa: SLF001 - quicker than reading it
    area = SimDisk(disk.size_bytes - start - BLOCK_BYTES, 4096, seed)
    area.media = Media(4096, Pages({page - DATA_BLOCK: data for page, data in pages.items() if page >= DATA_BLOCK}))
    area.mark()
    return area


assert HEADER_BYTES == 48
