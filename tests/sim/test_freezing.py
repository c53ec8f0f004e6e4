"""A filesystem frozen while several nodes work on it, and join and die (issue 5, "freeze and thaw")."""

from __future__ import annotations

import stat
from collections.abc import Awaitable, Callable
from functools import partial

import pytest
import trio
import trio.testing

from matrixfs.freezing import Freezer
from matrixfs.fs import data, namespace
from matrixfs.fs.opening import read_superblock
from matrixfs.fs.replay import read_journal_header
from matrixfs.locks.resources import CHANGE
from matrixfs.ondisk.journal import CLEAN
from matrixfs.ondisk.superblock import ROOT_INODE
from membership.orders import Told
from tests.sim.checkers import assert_clean
from tests.sim.fs_world import MIB, SimMount, World, run_world
from tests.sim.test_growing import KEPT, Load


def told(world: World) -> list[str]:
    """What the mounts had written into the event log."""
    return [reply.text for _, reply in world._replies if isinstance(reply, Told)]


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110 - nobody sets an event for it
        await trio.sleep(0.01)


async def frozen(mount: SimMount, seconds: float = 30.0) -> Freezer:
    """Freeze it; the answer holds it."""
    freezer = Freezer(mount.member)
    mount.world._nursery.start_soon(freezer.run)
    await trio.testing.wait_all_tasks_blocked()
    freezer.freeze({"fs": "sim", "seconds": seconds})
    await until(lambda: (freezer.state() or {}).get("frozen"))
    return freezer


async def create(mount: SimMount, name: bytes) -> None:
    made = await namespace.create(mount.volume, ROOT_INODE, name, stat.S_IFREG | 0o644, 0, 0)
    await data.write(mount.volume, made.ino, 0, name)


async def check_copy(world: World) -> None:
    """F2: a copy of the disk as it is, cache lost, needs no replay."""
    image = world.disk.crash_image(len(world.disk.log), "drop")
    superblock = await read_superblock(image)
    for index in range(superblock.journals):
        assert (await read_journal_header(image, superblock, index)).state == CLEAN
    await assert_clean(image, superblock)


async def check_still(world: World, what: Callable[[], Awaitable[object]]) -> None:
    """Nobody writes to the disk while ``what`` happens."""
    before = len(world.disk.writes)
    await what()
    assert len(world.disk.writes) == before
    await check_copy(world)


async def _frozen_under_load(world: World) -> None:
    mounts = await world.start(0, 1, 2)
    async with trio.open_nursery() as nursery:
        load = Load(nursery)
        for mount in mounts:
            load.begin(mount)
        await until(lambda: len(load.written) == 3 * KEPT)
        freezer = await frozen(mounts[1])
        written = dict(load.written)

        async def read_all() -> None:
            await trio.sleep(5)
            for mount in mounts:
                for name, times in written.items():
                    found = await namespace.lookup(mount.volume, ROOT_INODE, name)
                    assert found is not None
                    assert await data.read(mount.volume, found.ino, 0, 1 << 20) == name * times
                    await data.fsync(mount.volume, found.ino, False)  # nothing of it is dirty: it does not wait
            await trio.sleep(5)

        await check_still(world, read_all)
        assert load.written == written, "writers wait"
        waits = [wait for mount in mounts for wait in mount.member.locks.waits() if wait["domain"] == CHANGE]
        assert len(waits) == len(mounts)
        assert await freezer.thaw({"fs": "sim"})
        await until(lambda: not load.written.keys() & written.keys())
        load.stopping = True
    assert told(world)[0] == "frozen, for 30 s at most"
    assert "as asked" in told(world)[1]
    for node in range(3):
        await world.leave(node)
    await assert_clean(world.disk, world.superblock)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 20))])
def test_frozen_under_load(seed: int) -> None:
    run_world(seed, _frozen_under_load, size=16 * MIB, journals=3, journal_blocks=64)


async def _join_and_die(world: World) -> None:
    mounts = await world.start(0, 1, 2)
    for mount in mounts:
        await create(mount, b"%d" % mount.instance.node)
    freezer = await frozen(mounts[0])

    async def change_members() -> None:
        world.kill(2)
        await world.change()
        (late,) = await world.start(3)
        for name in (b"0", b"1", b"2"):  # what the dead had written was at home when it was frozen
            assert await namespace.lookup(late.volume, ROOT_INODE, name) is not None
        await world.leave(1)
        await world.start(1)

    await check_still(world, change_members)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(create, world.mounts[3], b"late")
        await trio.sleep(1)
        await check_still(world, partial(trio.sleep, 5))
        assert await freezer.thaw({"fs": "sim"})
    assert await namespace.lookup(mounts[0].volume, ROOT_INODE, b"late") is not None
    for node in list(world.mounts):
        await world.leave(node)
    await assert_clean(world.disk, world.superblock)


def test_who_joins_leaves_or_dies_thaws_nothing() -> None:
    run_world(1, _join_and_die, size=16 * MIB, journals=4, journal_blocks=64)


async def _the_freezer_dies(world: World) -> None:
    mounts = await world.start(0, 1)
    for mount in mounts:
        await create(mount, b"%d" % mount.instance.node)
    await frozen(mounts[0], 1000.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(create, mounts[1], b"waiting")
        await trio.sleep(1)
        world.kill(0)
        await world.change()
    assert await namespace.lookup(mounts[1].volume, ROOT_INODE, b"waiting") is not None
    await world.leave(1)
    await assert_clean(world.disk, world.superblock)


def test_the_freezer_dies() -> None:
    run_world(2, _the_freezer_dies, size=16 * MIB, journals=2, journal_blocks=64)


async def _forgotten(world: World) -> None:
    mounts = await world.start(0, 1)
    began = trio.current_time()
    freezer = await frozen(mounts[0], 20.0)
    rival = Freezer(mounts[1].member)
    world._nursery.start_soon(rival.run)
    await trio.testing.wait_all_tasks_blocked()
    rival.freeze({"fs": "sim", "seconds": 5.0})
    await until(lambda: (rival.state() or {}).get("error"))
    assert "another mount freezes or grows it" in rival.state()["error"]  # type: ignore[index]
    assert not await rival.thaw({"fs": "sim"})
    await create(mounts[1], b"waiting")
    assert 20 <= trio.current_time() - began < 22
    assert not await freezer.thaw({"fs": "sim"})
    assert freezer.state() is None
    assert "nobody thawed it" in told(world)[-1]
    await freezer.close()
    again = await frozen(mounts[0], 1000.0)
    await again.close()  # Z3: it unmounts
    await create(mounts[0], b"after")
    for node in (0, 1):
        await world.leave(node)
    await assert_clean(world.disk, world.superblock)


def test_a_freeze_that_is_forgotten_ends() -> None:
    run_world(3, _forgotten, size=16 * MIB, journals=2, journal_blocks=64)
