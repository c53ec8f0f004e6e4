"""Unlinked while open, on this node and on another one; orphans and who deletes them (002-08, R6; anchors.md 7.4)."""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterable

import pytest
import trio

from matrixfs.fs import attributes, data, namespace, readdir
from matrixfs.fs.opens import BATCH_MAX
from matrixfs.fs.volume import NoKernelCaches, Volume
from matrixfs.locks.lock import Lock
from matrixfs.locks.modes import EX, PR
from matrixfs.locks.resources import OPEN, Resource
from matrixfs.ondisk.superblock import ORPHANS_START, ROOT_INODE
from tests.matrixfs.local import Local, mounted, small_disk
from tests.sim.checkers import assert_clean
from tests.sim.fs_world import MIB, World, run_world

CONTENT = b"still here" * 1000


async def make(volume: Volume, name: bytes = b"f") -> int:
    made = await namespace.create(volume, ROOT_INODE, name, stat.S_IFREG | 0o644, 0, 0)
    await data.write(volume, made.ino, 0, CONTENT)
    return made.ino


async def make_in(volume: Volume, directory: int) -> None:
    await namespace.create(volume, directory, b"new", stat.S_IFREG | 0o644, 0, 0)


async def opened(volume: Volume, ino: int) -> None:
    """As the FUSE edge opens a file: count, then read the inode."""
    volume.opens.opened(ino)
    await attributes.getattr(volume, ino)


async def is_gone(volume: Volume, ino: int) -> bool:
    try:
        await attributes.getattr(volume, ino)
    except OSError as error:
        assert error.errno == errno.ESTALE
        return True
    return False


async def orphans(volume: Volume, journal: int) -> list[int]:
    return [inode.ino for _, _, inode in await readdir.entries(volume, ORPHANS_START + journal, 0, 1000)]


async def free(mount: Local) -> int:
    await mount.volume.journal.commit()
    await mount.volume.allocator.settle()
    return (await attributes.statfs(mount.volume)).free


async def test_a_file_without_names_is_deleted(autojump_clock: trio.abc.Clock) -> None:
    async with mounted() as mount:
        before = await free(mount)
        ino = await make(mount.volume)
        await mount.volume.sync()
        assert await free(mount) == before - 1 - 3
        await namespace.unlink(mount.volume, ROOT_INODE, b"f")
        await trio.sleep(0.1)
        assert await is_gone(mount.volume, ino)
        assert await free(mount) == before
        assert await orphans(mount.volume, 0) == []
        disk, superblock = mount.disk, mount.volume.superblock
    await assert_clean(disk, superblock, notes=False)


async def test_what_is_removed_together_costs_one_request_for_all_open_locks(autojump_clock: trio.abc.Clock) -> None:
    async with mounted() as mount:
        numbers = {await make(mount.volume, b"%d" % number) for number in range(BATCH_MAX + 3)}
        asked: list[set[int]] = []
        prefetch = mount.locks.prefetch

        async def seen(locks: Iterable[Lock], mode: int) -> None:
            wanted = list(locks)
            asked.append({lock.number for lock in wanted if lock.resource[0] == OPEN and mode == EX})
            await prefetch(wanted, mode)

        mount.locks.prefetch = seen  # type: ignore[method-assign]
        for number in range(len(numbers)):
            await namespace.unlink(mount.volume, ROOT_INODE, b"%d" % number)
        await mount.volume.opens.drained(10)
        assert [len(each) for each in asked] == [BATCH_MAX, 3]
        assert set().union(*asked) == numbers
        assert mount.volume.opens.deleted == len(numbers)


async def test_unlinked_while_open_here(autojump_clock: trio.abc.Clock) -> None:
    async with mounted() as mount:
        ino = await make(mount.volume)
        await opened(mount.volume, ino)
        await opened(mount.volume, ino)
        await namespace.unlink(mount.volume, ROOT_INODE, b"f")
        await trio.sleep(5)
        assert await orphans(mount.volume, 0) == [ino]
        assert await data.read(mount.volume, ino, 0, 1 << 20) == CONTENT
        await data.write(mount.volume, ino, 0, b"S")
        mount.volume.opens.closed(ino)
        await trio.sleep(5)
        assert await data.read(mount.volume, ino, 0, 5) == b"Still"
        mount.volume.opens.closed(ino)
        await trio.sleep(1)
        assert await is_gone(mount.volume, ino)
        assert await orphans(mount.volume, 0) == []


