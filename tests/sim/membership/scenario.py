"""One random history of a cluster from one seed: faults, then none, and then everybody must work."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections import Counter

import trio
import trio.testing

from membership.errors import MatrixError
from tests.sim.membership.describe import describe
from tests.sim.membership.faults import Faults
from tests.sim.membership.world import World
from tests.sim.network import deterministic_scheduling

STEPS = 30
PROGRESS_SECONDS = 120.0


class MembershipScenario:
    """A history; ``run`` it once.

    Args:
        seed: of everything.
        nodes: how many; 1 to 4, by the seed, when None.
        steps: how many faults.
    """

    def __init__(self, seed: int, nodes: int | None = None, steps: int = STEPS) -> None:
        self.seed, self.steps = seed, steps
        self.rng = random.Random(seed)
        self.nodes = nodes or self.rng.choice((1, 2, 2, 3, 3, 4, 4, 4))
        self.digest = ""  # of all that the mounts were told: equal for equal seeds

    def run(self) -> str:
        """Returns a line about it.  Raises what a checker found (AssertionError)."""
        with deterministic_scheduling(self.seed):
            return trio.run(self._main, clock=trio.testing.MockClock(autojump_threshold=0))

    async def _main(self) -> str:
        one_machine = self.rng.random() < 0.4
        areas = self.rng.choice((1, 1, 3))
        world = World(self.seed, one_machine=one_machine, writing=True, areas=areas)
        numbers = tuple(range(1, self.nodes + 1))
        async with world:
            try:
                for number in numbers:
                    await world.start(number, wait=False)
                faults = Faults(world, self.rng, numbers)
                await trio.sleep(self.rng.choice((0.0, 0.5, 2.0, 3.0)))
                for number in numbers:
                    await faults.mount(world.machines[f"n{number}"])
                for _ in range(self.steps):
                    await trio.sleep(self.rng.choice((0.0, 0.01, 0.1, 1.0, 5.0, 12.0)))
                    await faults.one()
                    world.demand_unbroken()
                await faults.end()
                await self._demand_progress(world, numbers)
            except BaseException:
                print(*(f"{time:9.3f} {name} {machine}" for time, name, machine in faults.trace), sep="\n")
                print(describe(world))
                raise
            seconds = trio.current_time()
        self.digest = hashlib.sha256(repr(world.notes).encode()).hexdigest()[:12]
        return self._summary(world, seconds, one_machine)

    def _summary(self, world: World, seconds: float, one_machine: bool) -> str:
        kinds = Counter(type(what).__name__ for _, _, _, what in world.notes)
        return (
            f"{self.nodes} nodes on {'one machine' if one_machine else 'many'}, {len(world.disks)} areas,"
            f" {seconds:.0f} virtual s,"
            f" generation {world.checkers.newest.generation}, {len(world.checkers.dead_nodes)} nodes fenced,"
            f" {kinds['Replay']} replays, {world.checkers.went_back} late headers, trace {self.digest}"
        )

    async def _demand_progress(self, world: World, numbers: tuple[int, ...]) -> None:
        """Who is down is started, who is not mounted mounts; then everybody must work, with one administrator."""
        await self._until(world, numbers, lambda: self._is_formed(world), "all nodes are members under one")
        await self._until(world, numbers, lambda: len(world.granting()) == len(numbers), "all mounts work")
        await trio.sleep(world.timing.dead)
        assert self._is_formed(world), "the cluster does not stay together"
        assert world.checkers.is_quiet(), "an old generation stands on the disk"
        assert len(world.granting()) == len(numbers), "not all mounts go on"

    async def _mount(self, world: World, number: int) -> None:
        with contextlib.suppress(MatrixError):  # the last one is still being buried: again
            await world.mount(number, wait=False)

    def _is_formed(self, world: World) -> bool:
        cores = [m.node.core for m in world.machines.values() if m.is_member]
        return (
            len(cores) == len(world.machines)
            and len(world.administrators()) == 1
            and len({core.admin.header.generation for core in cores}) == 1
            and len(cores[0].admin.header.members) == len(cores)
            and not cores[0].admin.header.fencing
        )

    async def _until(self, world: World, numbers: tuple[int, ...], condition, what: str) -> None:
        deadline = trio.current_time() + PROGRESS_SECONDS
        while not condition():
            for number in numbers:
                machine = world.machines[f"n{number}"]
                if not machine.running:
                    for mount in machine.mounts:
                        mount.die()
                    await world.start(number, wait=False)
                elif machine.is_member and not any(mount.alive for mount in machine.mounts):
                    world.start_soon(self._mount, world, number)
            await trio.sleep(0.1)
            world.demand_unbroken()
            assert trio.current_time() < deadline, f"not within {PROGRESS_SECONDS:g} s: {what}"


def run_seed(seed: int, nodes: int | None = None) -> str:
    """One history under virtual time."""
    return MembershipScenario(seed, nodes).run()
