"""matrixd's part in the fence by reservations: which disks it is registered with, when, and what it answers mounts."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import trio

from membership.areas.quorum import Area, Areas
from membership.disks import ClusterDisks, FoundFilesystem, OpenDisk
from membership.errors import CorruptRecord, DeviceError, Fenced
from membership.fence.keys import CLAIMANT, key_of
from membership.fence.registration import State
from membership.fence.reservations import Lun, LunTraits
from membership.label import BLOCK_BYTES, Label, Timing
from membership.lease.area import write_slot
from membership.lease.core import LeaseState
from membership.lease.records import HeartbeatSlot, MountProcess, slot_block
from membership.naming import Disk, Naming
from membership.node_events import EventBook
from membership.presence import Landing
from membership.san.header import make_header, write_header
from membership.san.roles import Role
from membership.storage import KEEP_SECONDS, NodeStorage, Reach, without_reservations
from tests.sim.disk import SimDisk
from tests.sim.lun import CONFORMING, ISTGT, TGT, Quirks, SimLun, SimNexus, traits_of
from tests.sim.network import SimClock

CLUSTER = b"C" * 16
ME, OURS, MOUNT = 5, 0x51, 0x52
TIMING = Timing(heartbeat=0.25, link_dead=2.5, renew=0.5, lease=3.5, io_bound=2.0, margin=1.0)


@dataclass
class FakeLease:
    state: LeaseState = LeaseState.OUT


@dataclass
class FakeAdmin:
    role: Role = Role.ADMIN
    header: object = field(default_factory=lambda: make_header(CLUSTER, 1, members={ME: OURS}, fencing={}))


class FakeWatch:
    def alive(self, now: float) -> frozenset[int]:
        return frozenset({ME})


@dataclass
class FakeCore:
    lease: FakeLease = field(default_factory=FakeLease)
    admin: FakeAdmin = field(default_factory=FakeAdmin)
    watch: FakeWatch = field(default_factory=FakeWatch)


class World:
    """A node with LUNs; ``disks`` are opened by hand."""

    def __init__(self, *quirks: Quirks) -> None:
        self.luns = [
            SimLun(SimDisk(8 << 20, seed=i, latency=(0.001, 0.002), name=f"lun{i}"), each)
            for i, each in enumerate(quirks)
        ]
        self.clock = SimClock()
        self.book = EventBook(self.clock)
        self.disks = ClusterDisks(CLUSTER, None, self.clock, self.book.log)  # type: ignore[arg-type]
        self.areas = Areas(CLUSTER, [Area(bytes([0]) * 16, None)], self.clock)
        self.core: FakeCore | None = None
        self.timing = TIMING
        self.incarnation = OURS
        self.lost: list[str] = []
        self.storage = NodeStorage(self, self.reach)  # type: ignore[arg-type]

    def lose(self, reason: str) -> None:
        self.lost.append(reason)

    def may_write(self) -> bool:
        return True

    def reach(self, device: SimNexus, traits: LunTraits, returning: object) -> Reach:
        return Reach(Lun(device.lun.disk.media_name, device, traits), device, is_local=False)

    def open(self, i: int, name: str = "matrixd") -> OpenDisk:
        lun = self.luns[i]
        kind, flags, leaks = traits_of(lun.quirks).to_words()
        label = Label(
            owner=CLUSTER, cluster_name="web", cluster_key=b"k" * 32, data_block=1024, data_blocks=10,
            disk_uuid=bytes([i]) * 16, pr_kind=kind, pr_flags=flags, pr_leaks=leaks,
        )  # fmt: skip
        return OpenDisk(label, lun.nexus(name), f"iscsi://lun{i}", FoundFilesystem())

    async def add(self, i: int, name: str = "matrixd") -> OpenDisk:
        """As ``ClusterDisks.add``: registered before it is anybody's."""
        disk = self.open(i, name)
        await self.storage.register(disk)
        self.disks.opened[disk.label.disk_uuid] = disk
        return disk

    async def write_areas(
        self, *, member: int = OURS, fencing: int = 0, incarnation: int = OURS, mounts: tuple[int, ...] = ()
    ) -> None:
        slot = HeartbeatSlot(
            owner=CLUSTER, address=slot_block(ME), incarnation=incarnation, counter=1, hears=0, boot_id=b"",
            machine_id=b"", flags=0, pid=1, start_time=1, port=1, name="n", host="h",
            mount_pids=(), mount_starts=(), mount_incarnations=(),
        )  # fmt: skip
        slot.set_mounts(tuple(MountProcess(1, 1, mount) for mount in mounts))
        header = make_header(
            CLUSTER, 1, members={ME: member} if member else {}, fencing={ME: fencing} if fencing else {}
        )
        port = self.luns[0].disk.port("writer")
        await write_slot(port, slot)
        await write_header(port, header)

    async def admitted(self) -> None:
        await self.add(0)
        await self.write_areas()
        async with self.storage.claiming():
            await self.storage.admit(ME)
        self.core = FakeCore(FakeLease(LeaseState.MEMBER))

    def told(self, kind: str) -> list[str]:
        return [event["text"] for event in self.book.events if event["kind"] == kind]


