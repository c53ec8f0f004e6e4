"""Several mounts of one filesystem in one process, under a virtual clock, from one seed (R2).

Everything is the product's own code (``matrixfs.member.Member`` and all below it) but the network, the disk,
the clock, and the administrator: a few lines here that give the orders of R5 in their order.  FUSE is replaced
by direct calls of ``matrixfs.fs``.

A kill may come at any instant, also while an attempt is under way: ``kill`` only fences, ``change`` recovers, and an
attempt that waits for an answer of a dead mount gives up and the next one begins (R5: restartable at every step).
"""

from __future__ import annotations

import gc
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import trio
from trio.testing import MockClock

from matrixfs.fs.mkfs import format_volume
from matrixfs.fs.volume import Volume
from matrixfs.member import Member
from matrixfs.ondisk.superblock import Superblock
from membership.errors import Fenced
from membership.orders import (
    AttemptWanted,
    GhostsReleased,
    Order,
    Rebuild,
    Rebuilt,
    ReleaseGhosts,
    Replay,
    Replayed,
    Reply,
    Resume,
    Resumed,
    Suspend,
    Suspended,
)
from membership.views import DeadInstance, Instance, LockspaceView
from tests.sim.disk import SimDisk, SimPort
from tests.sim.network import SimClock, SimNetwork, SimRng, SimTransport, deterministic_scheduling

MIB = 1 << 20


class Overtaken(Exception):
    """A mount died that the attempt waited for."""


class SimMount:
    """One mount process: killed by cancelling everything it runs and cutting its path to the disk."""

    def __init__(self, world: World, node: int, incarnation: int) -> None:
        self.world = world
        self.instance = Instance(node, incarnation)
        self.journal = node
        self.port: SimPort = world.disk.port(f"n{node}")
        self.transport: SimTransport = world.network.transport(node, incarnation, "lockspace")
        self.fatal: BaseException | None = None
        self.scope = trio.CancelScope()
        self.member = Member(
            self.port, replace(world.superblock), self.transport, world.clock, SimRng(world.rng.random()),
            node, incarnation, self._reply, self._fatal,
        )  # fmt: skip

    @property
    def volume(self) -> Volume:
        volume = self.member._volume
        assert volume is not None
        return volume

    async def _reply(self, reply: Reply) -> None:
        self.world.replied(self, reply)

    def _fatal(self, error: BaseException) -> None:
        if not isinstance(error, Fenced) and self.fatal is None and not self.scope.cancel_called:
            self.fatal = error
            raise error

    async def run(self) -> None:
        with self.scope:
            await self.member.run()


