"""Mounts that others would wait for in vain are evicted, and only those: whole clusters, in simulation (R2, R5, R9)."""

from __future__ import annotations

import itertools
import random

import pytest
import trio

from membership.label import timing_of
from membership.messages import ReplyFrom
from membership.orders import LinkLost, Rebuild, ReleaseGhosts, Stuck, reply_to_dict
from membership.san.evictions import Expel
from membership.san.lost_links import ATTEMPTS_MAX, COLLECT_SECONDS, LostLinks
from membership.seams import PeerAddress
from tests.membership.test_san_recovery import FS, mounted
from tests.sim.membership.mounts import SimMount
from tests.sim.membership.world import LABEL, World

TIMING = timing_of(LABEL)
pytestmark = pytest.mark.seed("002-10", "002-28", "002-30")


async def mounts_of(world: World, nodes: int = 3) -> list[SimMount]:
    for number in range(1, nodes + 1):
        await world.start(number, wait=False)
    await world.until(lambda: all(m.is_member for m in world.machines.values()), 10, "all are members")
    await world.until(lambda: len(world.administrators()) == 1, 5, "one administrator")
    mounts = [await world.mount(number) for number in range(1, nodes + 1)]
    await world.until(lambda: is_recovered(world, mounts), 5, "all work")
    return mounts


def is_recovered(world: World, survivors: list[SimMount]) -> bool:
    nodes = sorted(node_id(mount) for mount in survivors)
    return sorted(map(id, world.granting())) == sorted(map(id, survivors)) and [
        (fs.phase.value, list(fs.dead), sorted(fs.members))
        for machine in world.administrators()
        for fs in machine.node.core.filesystems.by_uuid.values()
    ] == [("idle", [], nodes)]


def node_id(mount: SimMount) -> int:
    return mount.machine.node.node_id


# --- frozen mounts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("one_machine", [True, False])
@pytest.mark.parametrize("victim", range(3))
async def test_a_frozen_mount_is_evicted_by_the_administrator(autojump_clock, victim: int, one_machine: bool) -> None:
    """Whichever node it is on, the administrator's too; no fence, no new generation, all nodes stay."""
    async with World(40 + victim, one_machine=one_machine) as world:
        mounts = await mounts_of(world)
        generation = world.administrators()[0].node.generation
        began = trio.current_time()
        mounts[victim].freeze()
        survivors = [mount for mount in mounts if mount is not mounts[victim]]
        await world.until(lambda: not mounts[victim].alive and is_recovered(world, survivors), 10)
        assert TIMING.link_dead <= trio.current_time() - began < TIMING.link_dead + 1.5
        assert all(machine.is_member for machine in world.machines.values())
        assert world.administrators()[0].node.generation == generation
        await trio.sleep(0.1)  # the administrator tells the others
        statuses = [machine.node.status() for machine in world.machines.values()]
        assert not any(status["fences"] for status in statuses)
        recovered = [status["recoveries"][-1] for status in statuses]
        assert [r["phases"] for r in recovered] == [recovered[0]["phases"]] * 3
        phases = dict(recovered[0]["phases"])
        assert list(phases) == ["detect", "fence", "suspend", "rebuild", "resume", "replay", "release"]
        assert TIMING.link_dead <= phases["detect"] < TIMING.link_dead + 1


async def test_a_mount_that_is_frozen_for_a_moment_stays(autojump_clock) -> None:
    async with World(44) as world:
        mounts = await mounts_of(world)
        for _ in range(10):
            mounts[1].freeze()
            await trio.sleep(TIMING.link_dead - 3 * 0.25)
            mounts[1].thaw()
            await trio.sleep(1)
        assert all(mount.alive for mount in mounts)


async def test_all_mounts_frozen_at_once_are_all_evicted(autojump_clock) -> None:
    async with World(45) as world:
        mounts = await mounts_of(world)
        for mount in mounts:
            mount.freeze()
        await world.until(lambda: not any(mount.alive for mount in mounts), 10)
        again = await world.mount(2)
        assert again.may_write()


@pytest.mark.parametrize("victim", [0, 2])
async def test_a_mount_that_can_not_be_killed_costs_its_node(autojump_clock, victim: int) -> None:
    """Its matrixd does not end it within the dead time: the node goes, the administrator's own too, by time (R4)."""
    async with World(46) as world:
        mounts = await mounts_of(world)
        machine = mounts[victim].machine
        mounts[victim].immortal = True
        mounts[victim].freeze()
        survivors = [mount for mount in mounts if mount is not mounts[victim]]
        await world.until(lambda: not machine.running, 30)
        await world.until(lambda: is_recovered(world, survivors), 30)
        fences = [fence for m in world.administrators() for fence in m.node.status()["fences"] if fence["confirmed"]]
        assert [fence["driver"] for fence in fences] == ["lease"]


