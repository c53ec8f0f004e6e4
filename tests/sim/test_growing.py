"""A filesystem grown while several nodes work on it, and any of them may die (issue 5, "Scale")."""

from __future__ import annotations

import stat
from dataclasses import replace

import pytest
import trio

from matrixfs.fs import attributes, data, namespace
from matrixfs.fs.grow import plan, prepare
from matrixfs.fs.opening import read_superblock
from matrixfs.ondisk.superblock import ROOT_INODE
from membership.errors import MatrixError
from membership.label import BLOCK_BYTES
from tests.sim.checkers import assert_clean
from tests.sim.fs_world import MIB, SimMount, World, run_world

SIZE, LARGER = 12 * MIB, 20 * MIB
NODES = range(3)


async def grow(world: World, mount: SimMount) -> None:
    """What matrixfs/growing.py does, without a store and a label."""
    before = replace(mount.volume.superblock)
    world.disk.capacity = LARGER
    after = plan(before, LARGER // BLOCK_BYTES)
    assert after is not None
    growth = await prepare(mount.port, before, after)
    await mount.member.at_barrier(lambda: growth.apply(mount.port))
    await mount.volume.allocator.enlarge(before.groups - 1)
    await mount.volume.journal.commit()


async def work(mount: SimMount, written: dict[bytes, int]) -> None:
    """Files of all sizes, and some removed, until cancelled."""
    node, number = mount.instance.node, 0
    while True:
        name = b"%d-%d" % (mount.instance.incarnation, number)
        made = await namespace.create(mount.volume, ROOT_INODE, name, stat.S_IFREG | 0o644, 0, 0)
        await data.write(mount.volume, made.ino, 0, name * (1 + number * 977 % 9000))
        await data.fsync(mount.volume, made.ino, False)
        written[name] = 1 + number * 977 % 9000
        if number % 3 == node % 3:
            del written[name]
            await namespace.unlink(mount.volume, ROOT_INODE, name)
        number += 1


async def load(mount: SimMount, written: dict[bytes, int]) -> None:
    try:
        await work(mount, written)
    except* (MatrixError, OSError):
        assert mount.scope.cancel_called or mount.port.size_bytes  # killed, or full


async def check(world: World, written: dict[bytes, int]) -> None:
    """All that was fsynced is there, from every mount; then all leave, and fsck finds nothing."""
    for mount in world.mounts.values():
        assert mount.volume.superblock == await read_superblock(world.disk)
        assert (await attributes.statfs(mount.volume)).blocks == mount.volume.superblock.capacity()
        for name, times in written.items():
            found = await namespace.lookup(mount.volume, ROOT_INODE, name)
            assert found is not None
            assert await data.read(mount.volume, found.ino, 0, 1 << 20) == name * times
    for node in list(world.mounts):
        await world.leave(node)
    await assert_clean(world.disk, await read_superblock(world.disk), notes=False)


async def _grown_under_load(world: World) -> None:
    mounts = await world.start(*NODES)
    written: dict[bytes, int] = {}
    async with trio.open_nursery() as nursery:
        for mount in mounts:
            nursery.start_soon(load, mount, written)
        await trio.sleep(0.2)
        attempt = world.attempt
        await grow(world, mounts[1])
        assert world.attempt == attempt + 1
        await trio.sleep(1.0)
        nursery.cancel_scope.cancel()
    assert len(written) > 10
    assert all(mount.volume.superblock.blocks_total == LARGER // BLOCK_BYTES for mount in mounts)
    volume = mounts[2].volume  # what did not fit before
    large = await namespace.create(volume, ROOT_INODE, b"large", stat.S_IFREG | 0o644, 0, 0)
    for at in range(0, (LARGER - SIZE) // 2, MIB):
        await data.write(volume, large.ino, at, b"l" * MIB)
    await check(world, {**written})


@pytest.mark.parametrize("seed", range(4))
def test_grown_under_load(seed: int) -> None:
    run_world(seed, _grown_under_load, size=SIZE, journals=3, journal_blocks=64)


@pytest.mark.parametrize("seed", range(16))
def test_the_grower_or_another_dies(seed: int) -> None:
    """Whenever it is: all that live know the same filesystem, the old one or the new one."""

    async def body(world: World) -> None:
        mounts = await world.start(*NODES)
        written: dict[bytes, int] = {}
        async with trio.open_nursery() as nursery:
            for mount in mounts:
                nursery.start_soon(load, mount, written)
            await trio.sleep(0.05)
            nursery.start_soon(_until_killed, world, mounts[1])
            await trio.sleep(world.rng.uniform(0, 0.06))
            world.kill(seed % 3)
            await world.change()
            await trio.sleep(0.3)
            await world.start(seed % 3)
            await trio.sleep(0.3)
            nursery.cancel_scope.cancel()
        await check(world, written)

    run_world(seed, body, size=SIZE, journals=3, journal_blocks=64)


async def _until_killed(world: World, mount: SimMount) -> None:
    try:
        await grow(world, mount)
    except* MatrixError:
        assert mount.scope.cancel_called
