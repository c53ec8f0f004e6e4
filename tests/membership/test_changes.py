"""Figure 12: a change of the naming reaches all, or the next administrator sees it through (002-43, 002-45, 002-46)."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import trio

from membership.commands.disks import disk_of_untrusted, disk_to_map
from membership.database.image import read_image
from membership.database.store import MembershipDatabase
from membership.effects import Outbox
from membership.errors import BadMessage, MatrixError, OperatorError
from membership.naming import Disk, Naming, check_areas, check_new_disk
from membership.san.changes import TRANSITIONS, NamingChange, NamingTaken, Step, StepEvent
from membership.san.header import make_header, read_header
from tests.sim.membership.world import LABEL, World

NEW = Disk(b"N" * 16, "new", "/dev/new", 1 << 30, b"F" * 16, "mail", (5, 1, 0))


def header(naming: int, *members: int):
    return make_header(LABEL.owner, 7, members=dict.fromkeys(members, 1), fencing={}, naming=naming)


# -- the table ---------------------------------------------------------------------------------------------------


@pytest.mark.seed("002-43")
def test_every_step_meets_every_event():
    assert set(TRANSITIONS) == set(itertools.product(Step, StepEvent))
    for step, event in TRANSITIONS:
        found = TRANSITIONS[step, event]
        if event is StepEvent.STORED:
            assert found is Step.STORED
        elif event is StepEvent.DEPOSED:
            assert found is Step.IDLE
        elif found is not step:
            assert (step, event) in {(Step.STORED, StepEvent.IN_FORCE), (Step.TELLING, StepEvent.HELD)}


@pytest.mark.seed("002-43")
def test_a_change_waits_for_a_header_and_for_every_member_of_it():
    out = Outbox()
    change = NamingChange(out)
    change.header_in_force(header(4, 1, 2))
    change.stored(Naming(5))
    change.look(header(4, 1, 2), {1: 5, 2: 5})
    assert not out.events  # no header names it yet
    change.header_in_force(header(4, 1, 2))
    assert change.step is Step.STORED
    change.header_in_force(header(5, 1, 2))
    change.look(header(5, 1, 2), {1: 5, 2: 4})
    assert change.waits_for(header(5, 1, 2), {1: 5, 2: 4}) == [2]
    assert not out.events
    change.look(header(5, 1), {1: 5, 2: 4})  # 2 was evicted meanwhile
    assert out.events == [NamingTaken(5)]
    assert (change.step, change.wanted) == (Step.IDLE, None)


# -- rules -------------------------------------------------------------------------------------------------------


def test_names_of_disks_and_filesystems_are_unique_and_areas_are_one_or_three():
    plain = dataclasses.replace(NEW, fs_name="", fs_uuid=b"")
    naming = Naming(3, (NEW, *(dataclasses.replace(plain, uuid=bytes([n]) * 16, name=f"d{n}") for n in range(3))))
    with pytest.raises(OperatorError, match="called 'new' already"):
        check_new_disk(naming, dataclasses.replace(NEW, uuid=b"X" * 16, fs_name="other"))
    with pytest.raises(OperatorError, match="filesystem 'mail' already"):
        check_new_disk(naming, dataclasses.replace(NEW, uuid=b"X" * 16, name="other"))
    for names in (["d0", "d1"], [], ["d0", "d0", "d1"], ["d0", "d1", "d2", "new"]):
        with pytest.raises(OperatorError, match="one disk, or three"):
            check_areas(naming, names)
    with pytest.raises(OperatorError, match="no disk of the cluster is called 'zzz'"):
        check_areas(naming, ["zzz"])
    assert len(check_areas(naming, ["d0", "d1", "d2"])) == 3
    with pytest.raises(OperatorError, match=r"no filesystem 'web' in this cluster \(it has: mail\)"):
        naming.by_filesystem("web")


def test_disks_in_messages_are_checked():
    assert disk_of_untrusted(disk_to_map(NEW)) == NEW
    for field, bad in (("uuid", b"x"), ("name", ""), ("name", "n" * 65), ("traits", [1, 2]), ("traits", [1, 2, -1]),
                       ("size_bytes", -1), ("fs_uuid", b"abc"), ("path", 7)):  # fmt: skip
        with pytest.raises(BadMessage):
            disk_of_untrusted({**disk_to_map(NEW), field: bad})


# -- whole clusters ----------------------------------------------------------------------------------------------


async def cluster(world: World, nodes: int = 3) -> None:
    for number in range(1, nodes + 1):
        await world.start(number, wait=False)
    machines = world.machines.values()
    await world.until(lambda: all(m.is_member for m in machines) and len(world.administrators()) == 1, 20)
    await world.until(lambda: all(m.node.core.naming.version for m in machines), 20)


def spare(world: World, area: int) -> dict:
    """A labelled disk as `matrixctl disk add` describes it."""
    label = world.labels[area]
    return {"disk": disk_to_map(Disk(label.disk_uuid, label.name, label.name, world.disk.size_bytes))}


def known(world: World, area: int) -> dict:
    """A disk as `matrixctl disk remove` names it."""
    return {"uuid": world.labels[area].disk_uuid}


async def stored(world: World, area: int = 0, *, committed: bool = False) -> Naming:
    image = await read_image(world.disks[area], LABEL.owner)
    assert image is not None
    database = MembershipDatabase.from_image_untrusted(image.content, "test")
    try:
        assert database.committed <= database.naming().version
        assert not committed or database.committed == database.naming().version
        return database.naming()
    finally:
        database.close()


@pytest.mark.seed("002-43", "002-45", "002-46", "002-47")
async def test_a_disk_is_added_and_removed_from_any_node_while_mounts_work(autojump_clock):
    async with World(81, spares=1) as world:
        await cluster(world)
        mounts = [await world.mount(number) for number in (1, 2, 3)]
        before = world.administrators()[0].node.core.admin.header.generation
        for machine in world.machines.values():
            await machine.node.command("disk.add", spare(world, 1))  # the second and third time: it is there already
        for machine in world.machines.values():
            assert [disk.name for disk in machine.node.core.naming.disks] == ["d1", "d2"]
            assert machine.node.disks.device(world.labels[1].disk_uuid) is not None
            assert machine.node.core.admin.header.generation == before + 1
            assert machine.node.core.admin.header.naming == machine.node.core.naming.version
            assert machine.node.core.naming == await stored(world)
        other = next(m for m in world.machines.values() if m not in world.administrators())
        await other.node.command("disk.remove", known(world, 1))
        assert [disk.name for disk in (await stored(world)).disks] == ["d1"]
        assert all(machine.node.disks.device(world.labels[1].disk_uuid) is None for machine in world.machines.values())
        assert all(mount.may_write() for mount in mounts)


async def test_what_must_not_be_removed_is_refused_with_the_reason(autojump_clock):
    async with World(82, spares=1) as world:
        await cluster(world)
        node = world.machines["n1"].node
        with pytest.raises(OperatorError, match="membership area"):
            await node.command("disk.remove", known(world, 0))
        await world.mount(2)
        with pytest.raises(OperatorError, match="web, which is mounted"):
            await node.command("disk.remove", known(world, 0))
        await node.command("disk.remove", known(world, 1))  # it is none: as it shall be
        with pytest.raises(BadMessage, match="uuid"):
            await node.command("disk.add", {"disk": {**spare(world, 1)["disk"], "uuid": b"x"}})
        with pytest.raises(OperatorError, match="knows no command 'disk.eat'"):
            await node.command("disk.eat", {})
        assert (await stored(world)).version == 1


@pytest.mark.seed("002-24", "002-43")
async def test_a_disk_that_an_application_has_locked_is_not_removed(autojump_clock):
    async with World(84, spares=1) as world:
        await cluster(world)
        node, other = world.machines["n1"].node, world.machines["n2"].node
        await node.command("disk.add", spare(world, 1))
        with other.disk_locks.asked("d2", "backup", exclusive=False, wait=True) as events:
            await events.receive()
            with pytest.raises(OperatorError, match=r"d2 is locked by an application \(backup\)"):
                await node.command("disk.remove", known(world, 1))
        await world.until(other.disk_locks.is_quiet, 2, "given up")
        await node.command("disk.remove", known(world, 1))
        gone = other.disk_locks.asked("d2", "x", exclusive=True, wait=True)
        with pytest.raises(OperatorError, match="called 'd2'"), gone:
            pytest.fail("there is no d2")


@pytest.mark.seed("002-42", "002-43", "002-46")
async def test_areas_move_from_one_disk_to_three_and_to_others_while_mounts_work(autojump_clock):
    async with World(83, spares=3) as world:
        await cluster(world)
        mounts = [await world.mount(number) for number in (1, 2, 3)]
        node = world.machines["n2"].node
        for area in (1, 2, 3):
            await node.command("disk.add", spare(world, area))
        await node.command("disk.areas", {"names": ["d1", "d2", "d3"]})
        for machine in world.machines.values():
            assert {area.disk for area in machine.node.areas.disks} == {world.labels[i].disk_uuid for i in (0, 1, 2)}
            assert len(machine.node.areas.groups) == 1
            machine.paths[1].cut("pulled")
        await trio.sleep(20)
        assert all(mount.may_write() for mount in mounts)
        world.kill(1)  # and elections still work
        await world.until(lambda: [m for m in world.administrators() if m.name != "n1"], 30)
        await world.machines["n3"].node.command("disk.areas", {"names": ["d1", "d3", "d4"]})
        machines = [machine for machine in world.machines.values() if machine.running]
        for machine in machines:
            assert {area.disk for area in machine.node.areas.disks} == {world.labels[i].disk_uuid for i in (0, 2, 3)}
        assert (await read_header(world.disks[3], LABEL.owner)).areas == (await stored(world, 3)).areas


@pytest.mark.seed("002-42", "002-44")
async def test_a_node_finds_the_areas_from_a_disk_that_has_none_any_more(autojump_clock):
    from membership.areas.bootstrap import find_areas

    async with World(84, spares=3) as world:
        await cluster(world)
        node = world.machines["n1"].node
        for area in (1, 2, 3):
            await node.command("disk.add", spare(world, area))
        await node.command("disk.areas", {"names": ["d2", "d3", "d4"]})
        late = world.machines["n2"]
        for first in (0, 3):
            disks = world.disks_of(late, [first])
            areas = await find_areas(disks, late.clock)
            assert {area.disk for area in areas.disks} == {world.labels[i].disk_uuid for i in (1, 2, 3)}
        for path in late.paths[2:]:
            path.cut("not attached")
        with pytest.raises(MatrixError, match="d3|d4"):
            await find_areas(world.disks_of(late, [0]), late.clock)


@pytest.mark.seed("002-43", "002-45")
@pytest.mark.parametrize("point", ["Change.1602", "Change.1604", "Change.1606", "Change.1608"])
@pytest.mark.parametrize("what", ["disk.add", "disk.areas", "disk.remove"])
async def test_an_administrator_killed_in_each_step_leaves_the_old_or_the_new(autojump_clock, point: str, what: str):
    async with World(85, spares=2) as world:
        await cluster(world)
        mounts = [await world.mount(number) for number in (1, 2, 3)]
        if what in ("disk.areas", "disk.remove"):
            for area in (1, 2):
                await world.machines["n1"].node.command("disk.add", spare(world, area))
        (admin,) = world.administrators()
        asker = next(machine for machine in world.machines.values() if machine is not admin)
        arguments = {
            "disk.add": spare(world, 1), "disk.remove": known(world, 2), "disk.areas": {"names": ["d1", "d2", "d3"]}
        }[what]  # fmt: skip
        reached = world.hold(admin, point)
        answers: list[object] = []

        async def ask() -> None:
            answers.append(await asker.node.command(what, arguments))

        world.start_soon(ask)
        await world.until(reached.is_set, 20, point)
        world.kill(int(admin.name[1:]))
        await world.until(lambda: answers, 60, "the next administrator answers")
        living = [machine for machine in world.machines.values() if machine is not admin]
        for machine in living:
            naming = machine.node.core.naming
            assert naming == await stored(world)
            assert machine.node.core.admin.header.naming == naming.version
            assert not naming.areas_before
            if what == "disk.areas":
                assert len(naming.areas) == 3
            else:
                assert [disk.name for disk in naming.disks] == ["d1", "d2"]
        await world.until(lambda: sum(mount.may_write() for mount in mounts) == 2, 30)
        again = await world.start(int(admin.name[1:]))
        await world.until(lambda: again.node.core.naming == living[0].node.core.naming, 20)


@pytest.mark.seed("002-43")
async def test_a_lease_that_lapses_before_1608_leaves_nothing_half_done(autojump_clock, monkeypatch):
    async with World(92, spares=1) as world:
        await cluster(world)
        (admin,) = world.administrators()
        asker = next(machine for machine in world.machines.values() if machine is not admin)
        await asker.node.command("disk.add", spare(world, 1))
        before, over, right = admin.node.core.naming.version, trio.Event(), admin.node.may_write
        refused: list[int] = []

        def may_write() -> bool:
            if admin.node.core.naming.version == before or over.is_set():
                return right()
            refused.append(admin.node.core.naming.version)
            return False

        async def ask() -> None:
            await asker.node.command("disk.remove", known(world, 1))
            answered.set()

        monkeypatch.setattr(admin.node, "may_write", may_write)
        answered = trio.Event()
        world.start_soon(ask)
        await world.until(lambda: len(refused) > 3, 20)
        assert not answered.is_set()
        over.set()
        await world.until(answered.is_set, 20)
        assert world.administrators() == [admin]
        naming = await stored(world, committed=True)
        assert [disk.name for disk in naming.disks] == ["d1"]


@pytest.mark.seed("002-43")
async def test_a_stopped_member_is_waited_for_until_it_is_evicted(autojump_clock):
    async with World(86, spares=1, one_machine=False) as world:
        await cluster(world)
        (admin,) = world.administrators()
        frozen = next(machine for machine in world.machines.values() if machine is not admin)
        frozen.freeze()
        began = trio.current_time()
        await admin.node.command("disk.add", spare(world, 1))
        assert trio.current_time() - began >= world.timing.link_dead - world.timing.heartbeat
        assert frozen.node.node_id not in admin.node.core.admin.header.members
        frozen.thaw()


@pytest.mark.seed("002-31", "002-36", "002-47")
async def test_a_fenced_node_stays_out_until_it_is_let_in(autojump_clock):
    async with World(87) as world:
        await cluster(world)
        (admin,) = world.administrators()
        victim, asker = (machine for machine in world.machines.values() if machine is not admin)
        mount = await world.mount(int(victim.name[1:]))
        found = await asker.node.command("node.fence", {"name": victim.name})
        assert "by process" in found["fence"]
        assert not mount.may_write()
        again = await world.start(int(victim.name[1:]), wait=False)
        await world.until(lambda: again.error is not None, 20)
        assert "fenced by the operator" in str(again.error)
        with pytest.raises(OperatorError, match="'n9' has ever been here"):
            await asker.node.command("node.unfence", {"name": "n9", "power_on": False})
        for _ in range(2):  # the second time it is so already
            await asker.node.command("node.unfence", {"name": victim.name, "power_on": False})
        await world.start(int(victim.name[1:]))


async def test_the_administrator_itself_can_be_fenced(autojump_clock):
    async with World(88) as world:
        await cluster(world)
        (admin,) = world.administrators()
        asker = next(machine for machine in world.machines.values() if machine is not admin)
        await asker.node.command("node.fence", {"name": admin.name})
        assert not admin.running
        assert "fenced" in str(admin.error)


@pytest.mark.seed("002-46")
async def test_a_removed_node_frees_its_slot_and_is_not_admitted(autojump_clock):
    async with World(89) as world:
        await cluster(world)
        (admin,) = world.administrators()
        gone = next(machine for machine in world.machines.values() if machine is not admin)
        with pytest.raises(OperatorError, match="is a member: stop it first"):
            await admin.node.command("node.remove", {"name": gone.name, "force": False})
        await gone.node.stop()
        await admin.node.command("node.remove", {"name": gone.name, "force": False})
        again = await world.start(int(gone.name[1:]), wait=False)
        await world.until(lambda: again.error is not None, 20)
        assert "removed from the cluster" in str(again.error)


@pytest.mark.seed("002-40", "002-44")
async def test_a_database_from_the_future_lets_nobody_old_become_administrator(autojump_clock):
    async with World(90) as world:
        await cluster(world)
        (admin,) = world.administrators()
        async with admin.node._parts.keeper.changing() as database:
            database._raw.execute("PRAGMA user_version = 99")
        world.kill(int(admin.name[1:]))
        await trio.sleep(30)
        assert not [machine for machine in world.administrators() if machine is not admin]
        events = [event["text"] for machine in world.machines.values() for event in machine.node.book.events]
        assert [text for text in events if "upgrade this node" in text]


@pytest.mark.seed("002-42", "002-44")
@pytest.mark.parametrize("hot", [True, False])
async def test_with_all_copies_of_the_database_damaged_it_is_made_anew_and_that_is_told(autojump_clock, hot: bool):
    from membership.database.image import slot_block
    from membership.label import BLOCK_BYTES

    async with World(91) as world:
        await cluster(world)
        version = world.administrators()[0].node.core.naming.version
        victims = [1, 2, 3] if not hot else [int(world.administrators()[0].name[1:])]
        for number in victims:
            world.kill(number)
        for slot in (0, 1):
            world.disk.corrupt(slot_block(slot) * BLOCK_BYTES + 200)
            world.disk.corrupt((slot_block(slot) + 1) * BLOCK_BYTES + 200)
        for number in victims:
            await world.start(number, wait=False)
        await world.until(lambda: all(m.is_member for m in world.machines.values()), 60)
        await world.until(lambda: all(m.node.core.naming.disks for m in world.machines.values()), 30)
        for machine in world.machines.values():
            assert [disk.name for disk in machine.node.core.naming.disks] == ["d1"]
            assert machine.node.core.naming.version > version or hot
