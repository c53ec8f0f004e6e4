"""A filesystem grown while several nodes work on it, and any of them may die (issue 5, "Scale")."""

from __future__ import annotations

import itertools
import stat
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial

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
KEPT = 4  # files of each node
THINK_SECONDS = 0.03


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


class Load:
    """Writers on mounts; none is cancelled in the middle of an operation, but with its mount."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.written: dict[bytes, int] = {}  # what was fsynced: name -> how often the file repeats it
        self.stopping = False
        self._nursery = nursery
        self._scopes: list[tuple[SimMount, trio.CancelScope]] = []

    def begin(self, mount: SimMount, what: Callable[[SimMount], Awaitable[None]] | None = None) -> None:
        """Run ``what``, by default ``work``, as long as the mount lives."""
        self._nursery.start_soon(self._run, mount, what or self.work)

    async def _run(self, mount: SimMount, what: Callable[[SimMount], Awaitable[None]]) -> None:
        with trio.CancelScope() as scope:
            self._scopes.append((mount, scope))
            try:
                await what(mount)
            except* MatrixError:
                assert mount.scope.cancel_called, "it lives and fails"

    def kill(self, world: World, node: int) -> None:
        """Kill a mount, and what runs on it."""
        killed = world.kill(node)
        for mount, scope in self._scopes:
            if mount is killed:
                scope.cancel()

    async def work(self, mount: SimMount) -> None:
        """Write files of all sizes, and remove all but the last ones."""
        for number in itertools.count():
            if self.stopping:
                return
            name, old = (b"%d-%d" % (mount.instance.incarnation, each) for each in (number, number - KEPT))
            made = await namespace.create(mount.volume, ROOT_INODE, name, stat.S_IFREG | 0o644, 0, 0)
            times = 1 + number * 977 % 9000
            await data.write(mount.volume, made.ino, 0, name * times)
            await data.fsync(mount.volume, made.ino, False)
            self.written[name] = times
            if self.written.pop(old, 0):
                await namespace.unlink(mount.volume, ROOT_INODE, old)
            await trio.sleep(THINK_SECONDS)


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
    async with trio.open_nursery() as nursery:
        load = Load(nursery)
        for mount in mounts:
            load.begin(mount)
        await trio.sleep(0.2)
        attempt = world.attempt
        await grow(world, mounts[1])
        assert world.attempt == attempt + 1
        await trio.sleep(1.0)
        load.stopping = True
    assert len(load.written) == 3 * KEPT
    assert all(mount.volume.superblock.blocks_total == LARGER // BLOCK_BYTES for mount in mounts)
    volume = mounts[2].volume  # what did not fit before
    large = await namespace.create(volume, ROOT_INODE, b"large", stat.S_IFREG | 0o644, 0, 0)
    for at in range(0, SIZE, MIB):
        await data.write(volume, large.ino, at, b"l" * MIB)
    await check(world, load.written)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 20))])
def test_grown_under_load(seed: int) -> None:
    run_world(seed, _grown_under_load, size=SIZE, journals=3, journal_blocks=64)


@pytest.mark.parametrize("seed", [*range(3), *(pytest.param(seed, marks=pytest.mark.long) for seed in range(3, 60))])
def test_the_grower_or_another_dies(seed: int) -> None:
    """Whenever it is: all that live know the same filesystem, the old one or the new one."""

    async def body(world: World) -> None:
        mounts = await world.start(*NODES)
        async with trio.open_nursery() as nursery:
            load = Load(nursery)
            for mount in mounts:
                load.begin(mount)
            await trio.sleep(0.05)
            load.begin(mounts[1], partial(grow, world))
            await trio.sleep(world.rng.uniform(0, 0.06))
            load.kill(world, seed % 3)
            await world.change()
            await trio.sleep(0.3)
            await world.start(seed % 3)
            await trio.sleep(1.2)  # the grower asks for its attempt every second
            load.stopping = True
        grown = (await read_superblock(world.disk)).blocks_total == LARGER // BLOCK_BYTES
        assert grown or seed % 3 == 1, "only the grower's death ends it"
        await check(world, load.written)

    run_world(seed, body, size=SIZE, journals=3, journal_blocks=64)
