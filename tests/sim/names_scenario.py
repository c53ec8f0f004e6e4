"""Names on several simulated nodes, some of which die: the history must be linearizable (R2).

The stress of real mounts has the same checker (``tests/stress``), so overlapping operations are judged too, which the
model of ``workload`` leaves out.  Every inode is created with a group id of its own, which tells it from all others.
Times are the numbers of the calls and returns, in the order in which they came.  When a node dies, what it changed
and nobody else saw may be gone; what was under way there has happened or not.
"""

from __future__ import annotations

import itertools
import random
import stat
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import trio

from matrixfs.fs import namespace
from matrixfs.ondisk.superblock import ROOT_INODE
from membership.errors import DeviceError, Fenced
from tests.sim.checkers import assert_clean
from tests.sim.fs_world import MIB, SimMount, World, run_world
from tests.stress import names
from tests.stress.history import FILE, Op, new_identity
from tests.stress.judge import about_names
from tests.stress.linear import FOREVER, Step, check

NAMES = 4
WORKERS = 2  # on each node
PAUSE = 0.002  # seconds: longest time that a worker thinks between two operations
PROGRESS_SECONDS = 300.0  # of virtual time: more is a hang


@dataclass
class Summary:
    """What a run did."""

    operations: int = 0
    kills: int = 0
    lost: int = 0  # operations under way when their node died


class NamesScenario:
    """One run.

    Args:
        seed: of everything.
        nodes: how many (3).
        operations: how many at least, in all.
    """

    def __init__(self, seed: int, nodes: int | None = None, operations: int = 300) -> None:
        self.seed = seed
        self.nodes = 3 if nodes is None else nodes
        self.operations = operations
        self.summary = Summary()
        self.lookup = namespace.lookup
        self._rng = random.Random(f"names {seed}")
        self._history: list[Op] = []
        self._deaths: list[tuple[float, int]] = []
        self._instants = itertools.count(1)
        self._identities = itertools.count(1)
        self._directory = ROOT_INODE
        self._scopes: dict[int, trio.CancelScope] = {}
        self._stopping = False

    def run(self) -> Summary:
        """Run it.  Raises AssertionError when the history can't be explained."""
        run_world(self.seed, self._body, size=16 * MIB, journals=self.nodes)
        self.judge()
        self.summary.operations = len(self._history)
        return self.summary

    def judge(self) -> None:
        """Look for an order of the operations that explains all results."""
        violation = check(self._steps(), names.initial(NAMES, deaths=True))
        assert violation is None, str(violation)

    def _steps(self) -> Iterator[Step]:
        deaths = {node: at for at, node in self._deaths}
        for op in self._history:
            death = deaths.get(op.node, FOREVER) - 0.5  # what a node did last comes before it died
            lost = op.end > death
            if op.start > death or (lost and op.failed):
                continue
            for apply, changes, keys in about_names(op):
                yield Step(op.start, min(op.end, death), apply, changes, keys, op, optional=lost)
        for node, at in deaths.items():
            yield Step(at, at, names.died(node), keys=frozenset(range(NAMES)), label=f"n{node + 1} died", crash=True)

    async def _body(self, world: World) -> None:
        with trio.move_on_after(PROGRESS_SECONDS) as scope:
            mounts = await world.start(*range(self.nodes))
            made = await namespace.mkdir(mounts[0].volume, ROOT_INODE, b"d", 0o755, 0, 0)
            self._directory = made.ino
            await mounts[0].volume.sync()
            async with trio.open_nursery() as nursery:
                for mount in mounts:
                    self._begin(nursery, mount)
                await self._kill_some(world, nursery)
                self._stopping = True
            for node in sorted(world.mounts):
                await world.leave(node)
        assert not scope.cancelled_caught, f"no progress, attempt {world.attempt}, dead {world.dead}"
        await assert_clean(world.disk, world.superblock)

    async def _kill_some(self, world: World, nursery: trio.Nursery) -> None:
        until = 0
        while len(self._history) < self.operations:
            until += self._rng.randrange(self.operations // 3)
            while len(self._history) < until:  # noqa: ASYNC110 - in virtual time
                await trio.sleep(PAUSE)
            node = self._rng.choice(sorted(world.mounts))
            incarnation = world.kill(node).instance.incarnation
            self._deaths.append((next(self._instants), incarnation))
            self._scopes[incarnation].cancel()
            self.summary.kills += 1
            await world.change()
            for mount in await world.start(node):
                self._begin(nursery, mount)

    def _begin(self, nursery: trio.Nursery, mount: SimMount) -> None:
        scope = self._scopes[mount.instance.incarnation] = trio.CancelScope()
        nursery.start_soon(self._work, mount, scope)

    async def _work(self, mount: SimMount, scope: trio.CancelScope) -> None:
        with scope:
            async with trio.open_nursery() as nursery:
                for who in range(WORKERS):
                    nursery.start_soon(self._worker, mount, who, random.Random(self._rng.random()))

    async def _worker(self, mount: SimMount, who: int, rng: random.Random) -> None:
        actions = [self._create] * 3 + [self._unlink] * 3 + [self._rename] * 3 + [self._look] * 4
        while not self._stopping:
            try:
                await rng.choice(actions)(mount, who, rng)
            except (DeviceError, Fenced):
                assert mount.world.mounts.get(mount.instance.node) is not mount, "a living mount lost its device"
                return
            await trio.sleep(rng.choice((0.0, 0.0005, PAUSE)))

    async def _do(
        self, mount: SimMount, who: int, kind: str, args: tuple[Any, ...], action: Callable[[], Awaitable[Any]]
    ) -> None:
        start: float = next(self._instants)
        end, result = FOREVER, 0
        try:
            try:
                result = await action() or 0
            except OSError as error:
                if isinstance(error, DeviceError | Fenced):
                    raise
                result = -(error.errno or 0)
            end = next(self._instants)
        finally:
            self.summary.lost += end == FOREVER
            if end != FOREVER or kind != "open":
                self._history.append(Op(start, end, mount.instance.incarnation, who, kind, args, result))

    async def _create(self, mount: SimMount, who: int, rng: random.Random) -> None:
        at, identity = rng.randrange(NAMES), new_identity(next(self._identities), FILE)

        async def action() -> None:
            mode = stat.S_IFREG | 0o644
            await namespace.create(mount.volume, self._directory, b"n%d" % at, mode, 0, identity)

        await self._do(mount, who, "create", (at, identity), action)

    async def _unlink(self, mount: SimMount, who: int, rng: random.Random) -> None:
        at = rng.randrange(NAMES)
        name = b"n%d" % at
        await self._do(mount, who, "unlink", (at,), lambda: namespace.unlink(mount.volume, self._directory, name))

    async def _rename(self, mount: SimMount, who: int, rng: random.Random) -> None:
        old, new, flags = rng.randrange(NAMES), rng.randrange(NAMES), rng.choice((0, 0, 0, 1, 2))
        places = (self._directory, b"n%d" % old, self._directory, b"n%d" % new)
        await self._do(mount, who, "rename", (old, new, flags), lambda: namespace.rename(mount.volume, *places, flags))

    async def _look(self, mount: SimMount, who: int, rng: random.Random) -> None:
        at = rng.randrange(NAMES)

        async def action() -> int:
            inode = await self.lookup(mount.volume, self._directory, b"n%d" % at)
            if inode is None:
                raise FileNotFoundError(2, "no such name")
            return inode.gid

        await self._do(mount, who, "open", (at, 0, 0), action)
