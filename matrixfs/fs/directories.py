"""Names in a directory: find, add, replace, remove.  The directory's lock is held by the caller."""

from __future__ import annotations

import errno
from bisect import bisect_left
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, NamedTuple

from matrixfs.fs import tree
from matrixfs.fs.blocks import EntryTable
from matrixfs.fs.inode import Inode
from matrixfs.fs.tree import Path
from matrixfs.ondisk.directory import (
    DISAMBIGUATION_BITS,
    KEY_MAX,
    NAME_MAX,
    Entry,
    first_key,
)

if TYPE_CHECKING:
    from matrixfs.fs.allocation import Reservation
    from matrixfs.fs.volume import Volume


class Place(NamedTuple):
    """Where a name is, or where it would go."""

    path: Path
    entry: Entry | None  # None: there is no such name
    free_key: int  # key for a new entry of this name; -1: as many equal hashes as there can be


def check_name(name: bytes) -> None:
    """Raises OSError: ENAMETOOLONG, EINVAL."""
    if len(name) > NAME_MAX:
        raise OSError(errno.ENAMETOOLONG, f"name of {len(name)} bytes, {NAME_MAX} are possible")
    if not name or name in (b".", b"..") or b"/" in name or b"\0" in name:
        raise OSError(errno.EINVAL, f"{name!r} is no file name")


async def locate(volume: Volume, directory: Inode, name: bytes) -> Place:
    """Look ``name`` up.  Raises CorruptRecord, DeviceError, Fenced."""
    low = first_key(name, volume.superblock.hash_seed)
    path = await tree.descend(volume, directory, low)
    leaf = path.leaf
    assert isinstance(leaf, EntryTable)
    high = low + (1 << DISAMBIGUATION_BITS)
    at = bisect_left(leaf.keys, low)
    free = low
    while at < len(leaf.keys) and leaf.keys[at] < high:
        entry = leaf.entries[at]
        if entry.name == name:
            return Place(path, entry, -1)
        if entry.key == free:
            free += 1
        at += 1
    return Place(path, None, free if free < high else -1)


def new_entry(place: Place, name: bytes, ino: int, kind: int) -> Entry:
    """The entry to add at ``place``.  OSError ENOSPC when a block can't hold the names that have this very hash."""
    leaf = place.path.leaf
    assert isinstance(leaf, EntryTable)
    entry = Entry(place.free_key, ino, kind, name)
    if place.free_key < 0 or not leaf.takes(entry):
        raise OSError(errno.ENOSPC, "too many names with one hash")
    return entry


def blocks_needed(place: Place, name: bytes) -> int:
    """Blocks that adding ``name`` may use."""
    return tree.blocks_needed(place.path, Entry(0, 0, 0, name))


def add(volume: Volume, directory: Inode, place: Place, entry: Entry, spare: Reservation | None) -> None:
    """Add a name.  No checkpoint since ``locate`` under the same exclusive hold."""
    tree.insert(volume, directory, place.path, entry, spare)
    directory.children += 1
    directory.size += entry.size
    _changed(volume, directory)


def replace(volume: Volume, directory: Inode, place: Place, ino: int, kind: int) -> None:
    """Let an existing name mean another inode."""
    leaf = place.path.leaf
    assert isinstance(leaf, EntryTable)
    assert place.entry is not None
    leaf.replace(place.entry._replace(inode=ino, kind=kind))
    volume.journal.add(place.path.owner)
    _changed(volume, directory)


def remove(volume: Volume, directory: Inode, place: Place) -> None:
    """Take a name out.  An emptied leaf stays until the directory goes."""
    leaf = place.path.leaf
    assert isinstance(leaf, EntryTable)
    assert place.entry is not None
    leaf.remove(place.entry)
    volume.journal.add(place.path.owner)
    directory.children = max(0, directory.children - 1)  # a count that is wrong on the store stays within bounds
    directory.size = max(0, directory.size - place.entry.size)
    _changed(volume, directory)


def _changed(volume: Volume, directory: Inode) -> None:
    directory.size_on_disk = directory.size
    volume.touch(directory, data=True)


async def entries_from(volume: Volume, directory: Inode, key: int) -> AsyncGenerator[Entry, None]:
    """All entries with keys from ``key`` on, in order."""
    at: int | None = key
    while at is not None and at <= KEY_MAX:
        path = await tree.descend(volume, directory, at)
        leaf = path.leaf
        assert isinstance(leaf, EntryTable)
        for entry in leaf.entries[bisect_left(leaf.keys, at) :]:
            yield entry
        at = path.upper
