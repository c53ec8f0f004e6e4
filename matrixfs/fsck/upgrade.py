"""Telling a filesystem that it may use what this version can do (R12): offline, and only when it is clean.

The copy goes first, durably, then the superblock.  A crash between them leaves a superblock without the features,
which is what everybody reads, so nothing uses them; fsck then writes the copy again.  The other order could leave a
filesystem that uses a feature and a copy that does not say so.
"""

from __future__ import annotations

from matrixfs.fs.mkfs import superblock_copy
from matrixfs.ondisk.superblock import INCOMPATIBLE_NEW, QUOTAS, Superblock
from membership.label import BLOCK_BYTES
from membership.records import next_generation
from membership.seams import SectorDevice


async def upgrade(area: SectorDevice, superblock: Superblock, known: int = INCOMPATIBLE_NEW) -> int:
    """Set all features that this version gives to new filesystems; return the bits that are new.

    Args:
        area: the data area of a clean filesystem that nobody uses.
        superblock: its superblock; changed too.
        known: bits of ``features_incompatible``.

    Raises:
        DeviceError: I/O failed; the filesystem is as it was, or has the features.
    """
    new = known & ~superblock.features_incompatible
    if new:
        superblock.features_incompatible |= new
        await _write(area, superblock)
    return new


async def turn_on_quotas(area: SectorDevice, superblock: Superblock) -> None:
    """Say that all that is used is counted: the quotas' tree is durable.  Raises as ``upgrade``."""
    superblock.features_read_only |= QUOTAS
    await _write(area, superblock)


async def _write(area: SectorDevice, superblock: Superblock) -> None:
    superblock.generation = next_generation(superblock.generation)
    copy = superblock_copy(superblock)
    for record in (copy, superblock):
        await area.write(record.address * BLOCK_BYTES, record.encode(), durable=True)
