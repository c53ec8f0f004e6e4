"""What a logical unit says of itself: parsers of untrusted bytes (SPC-4, SBC-3).  Pure.

Each raises BadMessage, and nothing else, whatever the bytes are.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from membership.errors import BadMessage

_DISK: Final = 0x00
_CACHING_PAGE: Final = 0x08
_DPOFUA: Final = 0x10
_WRITE_PROTECTED: Final = 0x80
_WCE: Final = 0x04
_LBPU: Final = 0x80
_NO_UNIT: Final = 0x7F  # qualifier 3, type 1F: "not capable of a peripheral device on this logical unit"


@dataclass(frozen=True, slots=True)
class Inquiry:
    """Who made the unit."""

    is_disk: bool
    vendor: str
    product: str
    revision: str


@dataclass(frozen=True, slots=True)
class Capacity:
    """How big it is."""

    blocks: int
    sector_bytes: int

    @property
    def size_bytes(self) -> int:
        """Capacity in bytes."""
        return self.blocks * self.sector_bytes


@dataclass(frozen=True, slots=True)
class Caching:
    """How its writes become durable."""

    write_cache: bool  # WCE: an answered write may still be lost with the target's power
    fua: bool  # DPOFUA: it takes the FUA bit
    write_protected: bool


@dataclass(frozen=True, slots=True)
class BlockLimits:
    """VPD page B0; 0 means that it sets no limit, or doesn't say."""

    transfer_blocks_max: int
    compare_and_write_blocks_max: int
    unmap_blocks_max: int = 0  # here 0 means that it has no UNMAP


def inquiry_untrusted(answer: bytes) -> Inquiry | None:
    """Parse a standard INQUIRY; None: there is no unit of that number.  Raises BadMessage."""
    if len(answer) < 36:
        raise BadMessage(f"INQUIRY: an answer of {len(answer)} bytes")
    if answer[0] == _NO_UNIT:
        return None
    vendor, product, revision = (_text(answer[a:b]) for a, b in ((8, 16), (16, 32), (32, 36)))
    return Inquiry(answer[0] & 0x1F == _DISK, vendor, product, revision)


def capacity_untrusted(answer: bytes) -> Capacity:
    """Parse READ CAPACITY(16).  Raises BadMessage."""
    if len(answer) < 12:
        raise BadMessage(f"READ CAPACITY: an answer of {len(answer)} bytes")
    last, sector_bytes = struct.unpack_from(">QI", answer)
    if not 0 < sector_bytes < 1 << 20 or last >= 1 << 54:
        raise BadMessage(f"READ CAPACITY: {last} blocks of {sector_bytes} bytes")
    return Capacity(last + 1, sector_bytes)


def vpd_untrusted(answer: bytes, page: int) -> bytes:
    """The body of a VPD page, as much of it as was sent.  Raises BadMessage."""
    if len(answer) < 4 or answer[1] != page:
        raise BadMessage(f"INQUIRY page {page:#04x}: another page was sent")
    (length,) = struct.unpack_from(">H", answer, 2)
    return answer[4 : 4 + length]


def block_limits_untrusted(answer: bytes) -> BlockLimits:
    """Parse VPD page B0.  Raises BadMessage."""
    body = vpd_untrusted(answer, 0xB0)
    if len(body) < 8:
        raise BadMessage(f"INQUIRY page 0xb0: a body of {len(body)} bytes")
    unmap_blocks_max = struct.unpack_from(">I", body, 16)[0] if len(body) >= 20 else 0
    return BlockLimits(struct.unpack_from(">I", body, 4)[0], body[1], unmap_blocks_max)


def provisioning_untrusted(answer: bytes) -> bool:
    """Parse VPD page B2: whether the unit takes UNMAP.  Raises BadMessage."""
    body = vpd_untrusted(answer, 0xB2)
    if len(body) < 2:
        raise BadMessage(f"INQUIRY page 0xb2: a body of {len(body)} bytes")
    return bool(body[1] & _LBPU)


def serial_untrusted(answer: bytes) -> str:
    """Parse VPD page 80: the unit's serial number.  Raises BadMessage."""
    return _text(vpd_untrusted(answer, 0x80))


def device_id_untrusted(answer: bytes) -> str:
    """Parse VPD page 83: the best name the unit itself has, as hex or text; empty when it has none.

    By two paths the same unit says the same, so this is how a disk is known again.  Raises BadMessage.
    """
    body = vpd_untrusted(answer, 0x83)
    best: tuple[int, str] = (-1, "")
    at = 0
    while at + 4 <= len(body):
        code_set, kind, length = body[at] & 0x0F, body[at + 1], body[at + 3]
        designator = body[at + 4 : at + 4 + length]
        at += 4 + length
        if kind >> 4 & 3 or len(designator) < length:  # not of the unit, or cut off
            continue
        rank = _DESIGNATOR_RANK.get(kind & 0x0F, -1)
        if rank > best[0] and designator:
            best = (rank, _text(designator) if code_set in {2, 3} else designator.hex())
    return best[1]


_DESIGNATOR_RANK: Final = {3: 3, 2: 2, 8: 1, 1: 0}  # NAA, EUI-64, SCSI name, T10 vendor


def caching_untrusted(answer: bytes) -> Caching:
    """Parse MODE SENSE(6) of the caching page.  Raises BadMessage."""
    if len(answer) < 4:
        raise BadMessage(f"MODE SENSE: an answer of {len(answer)} bytes")
    page = 4 + answer[3]
    end = min(len(answer), 1 + answer[0])
    if page + 3 > end or answer[page] & 0x3F != _CACHING_PAGE:
        raise BadMessage("MODE SENSE: no caching page was sent")
    return Caching(bool(answer[page + 2] & _WCE), bool(answer[2] & _DPOFUA), bool(answer[2] & _WRITE_PROTECTED))


def _text(data: bytes) -> str:
    return "".join(chr(byte) if 32 <= byte < 127 else "?" for byte in data.rstrip(b"\0 ")).strip()
