"""Listing a directory, with the attributes of what it holds."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from dlm.modes import PR
from membership.errors import CorruptionError

from matrixfs.fs import directories
from matrixfs.fs.held import Held
from matrixfs.fs.inode import Inode
from matrixfs.fs.parallel import for_each
from matrixfs.ondisk.directory import COOKIE_BASE, Entry

if TYPE_CHECKING:
    from matrixfs.fs.volume import Volume

LOADS_AT_ONCE = 32


async def entries(volume: Volume, ino: int, cookie: int, limit: int) -> list[tuple[int, bytes, Inode]]:
    """At most ``limit`` names after ``cookie`` (0: from the start), "." and ".." not among them.

    A name whose inode can't be read, or went away meanwhile, is left out.

    Raises:
        OSError: ESTALE, ENOTDIR.
        CorruptionError, DeviceError, Fenced: the directory can't be read.
    """
    with Held(volume) as held:
        directory = await held.shared(ino)
        if not directory.is_directory:
            raise OSError(errno.ENOTDIR, "no directory")
        found: list[Entry] = []
        async for entry in directories.entries_from(volume, directory, max(0, cookie - COOKIE_BASE + 1)):
            found.append(entry)
            if len(found) >= limit:
                break
        inodes = await _load(volume, [entry.inode for entry in found])
        return [
            (COOKIE_BASE + entry.key, entry.name, inodes[entry.inode]) for entry in found if entry.inode in inodes
        ]


async def _load(volume: Volume, numbers: list[int]) -> dict[int, Inode]:
    """The inodes of these numbers, those not cached in parallel; all locks are dropped again."""
    loaded: dict[int, Inode] = {}

    async def one(number: int) -> None:
        try:
            with Held(volume) as held:
                loaded[number] = await held.shared(number)
        except (OSError, CorruptionError):
            return

    missing: list[int] = []
    for number in numbers:
        lock = volume.inode_lock(number)
        if lock.mode >= PR and not lock.revoking and lock.subject is not None and lock.subject.mode:
            loaded[number] = lock.subject
        else:
            missing.append(number)
    if missing:
        await for_each(missing, one, workers=LOADS_AT_ONCE)
    return loaded
