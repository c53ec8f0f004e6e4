"""Inodes among the blocks that are marked in use though nothing refers to them.

An inode with names is lost: it is reported, with all below it, and left alone (no lost+found in this version).
One without names is an orphan that nobody listed.  What remains are leaked blocks, which ``groups.py`` reports.
"""

from __future__ import annotations

import stat
from array import array
from collections.abc import AsyncIterator
from itertools import chain

from matrixfs.fs.replay import check_image_untrusted
from matrixfs.fsck.area import READ_AT_ONCE, Area, bit_runs, read_groups
from matrixfs.fsck.context import Context
from matrixfs.fsck.inodes import check_content, check_inode_fields
from matrixfs.fsck.orphans import report_unlisted
from matrixfs.fsck.problems import LOST_INODE
from matrixfs.fsck.walk import NamespaceWalk
from matrixfs.ondisk.group import GroupRecord
from matrixfs.ondisk.inode import InodeRecord
from matrixfs.ondisk.superblock import Superblock
from membership.errors import CorruptRecord


async def find_lost(context: Context) -> None:
    """Look for inodes in blocks that are in use and unclaimed.  Raises DeviceError."""
    directories, others = array("Q"), array("Q")
    superblock = context.area.superblock
    async for index, group in read_groups(context.area):
        if isinstance(group, CorruptRecord):
            continue
        async for block, data in read_bits(context.area, index, leaked_bits(context, group)):
            inode = live_inode(superblock, block, data)
            if inode is not None:
                (directories if stat.S_ISDIR(inode.mode) else others).append(block)
        done = superblock.group_block(index) + superblock.group_size(index)
        context.progress.report("lost", done, superblock.blocks_total)
    for number in chain(directories, others):  # directories first: what lies below a lost one is not reported by itself
        if not context.map.is_inode(number):
            await _report(context, number)


async def _report(context: Context, number: int) -> None:
    inode = live_inode(context.area.superblock, number, await context.area.read(number))
    if inode is None:
        return
    if inode.nlink == 0:
        await report_unlisted(context, inode)
        return
    context.findings.add(LOST_INODE, inode=number, mode=inode.mode, size=inode.size)
    context.claim(number, number)
    context.map.mark_inode(number)
    if not check_inode_fields(context, inode):
        return
    if stat.S_ISDIR(inode.mode):
        context.counts.directories += 1
        await NamespaceWalk(context).run(inode)
        return
    context.counts.files += 1
    await check_content(context, inode)


def live_inode(superblock: Superblock, block: int, data: bytes) -> InodeRecord | None:
    """The inode in a block, if there is one and it is no tombstone."""
    if data[:8] != InodeRecord.MAGIC or not superblock.is_inode_number(block):
        return None
    try:
        inode = InodeRecord.decode_untrusted(data, "", owner=superblock.owner, address=block)
    except CorruptRecord:
        return None
    return inode if inode.mode else None


def leaked_bits(context: Context, group: GroupRecord) -> int:
    """Bits of a group's blocks that are marked in use and that nothing claimed."""
    index = context.area.superblock.group_of(group.address)
    size = context.area.superblock.group_size(index)
    marked = int.from_bytes(group.bitmap, "little") & ((1 << size) - 1)
    return marked & ~context.map.bits(group.address, size)


async def read_bits(area: Area, index: int, bits: int) -> AsyncIterator[tuple[int, bytes]]:
    """(block, content) of a group's blocks whose bits are set.  Raises DeviceError."""
    start = area.superblock.group_block(index)
    for first, length in bit_runs(bits):
        for at in range(first, first + length, READ_AT_ONCE):
            blocks = range(start + at, start + min(at + READ_AT_ONCE, first + length))
            read = await area.read_many(blocks)
            for block in blocks:
                yield block, read[block]


async def greatest_generation(area: Area, index: int, bits: int) -> int:
    """Greatest generation of metadata in a group's blocks whose bits are set; 0 when there is none.

    Blocks that are freed by a repair must leave it in ``generation_floor`` (R7).  Raises DeviceError.
    """
    greatest = 0
    async for block, data in read_bits(area, index, bits):
        try:
            greatest = max(greatest, check_image_untrusted(area.superblock, data, block, ""))
        except CorruptRecord:
            continue
    return greatest
