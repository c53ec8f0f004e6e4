"""Which groups are used, what is promised, when a number may be used again (R7, J5)."""

from __future__ import annotations

import errno

import pytest
import trio

from dlm.modes import EX, NL
from matrixfs.fs import attributes, namespace
from matrixfs.fs.allocation import Reservation
from matrixfs.locks.resources import GROUP
from matrixfs.ondisk.inode import InodeRecord
from matrixfs.ondisk.superblock import ROOT_INODE
from membership.errors import CorruptRecord
from membership.label import BLOCK_BYTES
from tests.matrixfs.local import Local, eventually, mounted, small_disk
from tests.sim.checkers import assert_clean


async def test_each_group_is_a_candidate_once() -> None:
    async with mounted() as mount:
        allocator = mount.volume.allocator
        groups = mount.volume.superblock.groups
        for local in (lambda _: True, lambda _: False, lambda resource: resource[1] % 3 == 0):
            allocator._is_local = local
            for near in (0, mount.volume.superblock.group_block(5) + 3):
                candidates = list(allocator._candidates(near))
                assert sorted(candidates) == list(range(groups))


async def test_own_groups_come_first_and_the_one_that_is_near() -> None:
    async with mounted(clean=False) as mount:
        superblock, allocator = mount.volume.superblock, mount.volume.allocator
        mine = {superblock.group_block(index) for index in (3, 6)}
        allocator._is_local = lambda resource: resource[1] in mine
        assert list(allocator._candidates(0))[:2] == [3, 6]
        group = await allocator.hold(1)
        assert group.index == 3
        allocator.drop(group)
        near = superblock.group_block(9) + 5
        await allocator.lock(9).hold(EX)
        allocator.lock(9).drop(EX)
        assert next(iter(allocator._candidates(near))) == 9, "cached: costs nothing"


async def test_a_full_group_is_passed_over_and_the_last_block_is_found() -> None:
    async with mounted(clean=False) as mount:
        allocator = mount.volume.allocator
        total = (await attributes.statfs(mount.volume)).free
        taken = 0
        with pytest.raises(OSError) as caught:
            while True:
                group = await allocator.hold(1)
                taken += group.take(1000)[1]
                allocator.drop(group)
        assert caught.value.errno == errno.ENOSPC
        assert taken == total


async def test_promises_count_every_group_once() -> None:
    async with mounted() as mount:
        allocator = mount.volume.allocator
        free = (await attributes.statfs(mount.volume)).free
        with pytest.raises(OSError) as caught:
            await allocator.promises.make(free + 1)
        assert caught.value.errno == errno.ENOSPC
        with await allocator.promises.make(free - 16 * 10):
            assert (await attributes.statfs(mount.volume)).free == 16 * 10
        assert (await attributes.statfs(mount.volume)).free == free


async def test_statfs_takes_promises_off() -> None:
    async with mounted() as mount:
        before = (await attributes.statfs(mount.volume)).free
        mount.volume.allocator.promises.add(10)
        assert (await attributes.statfs(mount.volume)).free == before - 10
        mount.volume.allocator.promises.add(-10)


async def test_a_damaged_group_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    disk = await small_disk()
    async with mounted(disk, clean=False) as mount:
        home = mount.volume.allocator._home
        disk.corrupt(mount.volume.superblock.group_block(home) * BLOCK_BYTES + 200)
        made = await mount.file(b"f")
        assert mount.volume.superblock.group_of(made.ino) != home
        assert f"group {home}" in caplog.text
        assert mount.volume.allocator.lock(home).idle
        stat = await attributes.statfs(mount.volume)
        assert stat.free < stat.blocks
        with pytest.raises(CorruptRecord):
            await mount.volume.allocator.hold_all([home + 1, home])
        assert mount.volume.allocator.lock(home + 1).idle, "none is held"


async def test_what_a_reservation_does_not_use_goes_back() -> None:
    async with mounted(clean=False) as mount:
        allocator = mount.volume.allocator
        group = await allocator.hold(5)
        before = group.available
        with Reservation(mount.volume.journal, group, 5) as spare:
            assert (group.taken, group.available) == (5, before - 5)
            first = spare.first
            assert spare.pop() == first
        assert (group.taken, group.available, group.free) == (0, before - 1, before - 1)
        with pytest.raises(ZeroDivisionError):
            with Reservation(mount.volume.journal, group, 3):
                raise ZeroDivisionError
        assert group.available == before - 1
        allocator.drop(group)


async def test_files_go_near_their_directory() -> None:
    async with mounted() as mount:
        superblock = mount.volume.superblock
        directory = await mount.directory(b"d")
        for number in range(20):
            made = await mount.file(b"%d" % number, directory.ino)
            assert superblock.group_of(made.ino) == superblock.group_of(directory.ino)