async def test_a_directory_that_is_open_outlives_its_name(autojump_clock: trio.abc.Clock) -> None:
    """Who is in it sees an empty directory without a name, as everywhere, and can make nothing in it."""
    async with mounted() as mount:
        volume = mount.volume
        ino = (await mount.directory(b"d")).ino
        await opened(volume, ino)
        await namespace.rmdir(volume, ROOT_INODE, b"d")
        await trio.sleep(5)
        assert (await attributes.getattr(volume, ino)).nlink == 0
        assert await readdir.entries(volume, ino, 0, 10) == []
        with pytest.raises(OSError) as caught:
            await make_in(volume, ino)
        assert caught.value.errno == errno.ENOENT
        volume.opens.closed(ino)
        await trio.sleep(5)
        assert await is_gone(volume, ino)


async def test_replaced_by_rename_while_open(autojump_clock: trio.abc.Clock) -> None:
    async with mounted() as mount:
        ino = await make(mount.volume)
        await opened(mount.volume, ino)
        await mount.file(b"g")
        await namespace.rename(mount.volume, ROOT_INODE, b"g", ROOT_INODE, b"f")
        await trio.sleep(2)
        assert await data.read(mount.volume, ino, 0, 1 << 20) == CONTENT
        mount.volume.opens.closed(ino)
        await trio.sleep(1)
        assert await is_gone(mount.volume, ino)


async def test_orphans_survive_a_crash_and_are_found_again(autojump_clock: trio.abc.Clock) -> None:
    disk = await small_disk()
    async with mounted(disk, clean=False) as mount:
        ino = await make(mount.volume)
        await opened(mount.volume, ino)
        await namespace.unlink(mount.volume, ROOT_INODE, b"f")
        await mount.volume.sync()
    async with mounted(disk) as mount:
        assert await orphans(mount.volume, 0) == [ino]
        assert await mount.volume.opens.adopt(0) == 1
        await trio.sleep(1)
        assert await is_gone(mount.volume, ino)
    await assert_clean(disk, mount.volume.superblock, notes=False)


async def test_a_crash_at_any_write_of_a_deletion_leaves_it_to_be_finished(autojump_clock: trio.abc.Clock) -> None:
    disk = await small_disk()
    async with mounted(disk, clean=False) as mount:
        ino = await make(mount.volume)
        await mount.volume.sync()
        disk.mark()
        await namespace.unlink(mount.volume, ROOT_INODE, b"f")
        await trio.sleep(6)  # deleted, committed, settled
        assert mount.volume.opens.deleted == 1
    for entry in range(len(disk.log) + 1):
        image = disk.crash_image(entry, "tear", seed=entry)
        await assert_clean(image, mount.volume.superblock)
        async with mounted(image) as again:
            named = await namespace.lookup(again.volume, ROOT_INODE, b"f")
            await again.volume.opens.adopt(0)
            await trio.sleep(1)
            assert await is_gone(again.volume, ino) == (named is None), entry
        await assert_clean(image, mount.volume.superblock, notes=False)


@pytest.mark.parametrize("length", [10, 4000])
async def test_a_crash_at_any_write_of_a_symlinks_deletion(autojump_clock: trio.abc.Clock, length: int) -> None:
    disk = await small_disk()
    async with mounted(disk, clean=False) as mount:
        await namespace.symlink(mount.volume, ROOT_INODE, b"s", b"x" * length, 0, 0)
        await mount.volume.sync()
        disk.mark()

        async def commits() -> None:
            """Others commit all the time."""
            for _ in range(100):
                await mount.volume.journal.commit()
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(commits)
            await namespace.unlink(mount.volume, ROOT_INODE, b"s")
        await trio.sleep(6)
        assert mount.volume.opens.deleted == 1
    for entry in range(len(disk.log) + 1):
        await assert_clean(disk.crash_image(entry), mount.volume.superblock)


