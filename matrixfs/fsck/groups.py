"""The allocation groups: their fields, and their bitmaps against what was claimed."""

from __future__ import annotations

from matrixfs.fsck.area import read_groups
from matrixfs.fsck.context import Context, reason
from matrixfs.fsck.fixes import ClearBits, RebuildGroup, SetBits
from matrixfs.fsck.lost import greatest_generation, leaked_bits
from matrixfs.fsck.problems import (
    BLOCK_LEAKED,
    BLOCK_MISSING,
    GROUP_DAMAGED,
    GROUP_FREE,
    GROUP_PADDING,
    GROUP_SHAPE,
    GROUP_SHORT,
    JOURNAL_UNMARKED,
)
from matrixfs.ondisk.group import BITMAP_BYTES, GroupRecord
from membership.errors import CorruptRecord


async def check_groups(context: Context) -> None:
    """Check all groups; everything that is in use was claimed before.  Raises DeviceError."""
    superblock = context.area.superblock
    async for index, group in read_groups(context.area):
        if isinstance(group, CorruptRecord):
            await _check_lost_group(context, index, group)
        else:
            await _check_group(context, index, group)
        done = superblock.group_block(index) + superblock.group_size(index)
        context.progress.report("groups", done, superblock.blocks_total)


async def _check_lost_group(context: Context, index: int, error: CorruptRecord) -> None:
    """Say what the group must be: all of it follows from what is claimed and from its free blocks."""
    superblock = context.area.superblock
    size = superblock.group_size(index)
    used = context.map.bits(superblock.group_block(index), size)
    unused = used ^ ((1 << size) - 1)
    floor = await greatest_generation(context.area, index, unused)
    fix = RebuildGroup(index, (used | padding(size)).to_bytes(BITMAP_BYTES, "little"), floor)
    context.counts.blocks_used += used.bit_count()
    context.findings.add(GROUP_DAMAGED, fix, group=index, reason=reason(error))


async def _check_group(context: Context, index: int, group: GroupRecord) -> None:
    findings, superblock = context.findings, context.area.superblock
    size = superblock.group_size(index)
    if is_short(group, index, size):
        findings.add(GROUP_SHORT, SetBits(index, 0), group=index, found=group.blocks, expected=size)
        enlarge(group, size)
    bitmap = int.from_bytes(group.bitmap, "little")
    marked = bitmap & ((1 << size) - 1)
    context.counts.blocks_used += marked.bit_count()
    derived = SetBits(index, 0)  # the fields that follow from the bitmap
    if (group.index, group.blocks) != (index, size):
        findings.add(GROUP_SHAPE, derived, group=index, index=group.index, blocks=group.blocks)
    if group.free != size - marked.bit_count():
        findings.add(GROUP_FREE, derived, group=index, found=group.free, expected=size - marked.bit_count())
    # Bits beyond the largest group mean nothing to anybody; those of a short last group would be given out.
    missing_padding = padding(size) & ((1 << (1 << superblock.group_shift)) - 1) & ~bitmap
    if missing_padding:
        findings.add(GROUP_PADDING, derived, group=index)
    claimed = context.map.bits(group.address, size)
    missing, leaked = claimed & ~marked, leaked_bits(context, group)
    for start, length in superblock.runs_in(index):
        bits = ((1 << length) - 1) << (start - group.address)
        if missing & bits == bits:
            findings.add(JOURNAL_UNMARKED, SetBits(index, bits), group=index, count=length, block=start)
            missing &= ~bits
    if missing:
        findings.add(
            BLOCK_MISSING,
            SetBits(index, missing),
            group=index,
            count=missing.bit_count(),
            block=group.address + first_bit(missing),
        )
    if leaked:
        floor = await greatest_generation(context.area, index, leaked)
        findings.add(
            BLOCK_LEAKED,
            ClearBits(index, leaked, floor),
            group=index,
            count=leaked.bit_count(),
            block=group.address + first_bit(leaked),
        )


def is_short(group: GroupRecord, index: int, size: int) -> bool:
    """Whether it is sound, but smaller than there is room for: the last one of a filesystem that was grown then."""
    if group.index != index or not 2 <= group.blocks < size:
        return False
    end = padding(group.blocks) & ~padding(size)
    return int.from_bytes(group.bitmap, "little") & end == end


def enlarge(group: GroupRecord, size: int) -> None:
    """What the next mount that uses it makes of a short group: all behind its end is free."""
    bits = int.from_bytes(group.bitmap, "little") & ~(padding(group.blocks) & ~padding(size))
    group.bitmap = bits.to_bytes(BITMAP_BYTES, "little")
    group.free += size - group.blocks
    group.blocks = size


def padding(size: int) -> int:
    """The bits past the end of a group of ``size`` blocks."""
    return ((1 << BITMAP_BYTES * 8) - 1) ^ ((1 << size) - 1)


def first_bit(bits: int) -> int:
    """Index of the lowest set bit."""
    return (bits & -bits).bit_length() - 1