async def test_a_mount_is_frozen_while_another_death_is_recovered(autojump_clock) -> None:
    async with World(47) as world:
        mounts = await mounts_of(world)
        mounts[2].die()
        mounts[1].freeze()
        await world.until(lambda: is_recovered(world, mounts[:1]), 10)
        dead = {n[3].node for n in world.notes if isinstance(n[3], ReleaseGhosts)}
        assert dead == {node_id(mounts[1]), node_id(mounts[2])}


async def test_the_administrator_dies_while_it_evicts(autojump_clock) -> None:
    """The next one hears the complaint, too."""
    async with World(48) as world:
        mounts = await mounts_of(world)
        administrator = world.administrators()[0]
        victim = next(mount for mount in mounts if mount.machine is not administrator)
        victim.freeze()
        await trio.sleep(TIMING.link_dead - 0.1)
        world.kill(int(administrator.name[1:]))
        survivors = [m for m in mounts if m is not victim and m.machine is not administrator]
        await world.until(lambda: not victim.alive and is_recovered(world, survivors), 20)


# --- lost links ---------------------------------------------------------------------------------------------

LINKS = [
    # nodes, links that are cut (numbers of mounts), who must go
    (2, [(0, 1)], {1}),  # the one that would stay if the nodes were cut apart stays
    (3, [(0, 1)], {1}),
    (3, [(1, 2)], {2}),
    (3, [(0, 1), (0, 2)], {0}),  # the larger part stays
    (3, [(0, 2), (1, 2)], {2}),
    (3, [(0, 1), (0, 2), (1, 2)], {1, 2}),
    (4, [(0, 1), (0, 2), (0, 3)], {0}),
    (4, [(0, 2), (0, 3), (1, 2), (1, 3)], {2, 3}),  # two halves
]


@pytest.mark.parametrize(("nodes", "cuts", "gone"), LINKS)
async def test_a_link_that_stays_lost_ends_one_mount(autojump_clock, nodes: int, cuts: list, gone: set) -> None:
    async with World(50) as world:
        mounts = await mounts_of(world, nodes)
        world.lock_cuts = {frozenset((node_id(mounts[a]), node_id(mounts[b]))) for a, b in cuts}
        began = trio.current_time()
        one, other = cuts[0]
        attempt = mounts[one].attempt
        mounts[one].channel.reply(LinkLost(attempt, node_id(mounts[other])))
        survivors = [mount for number, mount in enumerate(mounts) if number not in gone]
        await world.until(lambda: is_recovered(world, survivors), 20)
        assert trio.current_time() - began < (ATTEMPTS_MAX + 2) * (COLLECT_SECONDS + 1)
        assert {number for number, mount in enumerate(mounts) if not mount.alive} == gone
        assert all(machine.is_member for machine in world.machines.values())


async def test_a_link_that_comes_back_ends_nobody(autojump_clock) -> None:
    async with World(51) as world:
        mounts = await mounts_of(world)
        for _ in range(5):
            world.lock_cuts = {frozenset((node_id(mounts[0]), node_id(mounts[1])))}
            mounts[0].channel.reply(LinkLost(mounts[0].attempt, node_id(mounts[1])))
            await trio.sleep((ATTEMPTS_MAX - 1) * COLLECT_SECONDS)
            world.lock_cuts = set()
            await world.until(lambda: is_recovered(world, mounts), 10)
        assert all(mount.alive for mount in mounts)


@pytest.mark.parametrize("seed", range(20))
def test_the_verdict_leaves_a_part_that_is_whole(seed: int) -> None:
    """Any graph: nobody goes who misses nobody, no link among those who stay is lost, and it is the same everywhere."""
    rng = random.Random(seed)
    nodes = rng.sample(range(64), rng.randint(2, 8))
    addresses = {node: PeerAddress(node, 1, f"10.0.0.{node}", 9) for node in nodes}
    lost = [pair for pair in itertools.combinations(sorted(nodes), 2) if rng.random() < 0.4]
    verdicts = []
    for order in (lost, lost[::-1]):
        links = LostLinks()
        for _ in range(ATTEMPTS_MAX):
            assert links.verdict(addresses) == []
            for one, other in order:
                links.lost(other, one, 0.0, counts=True)
            links.begin()
        verdicts.append(links.verdict(addresses))
    assert verdicts[0] == verdicts[1]
    going = set(verdicts[0])
    assert all(set(pair) & going for pair in lost)
    assert going <= {node for pair in lost for node in pair}


