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
from tests.crash import fixed
from tests.crash.application import Application
from tests.crash.history import ROOT, SECTOR, History
from tests.crash.operations import OPERATIONS, Choice, NothingToDo
from tests.sim.disk import SimDisk
from tests.sim.fs_world import MIB, World, run_world

EXPECTED = {  # what a program meets that others race with, or on a full disk
    errno.EEXIST, errno.EINVAL, errno.EISDIR, errno.ENODATA, errno.ENOENT, errno.ENOSPC, errno.ENOTDIR, errno.ENOTEMPTY,
    errno.EPERM, errno.ESTALE,
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
    journal_data: bool = False  # mounted with data=journal
    size: int = 8 * MIB
    journal_blocks: int = JOURNAL_BLOCKS_MIN
    quotas: bool = False  # so fsck compares what is counted with what is used at every point


def record(workload: Workload, seed: int) -> Recording:
    """Run it to its end."""
    result: list[Recording] = []

    async def body(world: World) -> None:
        world.disk.mark()
        history = History(world.disk, workload.nodes, blocks_whole=workload.journal_data)
        world.journal_data = workload.journal_data
        mounts = await world.start(*range(workload.nodes))
        apps = [Application(mount.volume, mount.instance.node, history) for mount in mounts]
        await workload.program(world, apps, random.Random(seed))
        result.append(Recording(world.disk, world.superblock, history))

    run_world(
        seed, body, size=workload.size, journals=workload.nodes, journal_blocks=workload.journal_blocks,
        latency=LATENCY, sector_bytes=SECTOR, quotas=workload.quotas,
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
            await _leave_open(mortal, b"open when its node dies %d" % number if number % 2 else None)
            await mortal.sync()
            world.kill(mortal.node)
            await world.change()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_random_program, alive, 8, random.Random(rng.random()))
        (mount,) = await world.start(mortal.node)
        mortal = Application(mount.volume, mortal.node, mortal.history)


async def _leave_open(app: Application, name: bytes | None) -> None:
    """A file without a name that this node has open, and has written to; once it had one, or never."""
    if name is None:
        lost = await app.tmpfile(ROOT)
    else:
        lost = await app.create(ROOT, name)
        await app.open(lost)
    await app.append(lost, 9000)
    if name is not None:
        await app.unlink(ROOT, name)


WORKLOADS: dict[str, Workload] = {
    "mixed": Workload(1, at_random(operations=60, workers=3)),
    "two-nodes": Workload(2, at_random(operations=50, workers=1), quotas=True),
    "deaths": Workload(2, deaths, quotas=True),
    "full": Workload(1, at_random(operations=70, workers=2, leave_free=90), journal_blocks=440),
    "maildir": Workload(1, fixed.maildir),
    "sqlite": Workload(1, fixed.sqlite),
    "directories": Workload(1, fixed.directories),
    "extents": Workload(1, fixed.extents),
    "ranges": Workload(1, fixed.ranges),
    "attributes": Workload(1, fixed.attributes, quotas=True),
    "transactions": Workload(1, fixed.transactions, size=32 * MIB, journal_blocks=8 * (IMAGES_MAX + 60)),
    "data-journal": Workload(1, fixed.data_journal, journal_data=True),
    "data-journal-full": Workload(1, at_random(operations=50, workers=2, leave_free=90), journal_data=True),
    "data-journal-two": Workload(2, deaths, journal_data=True),
}
