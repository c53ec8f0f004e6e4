"""Giving a file blocks where it has none: taken from a group, filled, then named, one transaction each (J1, J4).

``flags`` UNWRITTEN reserves them: nothing is written, and they read as zeros until something is.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from matrixfs.fs import extents, tree
from matrixfs.fs.allocation import Reservation
from matrixfs.fs.groups import Group
from matrixfs.fs.held import Held
from matrixfs.fs.inode import Inode, no_extents
from matrixfs.fs.promises import TREE_BLOCKS_MAX
from matrixfs.fs.quotas import owner_of
from matrixfs.ondisk.extent import UNWRITTEN, Extent
from membership.label import BLOCK_BYTES

if TYPE_CHECKING:
    from matrixfs.fs.volume import Volume

Fill = Callable[[Extent], Awaitable[None]]  # writes the blocks of an extent that nothing names yet
Named = Callable[[Extent], None]  # adds to the change that names it


async def allocate(
    volume: Volume, inode: Inode, hole: Extent, near: int, fill: Fill | None, named: Named | None = None
) -> int:
    """Give an exclusively held file blocks, which it was promised, for ``hole``; return where the next best lie.

    Args:
        volume: the filesystem.
        inode: the file.
        hole: blocks of the file, within one of ``extents.pieces``.
        near: where they would best lie; 0 for no wish.
        fill: writes them before they are named; None reserves them unwritten.
        named: called in each change that names some, without a checkpoint since.

    Raises:
        OSError: ENOSPC, EDQUOT where nothing is written; some blocks may be the file's by then.
        CorruptionError, DeviceError, Fenced.
    """
    with Held(volume) as held:
        # What was buffered is written whatever it takes: its room was asked for at write(2) (quotas, Q4).
        await held.quota((owner_of(inode), 0 if fill else hole.length, 0))
        return await _allocate(volume, inode, hole, near, fill, named)


async def _allocate(
    volume: Volume, inode: Inode, hole: Extent, near: int, fill: Fill | None, named: Named | None
) -> int:
    logical, left = hole.logical, hole.length
    while left:
        near = near or await _after(volume, inode, logical)
        grows = inode.ino if near else 0
        needed = await _tree_blocks(volume, inode, logical)
        group = await volume.allocator.hold(1 + TREE_BLOCKS_MAX, near or inode.ino, left, promised=True)
        try:
            # No checkpoint from the hold to the reservation: others take from the group during our I/O.
            start, length = group.take(min(left, group.available - TREE_BLOCKS_MAX), near, grows)
            extent = Extent(logical, start, length, 0 if fill else UNWRITTEN)
            try:
                with Reservation(volume.journal, group, needed) as spare:
                    if fill is not None:
                        await fill(extent)
                    await _name(volume, inode, group, extent, spare)
                    if named is not None:
                        named(extent)
            except BaseException:
                group.untake(start, length)
                raise
        finally:
            volume.allocator.drop(group)
        near = start + length
        logical += length
        left -= length
    return near


async def _after(volume: Volume, inode: Inode, logical: int) -> int:
    """Where the block before ``logical`` ends on the store; 0 if there is none."""
    if inode.inline or logical == 0:
        return 0
    before = await extents.piece(volume, inode, logical - 1, logical)
    return before.physical + 1 if before.physical else 0


async def _tree_blocks(volume: Volume, inode: Inode, logical: int) -> int:
    """Blocks that the tree may need to name new ones at ``logical``."""
    if inode.inline:
        return 0
    return tree.blocks_needed(await tree.descend(volume, inode, logical), Extent(logical, 0, 1))


async def _name(volume: Volume, inode: Inode, group: Group, extent: Extent, spare: Reservation) -> None:
    await volume.journal.admit()
    if inode.inline:
        inode.root = no_extents()
    path = await tree.descend(volume, inode, extent.logical)
    # No checkpoint from here (J1): the blocks are used and named together.
    group.use(extent.physical, extent.length)
    volume.journal.add(group)
    before = spare.left
    tree.insert(volume, inode, path, extent, spare)
    volume.use(inode, extent.length)
    volume.write_back.used(inode, extent.length + before - spare.left)
    volume.journal.add(inode)
    if extent.written:
        size_follows(volume, inode, extent.end)


def size_follows(volume: Volume, inode: Inode, end: int) -> None:
    """All data before block ``end`` is on the store, so the size may follow.  Part of the change that says so.

    No commit leaves written blocks behind the end of a file.
    """
    inode.size_on_disk = max(inode.size_on_disk, min(inode.size, end * BLOCK_BYTES))
    volume.journal.add(inode)