async def test_leaving_while_deletions_are_queued(autojump_clock: trio.abc.Clock) -> None:
    """They stay in the list for the next mount; nothing of them is under way when the journal is closed."""
    disk = await small_disk(journal_blocks=256)
    disk.latency = (0.0, 0.001)
    async with mounted(disk) as mount:
        for number in range(60):
            await mount.file(b"%d" % number)
        for number in range(60):
            await namespace.unlink(mount.volume, ROOT_INODE, b"%d" % number)
    await assert_clean(disk, mount.volume.superblock)
    async with mounted(disk) as mount:
        await mount.volume.opens.adopt(0)
        await trio.sleep(5)
        assert await orphans(mount.volume, 0) == []
    await assert_clean(disk, mount.volume.superblock, notes=False)


# --- two nodes ----------------------------------------------------------------------------------------------


def in_world(body: object, seed: int = 1) -> None:
    async def limited(world: World) -> None:
        with trio.fail_after(120):
            await body(world)  # type: ignore[operator]

    run_world(seed, limited, size=16 * MIB)


@pytest.mark.seed("002-08")
def test_unlinked_here_while_open_on_another_node() -> None:
    async def body(world: World) -> None:
        a, b = [mount.volume for mount in await world.start(0, 1)]
        ino = await make(a)
        await opened(b, ino)
        await namespace.unlink(a, ROOT_INODE, b"f")
        assert await namespace.lookup(b, ROOT_INODE, b"f") is None
        await trio.sleep(5)
        assert a.opens.deleted == 0
        assert await data.read(b, ino, 0, 1 << 20) == CONTENT
        await data.write(b, ino, 0, b"S")
        assert await data.read(b, ino, 0, 5) == b"Still"
        b.opens.closed(ino)
        await trio.sleep(2)
        assert (a.opens.deleted, b.opens.deleted) == (0, 1), "who closes last deletes"
        assert await is_gone(a, ino)
        assert await orphans(a, 0) == []
        for node in (0, 1):
            await world.leave(node)
        await assert_clean(world.disk, world.superblock, notes=False)

    in_world(body)


def test_open_on_two_nodes() -> None:
    async def body(world: World) -> None:
        a, b, c = [mount.volume for mount in await world.start(0, 1, 2)]
        ino = await make(a)
        await opened(b, ino)
        await opened(c, ino)
        await namespace.unlink(a, ROOT_INODE, b"f")
        await trio.sleep(1)
        b.opens.closed(ino)
        await trio.sleep(2)
        assert await data.read(c, ino, 0, 1 << 20) == CONTENT
        c.opens.closed(ino)
        await trio.sleep(2)
        assert await is_gone(b, ino)
        for node in (0, 1, 2):
            await world.leave(node)
        await assert_clean(world.disk, world.superblock, notes=False)

    in_world(body)


def test_a_local_open_does_not_wait_for_a_deletion_that_waits_for_a_peer() -> None:
    """Node 1 has the orphan open; node 0 tries to delete it and opens it meanwhile: the open must come through."""

    async def body(world: World) -> None:
        a, b = [mount.volume for mount in await world.start(0, 1)]
        ino = await make(a)
        await opened(b, ino)
        await namespace.unlink(a, ROOT_INODE, b"f")
        await trio.sleep(0.05)
        with trio.fail_after(2):
            await opened(a, ino)
        b.opens.closed(ino)
        await trio.sleep(2)
        assert await data.read(a, ino, 0, 1 << 20) == CONTENT
        a.opens.closed(ino)
        await trio.sleep(2)
        assert await is_gone(b, ino)

    in_world(body)


def test_the_node_that_has_it_open_dies() -> None:
    """R6: an OPEN lock leaves no ghost; the orphan goes when somebody tries again, here the next mount."""

    async def body(world: World) -> None:
        a, b = [mount.volume for mount in await world.start(0, 1)]
        ino = await make(a)
        await opened(b, ino)
        await namespace.unlink(a, ROOT_INODE, b"f")
        await trio.sleep(1)
        world.kill(1)
        await world.change()
        assert await a.opens.adopt(0) == 1
        await trio.sleep(2)
        assert await is_gone(a, ino)
        await world.leave(0)
        await assert_clean(world.disk, world.superblock, notes=False)

    in_world(body)


