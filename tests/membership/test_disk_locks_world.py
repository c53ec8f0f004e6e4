"""Locks on cluster disks through whole nodes, in simulation: n1 locks, n2 is refused, freed when n1 dies (002-24)."""

from __future__ import annotations

import random

import pytest
import trio

from membership.label import timing_of
from membership.san.disk_lock_agent import DiskLockGranted, DiskLockLost, DiskLockRefused
from tests.sim.membership.machines import Machine
from tests.sim.membership.world import LABEL, World

pytestmark = pytest.mark.seed("002-24")

DISK, OTHER = b"D" * 16, b"E" * 16
TIMING = timing_of(LABEL)


class Applications:
    """The commands that hold disk locks, on all machines of a world."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.told: dict[tuple[int, int], str] = {}  # (pid of matrixd, serial)

    def ask(self, number: int, *, wait: bool = False, exclusive: bool = True, disk: bytes = DISK) -> tuple[int, int]:
        machine = self.world.machines[f"n{number}"]
        node, key = machine.node, None
        carry_out = type(node)._carry_out

        def carry(event: object) -> None:
            if isinstance(event, DiskLockGranted):
                self.told[machine.pid, event.serial] = "granted"
            elif isinstance(event, DiskLockLost):
                self.told[machine.pid, event.serial] = "lost"
            elif isinstance(event, DiskLockRefused):
                self.told[machine.pid, event.serial] = event.reason
            else:
                carry_out(node, event)

        def request(now: float) -> None:
            nonlocal key
            key = (
                machine.pid,
                node.core.request_disk_lock(disk, f"backup on n{number}", now, exclusive=exclusive, wait=wait),
            )

        node._carry_out = carry
        node.apply(request)
        return key

    def release(self, key: tuple[int, int]) -> None:
        machine = next(m for m in self.world.machines.values() if m.pid == key[0])
        machine.node.apply(lambda now: machine.node.core.release_disk_lock(key[1], now))

    async def answer(self, key: tuple[int, int], seconds: float = 15) -> str:
        await self.world.until(lambda: key in self.told, seconds, "an answer about a disk lock")
        return self.told[key]


async def started(world: World, nodes: int = 3) -> Applications:
    for number in range(1, nodes + 1):
        await world.start(number, wait=False)
    await world.until(lambda: all(m.is_member for m in world.machines.values()), 10, "all are members")
    await world.until(lambda: len(world.administrators()) == 1, 5, "one administrator")
    return Applications(world)


def administrator(world: World) -> int:
    return int(world.administrators()[0].name[1:])


@pytest.mark.parametrize("one_machine", [True, False])
@pytest.mark.parametrize("holder_administrates", [True, False])
async def test_one_locks_the_other_is_refused_and_it_is_free_when_the_first_dies(
    autojump_clock, one_machine: bool, holder_administrates: bool
) -> None:
    async with World(24, one_machine=one_machine) as world:
        apps = await started(world)
        first = administrator(world)
        holder = first if holder_administrates else first % 3 + 1
        other = holder % 3 + 1
        assert await apps.answer(apps.ask(holder)) == "granted"
        refusal = await apps.answer(apps.ask(other))
        assert refusal == f"the disk is held exclusively by node {node_id(world, holder)} (backup on n{holder})"
        assert await apps.answer(apps.ask(other, disk=OTHER)) == "granted"
        waiting = apps.ask(other, wait=True)
        await trio.sleep(5)
        assert waiting not in apps.told
        world.kill(holder)
        died = trio.current_time()
        assert await apps.answer(waiting) == "granted"
        if not one_machine:  # only time confirms there
            assert trio.current_time() - died > TIMING.dead


def node_id(world: World, number: int) -> int:
    return world.machines[f"n{number}"].node.node_id


async def test_a_release_passes_it_on_and_a_clean_leave_waits_for_it(autojump_clock) -> None:
    async with World(25) as world:
        apps = await started(world)
        first = apps.ask(1)
        assert await apps.answer(first) == "granted"
        second = apps.ask(2, wait=True)
        agent = world.machines["n1"].node.core.disk_lock_agent
        assert not agent.is_quiet()
        apps.release(first)
        assert await apps.answer(second, 1) == "granted"
        await world.until(agent.is_quiet, 2, "the administrator knows")


async def test_a_node_whose_lease_is_over_has_lost_its_locks_though_it_is_listed_again(autojump_clock) -> None:
    async with World(27) as world:
        apps = await started(world)
        number = administrator(world) % 3 + 1
        machine = world.machines[f"n{number}"]
        key = apps.ask(number)
        assert await apps.answer(key) == "granted"
        machine.paths[0].cut("the store does not answer")
        await world.until(lambda: apps.told[key] == "lost", TIMING.lease + 1, "told in time")
        assert machine.node.core.disk_lock_agent.held() == ()
        assert trio.current_time() <= machine.node.core.lease.deadline + TIMING.heartbeat + 0.1
        assert await apps.answer(apps.ask(number % 3 + 1, wait=True)) == "granted"
        machine.paths[0].mend()
        await world.until(lambda: machine.is_member, 10, "nobody evicted it meanwhile")
        assert machine.node.core.disk_lock_agent.held() == ()
        assert "is held exclusively" in await apps.answer(apps.ask(number))


async def test_the_administrator_dies_and_nobody_gets_what_another_holds(autojump_clock) -> None:
    async with World(26) as world:
        apps = await started(world)
        old = administrator(world)
        holder, waiter = (n for n in (1, 2, 3) if n != old)
        assert await apps.answer(apps.ask(holder)) == "granted"
        gone = apps.ask(old, disk=OTHER)
        assert await apps.answer(gone) == "granted"
        waiting = apps.ask(waiter, wait=True)
        inherits = apps.ask(waiter, wait=True, disk=OTHER)
        world.kill(old)
        assert await apps.answer(inherits) == "granted"  # after the fence of the old administrator
        await trio.sleep(5)
        assert waiting not in apps.told
        assert "is held exclusively" in await apps.answer(apps.ask(waiter))
        book = world.administrators()[0].node.core.disk_locks
        assert book.is_open
        assert [(row.node, row.state.value) for row in book.rows() if row.lock.disk == DISK] == [
            (node_id(world, holder), "held"), (node_id(world, waiter), "waiting"),
        ]  # fmt: skip


def held(machine: Machine) -> list[tuple[bytes, bool]]:
    """What its applications may believe: until its lease is over, whatever others think of it."""
    core = machine.node.core if machine.node is not None else None
    if not machine.running or core is None or trio.current_time() >= core.lease.deadline:
        return []
    return [(lock.disk, lock.exclusive) for lock in core.disk_lock_agent.held()]


async def all_back(world: World) -> None:
    """All are members; who is still evicted for what happened before is started again, as its service manager would."""
    machines = world.machines.values()
    while not all(m.is_member for m in machines):
        for number in (1, 2, 3):
            if not world.machines[f"n{number}"].running:
                await world.start(number, wait=False)
        await world.until(lambda: all(m.is_member or not m.running for m in machines), 60, "all are members, or ended")


@pytest.mark.parametrize("seed", range(6))
async def test_trouble_at_random(autojump_clock, seed: int) -> None:
    """Kills, restarts and cut links; at every moment an exclusive lock is held alone, and in the end all works."""
    rng = random.Random(seed)
    async with World(100 + seed, one_machine=False) as world:
        apps = await started(world)
        keys: list[tuple[int, int]] = []
        for _ in range(150):
            what, number = rng.random(), rng.randrange(1, 4)
            machine = world.machines[f"n{number}"]
            if what < 0.5 and machine.is_member:
                keys.append(apps.ask(number, wait=rng.random() < 0.7, exclusive=rng.random() < 0.7))
            elif what < 0.85 and keys:
                key = keys.pop(rng.randrange(len(keys)))
                if any(m.pid == key[0] and m.is_member for m in world.machines.values()):
                    apps.release(key)
            elif what < 0.88 and sum(m.is_member for m in world.machines.values()) == 3:
                world.kill(number)
            elif what < 0.95 and not machine.running:
                await world.start(number, wait=False)
            elif what < 0.97:
                world.net.cut(node_id(world, number), node_id(world, number % 3 + 1))
            else:
                world.net.heal_all()
            for _ in range(20):
                await trio.sleep(rng.choice([0.01, 0.05]))
                check_alone(world)
        granted = sum(answer == "granted" for answer in apps.told.values())
        world.net.heal_all()
        await all_back(world)
        for key in keys:
            if any(m.pid == key[0] for m in world.machines.values()):
                apps.release(key)
        last = apps.ask(1, wait=True)
        assert await apps.answer(last, 30) == "granted"
        assert granted > 4


def check_alone(world: World) -> None:
    locks = [lock for machine in world.machines.values() for lock in held(machine)]
    for disk in {disk for disk, _ in locks}:
        kinds = [exclusive for found, exclusive in locks if found == disk]
        assert len(kinds) == 1 or not any(kinds), world.describe()