# --- numbers of deleted inodes ------------------------------------------------------------------------------


async def deleted(mount: Local, name: bytes) -> int:
    """Make and delete a file; its number."""
    made = await mount.file(name)
    await mount.volume.journal.commit()
    await namespace.unlink(mount.volume, ROOT_INODE, name)
    await eventually(lambda: not made.mode)
    return made.ino


async def test_a_deleted_number_rests_until_its_tombstone_is_safe() -> None:
    async with mounted(clean=False) as mount:
        number = await deleted(mount, b"f")
        again = await mount.file(b"g")
        assert again.ino != number
        group = mount.volume.allocator.lock(mount.volume.superblock.group_of(number)).subject
        available = group.available
        await mount.volume.allocator.settle()
        assert group.available == available + 1
        data = await mount.disk.read(number * BLOCK_BYTES, BLOCK_BYTES)
        tombstone = InodeRecord.decode_untrusted(data, "t", address=number)
        assert tombstone.mode == 0
        assert group.generation_floor >= tombstone.generation, "R7: whoever is next starts above it"


async def test_r7_generations_grow_over_the_lives_of_a_number() -> None:
    async with mounted() as mount:
        generations: list[tuple[int, int]] = []
        number = None
        for life in range(4):
            made = await mount.file(b"f")
            number = number or made.ino
            assert made.ino == number
            generations.append((made.generation, made.incarnation))
            await mount.volume.journal.commit()
            before = mount.volume.opens.deleted
            await namespace.unlink(mount.volume, ROOT_INODE, b"f")
            await eventually(lambda before=before: mount.volume.opens.deleted > before)
            await mount.volume.allocator.settle()
        assert [generation for generation, _ in generations] == sorted({generation for generation, _ in generations})
        assert len({incarnation for _, incarnation in generations}) == 4


async def test_a_group_is_not_given_away_while_tombstones_settle(autojump_clock: trio.abc.Clock) -> None:
    """The peer may put file data over a freed number at once: no write of ours to it may be left to come."""
    disk = await small_disk()
    async with mounted(disk, clean=False) as mount:
        number = await deleted(mount, b"f")
        allocator = mount.volume.allocator
        lock = allocator.lock(mount.volume.superblock.group_of(number))
        async with trio.open_nursery() as nursery:
            disk.hang()
            nursery.start_soon(allocator.settle)  # has its list, and waits for the disk
            await trio.testing.wait_all_tasks_blocked()
            mount.locks.revoke(lock.resource, NL)
            await trio.testing.wait_all_tasks_blocked()
            assert lock.mode == EX
            disk.resume()
            await eventually(lambda: not lock.mode)
            disk.mark()
        await mount.volume.journal.checkpoint()
        await mount.volume.journal.commit()
        assert not [write for write in disk.writes if write.offset == number * BLOCK_BYTES]
        image = disk.crash_image(len(disk.log))
        await image.write(number * BLOCK_BYTES, b"data".ljust(BLOCK_BYTES), durable=True)
        async with mounted(image, clean=False):  # replays
            assert (await image.read(number * BLOCK_BYTES, BLOCK_BYTES))[:4] == b"data"


async def test_a_group_given_up_and_taken_back_is_the_same(autojump_clock: trio.abc.Clock) -> None:
    async with mounted() as mount:
        for number in range(30):
            await mount.file(b"%d" % number)
        for number in range(0, 30, 3):
            await namespace.unlink(mount.volume, ROOT_INODE, b"%d" % number)
        await trio.sleep(0.5)
        free = (await attributes.statfs(mount.volume)).free
        for resource, lock in list(mount.locks._locks.items()):
            if resource[0] == GROUP:
                mount.locks.revoke(resource, NL)
                await eventually(lambda lock=lock: not lock.mode)
        assert (await attributes.statfs(mount.volume)).free == free
        await mount.file(b"one more")
        assert (await attributes.statfs(mount.volume)).free == free - 1
        disk, superblock = mount.disk, mount.volume.superblock
    await assert_clean(disk, superblock, notes=False)


async def test_many_operations_at_once_on_the_smallest_journal(autojump_clock: trio.abc.Clock) -> None:
    """99 handlers pass ``admit`` together: whatever they change must still fit the log."""
    disk = await small_disk(journal_blocks=64)
    disk.latency = (0.0, 0.001)
    async with mounted(disk) as mount:
        directories = [await mount.directory(b"d%d" % number) for number in range(99)]
        await mount.volume.sync()
        for directory in directories:
            await mount.give_up(directory.ino)
        async with trio.open_nursery() as nursery:  # all wait for their directory, then all change something
            for directory in directories:
                nursery.start_soon(mount.file, b"f", directory.ino)
        superblock = mount.volume.superblock
    await assert_clean(disk, superblock)
