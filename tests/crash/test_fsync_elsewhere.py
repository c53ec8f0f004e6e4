"""An fsync covers what other nodes did to the file or directory (docs/decisions/0022)."""

from __future__ import annotations

import stat

from matrixfs.fs import data, namespace
from matrixfs.ondisk.superblock import ROOT_INODE
from tests.sim.checkers import assert_clean
from tests.sim.fs_world import MIB, World, run_world

CONTENT = b"written by the other node " * 900


async def _fsync_what_the_other_did(world: World) -> None:
    one, other = [mount.volume for mount in await world.start(0, 1)]
    directory = await namespace.mkdir(one, ROOT_INODE, b"directory", 0o755, 0, 0)
    made = await namespace.create(one, directory.ino, b"old", stat.S_IFREG | 0o644, 0, 0)
    await one.sync()
    await data.write(other, made.ino, 0, CONTENT)
    await namespace.rename(other, directory.ino, b"old", directory.ino, b"new")
    await data.fsync(one, made.ino, False)
    await data.fsync(one, directory.ino, False)
    for node in (0, 1):
        world.kill(node)
    world.disk.power_loss(mode="drop")
    await world.change()
    volume = (await world.start(0))[0].volume
    assert await namespace.lookup(volume, directory.ino, b"old") is None
    found = await namespace.lookup(volume, directory.ino, b"new")
    assert found is not None
    assert await data.read(volume, found.ino, 0, MIB) == CONTENT
    await world.leave(0)
    await assert_clean(world.disk, world.superblock)


def test_the_fsync_of_one_node_covers_what_another_did() -> None:
    run_world(3, _fsync_what_the_other_did, size=16 * MIB)
