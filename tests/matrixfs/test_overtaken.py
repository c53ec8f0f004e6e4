"""A replay that a newer attempt stops: nothing begins after that, what had begun has ended, it can be done again."""

from __future__ import annotations

import stat

import pytest
import trio

from matrixfs.fs import data, namespace
from matrixfs.fs.overtaken import Overtaken, OvertakenDevice
from matrixfs.fs.replay import replay
from matrixfs.ondisk.superblock import ROOT_INODE
from membership.orders import Replay, Suspend, Suspended
from tests.sim.disk import SimDisk
from tests.sim.fs_world import MIB, World, run_world

pytestmark = pytest.mark.seed("002-28", "002-30")
FILES = 20


@pytest.mark.parametrize("operation", range(0, 60, 3))
def test_a_replay_stopped_at_any_operation_is_done_again(operation: int) -> None:
    async def body(world: World) -> None:
        mounts = await world.start(0, 1)
        inodes = []
        for number in range(FILES):
            inode = await namespace.create(mounts[1].volume, ROOT_INODE, b"f%d" % number, stat.S_IFREG | 0o644, 0, 0)
            await data.write(mounts[1].volume, inode.ino, 0, b"%d" % number * 3000)
            await data.fsync(mounts[1].volume, inode.ino, False)
            inodes.append(inode.ino)
        world.kill(1)
        dead = world.dead[0]
        left = operation

        def is_over() -> bool:
            nonlocal left
            left -= 1
            return left < 0

        port = world.disk.port("replayer")
        expect = (dead.node, dead.incarnation)
        try:
            await replay(OvertakenDevice(port, is_over), world.superblock, dead.journal, expect=expect)
        except Overtaken:
            world.disk.mark()
            await trio.sleep(5)
            assert not world.disk.writes, "what had begun has ended"
        await world.change()
        for number, ino in enumerate(inodes):
            assert await data.read(mounts[0].volume, ino, 0, 1 << 20) == b"%d" % number * 3000

    run_world(operation, body, size=16 * MIB, latency=(0.001, 0.01))


async def test_what_has_begun_is_waited_for(autojump_clock) -> None:
    """Also when the task is cancelled, as the rest of a parallel write-back is."""
    disk = SimDisk(MIB, 4096, seed=1, latency=(1.0, 1.0))
    device = OvertakenDevice(disk.port("a"), lambda: False)
    with trio.move_on_after(0.5) as scope:
        await device.write(0, b"x" * 4096)
    assert trio.current_time() >= 1.0
    assert [write.data for write in disk.writes] == [b"x" * 4096]
    assert not scope.cancelled_caught


def test_suspend_is_answered_in_the_middle_of_a_replay() -> None:
    """O2: not after it; so that nobody's grants wait for a replay when something else dies, joins or leaves."""

    async def body(world: World) -> None:
        mounts = await world.start(0, 1, 2)
        for number in range(FILES):
            inode = await namespace.create(mounts[2].volume, ROOT_INODE, b"f%d" % number, stat.S_IFREG | 0o644, 0, 0)
            await data.fsync(mounts[2].volume, inode.ino, False)
        world.kill(2)
        await world.change(replay=False)
        world.disk.latency = (0.5, 0.5)
        mounts[0].member.order(Replay(world.attempt, world.dead[0]))
        await trio.sleep(1.7)  # some operations into it
        began = trio.current_time()
        world.attempt += 1
        mounts[0].member.order(Suspend(world.attempt))
        world._taking_part = [mounts[0]]
        await world._wait(mounts[0], Suspended)
        assert trio.current_time() - began <= 0.6, "at most what had begun"
        world.disk.latency = (0.0, 0.0004)
        await world.change()
        assert not world.dead

    run_world(3, body, size=16 * MIB)
