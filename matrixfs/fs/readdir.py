"""Listing a directory, with the attributes of what it holds."""

from __future__ import annotations

import errno
import logging
from contextlib import aclosing
from typing import TYPE_CHECKING

from matrixfs.fs import directories, prefetch
from matrixfs.fs.held import Held
from matrixfs.fs.inode import Inode
from matrixfs.fs.parallel import for_each
from matrixfs.fs.surrender import InodeCallouts
from matrixfs.locks.lock import Lock
from matrixfs.locks.modes import PR
from matrixfs.locks.resources import INODE, Resource
from matrixfs.ondisk.directory import COOKIE_BASE, Entry
from membership.errors import CorruptionError

if TYPE_CHECKING:
    from matrixfs.fs.volume import Volume

LOADS_AT_ONCE = 32
IMPOSSIBLE = 1 << 63  # no inode has such a number
AHEAD = 256  # names whose inodes are fetched together: some replies' worth, so they are used within milliseconds

log = logging.getLogger(__name__)


async def entries(volume: Volume, ino: int, cookie: int, limit: int) -> list[tuple[int, bytes, Inode]]:
    """At most ``limit`` names after ``cookie`` (0: from the start), "." and ".." not among them.

    An inode that can't be read is listed without attributes (``readable`` is False): the name must stay visible.

    Raises:
        OSError: ESTALE, ENOTDIR.
        CorruptionError, DeviceError, Fenced: the directory can't be read.
    """
    with Held(volume) as held:
        directory = await held.shared(ino)
        if not directory.is_directory:
            raise OSError(errno.ENOTDIR, "no directory")
        found: list[Entry] = []
        async with aclosing(directories.entries_from(volume, directory, max(0, cookie - COOKIE_BASE + 1))) as listing:
            async for entry in listing:
                found.append(entry)
                if len(found) == limit and all(_cached(volume, each.inode) is not None for each in found):
                    break
                if len(found) >= max(limit, AHEAD):
                    break
        await _load_ahead(volume, found)
        del found[limit:]
        unreadable: dict[int, Inode] = {}  # by key
        await _load(volume, found, unreadable)
        listed = _covered(volume, ino, found, unreadable)
        while found and not listed:  # a peer took the first one's lock back at once
            await _load(volume, found[:1], unreadable)
            listed = _covered(volume, ino, found, unreadable)
        return listed


def _covered(
    volume: Volume, ino: int, found: list[Entry], unreadable: dict[int, Inode]
) -> list[tuple[int, bytes, Inode]]:
    """The entries up to the first whose inode is not covered by a lock now.  No checkpoint up to the reply."""
    listed: list[tuple[int, bytes, Inode]] = []
    for entry in found:
        inode = unreadable.get(entry.key) or _cached(volume, entry.inode)
        if inode is None:
            break
        inode.lock.hint = (ino, entry.name)
        listed.append((COOKIE_BASE + entry.key, entry.name, inode))
    return listed


def _cached(volume: Volume, number: int) -> Inode | None:
    lock = volume.locks.find(Resource(INODE, number))
    if lock is None:
        return None
    inode: Inode | None = lock.subject
    if lock.mode < PR or lock.surrendering:  # an answer now would come after the purge, and stay
        return None
    return inode if inode is not None and inode.mode else None


async def _load_ahead(volume: Volume, entries_wanted: list[Entry]) -> None:
    """Cache what costs no wait for a peer, for this reply and those that will be asked for next."""
    missing = [entry.inode for entry in entries_wanted if _cached(volume, entry.inode) is None]
    if len(missing) > 1:
        await prefetch.inodes(volume, missing)


async def _load(volume: Volume, entries_wanted: list[Entry], unreadable: dict[int, Inode]) -> None:
    """Cache the inodes, in parallel; those that can't be read get a placeholder without rights or content."""

    async def one(entry: Entry) -> None:
        try:
            with Held(volume) as held:
                await held.shared(entry.inode)
        except (OSError, CorruptionError) as error:
            log.warning("inode %d can't be listed: %s", entry.inode, error)
            unreadable[entry.key] = _placeholder(volume, entry)

    missing = [entry for entry in entries_wanted if _cached(volume, entry.inode) is None]
    if missing:
        await for_each(missing, one, workers=LOADS_AT_ONCE)


def _placeholder(volume: Volume, entry: Entry) -> Inode:
    number = entry.inode
    if not volume.superblock.is_inode_number(number):  # it may be the kernel's number of the root, or none to it
        number = IMPOSSIBLE | entry.key
    inode = Inode(number, 0, Lock(volume.locks, Resource(INODE, number), InodeCallouts(volume)))
    inode.mode = entry.kind << 12
    inode.readable = False
    return inode
