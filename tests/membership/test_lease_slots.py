"""Heartbeat slots: the record, and claiming by name (002-12; H1, H2)."""

from __future__ import annotations

import random

import pytest
import trio

from membership.areas.quorum import one_area
from membership.errors import CorruptRecord, OperatorError
from membership.fence.process import HostIdentity
from membership.label import BLOCK_BYTES, DATA_BLOCK, NODE_SLOTS, timing_of
from membership.lease.area import read_slot, read_slots, write_slot
from membership.lease.records import FLAG_LEFT, MOUNTS_MAX, HeartbeatSlot, MountProcess, slot_block, slot_untrusted
from membership.lease.slots import Claimant, claim_slot
from membership.san.fence import FenceResult
from membership.san.header import make_header, write_header
from tests.sim.disk import SimDisk
from tests.sim.membership.world import LABEL
from tests.sim.network import SimClock

TIMING = timing_of(LABEL)
HOST = HostIdentity(b"B" * 16, b"M" * 16, 42, 4242)


class Driver:
    name = "test"

    def __init__(self, gone: bool | None, confirms: bool = True) -> None:
        self.gone, self.confirms, self.fenced = gone, confirms, []

    def is_gone(self, target) -> bool | None:
        return self.gone

    async def fence(self, target, evicted_at: float) -> FenceResult:
        self.fenced.append(target.incarnation)
        return FenceResult(self.confirms, "test", "says the test")


def disk(seed: int = 0) -> SimDisk:
    return SimDisk((DATA_BLOCK + 16) * BLOCK_BYTES, seed=seed, latency=(0.001, 0.02))


def claimant(device, name: str = "a", incarnation: int = 1, driver: Driver | None = None) -> Claimant:
    drivers = (driver or Driver(None),)
    areas = one_area(LABEL, device, SimClock())
    return Claimant(areas, LABEL.owner, TIMING, SimClock(), drivers, HOST, name, "10.0.0.1", incarnation)


def slot(node: int, **changes) -> HeartbeatSlot:
    values = {
        "owner": LABEL.owner, "address": slot_block(node), "incarnation": 9, "counter": 1, "hears": 0,
        "boot_id": b"b" * 16, "machine_id": b"m" * 16, "flags": 0, "pid": 7, "start_time": 8, "port": 9, "name": "a",
        "host": "10.0.0.9", "mount_pids": (), "mount_starts": (), "mount_incarnations": (),
    }  # fmt: skip
    return HeartbeatSlot(**(values | changes))


@pytest.mark.parametrize("others", [",", "a,b,c,d", "a,"])
def test_further_addresses_that_are_none_are_corruption(others):
    with pytest.raises(CorruptRecord, match="further addresses"):
        slot_untrusted(slot(3, others=others).encode(), 3, LABEL.owner)


def test_slot_of_version_1_is_still_read(monkeypatch):
    monkeypatch.setattr(HeartbeatSlot, "VERSION", 1)
    old = slot(3).encode()
    monkeypatch.undo()
    assert slot_untrusted(old, 3, LABEL.owner).peer(3).others == ()


def test_record_round_trip_with_mounts():
    mounts = tuple(MountProcess(100 + i, 200 + i, 2**64 - 1 - i) for i in range(MOUNTS_MAX))
    made = slot(3)
    made.set_mounts(mounts)
    back = slot_untrusted(made.encode(), 3, LABEL.owner)
    assert back is not None
    assert back.mounts == mounts
    assert (back.name, back.host, back.port, back.incarnation) == ("a", "10.0.0.9", 9, 9)
    assert back.peer(3).node == 3
    assert back.peer(3).others == (), "as in a slot of version 1, where these bytes are zero"
    assert slot_untrusted(slot(3, others="10.1.0.9,fd00::9").encode(), 3, LABEL.owner).peer(3).hosts == (
        "10.0.0.9", "10.1.0.9", "fd00::9",
    )  # fmt: skip
    assert slot_untrusted(bytes(BLOCK_BYTES), 3, LABEL.owner) is None
    assert slot_untrusted(slot(3, incarnation=0).encode(), 3, LABEL.owner) is None


