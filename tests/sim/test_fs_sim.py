"""The whole filesystem on several nodes in one process: random runs, and cases that those rarely meet (R2)."""

from __future__ import annotations

import contextlib
import gc
import random
import stat
import weakref
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
import trio.lowlevel

from matrixfs.fs import attributes, data, namespace, readdir
from matrixfs.fs.surrender import InodeCallouts
from matrixfs.fs.volume import Volume
from matrixfs.locks.lock import Lock
from matrixfs.ondisk.superblock import ROOT_INODE
from membership.errors import DeviceError
from tests.sim.checkers import assert_clean
from tests.sim.fs_scenario import Scenario
from tests.sim.fs_world import MIB, World, run_world

SEEDS_FILE = Path(__file__).with_name("seeds.txt")
FRESH = range(60)
OPERATIONS = 400
FILES = 240  # by each node in one directory: some turns' worth


def failed_once() -> list[int]:
    """Seeds that found a bug: they run for ever."""
    lines = SEEDS_FILE.read_text().splitlines()
    return [int(line.split("#")[0]) for line in lines if line.split("#")[0].strip()]


def in_world(body: Callable[[World], Awaitable[None]], seed: int = 1, **options: object) -> None:
    """Run a case, and look at the store afterwards."""

    async def limited(world: World) -> None:
        with trio.move_on_after(120) as scope:
            await body(world)
            for node in sorted(world.mounts):
                await world.leave(node)
            await assert_clean(world.disk, world.superblock)
        assert not scope.cancelled_caught, "no progress"

    run_world(seed, limited, size=16 * MIB, **options)


async def create(volume: Volume, name: bytes, parent: int = ROOT_INODE) -> int:
    return (await namespace.create(volume, parent, name, stat.S_IFREG | 0o644, 0, 0)).ino


async def names(volume: Volume, ino: int = ROOT_INODE) -> list[bytes]:
    found, cookie = [], 0
    while batch := await readdir.entries(volume, ino, cookie, 50):
        found += [name for _, name, _ in batch]
        cookie = batch[-1][0]
    return sorted(found)


# --- random runs --------------------------------------------------------------------------------------------


@pytest.mark.seed("002-01", "002-09", "002-28", "002-30")
@pytest.mark.parametrize("seed", sorted({*failed_once(), *FRESH}))
def test_random_run(seed: int) -> None:
    summary = Scenario(seed, operations=OPERATIONS).run()
    assert summary.operations >= OPERATIONS
    assert summary.compared > 50
    assert summary.kills + summary.leaves + summary.blackouts > 0


def test_the_same_seed_is_the_same_run() -> None:
    traces = []
    for _ in range(2):
        scenario = Scenario(5, operations=200)
        scenario.run()
        traces.append(([(write.offset, write.data, write.port) for write in scenario.world.disk.writes],
                       scenario.world.network.trace))  # fmt: skip
    assert traces[0] == traces[1]


def test_a_run_leaves_nothing_in_memory() -> None:
    """Rebuilds freeze what the garbage collector would walk: only while they last."""
    scenario = Scenario(1, operations=100)
    scenario.run()
    world = weakref.ref(scenario.world)
    del scenario
    gc.collect()
    assert world() is None


def test_the_checkers_see_a_broken_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    """R8 taken out: buffered data is dropped instead of flushed when a peer wants the file."""
    surrender = InodeCallouts.surrender

    async def forgetful(self: InodeCallouts, lock: Lock, mode: int) -> None:
        if lock.subject is not None and lock.subject.dirty is not None:
            self._volume.write_back.drop(lock.subject)
        await surrender(self, lock, mode)

    monkeypatch.setattr(InodeCallouts, "surrender", forgetful)
    with pytest.raises(BaseExceptionGroup) as caught:
        Scenario(1, operations=OPERATIONS).run()
    assert caught.group_contains(AssertionError)


