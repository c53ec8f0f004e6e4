"""Changing blocks in the middle of a file's map: what they are, or that they are the file's at all.

Each step is one transaction (J1).  Cutting an extent in the middle makes two or three of it, so the tree may need
blocks: where there are none the caller gets ENOSPC, nothing of that step is done, and bytes can be written instead.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from matrixfs.fs import extents, tree
from matrixfs.fs.allocation import Reservation
from matrixfs.fs.blocks import ExtentList, TreeBlock
from matrixfs.fs.extents import GROUPS_PER_STEP
from matrixfs.fs.held import Held, free_metadata
from matrixfs.fs.inode import Inode
from matrixfs.fs.quotas import owner_of
from matrixfs.fs.sanity import check_used
from matrixfs.fs.tree import Path
from matrixfs.ondisk.extent import Extent

if TYPE_CHECKING:
    from matrixfs.fs.volume import Volume


async def whole(volume: Volume, inode: Inode, logical: int) -> Extent:
    """The extent that holds this block of the file, which is no hole."""
    leaf = (await tree.descend(volume, inode, logical)).leaf
    assert isinstance(leaf, ExtentList)
    found = leaf.at(logical)
    assert found is not None
    return found


async def set_flags(volume: Volume, inode: Inode, piece: Extent, flags: int) -> None:
    """Make blocks of an exclusively held file written or unwritten; ``piece`` lies within one extent.

    No checkpoint at its end.

    Raises:
        OSError: ENOSPC; never for a whole extent.
        CorruptionError, DeviceError, Fenced.
    """
    await set_flags_of_all(volume, inode, [piece], flags)


async def set_flags_of_all(volume: Volume, inode: Inode, pieces: list[Extent], flags: int) -> None:
    """``set_flags`` of several pieces in one change.  Raises as it does; then none is changed."""
    paths = [await tree.descend(volume, inode, piece.logical) for piece in pieces]
    more = [len(_cut(path, piece)[1]) for path, piece in zip(paths, pieces, strict=True)]
    # A leaf may get them all, and the tree a level more than the path has now.
    needs = [_tree_blocks(path, sum(more)) for path, extents_more in zip(paths, more, strict=True) if extents_more]
    needed = sum(needs) + len(needs[1:])
    with Held(volume) as held:
        await held.quota((owner_of(inode), 0, 0))
        group = await held.group(needed, pieces[0].physical) if needed else None
        with Reservation(volume.journal, group, needed) as spare:
            await volume.journal.admit()
            # No checkpoint from here (J1): all blocks on the way are cached.
            for piece in pieces:
                path = await tree.descend(volume, inode, piece.logical)
                old, parts = _cut(path, piece)
                parts.insert(bool(parts) and parts[0].logical < piece.logical, piece._replace(flags=flags))
                await _replace(volume, inode, path, old, parts, spare)


async def remove(volume: Volume, inode: Inode, first: int, end: int) -> None:
    """Free the blocks [first, end) of an exclusively held file: they become holes.

    Raises:
        OSError: ENOSPC; a part may be freed by then.
        CorruptionError, DeviceError, Fenced.
    """
    at: int | None = first
    while at is not None and at < end:
        path = await tree.descend(volume, inode, at)
        victims, indexes = _victims(volume, path, at, end)
        if victims:
            await _free(volume, inode, path, victims, indexes)
            at = victims[-1].end
        else:
            at = path.upper


def _victims(volume: Volume, path: Path, at: int, end: int) -> tuple[list[Extent], set[int]]:
    """What of a leaf's extents lies in [at, end), as much as one step may free, and the groups of that."""
    assert isinstance(path.leaf, ExtentList)
    victims: list[Extent] = []
    indexes: set[int] = set()
    for extent in path.leaf.extents:
        if extent.end <= at or extent.logical >= end:
            continue
        part = extent.part(at, end)
        first = volume.superblock.group_of(part.physical)
        last = volume.superblock.group_of(part.physical + part.length - 1)
        if victims and len(indexes | {first, last}) > GROUPS_PER_STEP:
            break
        indexes |= set(range(first, last + 1))
        victims.append(part)
    return victims, indexes


async def _free(volume: Volume, inode: Inode, path: Path, victims: list[Extent], indexes: set[int]) -> None:
    """One step of ``remove``: victims of one leaf."""
    leaf = path.leaf
    assert isinstance(leaf, ExtentList)
    cuts = [_cut(path, victim) for victim in victims]
    empties = len(victims) == len(leaf) and isinstance(path.owner, TreeBlock) and not any(parts for _, parts in cuts)
    if empties:
        blocks = [path.owner, *(step.owner for step in path.steps)]
        indexes = indexes | {volume.superblock.group_of(block.address) for block in blocks if block is not inode}
    needed = _tree_blocks(path, 1) if len(cuts[0][1]) == 2 else 0
    spare_in = await _group_with(volume, needed, victims[0].physical) if needed else None
    with Held(volume) as held:
        await held.quota((owner_of(inode), 0, 0))
        groups = await held.groups(indexes if spare_in is None else indexes | {spare_in})
        group = None if spare_in is None else groups[spare_in]
        if group is not None and not volume.allocator.promises.spare(group, needed):
            raise OSError(errno.ENOSPC, "no space left to cut an extent")
        with Reservation(volume.journal, group, needed) as spare:
            await volume.journal.admit()
            # No checkpoint from here (J1).
            freed = [(victim.physical, victim.length) for victim in victims]
            check_used(volume.superblock, groups, freed + (extents.emptied(path) if empties else []))
            for victim, (old, parts) in zip(victims, cuts, strict=True):
                await _replace(volume, inode, path, old, parts, spare)
                extents.free(volume, inode, victim.physical, victim.length, groups)
            volume.journal.add(inode)
            if empties:
                for block in tree.prune(volume, inode, path):
                    free_metadata(volume, groups[volume.superblock.group_of(block.address)], block)


async def _group_with(volume: Volume, count: int, near: int) -> int:
    """A group that had ``count`` free blocks: it can't stay held, as groups are taken by number.  OSError ENOSPC."""
    group = await volume.allocator.hold(count, near)
    volume.allocator.drop(group)
    return group.index


def _cut(path: Path, piece: Extent) -> tuple[Extent, list[Extent]]:
    """The extent that ``piece`` is part of, and what is left of it without."""
    assert isinstance(path.leaf, ExtentList)
    old = path.leaf.at(piece.logical)
    assert old is not None
    assert old.end >= piece.end
    sides = (old.part(old.logical, piece.logical), old.part(piece.end, old.end))
    return old, [side for side in sides if side.length > 0]


def _tree_blocks(path: Path, more: int) -> int:
    """Blocks that the tree may need for ``more`` extents in a leaf."""
    assert isinstance(path.leaf, ExtentList)
    return 0 if len(path.leaf) + more <= path.leaf.capacity else len(path.steps) + 2


async def _replace(
    volume: Volume, inode: Inode, path: Path, old: Extent, parts: list[Extent], spare: Reservation
) -> None:
    """Put ``parts`` where an extent was.  No checkpoint: all blocks on the way are cached.

    The leaf may split under the second part, and has room for a third then.
    """
    assert isinstance(path.leaf, ExtentList)
    path.leaf.remove(old)
    volume.journal.add(path.owner)
    for part in parts:
        tree.insert(volume, inode, await tree.descend(volume, inode, part.logical), part, spare)