def test_hostile_slots_raise_one_error():
    image = slot(3).encode()
    rng = random.Random(5)
    for _ in range(500):
        data = bytearray(image)
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        with pytest.raises(CorruptRecord):
            slot_untrusted(bytes(data), 3, LABEL.owner)
        assert len(rng.randbytes(8)) == 8
    for bad in (slot(4).encode(), slot(3, pid=2**31).encode(), image[:100], slot(3, owner=b"x" * 16).encode()):
        with pytest.raises(CorruptRecord):
            slot_untrusted(bad, 3, LABEL.owner)


async def test_first_claim_and_reuse_after_a_clean_leave(autojump_clock):
    device = disk()
    node, made = await claim_slot(claimant(device))
    assert (made.incarnation, made.pid, made.name) == (1, 42, "a")
    made.flags = FLAG_LEFT
    await write_slot(device, made)
    driver = Driver(gone=False)
    again, second = await claim_slot(claimant(device, incarnation=2, driver=driver))
    assert again == node
    assert second.counter > made.counter
    assert not driver.fenced


async def test_different_names_get_different_slots_also_at_the_same_instant(autojump_clock):
    for seed in range(10):
        device = disk(seed)
        nodes = {}

        async def claim(name: str, nodes=nodes, device=device) -> None:
            nodes[name], _ = await claim_slot(claimant(device, name, incarnation=ord(name)))

        # All names probe from the same slot: only it and its neighbours are free.
        for node in range(NODE_SLOTS - 4):
            await write_slot(device, slot(node, name=f"other{node}"))
        async with trio.open_nursery() as nursery:
            for name in ("a", "b", "c"):
                nursery.start_soon(claim, name)
        assert len(set(nodes.values())) == 3
        slots, _ = await read_slots(device, LABEL.owner)
        assert {slots[n].name for n in nodes.values()} == {"a", "b", "c"}


async def test_same_name_running_here_is_refused(autojump_clock):
    device = disk()
    await claim_slot(claimant(device))
    before = await read_slots(device, LABEL.owner)
    with pytest.raises(OperatorError, match="node a is already running"):
        await claim_slot(claimant(device, incarnation=2, driver=Driver(gone=False)))
    assert await read_slots(device, LABEL.owner) == before


async def test_same_name_gone_is_fenced_before_its_slot_is_taken(autojump_clock):
    device = disk()
    node, _ = await claim_slot(claimant(device))
    driver = Driver(gone=True)
    again, _ = await claim_slot(claimant(device, incarnation=2, driver=driver))
    assert (again, driver.fenced) == (node, [1])
    with pytest.raises(OperatorError, match="can't be stopped"):
        await claim_slot(claimant(device, incarnation=3, driver=Driver(gone=True, confirms=False)))
    found = await read_slot(device, node, LABEL.owner)
    assert found is not None
    assert found.incarnation == 2


async def test_same_name_on_an_unknown_host_is_watched_for_the_time_of_r4(autojump_clock):
    device = disk()
    node, made = await claim_slot(claimant(device))
    start = trio.current_time()
    await claim_slot(claimant(device, incarnation=2))
    assert trio.current_time() - start >= TIMING.dead

    async def beat() -> None:
        while True:
            await trio.sleep(TIMING.renew * 3)
            made.incarnation, made.counter = 2, made.counter + 1
            await write_slot(device, made)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(beat)
        with pytest.raises(OperatorError, match="already running"):
            await claim_slot(claimant(device, incarnation=3))
        nursery.cancel_scope.cancel()
    assert node == (made.address - slot_block(0))


async def test_slots_on_the_header_and_damaged_ones_are_never_taken(autojump_clock):
    device = disk()
    free = 7
    fencing = {n: 5 for n in range(NODE_SLOTS // 2) if n != free}
    members = dict.fromkeys(range(NODE_SLOTS // 2, NODE_SLOTS - 1), 5)
    await write_header(device, make_header(LABEL.owner, 1, members=members, fencing=fencing))
    await device.write(slot_block(NODE_SLOTS - 1) * BLOCK_BYTES, b"garbage!" * 512)
    node, _ = await claim_slot(claimant(device))
    assert node == free
    with pytest.raises(OperatorError, match="all 64 node slots are taken"):
        await claim_slot(claimant(device, "b", incarnation=2))
