"""A file's map from its blocks to the store's."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

from matrixfs.fs import tree
from matrixfs.fs.blocks import ExtentList, TreeBlock
from matrixfs.fs.held import Held, free_metadata
from matrixfs.fs.inode import Inode
from matrixfs.fs.quotas import owner_of
from matrixfs.fs.sanity import check_used
from matrixfs.ondisk.extent import LOGICAL_MAX, Extent
from matrixfs.ondisk.inode import FLAG_TRUNCATING

if TYPE_CHECKING:
    from matrixfs.fs.groups import Group
    from matrixfs.fs.volume import Volume

GROUPS_PER_STEP = 16  # groups held at once while a file shrinks


async def pieces(volume: Volume, inode: Inode, first: int, count: int) -> list[Extent]:
    """The range of ``count`` blocks from ``first`` as extents that cover it; ``physical`` 0 is a hole."""
    found: list[Extent] = []
    at, end = first, first + count
    while at < end:
        path = await tree.descend(volume, inode, at)
        leaf = path.leaf
        assert isinstance(leaf, ExtentList)
        stop = end if path.upper is None else min(end, path.upper)
        index = max(bisect_right(leaf.starts, at) - 1, 0)
        for logical, physical, length, flags in leaf.extents[index:]:
            if logical >= stop:
                break
            if logical + length <= at:
                continue
            if logical > at:
                found.append(Extent(at, 0, logical - at))
                at = logical
            take = min(logical + length, stop) - at
            found.append(Extent(at, physical + at - logical, take, flags))
            at += take
        if at < stop:
            found.append(Extent(at, 0, stop - at))
            at = stop
    return found


async def piece(volume: Volume, inode: Inode, at: int, end: int) -> Extent:
    """The first of ``pieces`` alone: cheap where a file has many."""
    path = await tree.descend(volume, inode, at)
    leaf = path.leaf
    assert isinstance(leaf, ExtentList)
    stop = end if path.upper is None else min(end, path.upper)
    extent = leaf.at(at)
    if extent is not None:
        return extent.part(at, stop)
    after = leaf.after(at)
    return Extent(at, 0, (stop if after is None else min(after, stop)) - at)


async def truncate(volume: Volume, inode: Inode, from_block: int) -> None:
    """Free all blocks from ``from_block`` on, in steps that each fit a transaction.

    The inode is held exclusively.  Between steps FLAG_TRUNCATING is set, so that a crash leaves a file
    whose truncation is finished before it grows again.
    """
    while not inode.inline:  # a flag on a file without extents is damage, and no harm
        path = await tree.descend(volume, inode, LOGICAL_MAX)
        leaf = path.leaf
        assert isinstance(leaf, ExtentList)
        victims, indexes = _victims(volume, leaf, from_block)
        empties = len(victims) == len(leaf) and isinstance(path.owner, TreeBlock) and _whole(victims, from_block)
        if not victims and not empties:
            break
        if empties:
            blocks = [path.owner, *(step.owner for step in path.steps)]
            indexes |= {volume.superblock.group_of(block.address) for block in blocks if block is not inode}
        with Held(volume) as held:
            await held.quota((owner_of(inode), 0, 0))
            groups = await held.groups(indexes)
            await volume.journal.admit()
            # No checkpoint from here (J1).
            check_used(volume.superblock, groups, _runs(victims, from_block, path if empties else None))
            inode.flags |= FLAG_TRUNCATING
            _cut(volume, inode, leaf, victims, from_block, groups)
            volume.journal.add(path.owner)
            if empties:
                for block in tree.prune(volume, inode, path):
                    free_metadata(volume, groups[volume.superblock.group_of(block.address)], block)
    if inode.flags & FLAG_TRUNCATING:
        inode.flags &= ~FLAG_TRUNCATING
        volume.journal.add(inode)


def _victims(volume: Volume, leaf: ExtentList, from_block: int) -> tuple[list[Extent], set[int]]:
    """Extents at the leaf's end that reach beyond ``from_block``, and the groups of what goes."""
    victims: list[Extent] = []
    indexes: set[int] = set()
    for extent in reversed(leaf.extents):
        if extent.logical + extent.length <= from_block:
            break
        kept = max(0, from_block - extent.logical)
        first = volume.superblock.group_of(extent.physical + kept)
        last = volume.superblock.group_of(extent.physical + extent.length - 1)
        if len(indexes | {first, last}) > GROUPS_PER_STEP:
            break
        indexes |= set(range(first, last + 1))
        victims.append(extent)
    return victims, indexes


def _runs(victims: list[Extent], from_block: int, path: tree.Path | None) -> list[tuple[int, int]]:
    """What goes with the victims' blocks from ``from_block`` on, and with the leaf and indexes of ``path``."""
    runs: list[tuple[int, int]] = []
    for extent in victims:
        kept = max(0, from_block - extent.logical)
        runs.append((extent.physical + kept, extent.length - kept))
    return runs + (emptied(path) if path is not None else [])


def emptied(path: tree.Path) -> list[tuple[int, int]]:
    """The blocks that ``tree.prune`` takes out of the tree."""
    runs = [(path.owner.address, 1)]
    for owner, index, _ in reversed(path.steps):
        if len(index.keys) > 1 or not isinstance(owner, TreeBlock):
            break
        runs.append((owner.address, 1))
    return runs


def _whole(victims: list[Extent], from_block: int) -> bool:
    """Whether nothing of the extents is kept."""
    return all(extent.logical >= from_block for extent in victims)


def _cut(
    volume: Volume, inode: Inode, leaf: ExtentList, victims: list[Extent], from_block: int, groups: dict[int, Group]
) -> None:
    """Take the extents out of the leaf and free their blocks.  Part of a change."""
    for extent in victims:
        kept = max(0, from_block - extent.logical)
        del leaf.extents[-1]
        del leaf.starts[-1]
        if kept:
            leaf.add(extent._replace(length=kept))
        free(volume, inode, extent.physical + kept, extent.length - kept, groups)
    volume.journal.add(inode)


def free(volume: Volume, inode: Inode, start: int, length: int, groups: dict[int, Group]) -> None:
    """A file's blocks are named no more.  Part of a change."""
    volume.use(inode, -length)
    while length:  # merged extents may cross from one group into the next
        index = volume.superblock.group_of(start)
        end = volume.superblock.group_block(index) + volume.superblock.group_size(index)
        part = min(length, end - start)
        volume.allocator.free_data(groups[index], start, part)
        start += part
        length -= part


async def drop_tree(volume: Volume, inode: Inode) -> None:
    """Free a directory's whole tree: nobody will look at its leaves again."""
    while inode.depth:
        path = await tree.descend(volume, inode, LOGICAL_MAX << 10)
        blocks = [path.owner, *(step.owner for step in path.steps)]
        indexes = {volume.superblock.group_of(block.address) for block in blocks if block is not inode}
        with Held(volume) as held:
            await held.quota((owner_of(inode), 0, 0))
            groups = await held.groups(indexes)
            await volume.journal.admit()
            # No checkpoint from here (J1).
            check_used(volume.superblock, groups, emptied(path))
            for block in tree.prune(volume, inode, path):
                free_metadata(volume, groups[volume.superblock.group_of(block.address)], block)
