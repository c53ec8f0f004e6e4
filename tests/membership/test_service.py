"""Whole clusters of matrixds in simulation: formation, failure, partition, restart, recovery (R2)."""

from __future__ import annotations

import pytest
import trio

from membership.errors import Fenced, OperatorError, PeerError
from membership.label import timing_of
from membership.orders import Rebuild, ReleaseGhosts, Replay, Resume, Suspend
from membership.relay import MountAnswer
from tests.sim.membership.scenario import run_seed
from tests.sim.membership.world import FS, LABEL, World

TIMING = timing_of(LABEL)


async def cluster(world: World, nodes: int = 3) -> None:
    for number in range(1, nodes + 1):
        await world.start(number, wait=False)
    await world.until(lambda: all(m.is_member for m in world.machines.values()), 10, "all are members")
    await world.until(lambda: len(world.administrators()) == 1, 5, "one administrator")
    await world.until(lambda: len({m.node.core.group.view.number for m in world.machines.values()}) == 1, 5, "one view")


def number_of(machine) -> int:
    return int(machine.name[1:])


@pytest.mark.seed("002-26", "002-27", "002-36", "002-39")
async def test_three_nodes_form_one_view_with_one_administrator(autojump_clock):
    async with World(1) as world:
        await cluster(world)
        statuses = [m.node.status() for m in world.machines.values()]
        assert len({tuple(s["memberships"]["group"]) for s in statuses}) == 1
        assert len({(s["administrator"], s["generation"], s["coordinator"], s["view"]) for s in statuses}) == 1
        assert len(statuses[0]["memberships"]["san"]) == 3
        lowest = next(m for m in world.machines.values() if m.address == "10.0.0.1")
        assert statuses[0]["coordinator"] == lowest.node.node_id


@pytest.mark.seed("002-26")
async def test_four_memberships_differ(autojump_clock):
    async with World(2) as world:
        await cluster(world)
        await world.mount(1)
        await world.mount(2)
        world.kill(3)
        administrator = None

        def recovered() -> bool:
            nonlocal administrator
            administrator = next(iter(world.administrators()), None)
            return administrator is not None and not administrator.node.core.admin.header.fencing

        await world.until(recovered, 20)
        await world.until(lambda: len(administrator.node.status()["memberships"]["san"]) == 2, 10)
        memberships = administrator.node.status()["memberships"]
        assert len(memberships["cluster"]) == 3
        assert len(memberships["group"]) == len(memberships["san"]) == 2
        assert len(memberships["storage_groups"][FS.hex()]) == 2


@pytest.mark.seed("002-38", "002-40", "002-41", "002-45")
async def test_killed_administrator_is_replaced_with_a_greater_generation(autojump_clock):
    async with World(3) as world:
        await cluster(world)
        old = world.administrators()[0]
        generation = old.node.generation
        world.kill(number_of(old))
        took = await world.until(
            lambda: [m for m in world.administrators() if m is not old and not m.node.core.admin.header.fencing], 5
        )
        assert took < 0.5
        assert world.administrators()[0].node.generation > generation
        assert world.administrators()[0].node.status()["fences"][-1]["confirmed"]


@pytest.mark.seed("002-10", "002-29", "002-30")
async def test_recovery_orders_come_in_r5_order_after_the_fence(autojump_clock):
    async with World(4) as world:
        await cluster(world)
        for number in (1, 2, 3):
            await world.mount(number)
        world.notes.clear()
        victim = world.machines["n3"]
        victim_id = victim.node.node_id
        start = trio.current_time()
        world.kill(3)
        await world.until(lambda: len([n for n in world.notes if isinstance(n[3], ReleaseGhosts)]) == 2, 5)
        orders = [n for n in world.notes if not isinstance(n[3], str)]
        assert orders[-1][0] - start < 0.2  # virtual: LinkDown(refused) to the last order
        position = {Suspend: 0, Rebuild: 1, Resume: 2, Replay: 3, ReleaseGhosts: 4}
        last = max(n[3].attempt for n in orders)
        ranks = [position[type(n[3])] for n in orders if n[3].attempt == last]
        assert sorted(ranks) == [0, 0, 1, 1, 2, 2, 3, 4, 4]
        for node in {n[1] for n in orders}:
            own = [position[type(n[3])] for n in orders if n[1] == node and n[3].attempt == last]
            assert own == sorted(own)
        replay = next(n[3] for n in orders if isinstance(n[3], Replay))
        assert replay.dead.node == victim_id
        fenced = [f for m in world.administrators() for f in m.node.status()["fences"]]
        assert [f["node"] for f in fenced if f["confirmed"]] == [victim_id]