class World:
    """The disk, the network, the mounts, and their administrator."""

    def __init__(
        self,
        seed: int,
        *,
        size: int = 48 * MIB,
        journals: int = 4,
        journal_blocks: int | None = None,
        latency: tuple[float, float] = (0.0, 0.0004),
        sector_bytes: int = 4096,
        quotas: bool = False,
    ) -> None:
        self.rng = random.Random(seed)
        self.clock = SimClock()
        self.network = SimNetwork(rng=random.Random(self.rng.random()), delay=(0.00005, 0.001))
        self.disk = SimDisk(size, sector_bytes, seed=seed, latency=latency)
        self.journals = journals
        self.journal_blocks = journal_blocks
        self.quotas = quotas
        self.superblock: Superblock
        self.journal_data = False  # of mounts that start from now on
        self.mounts: dict[int, SimMount] = {}
        self.dead: list[DeadInstance] = []
        self.attempt = 0
        self.incarnations = 0
        self._replies: list[tuple[Instance, Reply]] = []
        self._changed = trio.Event()
        self._nursery: trio.Nursery
        self._admin = trio.Lock()
        self._views: list[tuple[Instance, ...]] = []
        self._taking_part: list[SimMount] = []  # mounts that the present attempt waits for

    async def format(self) -> None:
        self.superblock = await format_volume(
            self.disk,
            name="sim",
            journals=self.journals,
            journal_blocks=self.journal_blocks,
            clock=self.clock,
            rng=SimRng(1),
            quotas=self.quotas,
        )

    def replied(self, mount: SimMount, reply: Reply) -> None:
        self._replies.append((mount.instance, reply))
        self._wake()
        if isinstance(reply, AttemptWanted) and reply.attempt == self.attempt and not self._admin.locked():
            self._nursery.start_soon(self.change)

    # --- what tests call ----------------------------------------------------------------------------

    async def start(self, *nodes: int) -> list[SimMount]:
        """Mount on these nodes and wait until they may work."""
        while self.mounts and any(dead.journal in nodes for dead in self.dead):  # each node has one journal here
            await self.change()
        for node in nodes:
            self.incarnations += 1
            mount = self.mounts[node] = SimMount(self, node, self.incarnations)
            self._nursery.start_soon(mount.run)
        await self.change()
        started = [self.mounts[node] for node in nodes if node in self.mounts]
        for mount in started:
            (await mount.member.wait_ready()).journal_data = self.journal_data
        return started

    def kill(self, node: int) -> SimMount:
        """SIGKILL and fence: nothing of it reaches the disk or a peer any more.  Recovery is ``change``."""
        mount = self.mounts.pop(node)
        mount.scope.cancel()
        mount.port.cut("killed")
        self.network.kill(node, "lockspace")
        views = tuple(view for view in self._views if mount.instance in view)
        if views:  # else it never got as far as taking its journal
            self.dead.append(DeadInstance(node, mount.instance.incarnation, mount.journal, views))
        self._wake()
        return mount

    async def leave(self, node: int) -> None:
        """A clean unmount."""
        mount = self.mounts[node]
        await mount.member.leave()
        del self.mounts[node]
        mount.scope.cancel()
        self.network.kill(node, "lockspace")
        self._wake()
        await self.change()

    async def change(self, *, replay: bool = True) -> None:
        """Attempts after a change of members until one gets through, to the release of ghosts too (R5)."""
        async with self._admin:
            while True:
                try:
                    await self._attempt()
                    if replay:
                        await self.finish_recovery()
                    return
                except Overtaken:
                    continue

    async def finish_recovery(self) -> None:
        """Replay the journals of the dead and release what they held.  Raises Overtaken when another mount dies."""
        for dead in list(self.dead) if self._taking_part else []:
            await self._recover(dead)

    async def _attempt(self) -> None:
        self.attempt += 1
        attempt = self.attempt
        self._taking_part = [mount for _, mount in sorted(self.mounts.items())]
        members = tuple(mount.transport.address for mount in self._taking_part)
        if not members:  # nobody is left who knows anything: cold start comes next
            self._views.clear()
            self.dead = [DeadInstance(d.node, d.incarnation, d.journal, ()) for d in self.dead]
            return
        view = LockspaceView(attempt, members, tuple(self.dead))
        self._views.append(tuple(Instance(m.node, m.incarnation) for m in members))
        await self._all(lambda _: Suspend(attempt), Suspended)
        await self._all(lambda _: Rebuild(view, ()), Rebuilt)
        for dead in [dead for dead in self.dead if not dead.views]:
            await self._recover(dead)
        await self._all(lambda mount: Resume(attempt, mount.journal), Resumed)
        del self._views[:-1]

    async def _recover(self, dead: DeadInstance) -> None:
        replayer = self._taking_part[0]
        replayer.member.order(Replay(self.attempt, dead))
        reply = await self._wait(replayer, Replayed)
        assert isinstance(reply, Replayed)
        assert reply.ok, reply
        await self._all(lambda _: ReleaseGhosts(self.attempt, dead.node, dead.incarnation), GhostsReleased)
        self.dead.remove(dead)

    async def _all(self, order: Callable[[SimMount], Order], reply: type[Reply]) -> None:
        for mount in self._taking_part:
            mount.member.order(order(mount))
        for mount in self._taking_part:
            await self._wait(mount, reply)

    async def _wait(self, mount: SimMount, kind: type[Reply]) -> Reply:
        while True:
            if any(self.mounts.get(member.instance.node) is not member for member in self._taking_part):
                raise Overtaken
            for item in self._replies:
                if item[0] == mount.instance and isinstance(item[1], kind) and item[1].attempt == self.attempt:
                    self._replies.remove(item)
                    return item[1]
            await self._changed.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


@asynccontextmanager
async def world_of(seed: int, **options: object) -> AsyncIterator[World]:
    """A formatted world; everything in it ends with the block."""
    world = World(seed, **options)  # type: ignore[arg-type]
    await world.format()
    async with trio.open_nursery() as nursery:
        world._nursery = nursery
        nursery.start_soon(world.network.run)
        yield world
        nursery.cancel_scope.cancel()


def run_world(seed: int, body: Callable[[World], Awaitable[None]], **options: object) -> None:
    """Run ``body`` in a world of its own: same seed, same run."""

    async def main() -> None:
        async with world_of(seed, **options) as world:
            await body(world)

    with deterministic_scheduling(seed):
        trio.run(main, clock=MockClock(autojump_threshold=0))
    gc.collect()  # a world is cycles of tens of MiB, old from the first rebuild on: nothing else would collect it soon
