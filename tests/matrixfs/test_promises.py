"""What was promised to buffered data is left alone by everybody else (``matrixfs/fs/promises.py``)."""

from __future__ import annotations

import errno
import logging

import pytest
import trio

from dlm.modes import EX, NL
from matrixfs.fs import attributes, data, namespace
from matrixfs.fs.promises import YIELD_SECONDS, room_of
from matrixfs.ondisk.inode import TAIL_BYTES
from matrixfs.ondisk.superblock import ROOT_INODE
from membership.label import BLOCK_BYTES
from tests.crash.workloads import Workload, at_random, record
from tests.matrixfs.local import Local, eventually, mounted
from tests.matrixfs.test_data import content, fill
from tests.sim.checkers import assert_clean


async def create_until_full(mount: Local) -> int:
    for number in range(1000):
        try:
            await mount.file(b"empty-%d" % number)
        except OSError as error:
            assert error.errno == errno.ENOSPC
            return number
    raise AssertionError("never full")


async def test_names_leave_promised_room_alone() -> None:
    """PR3; and what was promised too much is theirs once it is written."""
    async with mounted() as mount:
        await fill(mount, 60)
        files = [await mount.file(b"f%d" % number) for number in range(5)]
        for made in files:
            await data.write(mount.volume, made.ino, 0, b"x" * 5000)
        promises = mount.volume.allocator.promises
        assert promises.total >= 10
        before = await create_until_full(mount)
        assert promises.covered()
        await mount.volume.sync()
        assert promises.total == 0
        assert not mount.volume.write_back.errors
        for made in files:
            assert await content(mount, made.ino) == b"x" * 5000
        assert before
        await mount.file(b"one more")
        disk, superblock = mount.disk, mount.volume.superblock
    await assert_clean(disk, superblock)


async def test_room_made_before_enospc_is_heard_of_writes_back() -> None:
    async with mounted() as mount:
        await fill(mount, 60)
        made = await mount.file(b"f")
        for number in range(8):  # ranges, each of which may touch a block more than it does
            await data.write(mount.volume, made.ino, number * 3 * BLOCK_BYTES, b"x")
        await create_until_full(mount)
        assert await mount.volume.room.make()
        await mount.file(b"another")


async def test_a_claim_counts_from_the_question_on() -> None:
    """PR2: two writers are not promised the same blocks."""
    async with mounted() as mount:
        await fill(mount, 60)
        made = await mount.file(b"f")
        promises = mount.volume.allocator.promises
        before = promises.total
        with await mount.volume.write_back.admit(made, 0, 20 * BLOCK_BYTES):
            assert promises.total >= before + 20
            assert (await attributes.statfs(mount.volume)).free < 60 - 20 + 16 * 10
        assert promises.total == before


async def one_group(mount: Local) -> int:
    """Have room in one group only, and hold no other; its number."""
    await fill(mount, 0)
    await namespace.unlink(mount.volume, ROOT_INODE, b"filler")
    await eventually(lambda: mount.volume.opens.deleted)
    await mount.volume.allocator.settle()
    await mount.volume.sync()
    allocator = mount.volume.allocator
    home = max(allocator.at_hand(), key=lambda group: group.available).index
    for group in list(allocator.at_hand()):
        if group.index != home:
            mount.locks.revoke(allocator.lock(group.index).resource, NL)
            await eventually(lambda number=group.index: not allocator.lock(number).mode)
    return home


async def test_a_group_goes_when_what_rests_on_it_is_written(autojump_clock: trio.abc.Clock) -> None:
    """PR4."""
    async with mounted() as mount:
        made = await mount.file(b"f")
        home = await one_group(mount)
        lock = mount.volume.allocator.lock(home)
        before = room_of(lock.subject)
        await data.write(mount.volume, made.ino, 0, b"x" * 50_000)
        mount.locks.revoke(lock.resource, NL)
        await eventually(lambda: not lock.mode)
        assert mount.volume.write_back.idle
        (group,) = await mount.volume.allocator.hold_all([home])
        assert room_of(group) <= before - 13, "it lies in that very group"
        mount.volume.allocator.drop(group)
        assert await content(mount, made.ino) == b"x" * 50_000
        disk, superblock = mount.disk, mount.volume.superblock
    await assert_clean(disk, superblock)


async def test_a_group_is_not_kept_for_a_file_that_is_in_use(
    autojump_clock: trio.abc.Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """PR4: its user may wait for what the peer holds.  Then nothing is lost as long as any group has room."""
    async with mounted() as mount:
        made = await mount.file(b"f")
        home = await one_group(mount)
        lock, used = mount.volume.allocator.lock(home), mount.volume.inode_lock(made.ino)
        await data.write(mount.volume, made.ino, 0, b"x" * 50_000)
        await used.hold(EX, exclusive=True)
        start = trio.current_time()
        with caplog.at_level(logging.WARNING):
            mount.locks.revoke(lock.resource, NL)
            await eventually(lambda: not lock.mode)
        assert trio.current_time() - start >= YIELD_SECONDS
        assert f"group {home} goes to a peer" in caplog.text
        used.drop(EX, exclusive=True)
        await mount.volume.sync()
        assert await content(mount, made.ino) == b"x" * 50_000


async def test_growing_out_of_the_inode_asks_for_room() -> None:
    async with mounted() as mount:
        made = await mount.file(b"f")
        await data.write(mount.volume, made.ino, 0, b"small")
        await fill(mount, 0)
        await create_until_full(mount)
        with pytest.raises(OSError) as caught:
            await attributes.setattr(mount.volume, made.ino, attributes.Changes(size=TAIL_BYTES + 1))
        assert caught.value.errno == errno.ENOSPC
        assert await content(mount, made.ino) == b"small"


@pytest.mark.parametrize("journal_data", [False, True], ids=["ordered", "journal"])
def test_the_seed_that_lost_data(journal_data: bool, caplog: pytest.LogCaptureFixture) -> None:
    program = at_random(operations=40, workers=3, leave_free=90)
    for seed in (1, 9):
        record(Workload(1, program, journal_data=journal_data), seed)
    assert "is lost" not in caplog.text
