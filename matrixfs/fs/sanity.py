"""Damage with good checksums is noticed before it is built upon: an operation then fails, and the mount goes on.

Decoders check what a block says by itself; here is what shows only where blocks meet, or when something is changed.
Each check comes before the change that relies on it, with no checkpoint between (J1).  Counts that are wrong on the
store are no reason to refuse: they stay wrong, and within bounds, until fsck corrects them.

Found by tests/damage/test_fuzz.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from matrixfs.fs.blocks import EntryTable, Index, TreeBlock
from membership.errors import CorruptRecord

if TYPE_CHECKING:
    from matrixfs.fs.groups import Group
    from matrixfs.fs.inode import Inode
    from matrixfs.ondisk.superblock import Superblock


def check_used(superblock: Superblock, groups: dict[int, Group], runs: Iterable[tuple[int, int]]) -> None:
    """Before these runs of blocks (first, length) are freed: all are in use, and none is named twice.

    Raises CorruptRecord: something else may own them, or nothing.
    """
    seen: dict[int, int] = {}
    for start, length in runs:
        index = superblock.group_of(start)
        mask = ((1 << length) - 1) << (start - groups[index].address)
        if mask & seen.get(index, 0) or not groups[index].are_used(mask):
            raise CorruptRecord(f"block {start}", "bitmap", f"{length} blocks of one owner", "free or shared ones")
        seen[index] = seen.get(index, 0) | mask


def check_place(block: TreeBlock, level: int, lower: int, upper: int | None) -> None:
    """A block of a tree is where its level and its keys belong: else it hangs in the tree twice, or in a wrong place.

    Args:
        block: as it was cached or read; the inode and the level of one that was read are sound.
        level: where it was found.
        lower: its keys lie from here, as the blocks above say,
        upper: up to, not including, here.

    Raises CorruptRecord.
    """
    content = block.content
    if isinstance(content, Index):
        keys, at = content.keys, 1  # its first key means where the block itself begins; the others lie behind that
    else:
        keys, at = content.keys if isinstance(content, EntryTable) else content.starts, 0
    where = f"block {block.address} (inode {block.inode})"
    if block.level != level:
        raise CorruptRecord(where, "level", level, block.level)
    if len(keys) > at and (keys[at] < lower + at or (upper is not None and keys[-1] >= upper)):
        raise CorruptRecord(where, "keys", f"{lower} to {upper}", f"{keys[at]} to {keys[-1]}")


def lose_subdirectory(directory: Inode) -> None:
    """One subdirectory less."""
    directory.nlink = max(2, directory.nlink - 1)
