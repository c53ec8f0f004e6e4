"""Steps that operations on names share."""

from __future__ import annotations

import errno
import stat
from typing import TYPE_CHECKING

from matrixfs.fs import directories
from matrixfs.fs.directories import Place
from matrixfs.fs.held import Held, reserve
from matrixfs.fs.inode import Inode
from matrixfs.fs.opens import orphan_name
from matrixfs.fs.quotas import owner_of
from matrixfs.ondisk.directory import Entry
from matrixfs.ondisk.superblock import ORPHANS_START
from membership.errors import CorruptionError

if TYPE_CHECKING:
    from matrixfs.fs.volume import Volume


def check_directory(inode: Inode) -> Inode:
    """Raises OSError: ENOTDIR, ESTALE."""
    if not inode.is_directory:
        raise OSError(errno.ESTALE if inode.mode == 0 else errno.ENOTDIR, "no directory")
    return inode


def check_living(directory: Inode) -> Inode:
    """A directory that takes new names.  Raises OSError: ENOTDIR, ENOENT when it was removed."""
    check_directory(directory)
    if directory.nlink == 0:
        raise OSError(errno.ENOENT, "the directory was removed")
    return directory


def means_no_inode(parent: int, entry: Entry) -> CorruptionError:
    """What is said of a name in a held directory: as long as that is held, the inode must be there."""
    where = f"block {entry.inode} (inode of {entry.name!r} in directory {parent})"
    return CorruptionError(where, "inode", "a living inode", "none")


async def hold_named(held: Held, parent: int, entry: Entry) -> Inode:
    """Hold what a name in a held directory means, to change it.  Raises CorruptionError, DeviceError, Fenced."""
    try:
        return await held.exclusive(entry.inode)
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise
        raise means_no_inode(parent, entry) from None


async def add_name(
    volume: Volume, held: Held, directory: Inode, place: Place, name: bytes, ino: int, kind: int
) -> None:
    """Add a name, with blocks if the tree must grow.  No checkpoint at its end.  OSError ENOSPC, EDQUOT."""
    entry = directories.new_entry(place, name, ino, kind)
    blocks = directories.blocks_needed(place, name)
    if blocks and volume.superblock.is_counted(directory.ino):
        await held.quota((owner_of(directory), blocks, 0))
    with await reserve(volume, held, blocks, directory.ino) as spare:
        directories.add(volume, directory, place, entry, spare)


async def make_orphan(volume: Volume, held: Held, inode: Inode) -> None:
    """List an inode that is about to lose its last name as this node's orphan.  No checkpoint at its end."""
    index = volume.journal.index
    orphans = await held.exclusive(ORPHANS_START + index)
    place = await directories.locate(volume, orphans, orphan_name(inode.ino))
    if place.entry is not None:
        raise CorruptionError(f"inode {inode.ino}", "orphan list", "an inode without names", "one with names")
    await add_name(volume, held, orphans, place, orphan_name(inode.ino), inode.ino, stat.S_IFMT(inode.mode) >> 12)
    inode.orphaned_by = index + 1


def leave_orphans(volume: Volume, inode: Inode, orphans: Inode, place: Place) -> None:
    """An orphan gets a name: it is listed no more.  Part of a change."""
    directories.remove(volume, orphans, place)
    inode.orphaned_by = 0
    volume.opens.named(inode.ino)
