"""Quotas on three nodes that charge the same ids, die and leave: exact at the end, within limits all the time (Q1-Q5).

The model is a fsck of what is on the disk: it counts every file, and compares that with the counters.
"""

from __future__ import annotations

import errno
import random
import stat

import pytest
import trio

from matrixfs.fs import attributes, data, namespace, quota_admin
from matrixfs.ondisk.quota import USER
from matrixfs.ondisk.superblock import ROOT_INODE
from membership.errors import MatrixError
from tests.sim.checkers import assert_clean
from tests.sim.fs_world import MIB, SimMount, World, run_world

LIMIT = 400  # blocks
FILES = 60
SPACE = {"size": 24 * MIB, "journals": 3, "journal_blocks": 256, "quotas": True}


async def directory_of(mount: SimMount) -> int:
    name = b"of %d" % mount.instance.node
    found = await namespace.lookup(mount.volume, ROOT_INODE, name)
    if found is not None:
        return found.ino
    return (await namespace.mkdir(mount.volume, ROOT_INODE, name, 0o755, 0, 0)).ino


async def limit(mount: SimMount, uid: int, **fields: int) -> None:
    await quota_admin.set_limits(mount.volume, USER, uid, lambda old: old._replace(**fields))


async def used(mount: SimMount, uid: int) -> tuple[int, int]:
    rows = await quota_admin.report(mount.volume)
    return next(((row.blocks, row.inodes) for row in rows if (row.kind, row.number) == (USER, uid)), (0, 0))


class Filler:
    """Makes, enlarges, cuts and removes files of user 7 on one node, until told to stop or refused often enough."""

    def __init__(self, mount: SimMount, seed: int, *, only_more: bool = False) -> None:
        self.mount = mount
        self.rng = random.Random(seed)
        self.only_more = only_more
        self.refusals = 0
        self.scope = trio.CancelScope()  # for a death
        self.stopping = False
        self.stopped = trio.Event()

    async def run(self, rounds: int) -> None:
        with self.scope:
            try:
                await self._run(rounds)
            except MatrixError:
                assert self.scope.cancel_called, "only the dead may fail"
        self.stopped.set()

    async def stop(self) -> None:
        """After the operation that is under way."""
        self.stopping = True
        await self.stopped.wait()

    async def _run(self, rounds: int) -> None:
        volume, rng = self.mount.volume, self.rng
        directory = await directory_of(self.mount)
        files: list[tuple[bytes, int]] = []
        for number in range(rounds):
            if self.stopping:
                break
            choice = 0 if self.only_more else rng.randrange(5)
            try:
                if choice < 3 or not files:
                    name = b"%d-%d" % (number, rng.getrandbits(40))
                    made = await namespace.create(volume, directory, name, stat.S_IFREG | 0o644, 7, 8)
                    files.append((name, made.ino))
                    await data.write(volume, made.ino, 0, b"x" * rng.randrange(40_000))
                elif choice == 3:
                    size = attributes.Changes(size=rng.randrange(20_000))
                    await attributes.setattr(volume, rng.choice(files)[1], size)
                else:
                    name, _ = files.pop(rng.randrange(len(files)))
                    await namespace.unlink(volume, directory, name)
            except OSError as error:
                assert error.errno == errno.EDQUOT, error
                self.refusals += 1
            await trio.sleep(rng.choice((0, 0.001, 0.05)))


async def _filling(world: World) -> None:
    mounts = await world.start(0, 1, 2)
    await limit(mounts[0], 7, blocks_hard=LIMIT, inodes_hard=2 * FILES)
    fillers = [Filler(mount, mount.instance.node, only_more=True) for mount in mounts]
    async with trio.open_nursery() as nursery:
        for filler in fillers:
            nursery.start_soon(filler.run, FILES)
    assert all(filler.refusals for filler in fillers), "everybody met the limit"
    for mount in mounts:
        await mount.volume.sync()
    blocks, inodes = await used(mounts[1], 7)
    buffered = LIMIT // 64 + 10  # of each node (Q5): a write has 10 blocks at most
    assert LIMIT - 10 <= blocks <= LIMIT + 3 * buffered
    assert inodes == 2 * FILES
    for node in range(3):
        await world.leave(node)
    await assert_clean(world.disk, world.superblock)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 20))])
def test_three_nodes_fill_one_users_quota(seed: int) -> None:
    run_world(seed, _filling, **SPACE)


async def _dying(world: World) -> None:
    """Nodes die at any time; what they counted is exact once they are replayed, and never more than the limits."""
    rng = random.Random(world.rng.random())
    await world.start(0, 1, 2)
    await limit(world.mounts[0], 7, blocks_hard=LIMIT)
    fillers: dict[int, Filler] = {}
    async with trio.open_nursery() as nursery:

        def begin(node: int) -> None:
            fillers[node] = Filler(world.mounts[node], rng.getrandbits(30))
            nursery.start_soon(fillers[node].run, 1000)

        for node in range(3):
            begin(node)
        for _ in range(4):
            await trio.sleep(rng.uniform(0.1, 4.0))
            node = rng.randrange(3)
            if rng.random() < 0.3:
                await fillers[node].stop()
                await world.leave(node)
            else:
                fillers[node].scope.cancel()
                world.kill(node)
                await world.change()
            blocks, _ = await used(world.mounts[(node + 1) % 3], 7)
            assert 0 <= blocks <= 2 * LIMIT
            await world.start(node)
            begin(node)
        for filler in fillers.values():
            await filler.stop()
    for node in range(3):
        if rng.random() < 0.5:
            world.kill(node)
            await world.change()
        else:
            await world.leave(node)
    await assert_clean(world.disk, world.superblock)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 20))])
def test_nodes_that_die(seed: int) -> None:
    run_world(seed, _dying, **SPACE)


def quota_messages(mount: SimMount) -> int:
    """Locks of quotas that were asked for."""
    requests: int = mount.member.locks.statistics()["types"]["quota"]["requests"]
    return requests


async def _far_from_limits(world: World) -> None:
    mounts = await world.start(0, 1, 2)
    await limit(mounts[0], 7, blocks_hard=1 << 30, inodes_hard=1 << 30)
    for mount in mounts:
        await Filler(mount, 1, only_more=True).run(3)
    before = [quota_messages(mount) for mount in mounts]
    async with trio.open_nursery() as nursery:
        for mount in mounts:
            nursery.start_soon(Filler(mount, 2, only_more=True).run, 100)
    assert [quota_messages(mount) for mount in mounts] == before


def test_no_message_far_from_limits() -> None:
    run_world(1, _far_from_limits, **SPACE)