async def test_survivors_are_granted_while_a_replay_is_held_open(autojump_clock):
    async with World(5) as world:
        await cluster(world)
        mounts = [await world.mount(number) for number in (1, 2, 3)]
        hold = trio.Event()
        for mount in mounts:
            mount.hold_replay = hold
        world.kill(3)
        await world.until(lambda: any(isinstance(n[3], Replay) for n in world.notes), 5)
        assert mounts[0].may_write()
        assert mounts[1].may_write()
        await trio.sleep(30)  # R6: no stall, no time-out, for the length of a replay
        assert mounts[0].may_write()
        hold.set()
        await world.until(lambda: len([n for n in world.notes if isinstance(n[3], ReleaseGhosts)]) == 2, 5)


async def test_dead_mount_process_is_recovered_without_a_fence(autojump_clock):
    async with World(6) as world:
        await cluster(world)
        mounts = [await world.mount(number) for number in (1, 2)]
        mounts[0].die()
        await world.until(lambda: any(isinstance(n[3], ReleaseGhosts) for n in world.notes), 5)
        assert not any(m.node.status()["fences"] for m in world.machines.values())
        assert world.machines["n1"].is_member
        again = await world.mount(1)
        assert again.journal == 0


async def test_clean_unmount_frees_the_journal_without_replay(autojump_clock):
    async with World(7) as world:
        await cluster(world)
        first, _ = [await world.mount(number) for number in (1, 2)]
        first.leave()
        await trio.sleep(1)
        assert not any(isinstance(n[3], Replay) for n in world.notes)
        assert (await world.mount(3)).journal == 0


@pytest.mark.seed("002-12", "002-22")
async def test_minority_stops_before_the_majority_acts(autojump_clock):
    """Many machines: only the lease fence works, so the order is proved by time alone (R4)."""
    async with World(8, one_machine=False) as world:
        await cluster(world)
        mounts = {number: await world.mount(number) for number in (1, 2, 3)}
        ids = {m.name: m.node.node_id for m in world.machines.values()}
        world.notes.clear()
        world.net.partition({ids["n1"], ids["n2"]}, {ids["n3"]})
        stopped_at = []

        async def watch() -> None:
            await world.until(lambda: not mounts[3].may_write(), 30)
            stopped_at.append(trio.current_time())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            await world.until(lambda: any(isinstance(n[3], Rebuild) for n in world.notes), 60)
        acted_at = next(n[0] for n in world.notes if isinstance(n[3], Suspend))
        assert stopped_at[0] < acted_at
        assert isinstance(world.machines["n3"].error, Fenced)
        assert world.machines["n1"].is_member
        assert world.machines["n2"].is_member
        await world.until(mounts[1].may_write, 5)


@pytest.mark.parametrize("one_machine", [True, False])
async def test_two_nodes_with_the_link_cut_exactly_one_survives(autojump_clock, one_machine):
    async with World(9, one_machine=one_machine) as world:
        await cluster(world, 2)
        ids = [m.node.node_id for m in world.machines.values()]
        world.net.cut(*ids)
        await world.until(lambda: sum(m.running for m in world.machines.values()) == 1, 30)
        await trio.sleep(30)
        assert [m.name for m in world.machines.values() if m.is_member] == ["n1"]  # exactly half: the lowest address
        assert len(world.administrators()) == 1


async def test_half_cut_triangle_keeps_a_majority(autojump_clock):
    async with World(10) as world:
        await cluster(world)
        ids = {m.name: m.node.node_id for m in world.machines.values()}
        world.net.cut(ids["n1"], ids["n2"])  # both still hear n3
        await world.until(lambda: sum(m.running for m in world.machines.values()) == 2, 30)
        assert world.machines["n1"].is_member
        assert world.machines["n3"].is_member


async def test_losing_the_disk_path_ends_a_node_and_the_others_go_on(autojump_clock):
    async with World(11, one_machine=False) as world:
        await cluster(world)
        mount = await world.mount(3)
        world.machines["n3"].paths[0].cut("no path")
        took = await world.until(lambda: not mount.may_write(), 20)
        assert took <= TIMING.lease
        await world.until(lambda: isinstance(world.machines["n3"].error, Fenced), 20)
        assert "evicted" in str(world.machines["n3"].error)
        await world.until(lambda: [len(m.node.core.admin.header.members) for m in world.administrators()] == [2], 30)


