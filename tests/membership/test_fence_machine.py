"""Random lives of a cluster on simulated LUNs: after a confirmed fence no write of the fenced node changes a byte (R4).

Steps are drawn by Hypothesis, run side by side under a virtual clock, each begun a random time after the one before.
The disk is slow, so that evictions, registrations, looks at the header and writes overlap in every way.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from membership.errors import DeviceError, Fenced, MatrixError
from membership.fence.keys import key_of
from membership.fence.reservations import Lun
from membership.fence.scsi_pr import ScsiPrFence
from membership.fence.storage_access import StorageAccess
from membership.lease.records import HeartbeatSlot, MountProcess, slot_block
from tests.sim.disk import SimDisk
from tests.sim.lun import CONFORMING, TGT, Quirks, SimLun, traits_of
from tests.sim.network import SimClock, deterministic_scheduling

NODES = 3
WRITERS = 2


def slot_of(node: int, incarnation: int, mounts: tuple[int, ...] = ()) -> HeartbeatSlot:
    slot = HeartbeatSlot(
        owner=b"C" * 16, address=slot_block(node), incarnation=incarnation, counter=1, hears=0, boot_id=b"",
        machine_id=b"", flags=0, pid=1, start_time=1, port=1, name=f"n{node}", host="h",
        mount_pids=(), mount_starts=(), mount_incarnations=(),
    )  # fmt: skip
    slot.set_mounts(tuple(MountProcess(i + 1, 1, mount) for i, mount in enumerate(mounts)))
    return slot


class Process:
    """matrixd or a mount process, and its writes.  It lives on when it is fenced; ``dead`` is the end of it."""

    def __init__(self, world: World, node: int, incarnation: int, matrixd: Process | None) -> None:
        self.world, self.node, self.incarnation, self.matrixd = world, node, incarnation, matrixd
        self.label = f"n{node}.{incarnation:x}"
        self.nexuses = [lun.nexus(self.label) for lun in world.luns]
        self.may_pass = [True] * len(self.nexuses)  # the session's writes, A3
        self.is_member = False  # what a matrixd remembers of itself
        self.dead = False
        self.access = StorageAccess(
            lambda: [
                Lun(lun.disk.media_name, nexus, traits_of(lun.quirks))
                for lun, nexus in zip(world.luns, self.nexuses, strict=True)
            ],
            SimClock(),
            allowed=self.allowed,
            lost=lambda reason: None,
        )

    async def allowed(self) -> bool:
        """Reads header and slot; what was read is true for one moment of the read."""
        await self.world.luns[0].disk.delay()
        slot, header = self.world.slots.get(self.node), self.world.header.get(self.node)
        await self.world.luns[0].disk.delay()
        owner = self.matrixd or self
        listed = slot is not None and slot.incarnation == owner.incarnation
        if self.matrixd is not None:
            return listed and header == owner.incarnation and self.incarnation in slot.mount_incarnations
        return listed and (header == self.incarnation or not self.is_member)

    async def write_on(self) -> None:
        """Writes while it lives, as far as its session lets them pass."""
        while not self.dead:
            i = self.world.rng.randrange(len(self.nexuses))
            if not self.may_pass[i] or not self.access.key:
                await trio.sleep(0.01)
                continue
            try:
                await self.nexuses[i].write(4096 * self.world.rng.randrange(8), self.world.rng.randbytes(4096))
            except Fenced:
                self.access.conflict("a write was refused")
                return
            except DeviceError:
                await trio.sleep(0.005)

    async def lose_session(self, i: int) -> None:
        """The session goes, and comes back until it may or until it is over (A3)."""
        self.may_pass[i] = False
        self.nexuses[i].drop()
        for _ in range(5):
            if self.dead:
                return
            await self.nexuses[i].relogin()
            try:
                await self.access.reconnected(self.world.luns[i].disk.media_name)
            except Fenced:
                return
            except DeviceError:
                continue
            self.may_pass[i] = not self.dead
            return


@dataclass(eq=False)
class World:
    rng: random.Random
    luns: list[SimLun]
    nursery: trio.Nursery
    header: dict[int, int] = field(default_factory=dict)
    slots: dict[int, HeartbeatSlot] = field(default_factory=dict)
    processes: list[Process] = field(default_factory=list)
    confirmed: dict[str, tuple[int, ...]] = field(default_factory=dict)  # label of a process: writes on each LUN then
    next_incarnation: int = 0x100
    events: list[str] = field(default_factory=list)
    claiming: set[int] = field(default_factory=set)

    def family(self, node: int, incarnation: int) -> list[Process]:
        """A matrixd and its mounts."""
        return [
            p
            for p in self.processes
            if p.node == node and (p.matrixd.incarnation if p.matrixd else p.incarnation) == incarnation
        ]

    def living(self, node: int) -> Process | None:
        return next(
            (p for p in self.processes if p.node == node and not p.matrixd and p.access.key and not p.dead), None
        )

    async def read_slot(self, node: int) -> HeartbeatSlot | None:
        await self.luns[0].disk.delay()
        slot = self.slots.get(node)
        await self.luns[0].disk.delay()
        return slot

    def driver(self, process: Process) -> ScsiPrFence:
        return ScsiPrFence(process.access._luns, lambda: process.access.key, self.read_slot, SimClock())

    async def fence(self, by: Process, node: int) -> bool:
        """Fence who has the slot; remembers what may not change any more."""
        target = self.slots[node]
        result = await self.driver(by).fence(target, 0.0)
        if result.confirmed:
            for process in self.family(node, target.incarnation):
                self.confirmed.setdefault(process.label, tuple(len(lun.disk.writes) for lun in self.luns))
            self.events.append(f"fenced n{node}.{target.incarnation:x}")
        return result.confirmed

    def check(self) -> None:
        for label, counts in self.confirmed.items():
            for lun, count in zip(self.luns, counts, strict=True):
                late = [w for w in lun.disk.writes[count:] if w.port.startswith(f"{label}#")]
                assert not late, f"{label} wrote after its fence: {self.events}"

    # -- steps

    async def start(self, node: int) -> None:
        """matrixd: claim, make sure of the predecessor, take the slot, become a member."""
        if self.living(node) is not None or node in self.claiming:
            return
        self.claiming.add(node)
        try:
            process = self._process(node, None)
            await process.access.claim(process.incarnation)
            if node in self.slots:
                for old in self.family(node, self.slots[node].incarnation):
                    old.dead = True
                if not await self.fence(process, node):
                    process.dead = True
                    return
            self.slots[node] = slot_of(node, process.incarnation)
            await process.access.admit(node, process.incarnation, heir=True)
            process.is_member = True
            self.header[node] = process.incarnation
            self.events.append(f"joined {process.label}")
            self._writes(process)
        finally:
            self.claiming.discard(node)

    async def mount(self, node: int) -> None:
        matrixd = self.living(node)
        if matrixd is None or not matrixd.is_member or len(self.slots[node].mounts) > 4:
            return
        slot = self.slots[node]
        if slot.incarnation != matrixd.incarnation:
            return
        process = self._process(node, matrixd)
        self.slots[node] = slot_of(
            node, slot.incarnation, (*(m.incarnation for m in slot.mounts), process.incarnation)
        )  # H2
        await self.luns[0].disk.delay()
        await process.access.admit(node, process.incarnation, heir=False)
        self._writes(process)

    async def evict(self, node: int) -> None:
        """The administrator: header first, then the fence, again until it is confirmed."""
        administrator = next((p for n in range(NODES) if n != node and (p := self.living(n)) and p.is_member), None)
        if administrator is None or node not in self.header:
            return
        await self.luns[0].disk.delay()
        self.header.pop(node, None)
        self.events.append(f"evicted n{node} by {administrator.label}")
        for _ in range(3):
            if await self.fence(administrator, node):
                return
            await trio.sleep(0.05)

    async def kill(self, node: int) -> None:
        for process in self.processes:
            if process.node == node and process.access.key:
                process.dead = True
                for nexus in process.nexuses:
                    nexus.drop()

    async def lose_session(self, node: int) -> None:
        mine = [p for p in self.processes if p.node == node and p.access.key and not p.dead]
        if mine:
            await self.rng.choice(mine).lose_session(self.rng.randrange(len(self.luns)))

    async def keep(self, node: int) -> None:
        administrator = self.living(node)
        if administrator is not None and administrator.is_member:
            await administrator.access.keep(list(self.header), list(self.claiming))

    async def disown(self, node: int) -> None:
        """A mount process died: once its matrixd has its key, nothing of it lands."""
        matrixd = self.living(node)
        mounts = [p for p in self.processes if p.matrixd is matrixd and p.node == node and p.access.key and not p.dead]
        if matrixd is None or not mounts:
            return
        mounts[0].dead = True
        if await matrixd.access.disown(key_of(node, mounts[0].incarnation)):
            self.confirmed.setdefault(mounts[0].label, tuple(len(lun.disk.writes) for lun in self.luns))

    async def leave(self, node: int) -> None:
        process = self.living(node)
        if process is not None and node in self.header and not self.slots[node].mounts:
            self.header.pop(node)
            await process.access.withdraw()
            process.dead = True

    async def power_cycle(self, node: int) -> None:
        for lun in self.luns:
            lun.power_cycle()
        for process in list(self.processes):
            if process.access.key and not process.dead:
                for i in range(len(self.luns)):
                    await process.lose_session(i)

    async def race(self, node: int) -> None:
        """An eviction while the node's sessions come back and it mounts."""
        async with trio.open_nursery() as nursery:
            for name in ("lose_session", "lose_session", "mount", "evict"):
                nursery.start_soon(self.step, name, node)
                await trio.sleep(self.rng.uniform(0, 0.05))

    def _process(self, node: int, matrixd: Process | None) -> Process:
        self.next_incarnation += 1
        process = Process(self, node, self.next_incarnation, matrixd)
        self.processes.append(process)
        return process

    def _writes(self, process: Process) -> None:
        for _ in range(WRITERS):
            self.nursery.start_soon(process.write_on)

    async def step(self, name: str, node: int) -> None:
        action: Callable[[int], Awaitable[None]] = getattr(self, name)
        try:
            await action(node)
        except MatrixError as error:
            self.events.append(f"{name} n{node}: {error}")


