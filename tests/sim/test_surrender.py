"""Giving up a file's lock: how many waits for the store lie behind each other, and a power loss after each write.

The proof of what may go on at the same time is docs/decisions/0014-data-beside-the-commit.md.
"""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from matrixfs.fs import data
from matrixfs.fs.opening import read_superblock
from matrixfs.fs.surrender import InodeCallouts
from matrixfs.locks.modes import EX, PR
from tests.matrixfs.local import Local, mounted, small_disk
from tests.sim.checkers import assert_clean
from tests.sim.disk import Mode, SimDisk

PAGE = 4096
LATENCY = 0.001
OLD = b"".join(bytes([value]) * PAGE for value in b"abc")
NEW_PAGE = b"B" * PAGE
NEW_BYTES = b"C" * 100  # of the last page only so many: the rest must be read and written again
NEW = OLD[:PAGE] + NEW_PAGE + NEW_BYTES + OLD[2 * PAGE + len(NEW_BYTES) :]


async def file_with(mount: Local, content: bytes) -> int:
    """A file that is durable and in place."""
    made = await mount.file(b"f")
    await data.write(mount.volume, made.ino, 0, content)
    await mount.volume.sync()
    await mount.volume.journal.checkpoint()
    return made.ino


async def give_up(mount: Local, ino: int) -> None:
    """A peer wants to read: the callout alone, so that nothing else takes time."""
    lock = mount.volume.inode_lock(ino)
    assert lock.mode == EX
    await InodeCallouts(mount.volume).surrender(lock, PR)


@pytest.mark.seed("002-08", "002-35")
@pytest.mark.parametrize("journal_data", [False, True])
@pytest.mark.parametrize(
    ("offset", "content", "waits", "journalled"),
    [
        (PAGE, NEW_PAGE, 3, 3),  # the data while the frame is written, then in place, then the revoke
        (PAGE, b"x", 3, 4),  # the rest of the block is read first, beside the same three
        (len(OLD), NEW_PAGE, 5, 3),  # it grows: the data and a flush come before the frame that makes it reachable (J4)
    ],
)
async def test_waits_for_the_store_behind_each_other(
    autojump_clock: MockClock, offset: int, content: bytes, waits: int, journalled: int, journal_data: bool
) -> None:
    """``journalled``: with data=journal, where all of it is in the frame."""
    async with mounted() as mount:
        mount.volume.journal_data = journal_data
        ino = await file_with(mount, OLD)
        await data.write(mount.volume, ino, offset, content)
        mount.disk.latency = (LATENCY, LATENCY)
        began = trio.current_time()
        await give_up(mount, ino)
        took = trio.current_time() - began
        mount.disk.latency = (0.0, 0.0)
        assert round(took / LATENCY) == (journalled if journal_data else waits)
        assert not mount.volume.journal.holds(mount.volume.inode_lock(ino).blocks[ino])


async def recorded(seed: int) -> tuple[SimDisk, int]:
    """A disk with the log of one surrender, whose writes end in an order of this seed."""
    disk = await small_disk(seed=seed)
    async with mounted(disk, clean=False) as mount:
        ino = await file_with(mount, OLD)
        await data.write(mount.volume, ino, PAGE, NEW_PAGE)
        await data.write(mount.volume, ino, 2 * PAGE, NEW_BYTES)
        disk.mark()
        disk.latency = (LATENCY / 10, LATENCY)
        await give_up(mount, ino)
        disk.latency = (0.0, 0.0)
        entries = len(disk.log)
    del disk.log[entries:]
    return disk, ino


@pytest.mark.seed("002-30", "002-35")
@pytest.mark.parametrize("mode", ["drop", "keep-some", "tear"])
async def test_power_lost_at_every_write_of_a_surrender(autojump_clock: MockClock, mode: Mode) -> None:
    orders = set()
    for seed in range(12):
        disk, ino = await recorded(seed)
        superblock = await read_superblock(disk)
        orders.add(tuple(write.offset for write in disk.writes))
        for entry in range(len(disk.log) + 1):
            image = disk.crash_image(entry, mode, seed=entry)
            await assert_clean(image, superblock)
            async with mounted(image, clean=False) as mount:
                found = await data.read(mount.volume, ino, 0, 2 * len(OLD))
            assert len(found) == len(OLD)
            for at in range(0, len(OLD), PAGE):
                assert found[at : at + PAGE] in (OLD[at : at + PAGE], NEW[at : at + PAGE])
            if entry == len(disk.log):
                assert found == NEW, "what the lock covered is durable when it goes"
    assert len(orders) > 1, "the data came both before and after the frame"