def test_the_checkers_see_a_lost_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """R10 taken out."""

    async def lie(volume: Volume, ino: int, datasync: bool) -> None:
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(data, "fsync", lie)
    failures = 0
    for seed in range(12):
        try:
            Scenario(seed, operations=OPERATIONS).run()
        except (AssertionError, BaseExceptionGroup):
            failures += 1
    assert failures > 2


# --- several nodes at once ----------------------------------------------------------------------------------


@pytest.mark.seed("002-09")
@pytest.mark.parametrize("seed", range(4))
def test_nodes_create_in_one_directory_at_once(seed: int) -> None:
    """coherence.md 1: no deadlock, nothing lost, and each gets on."""

    async def body(world: World) -> None:
        mounts = await world.start(0, 1, 2)
        directory = (await namespace.mkdir(mounts[0].volume, ROOT_INODE, b"d", 0o755, 0, 0)).ino
        done = dict.fromkeys(range(3), 0)
        least: list[int] = []

        async def work(node: int) -> None:
            for number in range(FILES):
                await create(mounts[node].volume, b"%d.%d" % (node, number), directory)
                done[node] += 1
                await trio.sleep(0.001)  # a program does something else, too
            least.append(min(done.values()))

        async with trio.open_nursery() as nursery:
            for node in range(3):
                nursery.start_soon(work, node)
        expected = sorted(b"%d.%d" % (node, number) for node in range(3) for number in range(FILES))
        for mount in mounts:
            assert await names(mount.volume, directory) == expected
        assert least[0] > FILES / 4, f"somebody starved: {least}"

    in_world(body, seed)


def test_only_one_creates_a_name() -> None:
    async def body(world: World) -> None:
        mounts = await world.start(0, 1, 2, 3)
        made: list[int] = []

        async def work(volume: Volume) -> None:
            for number in range(20):
                try:
                    made.append(await create(volume, b"%d" % number))
                except FileExistsError:
                    await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            for mount in mounts:
                nursery.start_soon(work, mount.volume)
        assert len(made) == len(set(made)) == 20

    in_world(body)


def test_appends_from_all_nodes_are_whole() -> None:
    """3 nodes x 100 lines: 300 whole lines, each node's in order."""

    async def body(world: World) -> None:
        mounts = await world.start(0, 1, 2)
        ino = await create(mounts[0].volume, b"log")

        async def work(node: int) -> None:
            for number in range(100):
                await data.write(mounts[node].volume, ino, 0, b"%d %d\n" % (node, number), append=True)

        async with trio.open_nursery() as nursery:
            for node in range(3):
                nursery.start_soon(work, node)
        for mount in mounts:
            lines = [
                tuple(map(int, line.split())) for line in (await data.read(mount.volume, ino, 0, 1 << 20)).splitlines()
            ]
            assert [line for line in lines if line[0] == 1] == [(1, number) for number in range(100)]
            assert sorted(lines) == [(node, number) for node in range(3) for number in range(100)]

    in_world(body)


@pytest.mark.seed("002-08", "002-35")
def test_written_on_one_node_read_on_another_200_times() -> None:
    async def body(world: World) -> None:
        a, b = [mount.volume for mount in await world.start(0, 1)]
        ino = await create(a, b"f")
        for number in range(200):
            content = b"%d" % number * (1 + number * 7 % 3000)
            await attributes.setattr(a, ino, attributes.Changes(size=0))
            await data.write(a, ino, 0, content)
            assert await data.read(b, ino, 0, 1 << 20) == content
            found = await attributes.getattr(b, ino)
            assert found.size == len(content)

    in_world(body)


