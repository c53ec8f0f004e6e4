"""One run of the filesystem simulation: a workload on several nodes, with kills, restarts and clean leaves (R2).

Everything follows from the seed.  Safety first (the workload's checks run all the time), then the end: the workers
stop, everything is looked at once more from one node, all nodes leave or are killed, and fsck must find nothing.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import trio

from matrixfs.ondisk.superblock import JOURNAL_BLOCKS_MIN
from tests.sim.checkers import assert_clean
from tests.sim.fs_world import MIB, World, run_world
from tests.sim.wide_workload import WideWorkload
from tests.sim.workload import Workload

OPERATIONS = 600
PROGRESS_SECONDS = 300.0  # of virtual time, for a run of some ten: more is a hang


@dataclass
class Summary:
    """What a run did."""

    operations: int = 0
    compared: int = 0  # operations whose outcome was held against the model
    kills: int = 0
    leaves: int = 0
    blackouts: int = 0
    replays: int = 0
    virtual_seconds: float = 0.0


class Scenario:
    """See the module."""

    workload: type[Workload] = Workload

    def __init__(self, seed: int, nodes: int | None = None, operations: int = OPERATIONS) -> None:
        self.seed = seed
        self.operations = operations
        self.rng = random.Random(f"scenario {seed}")
        chosen = self.rng.randint(3, 5)
        self.nodes = chosen if nodes is None else nodes
        self.summary = Summary()
        self.world: World
        self.load: Workload

    def run(self) -> Summary:
        """Run it.  Raises what a checker found."""
        journal_blocks = self.rng.choice((JOURNAL_BLOCKS_MIN, 256))
        quotas = self.seed % 2 == 0  # so fsck compares what is counted with what is used
        run_world(
            self.seed, self._body, size=16 * MIB, journals=self.nodes, journal_blocks=journal_blocks, quotas=quotas
        )
        return self.summary

    async def _body(self, world: World) -> None:
        with trio.move_on_after(PROGRESS_SECONDS) as scope:
            self.world = world
            self.load = self.workload(world, self.seed, pause=self.rng.choice((0.002, 0.02, 0.1)))
            mounts = await world.start(*range(self.nodes))
            await self.load.prepare(mounts[0])
            async with trio.open_nursery() as nursery:
                for mount in mounts:
                    self.load.begin(nursery, mount)
                await self._events(nursery)
                for node in world.mounts:
                    self.load.stop(node)
            await self._finish()
        assert not scope.cancelled_caught, f"no progress: {hanging(world)}"

    async def _events(self, nursery: trio.Nursery) -> None:
        rng, world = self.rng, self.world
        until = self.load.operations
        while self.load.operations < self.operations:
            until += rng.randrange(self.operations // 4)
            await self.load.reach(until)
            node = rng.choice(sorted(world.mounts))
            if len(world.mounts) > 1:
                events = (self._crash, self._crash, self._crash_twice, self._leave, self._blackout)
                await rng.choice(events)(nursery, node)

    async def _crash(self, nursery: trio.Nursery, node: int) -> None:
        self._kill(node)
        await trio.sleep(self.rng.choice((0.0, 0.2)))
        if self.rng.random() < 0.5:  # locks first, the journal later: what the dead didn't hold is free meanwhile
            await self.world.change(replay=False)
            await trio.sleep(self.rng.uniform(0, 0.2))
        await self._recover_and_restart(nursery, [node])

    async def _crash_twice(self, nursery: trio.Nursery, node: int) -> None:
        """A second death while the first one is being recovered, often that of the replayer."""
        self._kill(node)
        second = self.rng.choice((min(self.world.mounts), max(self.world.mounts)))
        delay = self.rng.uniform(0, 0.02)

        async def later() -> None:
            await trio.sleep(delay)
            self._kill(second)

        async with trio.open_nursery() as both:
            both.start_soon(later)
            await self.world.change()
        await self._recover_and_restart(nursery, [node, second])

    async def _blackout(self, nursery: trio.Nursery, _: int) -> None:
        """The power goes, for all nodes and the store: what was not flushed is lost, torn or kept."""
        nodes = sorted(self.world.mounts)
        for node in nodes:
            self._kill(node)
        self.world.disk.power_loss(mode=self.rng.choice(("drop", "keep-some", "tear")))
        self.summary.blackouts += 1
        await self._recover_and_restart(nursery, nodes)

    async def _leave(self, nursery: trio.Nursery, node: int) -> None:
        await self.load.finish(node)
        await self.world.leave(node)
        self.summary.leaves += 1
        await self._recover_and_restart(nursery, [node])

    def _kill(self, node: int) -> None:
        self.summary.kills += 1
        self.load.kill(node)

    async def _recover_and_restart(self, nursery: trio.Nursery, nodes: list[int]) -> None:
        await self.world.change()
        await trio.sleep(self.rng.uniform(0, 0.05))
        for mount in await self.world.start(*nodes):
            self.load.begin(nursery, mount)

    async def _finish(self) -> None:
        world = self.world
        await self.load.check_everything(world.mounts[self.rng.choice(sorted(world.mounts))])
        self.summary.replays = sum(len(mount.member.replays) for mount in world.mounts.values())
        clean = self.rng.random() < 0.5
        for node in sorted(world.mounts):
            if clean:
                await world.leave(node)
            else:
                world.kill(node)
        world.disk.power_loss()  # takes what nobody flushed
        await assert_clean(world.disk, world.superblock)
        self.summary.operations, self.summary.compared = self.load.operations, self.load.quiet
        self.summary.virtual_seconds = round(trio.current_time(), 1)


class WideScenario(Scenario):
    """With ranges, files without a name, and attributes: a seed is another run than the plain one."""

    workload = WideWorkload


def hanging(world: World) -> str:
    """Who waits for what, for the report of a hang."""
    waits = {node: mount.member.locks.waits() for node, mount in world.mounts.items()}
    return f"attempt {world.attempt}, dead {world.dead}, waits {waits}"
