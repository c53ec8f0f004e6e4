"""Reading the superblock: the first thing anybody does with a filesystem's area."""

from __future__ import annotations

from matrixfs.ondisk.superblock import READ_ONLY_COMPATIBLE_KNOWN, Superblock
from membership.errors import CorruptRecord, OperatorError
from membership.label import BLOCK_BYTES
from membership.seams import SectorDevice


async def read_superblock(area: SectorDevice) -> Superblock:
    """The superblock of the filesystem in ``area``, checked as far as the other decoders rely on it.

    Raises:
        OperatorError: it was made by a newer version.
        CorruptRecord: it is damaged.
        DeviceError: I/O failed.
    """
    where = f"{area.name}: superblock"
    data = await area.read(0, BLOCK_BYTES)
    try:
        superblock = Superblock.decode_untrusted(data, where, address=0)
        superblock.check_untrusted(where, area.size_bytes // BLOCK_BYTES)
    except CorruptRecord as error:
        if error.check in {"version", "incompatible features"}:
            raise OperatorError(f"{area.name}: made by a newer MatrixFS: upgrade this node to mount it") from None
        raise
    if superblock.features_read_only & ~READ_ONLY_COMPATIBLE_KNOWN:
        raise OperatorError(f"{area.name}: uses features that this version may not write beside: upgrade this node")
    return superblock


def check_may_journal_data(superblock: Superblock) -> None:
    """Raise OperatorError where ``-o data=journal`` is not to be had: an older version made the filesystem."""
    if not superblock.may_journal_data:
        raise OperatorError(
            f"{superblock.name} was made without room for data in its journals: mount it without data=journal,"
            " or unmount it everywhere and run fsck.matrixfs --upgrade"
        )