@pytest.mark.seed("002-36", "002-37")
async def test_killed_node_rejoins_with_a_new_incarnation(autojump_clock):
    async with World(12) as world:
        await cluster(world)
        await world.mount(1), await world.mount(2)
        old = world.machines["n2"].node
        world.kill(2)
        again = await world.start(2)
        assert again.node.node_id == old.node_id
        assert again.node.incarnation != old.incarnation
        await world.until(lambda: any(isinstance(n[3], ReleaseGhosts) for n in world.notes), 10)
        mount = await world.mount(2)
        assert mount.may_write()


async def test_cold_start_of_a_single_node_after_all_died(autojump_clock):
    async with World(13) as world:
        await cluster(world)
        for number in (1, 2, 3):
            await world.mount(number)
        generation = world.machines["n1"].node.generation
        for number in (1, 2, 3):
            world.kill(number)
        world.notes.clear()
        await world.start(2)
        await world.mount(2)
        kinds = [type(n[3]) for n in world.notes if not isinstance(n[3], str)]
        assert kinds.count(Replay) == 3
        assert kinds.index(Resume) > max(i for i, k in enumerate(kinds) if k is Replay)
        assert world.machines["n2"].node.generation > generation


async def test_second_node_of_the_same_name_is_refused(autojump_clock):
    async with World(14) as world:
        await cluster(world, 2)
        first = world.machines.pop("n1")
        twin = await world.start(1, wait=False)
        await world.until(lambda: not twin.running, 20)
        assert isinstance(twin.error, OperatorError)
        assert "already running" in str(twin.error)
        assert first.is_member


async def test_second_node_of_the_same_name_on_another_machine_is_refused(autojump_clock):
    async with World(15, one_machine=False) as world:
        await cluster(world, 2)
        first = world.machines.pop("n1")
        twin = await world.start(1, wait=False, host=77)
        await world.until(lambda: not twin.running, 20)
        assert "already running" in str(twin.error)
        assert first.is_member


async def test_clean_stop_is_refused_with_mounts_and_leaves_without_a_fence(autojump_clock):
    async with World(16) as world:
        await cluster(world)
        administrator = world.administrators()[0]
        mount = await world.mount(number_of(administrator))
        with pytest.raises(OperatorError, match="unmount"):
            await administrator.node.stop()
        mount.leave()
        await administrator.node.stop()
        await world.until(lambda: not administrator.running, 5)
        assert administrator.error is None
        took = await world.until(lambda: len(world.administrators()) == 1, 10)
        assert took < 1
        survivor = world.administrators()[0].node
        assert not survivor.status()["fences"]
        assert len(survivor.core.admin.header.members) == 2
        back = await world.start(number_of(administrator))
        assert back.node.node_id == administrator.node.node_id


async def test_last_node_stops_cleanly_and_the_next_starts_without_a_fence(autojump_clock):
    async with World(17) as world:
        await cluster(world, 1)
        await world.machines["n1"].node.stop()
        await world.until(lambda: not world.machines["n1"].running, 5)
        second = await world.start(2)
        assert not second.node.status()["fences"]


async def test_admission_is_refused_before_membership_and_twice(autojump_clock):
    async with World(18) as world:
        await cluster(world, 1)
        await world.mount(1)
        with pytest.raises(OperatorError, match="already mounted on this node"):
            await world.mount(1)
        node = world.machines["n1"].node
        node.core.admin.is_leaving = True
        with pytest.raises(PeerError, match="not a member"):
            await world.mount(1)


async def test_slot_shows_a_mount_before_it_is_admitted(autojump_clock):
    async with World(19) as world:
        await cluster(world, 2)
        mount = await world.mount(1)
        seen = world.machines["n2"].node.core.watch
        await trio.sleep(2 * TIMING.renew)
        slot = seen.sights[world.machines["n1"].node.node_id].slot
        assert [m.pid for m in slot.mounts] == [mount.pid]


