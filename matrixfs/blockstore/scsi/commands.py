"""SCSI commands as bytes: the few that a cluster disk is read, written and examined with.

A ``Command`` is everything a session needs: the descriptor block, the data that goes along, and how much comes back.
Layouts are of SBC-3 (READ(16) and the like) and SPC-4 (INQUIRY, MODE SENSE); multi-byte fields are big-endian.

Invariants:
    C1  Pure: no I/O, no state.
    C2  ``PROBE_ONLY`` commands may run on a LUN in use only where the probe saw them refused to an unregistered
        initiator: on some targets they pass by the reservation (ecosystem.md 1).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

READ_16: Final = 0x88
WRITE_16: Final = 0x8A
COMPARE_AND_WRITE: Final = 0x89
ORWRITE_16: Final = 0x8B
WRITE_AND_VERIFY_16: Final = 0x8E
SYNCHRONIZE_CACHE_16: Final = 0x91
WRITE_SAME_16: Final = 0x93
UNMAP: Final = 0x42

PROBE_ONLY: Final = frozenset({ORWRITE_16, WRITE_AND_VERIFY_16, WRITE_SAME_16, UNMAP})

INQUIRY_BYTES: Final = 96
VPD_BYTES: Final = 255
VPD_SERIAL: Final = 0x80
VPD_DEVICE_ID: Final = 0x83
VPD_BLOCK_LIMITS: Final = 0xB0
VPD_PROVISIONING: Final = 0xB2
_CAPACITY_BYTES: Final = 32
_MODE_BYTES: Final = 192
_CACHING_PAGE: Final = 0x08
_FUA: Final = 0x08

_RW_16: Final = struct.Struct(">BBQIBB")  # operation, flags, address, blocks, group, control


@dataclass(frozen=True, slots=True)
class Command:
    """One SCSI command: sends ``data``, or receives ``receives`` bytes, or neither."""

    name: str  # for messages
    cdb: bytes
    data: bytes = b""
    receives: int = 0


def read_16(lba: int, blocks: int) -> bytes:
    """Descriptor block of READ(16)."""
    return _RW_16.pack(READ_16, 0, lba, blocks, 0, 0)


def write_16(lba: int, blocks: int, *, fua: bool = False) -> bytes:
    """Descriptor block of WRITE(16); ``fua``: it is on the medium when the target answers."""
    return _RW_16.pack(WRITE_16, _FUA if fua else 0, lba, blocks, 0, 0)


def synchronize_cache(lba: int = 0, blocks: int = 0) -> bytes:
    """Descriptor block of SYNCHRONIZE CACHE(16); no ``blocks``: up to the end of the unit."""
    return _RW_16.pack(SYNCHRONIZE_CACHE_16, 0, lba, blocks, 0, 0)


def test_unit_ready() -> Command:
    """TEST UNIT READY."""
    return Command("TEST UNIT READY", bytes(6))


def read_capacity() -> Command:
    """READ CAPACITY(16); see ``answers.capacity_untrusted``."""
    return Command("READ CAPACITY(16)", _RW_16.pack(0x9E, 0x10, 0, _CAPACITY_BYTES, 0, 0), receives=_CAPACITY_BYTES)


def inquiry() -> Command:
    """Standard INQUIRY; see ``answers.inquiry_untrusted``."""
    return Command("INQUIRY", struct.pack(">BBBHB", 0x12, 0, 0, INQUIRY_BYTES, 0), receives=INQUIRY_BYTES)


def vital_product_data(page: int) -> Command:
    """INQUIRY of a VPD page; see ``answers.vpd_untrusted``."""
    cdb = struct.pack(">BBBHB", 0x12, 1, page, VPD_BYTES, 0)
    return Command(f"INQUIRY page {page:#04x}", cdb, receives=VPD_BYTES)


def mode_sense_caching() -> Command:
    """MODE SENSE(6) of the caching page, current values; see ``answers.caching_untrusted``."""
    cdb = struct.pack(">BBBBBB", 0x1A, 0, _CACHING_PAGE, 0, _MODE_BYTES, 0)
    return Command("MODE SENSE(6)", cdb, receives=_MODE_BYTES)


def write_one(lba: int, data: bytes, sector_bytes: int, *, fua: bool = False) -> Command:
    """WRITE(16) of ``data``, for a probe."""
    return Command("WRITE(16)", write_16(lba, len(data) // sector_bytes, fua=fua), data)


def read_one(lba: int, blocks: int, sector_bytes: int) -> Command:
    """READ(16), for a probe."""
    return Command("READ(16)", read_16(lba, blocks), receives=blocks * sector_bytes)


def compare_and_write(lba: int, old: bytes, new: bytes, sector_bytes: int) -> Command:
    """COMPARE AND WRITE: ``new`` replaces ``old`` at once, or ``Miscompare``.  At most 255 sectors."""
    assert len(old) == len(new)
    cdb = struct.pack(">BBQ3xBBB", COMPARE_AND_WRITE, 0, lba, len(old) // sector_bytes, 0, 0)
    return Command("COMPARE AND WRITE", cdb, old + new)


def write_same(lba: int, blocks: int, sector: bytes) -> Command:
    """WRITE SAME(16): ``sector`` to each of ``blocks`` (C2)."""
    return Command("WRITE SAME(16)", _RW_16.pack(WRITE_SAME_16, 0, lba, blocks, 0, 0), sector)


def orwrite(lba: int, data: bytes, sector_bytes: int) -> Command:
    """ORWRITE(16) (C2)."""
    return Command("ORWRITE(16)", _RW_16.pack(ORWRITE_16, 0, lba, len(data) // sector_bytes, 0, 0), data)


def write_and_verify(lba: int, data: bytes, sector_bytes: int) -> Command:
    """WRITE AND VERIFY(16) (C2)."""
    cdb = _RW_16.pack(WRITE_AND_VERIFY_16, 0, lba, len(data) // sector_bytes, 0, 0)
    return Command("WRITE AND VERIFY(16)", cdb, data)


def unmap(lba: int, blocks: int) -> Command:
    """UNMAP of one range (C2)."""
    data = struct.pack(">HHIQI4x", 22, 16, 0, lba, blocks)
    return Command("UNMAP", struct.pack(">BBIBHB", UNMAP, 0, 0, 0, len(data), 0), data)
