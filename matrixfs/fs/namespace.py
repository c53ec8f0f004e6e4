"""Names: lookup, create, link, unlink.  ``rename`` has a module of its own.

Each operation waits first (locks in order, lookups, free blocks) and then changes everything with no
checkpoint in between.  Permissions were checked by the kernel.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable
from typing import TYPE_CHECKING

from matrixfs.fs import access_lists, data, directories, file_flags
from matrixfs.fs.allocation import Reservation
from matrixfs.fs.blocks import ExtentList
from matrixfs.fs.directories import Place
from matrixfs.fs.held import Held
from matrixfs.fs.inode import Inode, new_inode
from matrixfs.fs.names import (
    add_name,
    check_directory,
    check_living,
    hold_named,
    leave_orphans,
    make_orphan,
    means_no_inode,
)
from matrixfs.fs.opens import orphan_name
from matrixfs.fs.promises import TREE_BLOCKS_MAX
from matrixfs.fs.quotas import Owner, owner_of
from matrixfs.fs.rename import rename
from matrixfs.fs.sanity import lose_subdirectory
from matrixfs.locks.lock import Lock
from matrixfs.locks.modes import EX, PR
from matrixfs.ondisk.directory import Entry
from matrixfs.ondisk.extent import Extent
from matrixfs.ondisk.inode import FLAG_PROJECT_INHERIT, TAIL_BYTES
from matrixfs.ondisk.superblock import ORPHANS_START
from membership.errors import CorruptionError, CorruptRecord
from membership.label import BLOCK_BYTES

if TYPE_CHECKING:
    from matrixfs.fs.volume import Volume

__all__ = ["create", "link", "lookup", "mkdir", "rename", "rmdir", "symlink", "tmpfile", "unlink"]

LINKS_MAX = 65_000  # names of a file, as ext4 has it
DIRECTORY_LINKS_MAX = (1 << 31) - 1  # directories in a directory: the field has 32 bits, and nothing is counted slowly
SYMLINK_MAX = 4095


async def lookup(volume: Volume, parent: int, name: bytes) -> Inode | None:
    """What ``name`` in ``parent`` is; None if there is no such name.

    Raises:
        OSError: ENOTDIR, ESTALE, ENAMETOOLONG.
        CorruptionError, DeviceError, Fenced: it can't be read.
    """
    directory_lock = volume.inode_lock(parent)
    if not directory_lock.try_hold(PR):
        await directory_lock.hold(PR)
    try:
        directory = check_directory(directory_lock.subject or await volume.load(directory_lock))
        place = await directories.locate(volume, directory, name)
        if place.entry is None:
            return None
        try:
            lock = volume.inode_lock(place.entry.inode)
        except OSError:
            raise means_no_inode(parent, place.entry) from None
        if lock is directory_lock:
            raise CorruptionError(f"inode {parent}", "name", "another inode", "the directory itself")
        lock.hint = (parent, name)
        if not lock.try_hold(PR):
            await lock.hold(PR)
        try:
            inode: Inode | None = lock.subject
            return inode if inode is not None and inode.mode else await _load_named(volume, lock, parent, place.entry)
        finally:
            lock.drop(PR)
    finally:
        directory_lock.drop(PR)


async def _load_named(volume: Volume, lock: Lock, parent: int, entry: Entry) -> Inode:
    """The inode that a name in a held directory means."""
    try:
        return await volume.load(lock)
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise
        raise means_no_inode(parent, entry) from None


async def create(
    volume: Volume, parent: int, name: bytes, mode: int, uid: int, gid: int, rdev: int = 0, *, umask: int = 0
) -> Inode:
    """Make a regular file or special file.

    Args:
        volume: the filesystem.
        parent: the directory.
        name: the new name in it.
        mode: with the type.
        uid: the owner.
        gid: the group, unless the directory hands down its own.
        rdev: the device that a device node means.
        umask: taken out of the mode where the directory has no default access control list.

    Raises:
        OSError: EEXIST, ENOENT, ENOSPC, EDQUOT, ENOTDIR, ENAMETOOLONG, EPERM for an immutable directory.
        CorruptionError, DeviceError, Fenced: the directory can't be read.
    """

    def fill(inode: Inode) -> None:
        inode.rdev = rdev

    return await _make(volume, parent, name, mode, uid, gid, fill, umask=umask)


async def tmpfile(volume: Volume, parent: int, mode: int, uid: int, gid: int, *, umask: int = 0) -> Inode:
    """Make a regular file without a name, as open(2) with O_TMPFILE: ``link`` may give it one while it is open here.

    It is listed as this node's orphan from the beginning, so a crash frees it.  The caller counts it as open before its
    next checkpoint.

    Raises:
        OSError: ENOENT, ENOSPC, ENOTDIR, EPERM for an immutable directory.
        CorruptionError, DeviceError, Fenced: the directory can't be read.
    """
    with Held(volume) as held:
        await held.changing()
        directory = check_living(await held.shared(parent))
        file_flags.check_new_name(directory)
        inheritance = await access_lists.inheritance(volume, directory, stat.S_IFREG | stat.S_IMODE(mode), umask)
        orphans = await held.exclusive(ORPHANS_START + volume.journal.index)
        # The number, and so the name among the orphans, is known only then: hence room for any name.
        owner = _heir(directory, uid, gid)
        await held.quota((owner, inheritance.blocks, 1))
        count = 1 + TREE_BLOCKS_MAX + inheritance.blocks
        group = await held.group(count, near=parent)
        with Reservation(volume.journal, group, count) as spare:
            spare.pass_over(volume.kernel.knows_directory)
            lock = volume.inode_lock(spare.first)
            await held.lock(lock, EX, True)
            place = await directories.locate(volume, orphans, orphan_name(spare.first))
            entry = directories.new_entry(place, orphan_name(spare.first), spare.first, stat.S_IFREG >> 12)
            await volume.journal.admit()
            # No checkpoint from here (J1).
            inode = new_inode(spare.pop(), group.generation_floor, lock, inheritance.mode)
            _own(volume, inode, directory, owner)
            inode.nlink = 0
            inode.orphaned_by = volume.journal.index + 1
            lock.subject = inode
            lock.blocks = {inode.ino: inode}
            volume.journal.add(inode)
            inheritance.give(volume, inode, spare)
            directories.add(volume, orphans, place, entry, spare)
        volume.opens.made_nameless(inode.ino)
        await file_flags.keep_metadata(volume, inode)
        return inode


async def mkdir(volume: Volume, parent: int, name: bytes, mode: int, uid: int, gid: int, *, umask: int = 0) -> Inode:
    """Make a directory.  Raises as ``create`` does, and OSError EMLINK."""

    def fill(inode: Inode) -> None:
        inode.parent = parent

    return await _make(volume, parent, name, stat.S_IFDIR | stat.S_IMODE(mode), uid, gid, fill, umask=umask)


async def symlink(volume: Volume, parent: int, name: bytes, target: bytes, uid: int, gid: int) -> Inode:
    """Make a symbolic link.  Raises as ``create`` does."""
    if len(target) > SYMLINK_MAX:
        raise OSError(errno.ENAMETOOLONG, "link target too long")

    long = len(target) > TAIL_BYTES

    def fill(inode: Inode) -> None:
        if not long:
            data.put(volume, inode, 0, target, zero_tail=False)

    content = target if long else b""
    return await _make(volume, parent, name, stat.S_IFLNK | 0o777, uid, gid, fill, content)


async def _make(
    volume: Volume,
    parent: int,
    name: bytes,
    mode: int,
    uid: int,
    gid: int,
    fill: Callable[[Inode], None],
    content: bytes = b"",
    umask: int = 0,
) -> Inode:
    """Make an inode and its name; ``content`` is a block of data that must be there from the beginning."""
    directories.check_name(name)
    with Held(volume) as held:
        directory = check_living(await held.exclusive(parent))
        place = await directories.locate(volume, directory, name)
        if place.entry is not None:
            raise OSError(errno.EEXIST, "file exists")
        file_flags.check_new_name(directory)
        is_directory = stat.S_ISDIR(mode)
        if is_directory and directory.nlink >= DIRECTORY_LINKS_MAX:
            raise OSError(errno.EMLINK, "too many directories in one directory")
        inheritance = await access_lists.inheritance(volume, directory, mode, umask)
        owner, tree_blocks = _heir(directory, uid, gid), directories.blocks_needed(place, name)
        demands = [(owner, bool(content) + inheritance.blocks, 1)]
        if tree_blocks and volume.superblock.is_counted(parent):
            demands.append((owner_of(directory), tree_blocks, 0))
        await held.quota(*demands)
        count = 1 + bool(content) + tree_blocks + inheritance.blocks
        group = await held.group(count, near=parent)
        with Reservation(volume.journal, group, count) as spare:
            spare.pass_over(volume.kernel.knows_directory)
            lock = volume.inode_lock(spare.first)
            await held.lock(lock, EX, True)
            entry = directories.new_entry(place, name, spare.first, stat.S_IFMT(mode) >> 12)
            if content:  # first the data, then what names it (J4)
                await volume.device.write(spare.second * BLOCK_BYTES, content.ljust(BLOCK_BYTES, b"\0"))
                volume.journal.data_written()
            await volume.journal.admit()
            # No checkpoint from here (J1).
            inode = new_inode(spare.pop(), group.generation_floor, lock, inheritance.mode)
            _own(volume, inode, directory, owner)
            fill(inode)
            if content:
                _put_block(volume, inode, content, spare.pop())
            lock.subject = inode
            lock.hint = (parent, name)
            lock.blocks = {inode.ino: inode}
            volume.journal.add(inode)
            inheritance.give(volume, inode, spare)
            directories.add(volume, directory, place, entry, spare)
            if is_directory:
                directory.nlink += 1
        await file_flags.keep_metadata(volume, directory)
        return inode


def _put_block(volume: Volume, inode: Inode, content: bytes, block: int) -> None:
    """Let a new inode name its first block, which is written."""
    inode.root = ExtentList([Extent(0, block, 1)], TAIL_BYTES)
    volume.use(inode, 1)
    inode.size = inode.size_on_disk = len(content)


def _heir(directory: Inode, uid: int, gid: int) -> Owner:
    """Whom something new is counted for: a directory may hand down its group, and its project."""
    project = directory.project if directory.flags & FLAG_PROJECT_INHERIT else 0
    return Owner(uid, directory.gid if directory.mode & stat.S_ISGID else gid, project)


def _own(volume: Volume, inode: Inode, directory: Inode, owner: Owner) -> None:
    """Times, owner, and what a set-group-id directory hands down.  The inode is counted from here on."""
    now = volume.clock.wall_ns()
    inode.atime_ns = inode.mtime_ns = inode.ctime_ns = inode.btime_ns = now
    inode.incarnation = int.from_bytes(volume.rng.randbytes(8), "little") | 1
    inode.uid, inode.gid, inode.project = owner
    if directory.mode & stat.S_ISGID and inode.is_directory:
        inode.mode |= stat.S_ISGID
    file_flags.inherit(inode, directory)
    if volume.quotas is not None:
        volume.quotas.charge(inode, 0, 1)


async def link(volume: Volume, ino: int, parent: int, name: bytes) -> Inode:
    """Give a file one more name.

    Raises:
        OSError: EEXIST, EMLINK, ENOENT, ENOSPC, EPERM for a directory and by flags, EXDEV by projects, ESTALE,
            ENAMETOOLONG.
        CorruptionError, DeviceError, Fenced: something can't be read.
    """
    directories.check_name(name)
    with Held(volume) as held:
        directory = check_living(await held.exclusive(parent))
        if ino == parent:
            raise OSError(errno.EPERM, "a directory has one name")
        inode = await held.exclusive(ino)
        if inode.is_directory:
            raise OSError(errno.EPERM, "a directory has one name")
        orphan = await _nameless(volume, held, inode) if inode.nlink == 0 else None
        if inode.nlink >= LINKS_MAX:
            raise OSError(errno.EMLINK, "too many links")
        place = await directories.locate(volume, directory, name)
        if place.entry is not None:
            raise OSError(errno.EEXIST, "file exists")
        file_flags.check_new_name(directory)
        file_flags.check_change(inode)
        file_flags.check_project(directory, inode)
        await add_name(volume, held, directory, place, name, ino, stat.S_IFMT(inode.mode) >> 12)
        if orphan is not None:
            leave_orphans(volume, inode, *orphan)
        inode.lock.hint = (parent, name)
        inode.nlink += 1
        volume.touch(inode, data=False)
        await file_flags.keep_metadata(volume, directory)
        return inode


async def _nameless(volume: Volume, held: Held, inode: Inode) -> tuple[Inode, Place]:
    """Where a file that ``tmpfile`` made stands among the orphans.

    Raises:
        OSError: ENOENT for one that lost its names.
        CorruptionError, DeviceError, Fenced: it does not stand there, or that can't be read.
    """
    if not volume.opens.is_nameless(inode.ino) or not inode.orphaned_by:
        raise OSError(errno.ENOENT, "the file was removed")
    orphans = await held.exclusive(ORPHANS_START + inode.orphaned_by - 1)
    place = await directories.locate(volume, orphans, orphan_name(inode.ino))
    if place.entry is None:
        raise CorruptRecord(f"inode {inode.ino}", "place", "in the list of orphans", "nowhere")
    return orphans, place


async def unlink(volume: Volume, parent: int, name: bytes) -> None:
    """Remove a name that is no directory.

    Raises:
        OSError: ENOENT, EISDIR, ENOTDIR, ENOSPC, EPERM.
        CorruptionError, DeviceError, Fenced: something can't be read.
    """
    ino = await _remove(volume, parent, name, directory_wanted=False)
    if ino:
        volume.opens.try_delete(ino)


async def rmdir(volume: Volume, parent: int, name: bytes) -> None:
    """Remove an empty directory.  Raises as ``unlink`` does, and OSError ENOTEMPTY."""
    ino = await _remove(volume, parent, name, directory_wanted=True)
    volume.opens.try_delete(ino)


async def _remove(volume: Volume, parent: int, name: bytes, directory_wanted: bool) -> int:
    """Remove a name; the inode's number if that was its last one, else 0."""
    with Held(volume) as held:
        directory = check_directory(await held.exclusive(parent))
        place = await directories.locate(volume, directory, name)
        if place.entry is None:
            raise OSError(errno.ENOENT, "no such name")
        inode = await hold_named(held, parent, place.entry)
        file_flags.check_lost_name(directory, inode)
        if inode.is_directory != directory_wanted:
            raise OSError(errno.EISDIR if inode.is_directory else errno.ENOTDIR, "wrong type")
        if inode.is_directory and inode.children:
            raise OSError(errno.ENOTEMPTY, "directory not empty")
        last = inode.is_directory or inode.nlink <= 1
        if last:
            await make_orphan(volume, held, inode)
        else:
            await volume.journal.admit()
        # No checkpoint since then, or since make_orphan's change (J1).
        directories.remove(volume, directory, place)
        if inode.is_directory:
            lose_subdirectory(directory)
        inode.nlink = 0 if last else inode.nlink - 1
        if last:
            volume.opens.removed(inode.ino)
        volume.touch(inode, data=False)
        await file_flags.keep_metadata(volume, directory)
        return inode.ino if last else 0