def test_refusals_and_completed_attempts_do_not_count() -> None:
    addresses = {node: PeerAddress(node, 1, f"10.0.0.{node}", 9) for node in (0, 1)}
    links = LostLinks()
    for _ in range(10 * ATTEMPTS_MAX):
        links.lost(0, 1, 0.0, counts=False)
        links.begin()
    for _ in range(10):
        for _ in range(ATTEMPTS_MAX - 1):
            links.lost(0, 1, 0.0, counts=True)
            links.begin()
        links.completed()
    assert links.verdict(addresses) == []


# --- one administrator, alone ----------------------------------------------------------------------------------


def evicts(bench, node: int) -> list[str]:
    return [kind for n, kind in bench.trace if n == node and kind == "Evict"]


def test_a_complaint_evicts_once_and_is_told_until_the_mount_is_gone() -> None:
    bench = mounted()
    for _ in range(5):
        bench.agents[1][0].reply(FS, 11, Stuck("frozen", 3.0))
        bench.settle()
    assert len(evicts(bench, 1)) == 1
    assert not [kind for _, kind in bench.trace if kind != "Evict"]  # nothing else begins before it is gone
    bench.fs.tick(bench.now + 1)
    bench.settle()
    assert len(evicts(bench, 1)) == 2
    bench.left(1, clean=False)
    bench.trace.clear()
    bench.fs.tick(bench.now + 10)
    bench.settle()
    assert not evicts(bench, 1)
    assert 1 not in bench.web.members


COMPLAINTS = [
    ("of another life of the mount", 1, 99, reply_to_dict(Stuck("x", 3.0))),
    ("without a reason", 1, 11, {"reply": "stuck"}),
    ("of a reason too long", 1, 11, {"reply": "stuck", "reason": "x" * 2000, "seconds": 3.0}),
    ("of a node without a mount", 3, 13, reply_to_dict(Stuck("x", 3.0))),
    ("of a filesystem nobody knows", 1, 11, None),
]


@pytest.mark.parametrize("case", COMPLAINTS, ids=[case[0] for case in COMPLAINTS])
def test_complaints_that_evict_nobody(case) -> None:
    _, node, incarnation, reply = case
    bench = mounted()
    uuid = FS if reply is not None else b"Z" * 16
    bench.fs.receive(node, ReplyFrom(uuid, incarnation, reply or reply_to_dict(Stuck("x", 3.0))), bench.now)
    bench.settle()
    assert not [kind for _, kind in bench.trace if kind == "Evict"]
    assert bench.web.phase.value == "idle"


def test_a_node_that_does_not_obey_is_given_up_once() -> None:
    bench = mounted()
    bench.agents[1][0].reply(FS, 11, Stuck("frozen", 3.0))
    bench.settle()
    began = bench.now
    for seconds in (1.0, 3.0, 6.4):
        bench.fs.tick(began + seconds)
    bench.settle()
    assert not [event for event in bench.events if isinstance(event, Expel)]
    for seconds in (7.1, 8.0, 9.0):
        bench.fs.tick(began + seconds)
    bench.settle()
    assert [event.node for event in bench.events if isinstance(event, Expel)] == [1]


def test_a_mount_that_died_meanwhile_and_came_back_is_not_evicted() -> None:
    bench = mounted()
    bench.agents[1][0].reply(FS, 11, Stuck("frozen", 3.0))
    bench.settle()
    bench.left(1, clean=False)
    bench.mount(1, incarnation=500)
    bench.trace.clear()
    bench.fs.tick(bench.now + 100)
    bench.settle()
    assert not evicts(bench, 1)
    assert bench.web.members[1].address.incarnation == 500


def test_the_orders_of_an_eviction_and_of_recovery_do_not_mix() -> None:
    """A second mount is evicted while the first one's recovery rebuilds."""
    bench = mounted()
    bench.held.add(Rebuild)
    bench.left(2, clean=False)
    bench.agents[1][0].reply(FS, 11, Stuck("frozen", 3.0))
    bench.settle()
    assert len(evicts(bench, 1)) == 1
    bench.held.clear()
    bench.left(1, clean=False)
    assert bench.web.phase.value == "idle"
    assert sorted(bench.web.members) == [0]
