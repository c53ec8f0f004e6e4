"""Flags of files on the product's volume: what they promise after a crash, who may set them, and where there are none.

What they forbid is compared with ext4 on real mounts: ``tests/posix/flags.py``.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Awaitable, Callable

import pytest
import trio

from matrixfs.fs import attributes, data, fileattr, namespace, ranges, xattrs
from matrixfs.fs.inode import Inode
from matrixfs.ondisk.inode import FLAG_APPEND, FLAG_IMMUTABLE, FLAG_JOURNAL_DATA, FLAG_LETTERS, FLAGS_OF_USERS
from matrixfs.ondisk.superblock import FILE_FLAGS, JOURNALLED_DATA, ROOT_INODE, UNWRITTEN_EXTENTS
from membership.errors import CorruptRecord
from tests.matrixfs.local import Local, mounted, small_disk
from tests.sim.checkers import assert_clean

IMMUTABLE, APPEND, NODUMP, NOATIME, SYNC, DIRSYNC, JOURNAL, INHERIT = 16, 32, 64, 128, 8, 0x10000, 0x4000, 1 << 29


def none_of(_capability: int) -> bool:
    return False


async def put(mount: Local, inode: Inode, numbers: int, uid: int = 0, has: Callable[[int], bool] = none_of) -> int:
    """The errno of setting flags; 0 for none."""
    try:
        await fileattr.set_flags(mount.volume, inode.ino, numbers, uid, has)
    except OSError as error:
        return error.errno or -1
    return 0


def test_every_flag_has_a_letter_and_a_number() -> None:
    assert sum(FLAG_LETTERS) == sum(number.flag for number in fileattr.NUMBERS) == FLAGS_OF_USERS


async def test_they_stay_and_are_shown_in_both_numberings() -> None:
    disk = await small_disk()
    async with mounted(disk) as mount:
        inode = await mount.directory(b"d")
        assert await put(mount, inode, NODUMP | NOATIME | DIRSYNC | INHERIT) == 0
        await fileattr.set_project(mount.volume, inode.ino, 0x80 | 0x8, 12, 0, none_of)
    async with mounted(disk) as mount:
        found = await fileattr.show(mount.volume, inode.ino)
        assert found == (NODUMP | IMMUTABLE | DIRSYNC, 0x80 | 0x8, 12, attributes.generation(mount.volume, inode))
    await assert_clean(disk, mount.volume.superblock, notes=False)


async def test_a_filesystem_made_without_them_has_none() -> None:
    async with mounted() as mount:
        inode = await mount.file(b"f")
        mount.volume.superblock.features_incompatible &= ~FILE_FLAGS
        assert await put(mount, inode, NODUMP) == errno.ENOTTY
        with pytest.raises(OSError) as caught:
            await fileattr.show(mount.volume, inode.ino)
        assert caught.value.errno == errno.ENOTTY
        inode.flags = FLAG_IMMUTABLE
        mount.volume.touch(inode, data=False)
        await mount.give_up(inode.ino)
        with pytest.raises(CorruptRecord, match="flags"):
            await attributes.getattr(mount.volume, inode.ino)


async def test_journalled_data_needs_its_feature() -> None:
    async with mounted() as mount:
        inode = await mount.file(b"f")
        superblock = mount.volume.superblock
        before, superblock.features_incompatible = superblock.features_incompatible, FILE_FLAGS
        assert await put(mount, inode, JOURNAL) == errno.EOPNOTSUPP
        superblock.features_incompatible |= JOURNALLED_DATA | UNWRITTEN_EXTENTS
        assert await put(mount, inode, JOURNAL, inode.uid) == 0
        assert inode.flags == FLAG_JOURNAL_DATA
        await attributes.setattr(mount.volume, inode.ino, attributes.Changes(uid=5))
        assert await put(mount, inode, 0, 5) == errno.EPERM
        assert await put(mount, inode, 0, 5, lambda capability: capability == fileattr.CAP_SYS_RESOURCE) == 0
        superblock.features_incompatible = before


async def test_a_directory_that_hands_its_project_down_takes_nothing_of_another() -> None:
    async with mounted() as mount:
        volume, directory = mount.volume, await mount.directory(b"d")
        own, other, below = await mount.file(b"own"), await mount.file(b"other"), await mount.directory(b"below")
        for inode, flags in ((directory, 0x200), (own, 0)):
            await fileattr.set_project(volume, inode.ino, flags, 7, 0, none_of)
        for call in (
            lambda: namespace.link(volume, other.ino, directory.ino, b"x"),
            lambda: namespace.rename(volume, ROOT_INODE, b"other", directory.ino, b"x", 0),
            lambda: namespace.rename(volume, ROOT_INODE, b"below", directory.ino, b"x", 0),
        ):
            with pytest.raises(OSError) as caught:
                await call()
            assert caught.value.errno == errno.EXDEV
        await namespace.rename(volume, ROOT_INODE, b"own", directory.ino, b"x", 0)
        await namespace.rename(volume, directory.ino, b"x", ROOT_INODE, b"out", 0)  # the way out is free
        assert below.parent == ROOT_INODE
        assert (await namespace.create(volume, directory.ino, b"y", stat.S_IFREG | 0o644, 0, 0)).project == 7


async def test_who_may_is_asked_again_under_the_lock() -> None:
    """The kernel looked before another node set the flag, or changed the owner: what it let pass is checked again."""
    async with mounted() as mount:
        inode = await mount.file(b"f")
        await attributes.setattr(mount.volume, inode.ino, attributes.Changes(uid=5))
        assert await put(mount, inode, NODUMP, 6) == errno.EPERM
        assert await put(mount, inode, NODUMP, 6, lambda capability: capability == fileattr.CAP_FOWNER) == 0
        assert await put(mount, inode, IMMUTABLE) == 0
        assert await put(mount, inode, NODUMP, 5) == errno.EPERM
        assert await put(mount, inode, NODUMP, 5, lambda capability: capability == fileattr.CAP_LINUX_IMMUTABLE) == 0


async def test_a_descriptor_that_was_not_asked_for_writes_to_the_end_of_an_append_only_file() -> None:
    """As where the kernel opens files by itself."""
    async with mounted() as mount:
        volume, inode = mount.volume, await mount.file(b"f")
        inode.flags = FLAG_APPEND
        for write in (
            lambda: data.write(volume, inode.ino, 0, b"x", overwrites=False),
            lambda: ranges.copy(volume, inode.ino, 0, inode.ino, 100, 1, overwrites=False),
        ):
            with pytest.raises(PermissionError):
                await write()
        await data.write(volume, inode.ino, 0, b"x", append=True, overwrites=False)
        await data.write(volume, inode.ino, 1, b"y")
        assert await data.read(volume, inode.ino, 0, 9) == b"xy"


async def test_appending_takes_capabilities_away_and_nothing_else_does() -> None:
    async with mounted() as mount:
        volume, inode = mount.volume, await mount.file(b"f")
        for name in (xattrs.CAPABILITY, b"user.a"):
            await xattrs.put(volume, inode.ino, name, b"1", 0)
        inode.flags = FLAG_APPEND
        await xattrs.remove(volume, inode.ino, xattrs.CAPABILITY)
        with pytest.raises(PermissionError):
            await xattrs.remove(volume, inode.ino, b"user.a")
        inode.flags = FLAG_IMMUTABLE
        with pytest.raises(PermissionError):
            await attributes.setattr(volume, inode.ino, attributes.Changes(atime_ns=1, mtime_ns=1, times_are_now=True))
        inode.flags = 0


async def test_what_is_synchronous_survives_when_the_call_returns() -> None:
    """FF3: each call is followed by the power's end."""
    disk = await small_disk()
    async with mounted(disk) as mount:
        file, directory = await mount.file(b"f"), await mount.directory(b"d")
        assert await put(mount, file, SYNC) == await put(mount, directory, DIRSYNC) == 0
    calls: dict[str, Callable[[Local], Awaitable[object]]] = {
        "write": lambda mount: data.write(mount.volume, file.ino, 0, b"A" * 9000),
        "grow": lambda mount: attributes.setattr(mount.volume, file.ino, attributes.Changes(size=12_345)),
        "chmod": lambda mount: attributes.setattr(mount.volume, file.ino, attributes.Changes(mode=0o600)),
        "attribute": lambda mount: xattrs.put(mount.volume, file.ino, b"user.a", b"1", 0),
        "reserve": lambda mount: ranges.fallocate(mount.volume, file.ino, 0, 0, 20_000),
        "copy": lambda mount: ranges.copy(mount.volume, file.ino, 0, file.ino, 20_000, 5000),
        "flags": lambda mount: put(mount, file, SYNC | NODUMP),
        "create": lambda mount: mount.file(b"x", directory.ino),
        "mkdir": lambda mount: mount.directory(b"sub", directory.ino),
        "link": lambda mount: namespace.link(mount.volume, file.ino, directory.ino, b"y"),
        "rename": lambda mount: namespace.rename(mount.volume, directory.ino, b"x", ROOT_INODE, b"z"),
        "unlink": lambda mount: namespace.unlink(mount.volume, directory.ino, b"y"),
        "rmdir": lambda mount: namespace.rmdir(mount.volume, directory.ino, b"sub"),
    }
    seen: list[object] = []
    for name, call in calls.items():
        async with mounted(disk, clean=False) as mount:
            await call(mount)
            left = await state(mount, file.ino, directory.ino)
            assert left not in seen, f"{name} did nothing"
        disk = disk.crash_image(len(disk.log), "drop", seed=1)
        async with mounted(disk) as mount:
            assert await state(mount, file.ino, directory.ino) == left, name
        seen.append(left)
        disk.mark()


