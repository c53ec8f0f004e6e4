"""The database image on the shared disk: two slots, the older is overwritten (002-42, architecture 4).

A slot is a 4 KiB ImageHeader and the SQLite image behind it.  The image is written first, then its header makes it
current: a crash in between leaves a header that does not fit the bytes behind it, and the other slot is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastcrc import crc32

from membership.errors import CorruptRecord, OperatorError
from membership.label import BLOCK_BYTES, DATABASE_BLOCK, DATABASE_SLOT_BLOCKS, DATABASE_SLOTS
from membership.records import Record, i64, record, u32, u64

if TYPE_CHECKING:
    from membership.seams import SectorDevice

IMAGE_BYTES_MAX = (DATABASE_SLOT_BLOCKS - 1) * BLOCK_BYTES


@record(magic=b"MXFSMEDB", size=BLOCK_BYTES)
class ImageHeader(Record):
    """First block of a slot.  ``owner`` is the cluster, ``generation`` the SAN generation of the writer."""

    sequence: int = u64(48, "grows with every image; the greater of two good slots is current")
    length: int = u32(56, "bytes of the image")
    checksum: int = u32(60, "CRC-32C of the image")
    written_ns: int = i64(64, "wall clock of the writer, ns since the epoch")


def slot_block(slot: int) -> int:
    """First block of a slot."""
    assert 0 <= slot < DATABASE_SLOTS
    return DATABASE_BLOCK + slot * DATABASE_SLOT_BLOCKS


async def read_header(device: SectorDevice, cluster: bytes, slot: int) -> ImageHeader:
    """Header of a slot.  Raises CorruptRecord (also when never written), DeviceError."""
    block = slot_block(slot)
    data = await device.read(block * BLOCK_BYTES, BLOCK_BYTES)
    where = f"membership database, slot {slot} (block {block})"
    header = ImageHeader.decode_untrusted(data, where, owner=cluster, address=block)
    if header.length > IMAGE_BYTES_MAX:
        raise CorruptRecord(where, "length", f"at most {IMAGE_BYTES_MAX}", header.length)
    return header


@dataclass(frozen=True, slots=True)
class DatabaseImage:
    """A database as it lies on the disk."""

    sequence: int  # grows with every image; of two good ones the greater counts
    generation: int  # SAN generation of the writer
    content: bytes  # SQLite's
    written_ns: int  # wall clock of the writer


async def read_image(device: SectorDevice, cluster: bytes) -> DatabaseImage | None:
    """The newest good image; None when there is none.  Raises DeviceError."""
    best: DatabaseImage | None = None
    for slot in range(DATABASE_SLOTS):
        try:
            header = await read_header(device, cluster, slot)
        except CorruptRecord:
            continue  # never written, torn, or damaged: the other slot serves
        if best is not None and best.sequence >= header.sequence:
            continue
        blocks = -(-header.length // BLOCK_BYTES)
        data = await device.read((slot_block(slot) + 1) * BLOCK_BYTES, blocks * BLOCK_BYTES)
        if crc32.iscsi(data[: header.length]) == header.checksum:
            best = DatabaseImage(header.sequence, header.generation, data[: header.length], header.written_ns)
    return best


async def write_image(device: SectorDevice, cluster: bytes, image: DatabaseImage) -> None:
    """Write an image over the older slot, durably.

    Raises:
        OperatorError: the image does not fit.
        DeviceError: I/O failed.
    """
    content = image.content
    if len(content) > IMAGE_BYTES_MAX:
        raise OperatorError(f"the membership database has {len(content)} bytes, room for {IMAGE_BYTES_MAX}")
    slot = await _older_slot(device, cluster)
    block = slot_block(slot)
    await device.write((block + 1) * BLOCK_BYTES, content.ljust(-(-len(content) // BLOCK_BYTES) * BLOCK_BYTES, b"\0"))
    await device.flush()
    header = ImageHeader(
        owner=cluster,
        address=block,
        generation=image.generation,
        sequence=image.sequence,
        length=len(content),
        checksum=crc32.iscsi(content),
        written_ns=image.written_ns,
    )
    await device.write(block * BLOCK_BYTES, header.encode(), durable=True)


async def _older_slot(device: SectorDevice, cluster: bytes) -> int:
    """The slot that does not hold the newest good image."""
    newest = await read_image(device, cluster)
    for slot in range(DATABASE_SLOTS):
        try:
            header = await read_header(device, cluster, slot)
        except CorruptRecord:
            return slot
        if newest is None or header.sequence != newest.sequence:
            return slot
    return 0
