"""Two living mounts lose the link between them: the messages that are gone with it are made good by a new attempt."""

from __future__ import annotations

import stat

import trio

from matrixfs.fs import attributes, data, namespace
from matrixfs.member import SILENT_SECONDS
from matrixfs.ondisk.superblock import ROOT_INODE
from membership.orders import LinkLost
from tests.sim.checkers import assert_clean
from tests.sim.fs_world import MIB, World, run_world

FILES = 120  # more than one turn


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


async def _a_peer_hangs(world: World) -> None:
    """Its connection stays, so no LinkDown tells of it."""
    await world.start(0, 1)
    await trio.sleep(60)
    assert not [reply for _, reply in world._replies if isinstance(reply, LinkLost)], "an idle link is no silent one"
    world.network.freeze(1)
    await trio.sleep(SILENT_SECONDS - 2)
    assert not [reply for _, reply in world._replies if isinstance(reply, LinkLost)]
    await trio.sleep(4)
    told = [(instance.node, reply) for instance, reply in world._replies if isinstance(reply, LinkLost)]
    assert set(told) == {(0, LinkLost(world.attempt, 1))}


def test_a_peer_that_hangs_is_told_like_a_lost_link() -> None:
    run_world(3, _a_peer_hangs, size=16 * MIB)


def test_a_lost_link_is_told_until_a_new_attempt_begins() -> None:
    for seed in range(5):
        run_world(seed, _lose_the_link_under_load, size=16 * MIB)