async def state(mount: Local, file: int, directory: int) -> object:
    """What can be seen of the file and the directory."""
    volume, names = mount.volume, []
    inode = await attributes.getattr(volume, file)
    for parent, name in ((directory, b"x"), (directory, b"y"), (directory, b"sub"), (ROOT_INODE, b"z")):
        names.append(await namespace.lookup(volume, parent, name) is not None)
    content = await data.read(volume, file, 0, 1 << 20)
    values = sorted((await xattrs.load(volume, inode)).entries)
    return inode.mode, inode.size, inode.nlink, inode.flags, inode.blocks, content, values, names


async def test_what_is_not_synchronous_costs_no_commit() -> None:
    async with mounted() as mount:
        inode = await mount.file(b"f")
        await mount.volume.sync()
        commits = mount.volume.journal.statistics["commits"]
        await data.write(mount.volume, inode.ino, 0, b"x")
        await mount.file(b"g")
        assert mount.volume.journal.statistics["commits"] == commits


async def test_reading_moves_no_time_where_it_must_not(autojump_clock: trio.abc.Clock) -> None:
    async with mounted() as mount:
        inode = await mount.file(b"f")
        assert await put(mount, inode, NOATIME) == 0
        before = mount.volume.atimes.shown(inode)
        await trio.sleep(1)
        mount.volume.atimes.note(inode.ino)
        assert mount.volume.atimes.shown(inode) == before
        assert await put(mount, inode, 0) == 0
        await trio.sleep(1)
        mount.volume.atimes.note(inode.ino)
        assert mount.volume.atimes.shown(inode) != before


@pytest.mark.parametrize(
    ("flags", "how", "allowed"),
    [
        (FLAG_IMMUTABLE, os.O_RDONLY, True), (FLAG_IMMUTABLE, os.O_WRONLY | os.O_APPEND, False),
        (FLAG_IMMUTABLE, os.O_RDONLY | os.O_TRUNC, False), (FLAG_APPEND, os.O_RDONLY, True),
        (FLAG_APPEND, os.O_RDWR, False), (FLAG_APPEND, os.O_RDWR | os.O_APPEND, True),
        (FLAG_APPEND, os.O_RDONLY | os.O_TRUNC, False), (0, os.O_RDWR | os.O_TRUNC, True),
    ],
)  # fmt: skip
async def test_what_may_be_opened(flags: int, how: int, allowed: bool) -> None:
    async with mounted() as mount:
        inode = await mount.file(b"f")
        inode.flags = flags
        if allowed:
            attributes.check_open(inode, how)
            return
        with pytest.raises(PermissionError):
            attributes.check_open(inode, how)