@pytest.mark.seed("002-06")
def test_a_cached_lock_sends_nothing() -> None:
    async def body(world: World) -> None:
        mounts = await world.start(0, 1)
        ino = await create(mounts[0].volume, b"f")
        await data.write(mounts[1].volume, ino, 0, b"x" * 10_000)
        await data.read(mounts[1].volume, ino, 0, 100)
        sent = [mount.transport.sent for mount in mounts]
        for _ in range(50):
            await data.read(mounts[1].volume, ino, 0, 100)
            await data.write(mounts[1].volume, ino, 0, b"y" * 100)
            await attributes.getattr(mounts[1].volume, ino)
        assert [mount.transport.sent for mount in mounts] == sent

    in_world(body)


@pytest.mark.parametrize("seed", range(4))
def test_renames_in_circles_from_all_nodes(seed: int) -> None:
    """Directories move among each other from three nodes: no deadlock, and never a loop or a lost tree."""

    async def body(world: World) -> None:
        mounts = await world.start(0, 1, 2)
        volume = mounts[0].volume
        inodes = [ROOT_INODE]
        for number in range(4):
            inodes.append((await namespace.mkdir(volume, ROOT_INODE, b"d%d" % number, 0o755, 0, 0)).ino)

        async def work(node: int) -> None:
            rng = random.Random(seed * 10 + node)
            for _ in range(80):
                name = b"d%d" % rng.randrange(4)
                source, target = rng.choice(inodes), rng.choice(inodes)
                try:
                    await namespace.rename(mounts[node].volume, source, name, target, name)
                except OSError:
                    await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            for node in range(3):
                nursery.start_soon(work, node)
        found: list[bytes] = []
        stack = [ROOT_INODE]
        while stack:
            for _, name, inode in await readdir.entries(volume, stack.pop(), 0, 100):
                found.append(name)
                stack.append(inode.ino)
        assert sorted(found) == [b"d0", b"d1", b"d2", b"d3"]

    in_world(body, seed)


# --- death --------------------------------------------------------------------------------------------------


@pytest.mark.seed("002-04", "002-30")
def test_only_what_the_dead_could_have_dirtied_waits() -> None:
    """R6: the replay is held open; all that the dead didn't hold goes on, what it held waits and is whole after it."""

    async def body(world: World) -> None:
        a, b, c = [mount.volume for mount in await world.start(0, 1, 2)]
        mine = (await namespace.mkdir(b, ROOT_INODE, b"mine", 0o755, 0, 0)).ino
        used = await create(b, b"shared", mine)
        await data.write(b, used, 0, b"of b")
        dead = (await namespace.mkdir(a, ROOT_INODE, b"dead", 0o755, 0, 0)).ino
        held = await create(a, b"held", dead)
        await data.write(a, held, 0, b"fsynced " * 1000)
        await data.fsync(a, held, False)
        await names(b, mine)
        await names(c, mine)
        world.kill(0)
        await world.change(replay=False)
        assert world.dead, "the replay is held open"
        waiting = trio.Event()

        async def wants_what_the_dead_held() -> None:
            assert await data.read(b, held, 0, 1 << 20) == b"fsynced " * 1000
            waiting.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wants_what_the_dead_held)
            with trio.fail_after(1):  # of virtual time
                for number in range(20):
                    for volume in (b, c):
                        await data.write(volume, used, 0, b"x" * 5000)
                        await data.read(volume, used, 0, 5000)
                        await data.fsync(volume, used, False)
                        await attributes.getattr(volume, mine)
                assert await names(c, mine) == [b"shared"]
            assert not waiting.is_set()
            await world.change()
            with trio.fail_after(1):
                await waiting.wait()
        assert await names(c, dead) == [b"held"]

    in_world(body)


