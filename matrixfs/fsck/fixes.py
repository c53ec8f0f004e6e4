"""Repairs as data: what ``repair.py`` shall change.  Each is idempotent and right by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from matrixfs.ondisk.quota import Limits


@dataclass(frozen=True, slots=True)
class Fix:
    """Base: ``needs_whole`` repairs rest on having seen everything (F4); journalled ones on clean journals (F5)."""

    needs_whole: ClassVar[bool] = False
    is_journalled: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class SetInode(Fix):
    """Set fields of an inode that rest on what was seen of it alone."""

    inode: int
    changes: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class LowerLinks(Fix):
    """Set a count of names below what the inode says: other names may lie in what couldn't be read."""

    needs_whole: ClassVar[bool] = True
    inode: int
    nlink: int


@dataclass(frozen=True, slots=True)
class RemoveEntry(Fix):
    """Take the entry with ``key`` out of the leaf in ``block`` (the inode's own for depth 0)."""

    directory: int
    block: int
    key: int


@dataclass(frozen=True, slots=True)
class SetKind(Fix):
    """Set the kind of an entry."""

    directory: int
    block: int
    key: int
    kind: int


@dataclass(frozen=True, slots=True)
class FreeInode(Fix):
    """Free an inode without a name and all its blocks; take it out of the orphan directory if it stands there."""

    needs_whole: ClassVar[bool] = True
    inode: int
    entry: RemoveEntry | None


@dataclass(frozen=True, slots=True)
class RebuildQuotas(Fix):
    """Write the quotas' tree anew.

    Attributes:
        limits: (type, id, limits) of all that have some, and the grace periods.
        usage: (type, id, blocks, inodes) of all that use something.
        old: blocks of the old tree, to be freed.
    """

    needs_whole: ClassVar[bool] = True
    limits: tuple[tuple[int, int, Limits], ...]
    usage: tuple[tuple[int, int, int, int], ...]
    old: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class SetBits(Fix):
    """Set bits of a group's bitmap (an integer, bit 0 = its first block), and the fields that follow from it."""

    group: int
    bits: int


@dataclass(frozen=True, slots=True)
class ClearBits(Fix):
    """Clear bits of a group's bitmap.  ``floor``: greatest generation of metadata among those blocks."""

    needs_whole: ClassVar[bool] = True
    group: int
    bits: int
    floor: int


@dataclass(frozen=True, slots=True)
class RebuildGroup(Fix):
    """Write a group anew.  ``floor``: greatest generation of metadata in its free blocks."""

    needs_whole: ClassVar[bool] = True
    group: int
    bitmap: bytes
    floor: int


@dataclass(frozen=True, slots=True)
class WriteSuperblock(Fix):
    """Write the superblock to ``block``: 0, or the copy's."""

    is_journalled: ClassVar[bool] = False
    block: int


@dataclass(frozen=True, slots=True)
class WriteLabel(Fix):
    """Write the disk's label to ``block`` of the disk."""

    is_journalled: ClassVar[bool] = False
    block: int
