"""rename(2): the operation with the most locks.

Lock order: the rename lock when a name moves to another directory, then the two directories (an ancestor
first, else by number), then what the names mean (directories first, then by number), then this node's orphan
directory.  Under the rename lock no directory changes its parent, so ancestry read before stays true.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, NamedTuple

from matrixfs.fs import directories, file_flags
from matrixfs.fs.directories import Place
from matrixfs.fs.held import Held, reserve
from matrixfs.fs.inode import Inode
from matrixfs.fs.names import check_directory, check_living, hold_named, make_orphan
from matrixfs.fs.quotas import owner_of
from matrixfs.fs.sanity import lose_subdirectory
from matrixfs.locks.modes import EX
from matrixfs.ondisk.superblock import ROOT_INODE

if TYPE_CHECKING:
    from matrixfs.fs.volume import Volume

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
DEPTH_MAX = 4096  # directories above one another: more is a loop on a corrupt store


class Side(NamedTuple):
    """One of the two names."""

    directory: Inode
    place: Place
    inode: Inode | None


async def rename(volume: Volume, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int = 0) -> None:
    """Move a name, replacing what the new name means; with RENAME_EXCHANGE swap the two.

    Raises:
        OSError: ENOENT, EEXIST (NOREPLACE), EISDIR, ENOTDIR, ENOTEMPTY, EINVAL (into itself, unknown flags),
            ENOSPC, ENAMETOOLONG, ESTALE, EPERM (flags), EXDEV (projects).
        CorruptionError, DeviceError, Fenced: something can't be read.
    """
    if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE) or flags == RENAME_NOREPLACE | RENAME_EXCHANGE:
        raise OSError(errno.EINVAL, "unknown rename flags")
    directories.check_name(name)
    directories.check_name(new_name)
    with Held(volume) as held:
        above_old: set[int] = set()
        above_new: set[int] = set()
        if parent != new_parent:
            await held.lock(volume.rename_lock(), EX, True)
            above_old = await _ancestors(volume, parent)
            above_new = await _ancestors(volume, new_parent)
        order = sorted({parent, new_parent}, key=lambda ino: (ino not in above_old | above_new, ino))
        if parent in above_new or new_parent in above_old:
            order = [parent, new_parent] if parent in above_new else [new_parent, parent]
        locked = {ino: check_directory(await held.exclusive(ino)) for ino in order}
        source, target = locked[parent], check_living(locked[new_parent])
        old = await directories.locate(volume, source, name)
        new = await directories.locate(volume, target, new_name)
        if old.entry is None or (flags & RENAME_EXCHANGE and new.entry is None):
            raise OSError(errno.ENOENT, "no such name")
        if new.entry is not None and flags & RENAME_NOREPLACE:
            raise OSError(errno.EEXIST, "file exists")
        if new.entry is not None and old.entry.inode == new.entry.inode:
            return  # two names of one file: POSIX wants nothing done
        if old.entry.inode in above_new | {new_parent}:
            raise OSError(errno.EINVAL, "a directory can't move into itself")
        if new.entry is not None and new.entry.inode in above_old | {parent}:
            raise OSError(errno.EINVAL if flags & RENAME_EXCHANGE else errno.ENOTEMPTY, "directory not empty")
        moved, replaced = await _lock_meanings(held, (parent, old), (new_parent, new))
        _check_flags(source, target, moved, replaced, exchange=bool(flags & RENAME_EXCHANGE))
        if flags & RENAME_EXCHANGE:
            assert replaced is not None
            await volume.journal.admit()
            _exchange(volume, Side(source, old, moved), Side(target, new, replaced))
        else:
            await _move(volume, held, Side(source, old, moved), Side(target, new, replaced), new_name)
        await file_flags.keep_metadata(volume, source, target)
    if replaced is not None and replaced.nlink == 0:
        volume.opens.try_delete(replaced.ino)


def _check_flags(source: Inode, target: Inode, moved: Inode, replaced: Inode | None, *, exchange: bool) -> None:
    """Raises OSError EPERM, EXDEV (file_flags)."""
    file_flags.check_lost_name(source, moved)
    if replaced is None:
        file_flags.check_new_name(target)
    else:
        file_flags.check_lost_name(target, replaced)
    file_flags.check_project(target, moved)
    if exchange and replaced is not None:
        file_flags.check_project(source, replaced)


async def _ancestors(volume: Volume, ino: int) -> set[int]:
    """The directories above ``ino``; stable under the rename lock."""
    above: set[int] = set()
    while ino != ROOT_INODE:
        with Held(volume) as held:
            ino = check_directory(await held.shared(ino)).parent
        if ino in above or len(above) > DEPTH_MAX:
            raise OSError(errno.ELOOP, "directories form a loop: run fsck.matrixfs")
        above.add(ino)
    return above


async def _lock_meanings(held: Held, old: tuple[int, Place], new: tuple[int, Place]) -> tuple[Inode, Inode | None]:
    """Hold what two names mean, each with its directory's number: directories first, then by number."""
    meant = [(parent, place.entry) for parent, place in (old, new) if place.entry is not None]
    locked = {
        entry.inode: await hold_named(held, parent, entry)
        for parent, entry in sorted(meant, key=lambda one: (one[1].kind != 4, one[1].inode))  # 4: DT_DIR
    }
    old_entry, new_entry = old[1].entry, new[1].entry
    assert old_entry is not None
    return locked[old_entry.inode], None if new_entry is None else locked[new_entry.inode]


