"""A node's journal: a header block, then a circular log of frames.

A frame is one block of ``FrameRecord`` followed by the images of the blocks it lists, written in
one durable write; it never wraps: what does not fit before the end of the log starts again at its
beginning.  A transaction is ``parts`` consecutive frames and counts only when all are there.

Frames carry the header's ``salt``, which changes at every mount, and consecutive sequence numbers, so
that a frame of an earlier lap or mount can't be taken for a present one.

Images are metadata, or file data (feature JOURNALLED_DATA), which has no header: the frame lists it with a generation
that no metadata has.  No image of data looks like the head of a frame, whatever a user wrote: one that begins with
a frame's magic has zeros there in the log, and is listed as ``DATA_ESCAPED``.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from membership.errors import CorruptRecord
from membership.label import BLOCK_BYTES
from membership.records import GENERATION_MAX, Record, raw, record, u16, u32, u64
from membership.seams import Buffer

CLEAN = 0
DIRTY = 1
DATA = GENERATION_MAX + 1  # instead of a generation: the image is file data
DATA_ESCAPED = GENERATION_MAX + 2  # and it begins with a frame's magic, in place of which the log has zeros
_ENTRY = struct.Struct("<QQ")
_REVOKE = struct.Struct("<Q")
FRAME_BODY_AT = 128
FRAME_BODY_BYTES = BLOCK_BYTES - FRAME_BODY_AT
IMAGES_MAX = 200  # images of one frame: 800 KiB in one write
REVOKES_MAX = (FRAME_BODY_BYTES - IMAGES_MAX * _ENTRY.size) // _REVOKE.size
REVOKES_ALONE_MAX = FRAME_BODY_BYTES // _REVOKE.size


@record(magic=b"MXFSJRNL", size=BLOCK_BYTES)
class JournalHeader(Record):
    """First block of a journal.  ``owner`` is the filesystem, ``address`` this block."""

    index: int = u32(48, "number of the journal")
    state: int = u32(52, "CLEAN or DIRTY: whether the log may hold what is not in place")
    node: int = u32(56, "node id of the last owner")
    incarnation: int = u64(64, "incarnation of the owning mount: replay refuses another one's journal")
    salt: int = u64(72, "frames of this mount carry it")
    sequence_first: int = u64(80, "sequence of the oldest frame needed")
    block_first: int = u32(88, "where that frame starts, in blocks from this header")


@record(magic=b"MXFSJFRM", size=BLOCK_BYTES)
class FrameRecord(Record):
    """Head of a frame.  ``generation`` is the sequence number again, ``address`` its own block."""

    salt: int = u64(48, "the header's salt")
    sequence: int = u64(56, "grows by one with every frame")
    part: int = u16(64, "which part of its transaction, from 0")
    parts: int = u16(66, "parts of the transaction")
    images: int = u16(68, "block images that follow")
    revokes: int = u16(70, "blocks whose images in earlier frames must not be replayed")
    payload_crc: int = u32(72, "CRC-32C of the images")
    body: bytes = raw(FRAME_BODY_AT, FRAME_BODY_BYTES, "images: u64 block, u64 generation; then revokes: u64 block")


def pack_frame_body(images: Sequence[tuple[int, int]], revokes: Sequence[int]) -> bytes:
    """The list of (block, generation) of the images and of the revoked blocks as bytes."""
    return b"".join(_ENTRY.pack(*image) for image in images) + struct.pack(f"<{len(revokes)}Q", *revokes)


def unpack_frame_body_untrusted(frame: FrameRecord, where: str) -> tuple[list[tuple[int, int]], list[int]]:
    """([(block, generation)], [revoked block]) of a frame.  Raises CorruptRecord."""
    split = frame.images * _ENTRY.size
    if frame.images > IMAGES_MAX or split + frame.revokes * _REVOKE.size > len(frame.body):
        raise CorruptRecord(where, "frame entries", f"at most {IMAGES_MAX}", frame.images)
    images = [(block, generation) for block, generation in _ENTRY.iter_unpack(frame.body[:split])]
    revokes = [block for (block,) in _REVOKE.iter_unpack(frame.body[split : split + frame.revokes * _REVOKE.size])]
    return images, revokes


def is_data(generation: int) -> bool:
    """Whether a frame lists file data with this ``generation``."""
    return generation in (DATA, DATA_ESCAPED)


def escaped(generation: int, image: bytes) -> tuple[int, bytes]:
    """What the log holds for an image: the generation to list it with, and its bytes."""
    magic = FrameRecord.MAGIC
    if generation == DATA and image.startswith(magic):
        return DATA_ESCAPED, bytes(len(magic)) + image[len(magic) :]
    return generation, image


def unescaped(generation: int, image: Buffer) -> Buffer:
    """The image for what the log holds."""
    magic = FrameRecord.MAGIC
    return b"".join((magic, image[len(magic) :])) if generation == DATA_ESCAPED else image