STEPS = ("start", "mount", "race", "kill", "lose_session", "keep", "disown", "leave")
KINDS: dict[str, tuple[Quirks, tuple[str, ...]]] = {
    "abort": (CONFORMING, (*STEPS, "power_cycle")),
    "reset": (TGT, STEPS),  # a restart of such a target opens the LUN: decision 0016
    "forgets": (replace(CONFORMING, power_loss=False, holder_releases=False), STEPS),
}


async def run(quirks: Quirks, seed: int, steps: list[tuple[str, int, float]]) -> World:
    rng = random.Random(seed)
    luns = [SimLun(SimDisk(1 << 20, seed=seed + i, latency=(0.001, 0.03), name=f"lun{i}"), quirks) for i in range(2)]
    async with trio.open_nursery() as nursery:
        world = World(rng, luns, nursery)
        for node in range(NODES):
            await world.step("start", node)
            await world.step("mount", node)
        async with trio.open_nursery() as running:
            for name, node, pause in steps:
                running.start_soon(world.step, name, node)
                await trio.sleep(pause)
        await trio.sleep(1)
        for process in world.processes:
            process.dead = True
        nursery.cancel_scope.cancel()
    world.check()
    return world


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_lands_after_a_confirmed_fence(kind) -> None:
    quirks, names = KINDS[kind]
    fences = writes = 0

    @settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(
        seed=st.integers(0, 2**16),
        steps=st.lists(
            st.tuples(
                st.sampled_from((*names, "evict", "start", "race")),
                st.integers(0, NODES - 1),
                st.sampled_from((0.0, 0.004, 0.02, 0.1)),
            ),
            min_size=8,
            max_size=30,
        ),
    )
    def attempt(seed, steps) -> None:
        nonlocal fences, writes
        with deterministic_scheduling(seed):
            world = trio.run(run, quirks, seed, steps, clock=trio.testing.MockClock(autojump_threshold=0))
        fences += len(world.confirmed)
        writes += sum(len(lun.disk.writes) for lun in world.luns)

    attempt()
    assert fences > 50
    assert writes > 1000


def test_the_invariant_can_fail() -> None:
    """With a LUN that only says it aborts, the same check finds the late writes."""
    bad = replace(CONFORMING, abort_stops=False)
    steps = [("evict", 1, 0.1), ("start", 1, 0.1), ("evict", 2, 0.1), ("evict", 0, 0.1)] * 3
    original = traits_of

    def claimed(quirks: Quirks):
        return original(CONFORMING)

    globals()["traits_of"] = claimed
    try:
        with pytest.raises(AssertionError, match="wrote after its fence"):
            for seed in range(20):
                with deterministic_scheduling(seed):
                    trio.run(run, bad, seed, steps, clock=trio.testing.MockClock(autojump_threshold=0))
    finally:
        globals()["traits_of"] = original
