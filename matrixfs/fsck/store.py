"""The parts around the tree: label, superblock and its copy, journals."""

from __future__ import annotations

from matrixfs.fs.mkfs import superblock_copy
from matrixfs.fs.replay import ReplayReport, read_journal_header, replay
from matrixfs.fsck.context import reason
from matrixfs.fsck.fixes import WriteLabel, WriteSuperblock
from matrixfs.fsck.problems import (
    JOURNAL_HEADER,
    JOURNAL_LOG,
    LABEL_COPY,
    SUPERBLOCK_COPY,
    SUPERBLOCK_LATER,
    SUPERBLOCK_LOST,
    SUPERBLOCK_PRIMARY,
    Findings,
)
from matrixfs.ondisk.journal import DIRTY
from matrixfs.ondisk.superblock import (
    COMPATIBLE_KNOWN,
    INCOMPATIBLE_KNOWN,
    READ_ONLY_COMPATIBLE_KNOWN,
    Superblock,
)
from membership.errors import CorruptionError, CorruptRecord, OperatorError
from membership.label import BLOCK_BYTES, Label
from membership.seams import SectorDevice


async def check_label_copies(device: SectorDevice, label: Label, findings: Findings) -> None:
    """Compare both labels of a disk with the sound one that was read; one of an older version is as good.

    Raises DeviceError.
    """
    for block in (0, label.data_block + label.data_blocks):  # behind that a store that was enlarged has nothing yet
        label.address = block
        data = await device.read(block * BLOCK_BYTES, BLOCK_BYTES)
        try:
            same = Label.decode_untrusted(data, f"label in block {block}", address=block) == label
        except CorruptRecord:
            same = False
        if not same:
            findings.add(LABEL_COPY, WriteLabel(block), block=block)


async def read_superblock(device: SectorDevice, findings: Findings) -> Superblock | None:
    """The superblock or its copy, whichever is sound; None, with a finding, when neither is.

    Raises:
        OperatorError: a newer version wrote it.
        DeviceError: I/O failed.
    """
    last = device.size_bytes // BLOCK_BYTES - 1
    primary = await _superblock(device, 0)
    if isinstance(primary, Superblock):
        copy = await _superblock(device, primary.blocks_total - 1)
        if copy != superblock_copy(primary):
            problem = SUPERBLOCK_LATER if _is_before(copy, primary) else SUPERBLOCK_COPY
            findings.add(problem, WriteSuperblock(primary.blocks_total - 1))
        return primary
    copy = await _superblock(device, last)
    if not isinstance(copy, Superblock) or copy.blocks_total - 1 != last:
        findings.add(SUPERBLOCK_LOST, reason=reason(primary))
        return None
    findings.add(SUPERBLOCK_PRIMARY, WriteSuperblock(0), reason=reason(primary))
    copy.address = 0
    return copy


def _is_before(copy: Superblock | CorruptRecord, primary: Superblock) -> bool:
    """Whether the copy is of the superblock that a mount had before it added journals (fs/grow.py, G8)."""
    if not isinstance(copy, Superblock) or copy.generation + 1 != primary.generation:
        return False
    try:
        copy.take_over(superblock_copy(primary))
    except CorruptRecord:
        return False
    return True


async def _superblock(device: SectorDevice, block: int) -> Superblock | CorruptRecord:
    """The superblock at ``block``, or what is wrong with it."""
    where = f"superblock in block {block}"
    try:
        found = Superblock.decode_untrusted(await device.read(block * BLOCK_BYTES, BLOCK_BYTES), where, address=block)
        unknown = (
            found.features_compatible & ~COMPATIBLE_KNOWN
            | found.features_read_only & ~READ_ONLY_COMPATIBLE_KNOWN
            | found.features_incompatible & ~INCOMPATIBLE_KNOWN
        )
        if unknown:
            raise OperatorError(
                f"{device.name}: uses features {unknown:#x} of a newer version: use that version's fsck"
            )
        found.check_untrusted(where, device.size_bytes // BLOCK_BYTES)
    except CorruptRecord as error:
        if error.check == "version":
            raise OperatorError(f"{device.name}: was made by a newer version: use that version's fsck") from None
        return error
    return found


async def replay_journals(
    device: SectorDevice, superblock: Superblock, findings: Findings
) -> list[tuple[int, ReplayReport]]:
    """Replay all dirty journals (F2); return (journal, report) of each.  Raises DeviceError."""
    replayed: list[tuple[int, ReplayReport]] = []
    for index in range(superblock.journals):
        try:
            header = await read_journal_header(device, superblock, index)
        except CorruptRecord as error:
            findings.add(JOURNAL_HEADER, journal=index, reason=reason(error))
            continue
        if header.state != DIRTY:
            continue
        try:
            replayed.append((index, await replay(device, superblock, index, expect=None)))
        except CorruptionError as error:
            findings.add(JOURNAL_LOG, journal=index, reason=str(error))
    return replayed
