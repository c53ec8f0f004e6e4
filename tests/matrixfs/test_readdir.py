"""Listing with attributes: only under locks, whatever peers do meanwhile; damaged inodes stay visible."""

from __future__ import annotations

import errno

import pytest
import trio

from dlm.modes import NL
from matrixfs.fs import directories, namespace, readdir
from matrixfs.ondisk.superblock import ROOT_INODE
from membership.errors import CorruptionError
from membership.label import BLOCK_BYTES
from tests.matrixfs.local import Local, mounted, small_disk


async def listing(mount: Local, limit: int = 100, ino: int = ROOT_INODE) -> list[bytes]:
    found, cookie = [], 0
    while batch := await readdir.entries(mount.volume, ino, cookie, limit):
        assert len(batch) <= limit
        found += [name for _, name, _ in batch]
        cookie = batch[-1][0]
    return found


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 100])
async def test_in_parts_of_any_size(limit: int) -> None:
    async with mounted() as mount:
        for number in range(40):
            await mount.file(b"%d" % number)
        found = await listing(mount, limit)
        assert sorted(found) == sorted(b"%d" % number for number in range(40))
        assert found == await listing(mount), "always in one order"


async def test_an_empty_directory_and_no_directory() -> None:
    async with mounted() as mount:
        assert await listing(mount) == []
        made = await mount.file(b"f")
        with pytest.raises(OSError) as caught:
            await readdir.entries(mount.volume, made.ino, 0, 10)
        assert caught.value.errno == errno.ENOTDIR


async def test_a_position_whose_name_is_gone() -> None:
    async with mounted() as mount:
        for number in range(10):
            await mount.file(b"%d" % number)
        order = await listing(mount)
        batch = await readdir.entries(mount.volume, ROOT_INODE, 0, 5)
        for name in order[3:6]:
            await namespace.unlink(mount.volume, ROOT_INODE, name)
        rest = await readdir.entries(mount.volume, ROOT_INODE, batch[-1][0], 100)
        assert [name for _, name, _ in rest] == order[6:]


async def test_attributes_come_along_and_are_loaded_together(autojump_clock: trio.abc.Clock) -> None:
    disk = await small_disk()
    async with mounted(disk) as mount:
        made = [await mount.file(b"%d" % number) for number in range(20)]
        await mount.volume.sync()
        for one in made:
            await mount.give_up(one.ino)
        reads = disk.operations["read"]
        batch = await readdir.entries(mount.volume, ROOT_INODE, 0, 100)
        assert disk.operations["read"] == reads + 1, "neighbours, in one read"
        assert sorted(inode.ino for _, _, inode in batch) == sorted(one.ino for one in made)
        assert all(inode.readable and inode.nlink == 1 for _, _, inode in batch)
        await readdir.entries(mount.volume, ROOT_INODE, 0, 100)
        assert disk.operations["read"] == reads + 1


async def test_a_damaged_inode_is_listed_without_attributes(
    autojump_clock: trio.abc.Clock, caplog: pytest.LogCaptureFixture
) -> None:
    disk = await small_disk()
    async with mounted(disk) as mount:
        made = [await mount.file(b"%d" % number) for number in range(3)]
        await mount.volume.sync()
        await mount.give_up(made[1].ino)
        disk.corrupt(made[1].ino * BLOCK_BYTES + 99)
        batch = await readdir.entries(mount.volume, ROOT_INODE, 0, 100)
        assert {name: inode.readable for _, name, inode in batch} == {b"0": True, b"1": False, b"2": True}
        assert f"inode {made[1].ino}" in caplog.text


@pytest.mark.parametrize("number", [0, 1 << 50, (1 << 64) - 1])
async def test_a_name_of_an_impossible_inode_is_listed_without_attributes(
    number: int, autojump_clock: trio.abc.Clock
) -> None:
    """Issue 5, bad input: the other names of the directory live on; this one says that it is damaged, and stays."""
    async with mounted() as mount:
        volume = mount.volume
        top = await mount.directory(b"top")
        for name in (b"a", b"b", b"c"):
            await mount.file(name, top.ino)
        place = await directories.locate(volume, top, b"b")
        directories.replace(volume, top, place, number, 8)
        assert sorted(await listing(mount, 2, top.ino)) == [b"a", b"b", b"c"]
        batch = await readdir.entries(volume, top.ino, 0, 100)
        assert {name: inode.readable for _, name, inode in batch} == {b"a": True, b"b": False, b"c": True}
        assert all(inode.ino > 1 for _, _, inode in batch)
        for attempt in (
            namespace.lookup(volume, top.ino, b"b"),
            namespace.unlink(volume, top.ino, b"b"),
            namespace.rmdir(volume, top.ino, b"b"),
            namespace.rename(volume, top.ino, b"b", ROOT_INODE, b"b"),
            namespace.rename(volume, top.ino, b"a", top.ino, b"b"),
        ):
            with pytest.raises(CorruptionError, match="a living inode"):
                await attempt
        for name in (b"a", b"c"):
            await namespace.unlink(volume, top.ino, name)
        await mount.file(b"d", top.ino)


async def test_nothing_is_listed_from_under_a_lock_that_is_being_given_up(autojump_clock: trio.abc.Clock) -> None:
    """While the kernel's caches are purged for a peer, an answer would put the old attributes back into them."""
    async with mounted() as mount:
        made = await mount.file(b"f")
        await mount.volume.sync()
        purging, go_on = trio.Event(), trio.Event()

        class Slow:
            async def purge_inode(self, ino: int) -> None:
                purging.set()
                await go_on.wait()

            async def purge_names(self, directory_ino: int) -> None:
                """Nothing."""

            async def shed(self, ino: int) -> None:
                """Nothing."""

            def keep(self, ino: int) -> bool:
                return False

        mount.volume.kernel = Slow()
        lock = mount.volume.inode_lock(made.ino)
        answers: list[int] = []

        async def lister() -> None:
            answers.append(len(await readdir.entries(mount.volume, ROOT_INODE, 0, 10)))

        async with trio.open_nursery() as nursery:
            mount.locks.revoke(lock.resource, NL)
            await purging.wait()
            nursery.start_soon(lister)
            await trio.testing.wait_all_tasks_blocked()
            assert answers == []
            go_on.set()
        assert answers == [1]
