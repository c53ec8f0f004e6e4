"""Two living mounts lose the link between them: the messages that are gone with it are made good by a new attempt."""

from __future__ import annotations

import stat

import trio

from matrixfs.fs import attributes, data, namespace
from matrixfs.ondisk.superblock import ROOT_INODE
from membership.orders import LinkLost
from tests.sim.checkers import assert_clean
from tests.sim.fs_world import MIB, World, run_world

FILES = 30


async def _lose_the_link_under_load(world: World) -> None:
    one, two = await world.start(0, 1)
    finished = 0

    async def write(volume: object, node: int) -> None:
        nonlocal finished
        for i in range(FILES):
            name = b"%d-%d" % (node, i)
            inode = await namespace.create(volume, ROOT_INODE, name, stat.S_IFREG | 0o644, 0, 0)  # type: ignore[arg-type]
            await data.write(volume, inode.ino, 0, name)  # type: ignore[arg-type]
            await trio.sleep(0.001)  # else one node is done before the other asks
        finished += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write, one.volume, 0)
        nursery.start_soon(write, two.volume, 1)
        await trio.sleep(0.01)
        world.network.cut(0, 1)
        await trio.sleep(5)
        assert finished == 0, "they share one directory: neither goes on without the other"
        assert {reply.attempt for _, reply in world._replies if isinstance(reply, LinkLost)} == {world.attempt}
        world.network.heal(0, 1)
        await world.change()
    assert finished == 2
    for mount in (one, two):
        for node in (0, 1):
            for i in range(FILES):
                found = await namespace.lookup(mount.volume, ROOT_INODE, b"%d-%d" % (node, i))
                assert found is not None
                assert (await attributes.getattr(mount.volume, found.ino)).size == len(b"%d-%d" % (node, i))
    await world.leave(0)
    await world.leave(1)
    await assert_clean(world.disk, world.superblock)


def test_a_lost_link_is_told_until_a_new_attempt_begins() -> None:
    for seed in range(5):
        run_world(seed, _lose_the_link_under_load, size=16 * MIB)