def _exchange(volume: Volume, one: Side, other: Side) -> None:
    """Swap the meanings of two names.  No checkpoint (J1)."""
    assert one.inode is not None
    assert other.inode is not None
    assert one.place.entry is not None
    assert other.place.entry is not None
    directories.replace(volume, one.directory, one.place, other.inode.ino, other.place.entry.kind)
    directories.replace(volume, other.directory, other.place, one.inode.ino, one.place.entry.kind)
    for inode, source, target in ((one.inode, one, other), (other.inode, other, one)):
        _adopt(inode, source.directory, target.directory)
        volume.touch(inode, data=False)


def _adopt(inode: Inode, source: Inode, target: Inode) -> None:
    """A directory's link to its parent follows its name."""
    if inode.is_directory and source is not target:
        inode.parent = target.ino
        lose_subdirectory(source)
        target.nlink += 1


async def _move(volume: Volume, held: Held, old: Side, new: Side, new_name: bytes) -> None:
    moved, replaced = old.inode, new.inode
    assert moved is not None
    assert old.place.entry is not None
    last = False
    if replaced is not None:
        if replaced.is_directory != moved.is_directory:
            raise OSError(errno.EISDIR if replaced.is_directory else errno.ENOTDIR, "wrong type")
        if replaced.is_directory and replaced.children:
            raise OSError(errno.ENOTEMPTY, "directory not empty")
        last = replaced.is_directory or replaced.nlink <= 1
        if last:
            await make_orphan(volume, held, replaced)
        else:
            await volume.journal.admit()
        # No checkpoint since then, or since make_orphan's change (J1).
        directories.replace(volume, new.directory, new.place, moved.ino, old.place.entry.kind)
        if replaced.is_directory:
            lose_subdirectory(new.directory)
        replaced.nlink = 0 if last else replaced.nlink - 1
        if last:
            volume.opens.removed(replaced.ino)
        volume.touch(replaced, data=False)
    else:
        entry = directories.new_entry(new.place, new_name, moved.ino, old.place.entry.kind)
        count = directories.blocks_needed(new.place, new_name)
        if count and volume.superblock.is_counted(new.directory.ino):
            await held.quota((owner_of(new.directory), count, 0))
        with await reserve(volume, held, count, new.directory.ino) as spare:
            # No checkpoint from here (J1).  First out, then in: adding may split the leaf that has the old name.
            directories.remove(volume, old.directory, old.place)
            directories.add(volume, new.directory, new.place, entry, spare)
    if replaced is not None:
        directories.remove(volume, old.directory, old.place)
    _adopt(moved, old.directory, new.directory)
    moved.lock.hint = (new.directory.ino, new_name)
    volume.touch(moved, data=False)