@pytest.mark.seed("002-22", "002-31")
async def test_a_disk_is_registered_before_it_is_used(autojump_clock) -> None:
    """From the claim on; also one that is opened later, and one that is reached by another nexus."""
    world = World(CONFORMING, TGT, ISTGT)
    await world.add(0)
    assert world.luns[0].keys == []
    await world.write_areas()
    async with world.storage.claiming():
        assert world.luns[0].keys == [key_of(CLAIMANT, OURS)]
        await world.storage.admit(ME)
    own = key_of(ME, OURS)
    assert world.luns[0].keys == [own]
    assert world.told("storage") == ["registered as node 5 with lun0"]
    await world.add(1)
    assert world.luns[1].keys == [own]
    await world.add(2)
    assert world.luns[2].keys == []  # its reservations fence nobody
    await world.add(1, "matrixd by another way")
    assert world.luns[1].keys == [own, own]


async def test_a_disk_that_can_not_be_registered_is_not_used(autojump_clock) -> None:
    world = World(CONFORMING, CONFORMING)
    await world.admitted()
    disk = world.open(1)
    disk.device.drop()
    with pytest.raises(DeviceError):
        await world.storage.register(disk)
    assert not world.lost


async def test_a_look_that_fails_costs_only_the_new_disk(autojump_clock) -> None:
    """What this node has is not given up because another disk can't be added now."""
    world = World(CONFORMING, CONFORMING)
    await world.admitted()
    other = world.luns[1].nexus("other")
    await other.register(key_of(1, 1))
    await other.reserve(key_of(1, 1), 5)
    await world.luns[0].disk.port("harm").write(BLOCK_BYTES, b"\xff" * BLOCK_BYTES)
    with pytest.raises(CorruptRecord):
        await world.storage.register(world.open(1))
    assert world.luns[0].keys == [key_of(ME, OURS)]
    assert world.luns[1].keys == [key_of(1, 1)]
    assert not world.lost


async def test_who_gets_no_slot_takes_its_key_back(autojump_clock) -> None:
    world = World(CONFORMING)
    await world.add(0)
    other = world.luns[0].nexus("other")
    await other.register(key_of(1, 1))
    await other.reserve(key_of(1, 1), 5)
    with pytest.raises(KeyError):
        async with world.storage.claiming():
            assert len(world.luns[0].keys) == 2
            raise KeyError
    assert world.luns[0].keys == [key_of(1, 1)]
    assert not world.lost


LISTED = [
    (LeaseState.OUT, {"member": 0}, 0, True),  # to be let in yet
    (LeaseState.OUT, {"member": 0, "fencing": OURS}, 0, False),
    (LeaseState.OUT, {"member": OURS, "mounts": (MOUNT,)}, MOUNT, False),
    (LeaseState.MEMBER, {"member": OURS}, 0, True),
    (LeaseState.MEMBER, {"member": 0}, 0, False),
    (LeaseState.MEMBER, {"member": 0, "fencing": OURS}, 0, False),
    (LeaseState.MEMBER, {"member": OURS + 1}, 0, False),
    (LeaseState.MEMBER, {"member": OURS, "incarnation": OURS + 1}, 0, False),
    (LeaseState.MEMBER, {"member": OURS, "mounts": (MOUNT,)}, MOUNT, True),
    (LeaseState.MEMBER, {"member": OURS}, MOUNT, False),
    (LeaseState.LAPSED, {"member": OURS}, 0, True),
]


@pytest.mark.parametrize(("state", "written", "mount", "listed"), LISTED)
async def test_who_is_listed(state, written, mount, listed, autojump_clock) -> None:
    world = World(CONFORMING)
    await world.admitted()
    world.core = FakeCore(FakeLease(state))
    await world.write_areas(**written)
    assert await world.storage.is_listed(mount) is listed


async def test_a_look_that_fails_is_no_answer(autojump_clock) -> None:
    world = World(CONFORMING)
    await world.admitted()
    await world.luns[0].disk.port("harm").write(BLOCK_BYTES, b"\xff" * BLOCK_BYTES)
    with pytest.raises(CorruptRecord):
        await world.storage.is_listed()