def test_the_node_that_removed_the_name_dies() -> None:
    """Its orphans are adopted by who replays its journal; the one that is open waits for its close."""

    async def body(world: World) -> None:
        a, b = [mount.volume for mount in await world.start(0, 1)]
        held, idle = await make(a, b"held"), await make(a, b"idle")
        await opened(a, idle)
        await opened(b, held)
        await namespace.unlink(a, ROOT_INODE, b"held")
        await namespace.unlink(a, ROOT_INODE, b"idle")
        await a.sync()
        await trio.sleep(1)
        world.kill(0)
        await world.change()
        await trio.sleep(2)
        assert await is_gone(b, idle)
        assert await data.read(b, held, 0, 1 << 20) == CONTENT
        b.opens.closed(held)
        await trio.sleep(2)
        assert await is_gone(b, held)
        await world.leave(1)
        await assert_clean(world.disk, world.superblock, notes=False)

    in_world(body)


class KernelThatOpens(NoKernelCaches):
    """Of ``-o localflocks``: forgets what it is told to, unless it is in use."""

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        self.known: set[int] = set()
        self.in_use: set[int] = set()

    def look_up(self, ino: int) -> None:
        self.known.add(ino)
        self.volume.opens.opened(ino)

    async def shed(self, ino: int) -> None:
        await trio.sleep(0.001)
        if ino in self.known - self.in_use:
            self.known.discard(ino)
            self.volume.opens.closed(ino)


class KernelThatKeeps(KernelThatOpens):
    """Of any mount: what it knows counts as open once it is removed."""

    def look_up(self, ino: int) -> None:
        self.known.add(ino)

    def keep(self, ino: int) -> bool:
        return ino in self.known


@pytest.mark.parametrize("kind", ["file", "directory", "replaced"])
async def test_what_is_removed_here_stays_while_the_kernel_uses_it(autojump_clock: trio.abc.Clock, kind: str) -> None:
    """O_PATH, or a working directory: nobody tells us, but the kernel does not forget it."""
    async with mounted() as mount:
        volume = mount.volume
        kernel = volume.kernel = KernelThatKeeps(volume)
        ino = (await mount.directory(b"f")).ino if kind == "directory" else await make(volume)
        kernel.look_up(ino)
        kernel.in_use.add(ino)
        if kind == "file":
            await namespace.unlink(volume, ROOT_INODE, b"f")
        elif kind == "directory":
            await namespace.rmdir(volume, ROOT_INODE, b"f")
        else:
            await make(volume, b"g")
            await namespace.rename(volume, ROOT_INODE, b"g", ROOT_INODE, b"f")
        await trio.sleep(10)
        await volume.room.make()
        assert (await attributes.getattr(volume, ino)).nlink == 0
        await mount.give_up(ino)
        assert mount.manager.held[Resource(OPEN, ino)] == PR
        assert (await attributes.getattr(volume, ino)).nlink == 0
        kernel.in_use.clear()
        await trio.sleep(5)
        assert await is_gone(volume, ino)
        assert volume.opens._removed == set()
        assert await orphans(volume, 0) == []


async def test_a_removed_file_whose_name_the_kernel_kept_is_space_when_it_is_needed(
    autojump_clock: trio.abc.Clock,
) -> None:
    """No FORGET came, and it is not in use: the kernel is made to forget it, at the latest before ENOSPC is said."""
    async with mounted() as mount:
        kernel = mount.volume.kernel = KernelThatKeeps(mount.volume)
        ino = await make(mount.volume)
        kernel.look_up(ino)
        await namespace.unlink(mount.volume, ROOT_INODE, b"f")
        await trio.sleep(0.1)
        assert not await is_gone(mount.volume, ino)
        assert await mount.volume.room.make()
        assert await is_gone(mount.volume, ino)


async def test_a_file_that_was_only_looked_at_costs_no_open_lock(autojump_clock: trio.abc.Clock) -> None:
    """coherence.md 6: the kernel opens by itself, so what it knows counts as open."""
    async with mounted() as mount:
        kernel = mount.volume.kernel = KernelThatOpens(mount.volume)
        seen, used = await make(mount.volume, b"seen"), await make(mount.volume, b"used")
        kernel.look_up(seen)
        kernel.look_up(used)
        kernel.in_use.add(used)
        await mount.give_up(seen)
        await mount.give_up(used)
        assert mount.manager.held.get(Resource(OPEN, seen), 0) == 0
        assert mount.manager.held[Resource(OPEN, used)] == PR
        kernel.in_use.clear()
        await trio.sleep(5)  # it is asked again
        assert kernel.known == set()
        assert not mount.volume.opens.is_open(used)