async def test_unconfirmed_fence_recovers_nothing(autojump_clock):
    async with World(20) as world:
        await cluster(world)
        await world.mount(1), await world.mount(3)

        async def refuse(target, evicted_at):
            from membership.san.fence import FenceResult

            await trio.sleep(0.1)
            return FenceResult(False, "process", "permission denied")

        for machine in world.machines.values():
            for driver in machine.node._fences:
                driver.fence = refuse
        world.notes.clear()
        world.kill(3)
        await trio.sleep(20)
        assert not [n for n in world.notes if not isinstance(n[3], str)]
        administrator = world.administrators()[0].node
        assert any("nothing of it is recovered" in e["text"] for e in administrator.status()["events"])
        assert [fs["phase"] for fs in administrator.status()["filesystems"]] == ["waiting for fence"]


async def test_status_works_in_every_state(autojump_clock):
    async with World(21) as world:
        machine = await world.start(1, wait=False)
        assert machine.node.status()["state"] == "starting"
        await world.until(lambda: machine.is_member, 10)
        status = machine.node.status()
        assert status["state"] == "member"
        assert 0 < status["lease_left"] <= TIMING.lease
        assert "= 7 s" in status["timing"]["formula"]
        await machine.node.stop()
        assert machine.node.status()["state"] == "leaving"


@pytest.mark.parametrize("seed", range(100, 108))
def test_random_faults_then_progress(seed):
    run_seed(seed)


async def test_any_node_asks_the_mounts_of_all(autojump_clock):
    async with World(31) as world:
        await cluster(world)
        for machine in world.machines.values():
            machine.node.relay.answerer = _answers_for(machine.name)
        node = world.machines["n2"].node
        names = node.reachable()
        assert sorted(names.values()) == ["n1", "n2", "n3"]
        found = await node.relay.ask(node.node_id, list(names), "who", b"")
        assert {names[each]: answers[0].filesystem for each, answers in found.items()} == {
            "n1": "n1", "n2": "n2", "n3": "n3",
        }  # fmt: skip
        world.kill(3)
        found = await node.relay.ask(node.node_id, list(names), "who", b"")
        assert [names[each] for each, answers in found.items() if answers is None] == ["n3"]


def _answers_for(name: str):
    async def answer(_what: str, _arguments: bytes) -> list[MountAnswer]:
        await trio.lowlevel.checkpoint()
        return [MountAnswer(name, "/mnt", 1, b"")]

    return answer


@pytest.mark.seed("002-12", "002-16", "002-22")
async def test_a_store_that_is_gone_for_all_pauses_the_cluster_and_does_not_kill_it(autojump_clock):
    async with World(71) as world:
        await cluster(world)
        mounts = [await world.mount(number) for number in (1, 2, 3)]
        generation = world.machines["n1"].node.core.admin.header.generation
        for machine in world.machines.values():
            machine.paths[0].cut("array maintenance")
        await world.until(lambda: not any(mount.may_write() for mount in mounts), TIMING.lease + 0.1)
        await trio.sleep(600)
        assert all(machine.running for machine in world.machines.values())
        for machine in world.machines.values():
            machine.paths[0].mend()
        took = await world.until(lambda: all(mount.may_write() for mount in mounts), 10)
        assert took <= 2 * TIMING.renew
        assert {m.node.core.admin.header.generation for m in world.machines.values()} == {generation}


@pytest.mark.seed("002-16", "002-38", "002-40")
async def test_an_administrator_without_the_store_is_replaced_and_goes(autojump_clock):
    async with World(72, one_machine=False) as world:
        await cluster(world)
        for number in (1, 2, 3):
            await world.mount(number)
        (admin,) = world.administrators()
        others = [machine for machine in world.machines.values() if machine is not admin]
        admin.paths[0].cut("no path")
        await world.until(lambda: isinstance(admin.error, Fenced), 30)
        await world.until(lambda: {m.name for m in world.granting_machines()} == {m.name for m in others}, 30)
        assert [m.name for m in world.administrators()][0] in {m.name for m in others}


async def test_nobody_is_evicted_when_the_store_comes_back_to_one_after_the_other(autojump_clock):
    async with World(73) as world:
        await cluster(world)
        mounts = [await world.mount(number) for number in (1, 2, 3)]
        for machine in world.machines.values():
            machine.paths[0].cut("maintenance")
        await trio.sleep(60)
        for number in (3, 2, 1):
            world.machines[f"n{number}"].paths[0].mend()
            await trio.sleep(3)
        await world.until(lambda: all(mount.may_write() for mount in mounts), 10)
        assert all(machine.running for machine in world.machines.values())
