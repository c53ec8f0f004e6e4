"""What is recorded: programs at work on one or two nodes of a small cluster, everything from one seed.

The mounts are whole members of their lockspace (``tests/sim/fs_world.py``) on a disk with sectors of 512 bytes; the
clock is virtual, the disk takes its time, so commits, check-points and write-back go on beside the programs.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from matrixfs.fs import attributes
from matrixfs.ondisk.journal import IMAGES_MAX
from matrixfs.ondisk.superblock import JOURNAL_BLOCKS_MIN, Superblock
from membership.label import BLOCK_BYTES
from tests.crash.application import Application
from tests.crash.history import ROOT, SECTOR, History
from tests.crash.operations import OPERATIONS, Choice, NothingToDo
from tests.sim.disk import SimDisk
from tests.sim.fs_world import MIB, World, run_world

EXPECTED = {  # what a program meets that others race with, or on a full disk
    errno.EEXIST, errno.EINVAL, errno.EISDIR, errno.ENOENT, errno.ENOSPC, errno.ENOTDIR, errno.ENOTEMPTY, errno.EPERM,
    errno.ESTALE,
}  # fmt: skip
LATENCY = (0.00005, 0.0008)  # seconds


@dataclass(slots=True)
class Recording:
    """A run that has ended: the disk with its log since mkfs, and what the programs were told."""

    disk: SimDisk
    superblock: Superblock
    history: History


Program = Callable[[World, list[Application], random.Random], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Workload:
    """One to be recorded."""

    nodes: int
    program: Program
    size: int = 8 * MIB
    journal_blocks: int = JOURNAL_BLOCKS_MIN


def record(workload: Workload, seed: int) -> Recording:
    """Run it to its end."""
    result: list[Recording] = []

    async def body(world: World) -> None:
        world.disk.mark()
        history = History(world.disk, workload.nodes)
        mounts = await world.start(*range(workload.nodes))
        apps = [Application(mount.volume, mount.instance.node, history) for mount in mounts]
        await workload.program(world, apps, random.Random(seed))
        result.append(Recording(world.disk, world.superblock, history))

    run_world(
        seed, body, size=workload.size, journals=workload.nodes, journal_blocks=workload.journal_blocks,
        latency=LATENCY, sector_bytes=SECTOR,
    )  # fmt: skip
    return result[0]


# --- random ---------------------------------------------------------------------------------------------------


def at_random(operations: int, workers: int, *, leave_free: int | None = None) -> Program:
    """So many operations by so many programs on each node, all in one tree; with little room, if so wished."""

    async def program(world: World, apps: list[Application], rng: random.Random) -> None:
        if leave_free is not None:
            await _fill(apps[0], leave_free)
        for i in range(3):
            await apps[0].mkdir(ROOT, b"directory%d" % i)
        async with trio.open_nursery() as nursery:
            for app in apps:
                for _ in range(workers):
                    nursery.start_soon(_random_program, app, operations, random.Random(rng.random()))

    return program


async def _fill(app: Application, leave_free: int) -> None:
    """A file that takes all but so many blocks, so that freed ones are soon used again."""
    free = (await attributes.statfs(app.volume)).free
    ballast = await app.create(ROOT, b"ballast")
    await app.write(ballast, 0, (free - leave_free) * BLOCK_BYTES)
    await app.fsync(ballast)


async def _random_program(app: Application, operations: int, rng: random.Random) -> None:
    choice = Choice(app, rng)
    kinds, weights = [one.perform for one in OPERATIONS], [one.weight for one in OPERATIONS]
    for _ in range(operations):
        try:
            await rng.choices(kinds, weights)[0](app, choice)
        except OSError as error:
            assert error.errno in EXPECTED, error
        except NothingToDo:
            pass
        await trio.sleep(rng.choice((0.0, 0.0, 0.001, 0.05, 0.4)))


async def deaths(world: World, apps: list[Application], rng: random.Random) -> None:
    """One of two nodes leaves or is killed, the other replays its journal, and it comes back; the power goes anywhere.

    It syncs before it dies: what it would lose is what a power loss would take of it, which other workloads see to.
    """
    alive, mortal = apps
    for number in range(4):
        async with trio.open_nursery() as nursery:
            for app in (alive, mortal):
                nursery.start_soon(_random_program, app, 16, random.Random(rng.random()))
        if number % 3 == 2:
            await world.leave(mortal.node)
        else:
            lost = await mortal.create(ROOT, b"open when its node dies %d" % number)
            await mortal.append(lost, 9000)
            await mortal.open(lost)
            await mortal.unlink(ROOT, b"open when its node dies %d" % number)
            await mortal.sync()
            world.kill(mortal.node)
            await world.change()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_random_program, alive, 8, random.Random(rng.random()))
        (mount,) = await world.start(mortal.node)
        mortal = Application(mount.volume, mortal.node, mortal.history)


# --- fixed ------------------------------------------------------------------------------------------------------


async def maildir(world: World, apps: list[Application], rng: random.Random) -> None:
    """Delivery: write in tmp, fsync, rename to new, fsync the directory; readers move to cur and delete."""
    app = apps[0]
    tmp, new, cur = [await app.mkdir(ROOT, name) for name in (b"tmp", b"new", b"cur")]
    await app.sync()
    delivered: list[bytes] = []
    for number in range(14):
        name = b"%d.M%dP17.host" % (1_700_000_000 + number, rng.randrange(10**6))
        message = await app.create(tmp, name)
        await app.write(message, 0, rng.choice((300, 3000, 12_000)))
        await app.append(message, rng.randint(1, 9000))
        await app.fsync(message)
        await app.rename(tmp, name, new, name)
        await app.fsync(new)
        delivered.append(name)
        if number % 3 == 2:
            seen = delivered.pop(rng.randrange(len(delivered)))
            await app.rename(new, seen, cur, seen + b":2,S")
            if number % 2:
                await app.unlink(cur, seen + b":2,S")
        await trio.sleep(rng.choice((0.0, 0.3)))


async def sqlite(world: World, apps: list[Application], rng: random.Random) -> None:
    """Rollback mode: old pages to a journal, fsync; overwrite in place, fsync; unlink the journal, fsync."""
    app = apps[0]
    database = await app.create(ROOT, b"db")
    await app.write(database, 0, 24 * 4096)
    await app.fsync(database)
    for number in range(10):
        pages = rng.sample(range(24), rng.choice((1, 3, 8)))
        log = await app.create(ROOT, b"db-journal")
        await app.write(log, 0, 512)
        for page in range(len(pages)):
            await app.write(log, 512 + page * 4104, 4104)
        await app.fsync(log)
        await app.write(log, 0, 12)  # the number of pages, in its header
        await app.fsync(log)
        await app.fsync(ROOT)
        for page in pages:
            await app.write(database, page * 4096, 4096)
        if number % 3 == 0:
            await app.append(database, 4096)
        await app.fsync(database)
        if number % 4 == 3:  # journal_mode=truncate
            await app.truncate(log, 0)
            await app.fsync(log)
        await app.unlink(ROOT, b"db-journal")
        await app.fsync(ROOT)
        await trio.sleep(rng.choice((0.0, 0.2)))


async def directories(world: World, apps: list[Application], rng: random.Random) -> None:
    """A directory that grows to many leaves, is renamed, moved, emptied and removed."""
    app = apps[0]
    large, other = await app.mkdir(ROOT, b"large"), await app.mkdir(ROOT, b"other")
    names = [b"%d " % number + b"a name as long as names become in some trees" * 4 for number in range(110)]
    for count, name in enumerate(names):
        await app.create(large, name)
        if count % 25 == 24:
            await app.fsync(large)
    await app.rename(ROOT, b"large", other, b"moved")
    await app.fsync(other)
    for count, name in enumerate(rng.sample(names, 60)):
        await app.rename(large, name, other, b"%d" % count)
        if count % 20 == 19:
            await trio.sleep(2.5)
    await app.rename(other, b"moved", ROOT, b"back")
    for name in names:
        if ("name", large, name) in app.history.now and app.history.now["name", large, name] is not None:
            await app.unlink(large, name)
    await app.fsync(large)
    await app.rmdir(ROOT, b"back")
    await trio.sleep(2.5)
    await app.fsync(ROOT)


async def extents(world: World, apps: list[Application], rng: random.Random) -> None:
    """A file with a hole behind each block, so that its extents need a tree; cut, grown, overwritten, removed."""
    app = apps[0]
    sparse = await app.create(ROOT, b"sparse")
    order = rng.sample(range(330), 330)
    for first in (0, 110, 220):
        await app.write_many(sparse, [(block * 8192, 4096) for block in order[first : first + 110]])
        await app.fsync(sparse)
    await app.truncate(sparse, 200 * 8192 + 100)
    await trio.sleep(2.5)
    await app.truncate(sparse, 290 * 8192)
    await app.write(sparse, 250 * 8192, 3 * 4096)
    await app.fsync(sparse)
    await app.write(sparse, 10 * 8192 + 50, 30_000)
    await trio.sleep(4)
    await app.truncate(sparse, 5000)
    await app.fsync(sparse)
    await app.open(sparse)
    await app.unlink(ROOT, b"sparse")
    await app.append(sparse, 100_000)
    await trio.sleep(4)
    app.close(sparse)
    await trio.sleep(2.5)


async def transactions(world: World, apps: list[Application], rng: random.Random) -> None:
    """Changes of more blocks than a frame of the log holds: transactions of several parts (P3)."""
    app = apps[0]
    directory = await app.mkdir(ROOT, b"directory")
    await app.fsync(ROOT)
    for number in range(230):
        made = await app.create(directory, b"%d" % number)
        if number % 20 == 0:
            await app.write(made, 0, 5000)
    await app.fsync(directory)
    for number in rng.sample(range(230), 215):
        await app.rename(directory, b"%d" % number, ROOT, b"moved %d" % number)
    await app.fsync(directory)
    for name in [key[2] for key, value in app.history.now.items() if key[:2] == ("name", ROOT) and value != directory]:
        if app.history.now["name", ROOT, name] is not None:
            await app.unlink(ROOT, name)
    await app.sync()
    await trio.sleep(3)


WORKLOADS: dict[str, Workload] = {
    "mixed": Workload(1, at_random(operations=60, workers=3)),
    "two-nodes": Workload(2, at_random(operations=50, workers=1)),
    "deaths": Workload(2, deaths),
    "full": Workload(1, at_random(operations=70, workers=2, leave_free=90), journal_blocks=440),
    "maildir": Workload(1, maildir),
    "sqlite": Workload(1, sqlite),
    "directories": Workload(1, directories),
    "extents": Workload(1, extents),
    "transactions": Workload(1, transactions, size=32 * MIB, journal_blocks=8 * (IMAGES_MAX + 60)),
}
