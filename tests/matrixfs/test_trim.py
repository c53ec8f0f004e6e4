"""Discards on the product's volume, on a disk where discarded blocks hold garbage: nothing in use is hit (TR1-TR4)."""

from __future__ import annotations

import errno
import random

import pytest
import trio

from dlm.names import Resource
from matrixfs.fs import attributes, data, namespace, trim
from matrixfs.fs.trim import Totals
from matrixfs.ondisk.superblock import ROOT_INODE
from membership.errors import DeviceError, OperatorError
from membership.label import BLOCK_BYTES
from tests.matrixfs.local import Local, eventually, mounted, small_disk
from tests.sim.checkers import assert_clean
from tests.sim.disk import SimDisk

ROOM = 100  # blocks that are kept for trees


def use(mount: Local, disk: SimDisk, *, automatic: bool = True) -> None:
    mount.volume.trims.discard = disk.discard
    mount.volume.trims.automatic = automatic


def discarded(disk: SimDisk) -> set[int]:
    """Blocks."""
    return {
        block for offset, length in disk.discards
        for block in range(offset // BLOCK_BYTES, (offset + length) // BLOCK_BYTES)
    }  # fmt: skip


def free_blocks(mount: Local) -> set[int]:
    """As the groups of the mount say that are here."""
    found = set()
    for index in range(mount.volume.superblock.groups):
        group = mount.volume.allocator.lock(index).subject
        at = group.address
        while (run := group.next_free(at, group.address + group.blocks, 1)) is not None:
            found |= set(range(run[0], run[0] + run[1]))
            at = run[0] + run[1]
    return found


async def fill(mount: Local, name: bytes, blocks: int, seed: int = 1) -> tuple[int, bytes]:
    content = random.Random(seed).randbytes(blocks * BLOCK_BYTES)
    inode = await mount.file(name)
    await data.write(mount.volume, inode.ino, 0, content)
    await mount.volume.sync()
    return inode.ino, content


async def test_what_is_freed_is_discarded_after_its_commit_and_only_that() -> None:
    disk = await small_disk()
    async with mounted(disk) as mount:
        use(mount, disk)
        kept, content = await fill(mount, b"kept", 50)
        gone, _ = await fill(mount, b"gone", 70, 2)
        await attributes.setattr(mount.volume, gone, attributes.Changes(size=0))
        await mount.volume.trims.round()
        assert not disk.discards, "nothing is durable yet"
        await mount.volume.sync()
        await mount.volume.trims.round()
        assert len(discarded(disk)) >= 70
        assert len(disk.discards) < 10, "in few pieces"
        await mount.give_up(kept)
        assert await data.read(mount.volume, kept, 0, len(content)) == content
        assert mount.volume.trims.statistics["blocks"] == len(discarded(disk))
    await assert_clean(disk, mount.volume.superblock, notes=False)


async def test_without_the_option_nothing_is_discarded() -> None:
    disk = await small_disk()
    async with mounted(disk) as mount:
        use(mount, disk, automatic=False)
        gone, _ = await fill(mount, b"gone", 70)
        await attributes.setattr(mount.volume, gone, attributes.Changes(size=0))
        await mount.volume.sync()
        await mount.volume.trims.round()
    assert not disk.discards


async def test_what_was_taken_again_is_not_discarded() -> None:
    disk = await small_disk()
    async with mounted(disk) as mount:
        use(mount, disk)
        gone, _ = await fill(mount, b"gone", 70)
        await attributes.setattr(mount.volume, gone, attributes.Changes(size=0))
        await mount.volume.sync()
        late, content = await fill(mount, b"late", 3000, 3)  # nearly all there is
        await mount.volume.trims.round()
        await mount.give_up(late)
        assert await data.read(mount.volume, late, 0, len(content)) == content


async def test_all_that_is_free_and_nothing_else() -> None:
    disk = await small_disk()
    async with mounted(disk) as mount:
        use(mount, disk, automatic=False)
        files = [await fill(mount, b"%d" % number, 20 + number, number) for number in range(12)]
        for number in range(0, 12, 3):
            await namespace.unlink(mount.volume, ROOT_INODE, b"%d" % number)
        await mount.volume.sync()
        await mount.volume.allocator.settle()
        totals = Totals()
        await mount.volume.trims.all(1, totals)
        assert discarded(disk) == free_blocks(mount)
        assert totals.groups == mount.volume.superblock.groups
        assert totals.blocks == len(discarded(disk))
        for number, (ino, content) in enumerate(files):
            if number % 3:
                await mount.give_up(ino)
                assert await data.read(mount.volume, ino, 0, len(content)) == content
        before = len(disk.discards)
        longest = max(length for _, length in disk.discards) // BLOCK_BYTES
        await mount.volume.trims.all(trim.STEP_BLOCKS * 2 + longest, Totals())
        assert len(disk.discards) < before + before // 2, "short runs are left alone"
        start, length = max(disk.discards, key=lambda run: run[1])
        del disk.discards[:]
        assert await mount.volume.trims.between(start + 1, length - 2, 0) == length - 2 * BLOCK_BYTES
        assert discarded(disk) == set(range(start // BLOCK_BYTES + 1, (start + length) // BLOCK_BYTES - 1))
    await assert_clean(disk, mount.volume.superblock, notes=False)
    async with mounted(disk) as mount:
        found = await namespace.lookup(mount.volume, ROOT_INODE, b"1")
        assert found is not None
        assert await data.read(mount.volume, found.ino, 0, 1 << 30) == files[1][1]


@pytest.mark.parametrize("automatic", [True, False])
async def test_the_power_goes_at_any_write(automatic: bool, autojump_clock: trio.abc.Clock) -> None:
    """No discard comes before what freed its blocks is durable, and none hits what a replay brings back."""
    disk = await small_disk()
    async with mounted(disk, clean=False) as mount:
        use(mount, disk, automatic=automatic)
        files = {name: (await fill(mount, name, 30, seed))[1] for seed, name in enumerate((b"a", b"b", b"c"))}
        await mount.volume.journal.checkpoint()
        disk.mark()
        for name in (b"a", b"b"):
            await namespace.unlink(mount.volume, ROOT_INODE, name)
            await trio.sleep(2.5)
            await (mount.volume.trims.round() if automatic else mount.volume.trims.all(1, Totals()))
        await fill(mount, b"d", 40, 9)
        superblock = mount.volume.superblock
    assert disk.discards
    for at in range(len(disk.log) + 1):
        image = disk.crash_image(at, "drop" if at % 2 else "tear", seed=at)
        await assert_clean(image, superblock)
        async with mounted(image) as again:
            for name, content in files.items():
                found = await namespace.lookup(again.volume, ROOT_INODE, name)
                if found is not None:
                    assert await data.read(again.volume, found.ino, 0, 1 << 30) == content, (at, name)
                else:
                    assert name != b"c"


async def test_who_needs_the_space_waits_for_the_step() -> None:
    """TR3: what a step holds back is no reason for ENOSPC."""
    disk = await small_disk(size=8 << 20)
    async with mounted(disk) as mount:
        use(mount, disk, automatic=False)
        begun, go_on = trio.Event(), trio.Event()

        async def slow(offset: int, length: int) -> None:
            begun.set()
            await go_on.wait()
            await disk.discard(offset, length)

        mount.volume.trims.discard = slow
        free = await mount.volume.allocator.count_free()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mount.volume.trims.all, 1, Totals())
            await begun.wait()
            nursery.start_soon(fill, mount, b"large", free - ROOM)
            for _ in range(50):
                await trio.lowlevel.checkpoint()
            go_on.set()
        found = await namespace.lookup(mount.volume, ROOT_INODE, b"large")
        assert found is not None
        assert found.size == (free - ROOM) * BLOCK_BYTES
    await assert_clean(disk, mount.volume.superblock, notes=False)


async def test_a_store_without_discards_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    async def refuses(_offset: int, _length: int) -> None:
        await trio.lowlevel.checkpoint()
        raise DeviceError("sim: discard failed: Operation not supported", errno.EOPNOTSUPP)

    disk = await small_disk()
    async with mounted(disk) as mount:
        use(mount, disk)
        for discard in (refuses, None):
            mount.volume.trims.discard = discard
            with pytest.raises(OperatorError, match="can't be told what is free"):
                await mount.volume.trims.all(1, Totals())
        for name in (b"a", b"b"):
            mount.volume.trims.discard = refuses
            await fill(mount, name, 20)
            await namespace.unlink(mount.volume, ROOT_INODE, name)
            await mount.volume.opens.drained(10)
            await mount.volume.sync()
            await mount.volume.trims.round()
    said = [record.message for record in caplog.records if "discarded" in record.message]
    assert len(said) == 1
    assert said[0].endswith("the store can't be told what is free: sim: discard failed: Operation not supported")


async def test_a_group_that_went_to_a_peer_is_left_alone() -> None:
    disk = await small_disk()
    async with mounted(disk) as mount:
        use(mount, disk)
        ino, _ = await fill(mount, b"gone", 30)
        await attributes.setattr(mount.volume, ino, attributes.Changes(size=0))
        await mount.volume.sync()
        for index in range(mount.volume.superblock.groups):
            mount.locks.revoke(mount.volume.allocator.lock(index).resource, 0)
        groups = [mount.volume.allocator.lock(index) for index in range(mount.volume.superblock.groups)]
        await eventually(lambda: not any(lock.mode for lock in groups))
        await mount.volume.trims.round()
        assert not disk.discards


async def test_a_peer_gets_a_group_when_the_store_has_answered(autojump_clock: trio.abc.Clock) -> None:
    """TR1: until then a block that is being discarded can't become anybody's."""
    disk = await small_disk()
    async with mounted(disk) as mount:
        begun, go_on, given = trio.Event(), trio.Event(), trio.Event()
        release = mount.manager.release

        async def slow(_offset: int, _length: int) -> None:
            begun.set()
            await go_on.wait()

        def releases(resource: Resource, mode: int, value: bytes | None) -> None:
            release(resource, mode, value)
            if resource == lock.resource:
                given.set()

        mount.volume.trims.discard = slow
        mount.manager.release = releases  # type: ignore[method-assign]
        lock = mount.volume.allocator.lock(0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mount.volume.trims.between, 0, disk.size_bytes, 0)
            await begun.wait()
            assert lock.subject.taken
            mount.locks.revoke(lock.resource, 0)
            await trio.sleep(5)
            assert not given.is_set()
            nursery.start_soon(mount.file, b"in another group, or after the step")
            go_on.set()
            await given.wait()