@pytest.mark.parametrize("seed", range(3))
def test_a_replay_touches_only_the_journal_of_the_dead(seed: int) -> None:
    async def body(world: World) -> None:
        mounts = await world.start(0, 1, 2)
        for number, mount in enumerate(mounts):
            ino = await create(mount.volume, b"f%d" % number)
            await data.write(mount.volume, ino, 0, b"x" * 5000)
            await data.fsync(mount.volume, ino, False)
        world.disk.mark()
        world.kill(1)
        await world.change()
        assert [mount.member.replays for mount in mounts] == [
            [{"journal": 1, "node": 1, "written": mounts[0].member.replays[0]["written"]}], [], [],
        ]  # fmt: skip
        start = world.superblock.journal_block(1) * 4096
        end = start + world.superblock.journal_blocks * 4096
        in_dead_log = [write for write in world.disk.writes if start <= write.offset < end]
        assert [(write.offset, write.port) for write in in_dead_log] == [(start, "n0")], "its header, by the replayer"
        for number in range(3):
            found = await namespace.lookup(mounts[2].volume, ROOT_INODE, b"f%d" % number)
            assert found is not None
            assert await data.read(mounts[2].volume, found.ino, 0, 1 << 20) == b"x" * 5000

    in_world(body, seed)


def test_nothing_of_the_dead_lands_after_the_fence() -> None:
    """R3, R4: what was in flight has landed or not when the port is cut; later nothing comes."""

    async def body(world: World) -> None:
        mounts = await world.start(0, 1)
        ino = await create(mounts[0].volume, b"f")
        scope = trio.CancelScope()

        async def writes() -> None:
            with scope, contextlib.suppress(DeviceError):
                while True:
                    await data.write(mounts[0].volume, ino, 0, b"x" * 50_000)
                    await data.fsync(mounts[0].volume, ino, False)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(writes)
            await trio.sleep(0.01)
            world.kill(0)
            scope.cancel()
            world.disk.mark()
            await world.change()
            await trio.sleep(5)
        assert {write.port for write in world.disk.writes} == {"n1"}

    in_world(body, latency=(0.0002, 0.002))


@pytest.mark.parametrize("seed", range(6))
def test_the_replayer_dies_during_the_replay(seed: int) -> None:
    async def body(world: World) -> None:
        mounts = await world.start(0, 1, 2)
        inodes = []
        for number in range(12):
            ino = await create(mounts[2].volume, b"f%d" % number)
            await data.write(mounts[2].volume, ino, 0, b"%d" % number * 3000)
            await data.fsync(mounts[2].volume, ino, False)
            inodes.append(ino)
        world.kill(2)
        world.disk.latency = (0.001, 0.002)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.change)
            await trio.sleep(0.004 + 0.003 * seed)
            world.kill(0)
        await world.change()
        for number, ino in enumerate(inodes):
            assert await data.read(mounts[1].volume, ino, 0, 1 << 20) == b"%d" % number * 3000

    in_world(body, seed)


def test_all_die_and_the_first_to_come_back_replays_all() -> None:
    async def body(world: World) -> None:
        mounts = await world.start(0, 1, 2)
        for number, mount in enumerate(mounts):
            ino = await create(mount.volume, b"f%d" % number)
            await data.write(mount.volume, ino, 0, b"%d" % number * 5000)
            await data.fsync(mount.volume, ino, False)
        for node in range(3):
            world.kill(node)
        world.disk.power_loss()
        await world.change()
        (mount,) = await world.start(1)
        for number in range(3):
            found = await namespace.lookup(mount.volume, ROOT_INODE, b"f%d" % number)
            assert found is not None
            assert await data.read(mount.volume, found.ino, 0, 1 << 20) == b"%d" % number * 5000
        assert [one["journal"] for one in mount.member.replays] == [0, 1, 2]

    in_world(body)


def test_a_clean_leave_needs_no_replay() -> None:
    async def body(world: World) -> None:
        mounts = await world.start(0, 1)
        ino = await create(mounts[0].volume, b"f")
        await data.write(mounts[0].volume, ino, 0, b"x" * 5000)
        await world.leave(0)
        assert mounts[1].member.replays == []
        assert await data.read(mounts[1].volume, ino, 0, 1 << 20) == b"x" * 5000
        (again,) = await world.start(0)
        assert await data.read(again.volume, ino, 0, 1 << 20) == b"x" * 5000

    in_world(body)