async def test_nobody_comes_back_before_it_was_a_member(autojump_clock) -> None:
    """R3: a session that was lost then ends the process."""
    world = World(TGT)
    await world.add(0)
    async with world.storage.claiming():
        with pytest.raises(Fenced):
            await world.storage.reconnected("lun0")
    assert world.lost == ["lun0 was gone before this node was a member: start it again"]
    assert world.storage.access.state is State.LOST


async def test_a_member_comes_back_registered(autojump_clock) -> None:
    world = World(TGT)
    await world.admitted()
    nexus = next(iter(world.disks.opened.values())).device
    await nexus.relogin()
    with pytest.raises(Fenced):
        await nexus.write(0, bytes(BLOCK_BYTES))
    await world.storage.reconnected("lun0")
    await nexus.write(1 << 20, bytes(BLOCK_BYTES))
    assert not world.lost


@pytest.mark.seed("002-38")
async def test_a_disk_out_of_reach_confirms_no_fence(autojump_clock) -> None:
    """R4: it may be the one to which the target still writes; and people hear of it."""
    world = World(CONFORMING)
    await world.admitted()
    world.disks._naming = Naming(1, (Disk(bytes([0]) * 16, "a", "/a"), Disk(b"x" * 16, "b", "/b")))
    target = HeartbeatSlot(
        owner=CLUSTER, address=slot_block(7), incarnation=1, counter=1, hears=0, boot_id=b"", machine_id=b"", flags=0,
        pid=1, start_time=1, port=1, name="victim", host="h", mount_pids=(), mount_starts=(), mount_incarnations=(),
    )  # fmt: skip
    result = await world.storage.fence.fence(target, 0.0)
    assert (result.confirmed, "b" in result.detail) == (False, True)
    assert world.told("alert") == [f"the reservations did not fence victim: {result.detail}"]
    world.disks._naming = Naming(2, (Disk(bytes([0]) * 16, "a", "/a"),))
    assert (await world.storage.fence.fence(target, 0.0)).confirmed


async def test_the_administrator_keeps_strangers_out_and_tells_once(autojump_clock) -> None:
    world = World(CONFORMING)
    await world.admitted()
    stranger = world.luns[0].nexus("stranger")
    await stranger.register(0x123)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.storage.keep_always)
        await trio.sleep(1.5 * KEEP_SECONDS)
        assert world.luns[0].keys == [key_of(ME, OURS)]
        nexus = next(iter(world.disks.opened.values())).device
        nexus.connected = False
        await trio.sleep(3 * KEEP_SECONDS)
        nursery.cancel_scope.cancel()
    assert [text.partition(":")[0] for text in world.told("alert")] == ["lun0", "reservations not kept"]


@pytest.mark.seed("002-31")
async def test_nothing_of_a_dead_mount_lands(autojump_clock) -> None:
    """Its key is taken away; where that is not possible, the time passes that a write may take."""
    world = World(CONFORMING, ISTGT)
    await world.admitted()
    far = await world.add(1)
    mount = world.luns[0].nexus("mount")
    await mount.register(key_of(ME, MOUNT))
    before = trio.current_time()
    await world.storage.landing(world.disks.opened[bytes([0]) * 16], MOUNT).wait(1)
    assert world.luns[0].keys == [key_of(ME, OURS)]
    assert trio.current_time() - before < TIMING.io_bound
    await world.storage.landing(far, MOUNT).wait(1)
    assert trio.current_time() - before >= TIMING.io_bound + TIMING.margin


async def test_a_dead_mount_waits_for_its_lun_and_people_hear_it_once(autojump_clock) -> None:
    world = World(CONFORMING)
    await world.admitted()
    disk = world.disks.opened[bytes([0]) * 16]
    await world.luns[0].nexus("mount").register(key_of(ME, MOUNT))
    disk.device.connected = False
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.storage.landing(disk, MOUNT).wait, 1)
        await trio.sleep(5 * TIMING.renew)
        assert world.told("alert") == ["a dead mount is not recovered yet: lun0@matrixd: no session"]
        assert key_of(ME, MOUNT) in world.luns[0].keys
        disk.device.connected = True
    assert world.luns[0].keys == [key_of(ME, OURS)]


async def test_what_is_of_this_host_is_looked_at(autojump_clock) -> None:
    world = World(CONFORMING)
    storage = NodeStorage(world, without_reservations)  # type: ignore[arg-type]
    assert isinstance(storage.landing(world.open(0), MOUNT), Landing)
    async with storage.claiming():
        await storage.admit(ME)
    assert storage.access.state is State.UNREGISTERED
    assert world.luns[0].keys == []
