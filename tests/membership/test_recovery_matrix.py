"""A second failure in every phase of a recovery, whoever it hits: the whole matrix, in simulation (R5, 002-30).

Rows: the phase in which the recovery of a dead mount (or node) is held.  Columns: what happens then.  In the end all
who live work, no journal of the dead is left, and the world's invariants held throughout.
"""

from __future__ import annotations

import pytest
import trio

from membership.errors import MatrixError
from membership.orders import Rebuild, ReleaseGhosts, Replay, Resume, Suspend
from tests.membership.test_san_evictions import is_recovered, mounts_of
from tests.sim.membership.mounts import SimMount
from tests.sim.membership.world import World

pytestmark = pytest.mark.seed("002-10", "002-28", "002-30", "002-38")

PHASES: dict[str, type] = {
    "suspend": Suspend,
    "rebuild": Rebuild,
    "resume": Resume,
    "replay": Replay,
    "release": ReleaseGhosts,
}
COLD_PHASES: dict[str, type] = {"replay first": Replay, "release first": ReleaseGhosts}
FIRST_DEATHS = ["mount", "node"]
EVENTS = [
    "administrator's node", "administrator's matrixd", "replayer's mount", "replayer's node", "another mount",
    "another node", "both other mounts", "administrator frozen", "replayer's mount frozen", "a clean leave",
    "a mount joins", "a node joins", "the dead comes back",
]  # fmt: skip


def phases_now(world: World) -> list[str]:
    machines = world.administrators()
    return [fs.phase.value for m in machines for fs in m.node.core.filesystems.by_uuid.values()]


def administrator_of(world: World) -> int:
    return int(world.administrators()[0].name[1:])


def replayer_of(mounts: list[SimMount]) -> SimMount:
    return min((mount for mount in mounts if mount.alive), key=lambda mount: mount.machine.node.node_id)


def die_with_node(world: World, mount: SimMount) -> None:
    world.kill(int(mount.machine.name[1:]))


async def happen(world: World, event: str, mounts: list[SimMount]) -> None:
    """``mounts``: of nodes 1 to 4, by number; the fourth is the one that died."""
    replayer, administrator = replayer_of(mounts), administrator_of(world)
    others = [m for m in mounts if m.alive and m is not replayer]
    if event == "administrator's node":
        world.kill(administrator)
    elif event == "administrator's matrixd":
        world.kill_pid(world.machines[f"n{administrator}"].pid)
    elif event in ("replayer's mount", "replayer's node"):
        replayer.die() if event == "replayer's mount" else die_with_node(world, replayer)
    elif event in ("another mount", "another node"):
        others[-1].die() if event == "another mount" else die_with_node(world, others[-1])
    elif event == "both other mounts":
        others[0].die(), others[-1].die()
    elif event == "administrator frozen":
        next((m for m in mounts if m.alive and m.machine.name == f"n{administrator}"), replayer).freeze()
    elif event == "replayer's mount frozen":
        replayer.freeze()
    elif event == "a clean leave":
        others[-1].leave()
    elif event == "a mount joins":
        world._nursery.start_soon(join, world, 5)
    elif event == "a node joins":
        await world.start(6)
        world._nursery.start_soon(join, world, 6)
    elif event == "the dead comes back":
        if not mounts[3].machine.running:
            await world.start(4, wait=False)
            await world.until(lambda: world.machines["n4"].is_member, 30)
        world._nursery.start_soon(join, world, 4)


async def join(world: World, number: int) -> None:
    while True:
        try:
            await world.mount(number, wait=False)
            return
        except MatrixError:
            await trio.sleep(0.1)


def survivors_of(world: World) -> list[SimMount]:
    return [m for machine in world.machines.values() if machine.running for m in machine.mounts if m.alive]


async def run_case(seed: int, phase: str, first: str, event: str) -> None:
    async with World(seed) as world:
        mounts = await mounts_of(world, 4)
        await world.start(5)
        victim = mounts[3]
        world.held.add(PHASES[phase])
        victim.die() if first == "mount" else world.kill(4)
        await world.until(lambda: phases_now(world) == [phase], 10, phase)
        await trio.sleep(0.05)
        before = set(map(id, survivors_of(world)))
        await happen(world, event, mounts)
        await trio.sleep(1.0)
        world.release()
        try:
            await world.until(lambda: is_over(world, event, before), 40, "recovered")
        except BaseException:
            print(world.describe())
            raise
        check_journals(world)


def is_over(world: World, event: str, before: set[int]) -> bool:
    survivors = survivors_of(world)
    joined = [mount for mount in survivors if id(mount) not in before]
    if event in ("a mount joins", "a node joins", "the dead comes back") and not joined:
        return False
    frozen = any(mount.frozen for mount in survivors)
    return not world.mounting and not frozen and len(world.administrators()) == 1 and is_recovered(world, survivors)


def check_journals(world: World) -> None:
    """Every journal that is not clean is that of a living mount."""
    owners = {(m.machine.node.node_id, m.incarnation) for m in survivors_of(world)}
    assert {owner for owner in world.journals.values() if owner is not None} == owners


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("first", FIRST_DEATHS)
@pytest.mark.parametrize("phase", PHASES)
async def test_a_second_failure_in_every_phase(autojump_clock, phase: str, first: str, event: str) -> None:
    await run_case(60, phase, first, event)


@pytest.mark.parametrize("second", ["mount", "node", "matrixd"])
@pytest.mark.parametrize("phase", COLD_PHASES)
async def test_a_second_failure_of_a_cold_start(autojump_clock, phase: str, second: str) -> None:
    """All had died; the first mount that comes back dies too while it replays, and the next one does it all."""
    async with World(61) as world:
        await mounts_of(world, 2)
        world.kill(1), world.kill(2)
        await world.start(1, wait=False)
        await world.start(2, wait=False)
        await world.until(lambda: all(world.machines[f"n{n}"].is_member for n in (1, 2)), 30)
        world.held.add(COLD_PHASES[phase])
        first = await world.mount(1, wait=False)
        await world.until(lambda: phases_now(world) == [phase], 10, phase)
        if second == "mount":
            first.die()
        elif second == "node":
            world.kill(1)
        else:
            world.kill_pid(first.machine.pid)
            first.die()
        await trio.sleep(1.0)
        world.release()
        await world.until(lambda: world.machines["n2"].is_member and len(world.administrators()) == 1, 30)
        last = await world.mount(2)
        await world.until(lambda: is_recovered(world, [last]), 30)
        check_journals(world)


@pytest.mark.parametrize("victims", [(1, 2), (2, 3), (1, 3), (1, 4), (2, 4), (3, 4), (1, 2, 3), (2, 3, 4)])
async def test_several_die_at_one_instant(autojump_clock, victims: tuple[int, ...]) -> None:
    async with World(62) as world:
        await mounts_of(world, 4)
        for number in victims:
            world.kill(number)
        await world.until(lambda: len(world.administrators()) == 1 and is_recovered(world, survivors_of(world)), 60)
        assert len(survivors_of(world)) == 4 - len(victims)
        check_journals(world)
