"""Membership areas by majority: one, three, and while the set is changed (002-12, 002-42)."""

from __future__ import annotations

import itertools
import random

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from membership.areas.poll import Poll, is_enough, majority
from membership.areas.quorum import Area, Areas
from membership.database.image import DatabaseImage
from membership.errors import CorruptRecord, DeviceError, Fenced
from membership.label import BLOCK_BYTES, DATA_BLOCK, HEADER_BLOCK, HEARTBEAT_BLOCK
from membership.lease.records import HeartbeatSlot, slot_block
from membership.san.ballot import Decided
from membership.san.header import make_header, read_header, write_header
from membership.san.store import take_generation
from tests.sim.disk import SimDisk
from tests.sim.network import SimClock, SimRng

CLUSTER = b"C" * 16
DISKS = [bytes([65 + i]) * 16 for i in range(6)]
A, B, C, D, E, F = DISKS


class Lab:
    """Three disks (or more) and the areas on them as nodes reach them."""

    def __init__(self, count: int = 3, latency=(0.001, 0.003)) -> None:
        size = (DATA_BLOCK + 16) * BLOCK_BYTES
        self.disks = {disk: SimDisk(size, seed=i, latency=latency) for i, disk in enumerate(DISKS[:count])}
        self.ports: dict[tuple[str, bytes], object] = {}

    def areas(self, node: str = "n", groups=((A, B, C),)) -> Areas:
        wanted = sorted(set(itertools.chain(*groups)))
        for disk in wanted:
            self.ports[node, disk] = self.disks[disk].port(f"{node}-{disk[:1].decode()}")
        made = Areas(CLUSTER, [Area(disk, self.ports[node, disk]) for disk in wanted], SimClock())
        made.regroup(tuple(frozenset(group) for group in groups), {})
        return made

    async def header_on(self, disk: bytes) -> int:
        return (await read_header(self.disks[disk], CLUSTER)).generation


def header(generation: int, members=(1,), **rest):
    return make_header(CLUSTER, generation, members={n: 70 + n for n in members}, fencing={}, **rest)


def slot(node: int, counter: int, incarnation: int = 5) -> HeartbeatSlot:
    return HeartbeatSlot(
        owner=CLUSTER, address=slot_block(node), incarnation=incarnation, counter=counter, name="a", host="h", port=1,
        mount_pids=(), mount_starts=(), mount_incarnations=(),
    )  # fmt: skip


# -- polls -------------------------------------------------------------------------------------------------------


def test_majorities():
    assert [majority(range(n)) for n in (1, 2, 3)] == [1, 2, 2]
    assert is_enough([A, B], [frozenset({A, B, C})])
    assert not is_enough([A], [frozenset({A, B, C})])
    assert not is_enough([A, B], [frozenset({A, B, C}), frozenset({D})])


@given(st.lists(st.sets(st.sampled_from(DISKS), min_size=1, max_size=3), min_size=1, max_size=2), st.randoms())
def test_any_two_that_had_enough_share_an_area(groups, rng):
    groups = [frozenset(group) for group in groups]
    everyone = sorted(frozenset().union(*groups))
    enough = [set(c) for n in range(len(everyone) + 1) for c in itertools.combinations(everyone, n)]
    enough = [c for c in enough if is_enough(c, groups)]
    for one, other in itertools.product(enough, enough):
        assert all(one & other & group for group in groups)
    poll: Poll[int] = Poll(groups)
    for disk in rng.sample(everyone, len(everyone)):
        if rng.random() < 0.5:
            poll.answered(disk, 1)
        else:
            poll.failed(disk, "why")
        assert poll.is_hopeless == (not is_enough(set(everyone) - poll.failures.keys(), groups))
        assert not (poll.has_enough and poll.is_hopeless)
    assert poll.is_complete


# -- one lost, hanging, or behind ----------------------------------------------------------------------------------


@pytest.mark.seed("002-12", "002-42")
async def test_one_of_three_may_be_lost(autojump_clock):
    for gone in (A, B, C):
        lab = Lab()
        async with lab.areas() as areas:
            lab.ports["n", gone].cut("no path")
            await areas.write_slot(slot(3, 1))
            assert await areas.put_header(header(1))
            await areas.write_image(DatabaseImage(1, 1, b"x" * 5000, 7))
            assert (await areas.read_slots())[0][3].counter == 1
            reading = await areas.read_header()
            assert (reading.header.generation, reading.settled, reading.stale) == (1, True, (gone,))
            image = await areas.read_image()
            assert image is not None
            assert image.content == b"x" * 5000
            assert {area.disk for area in areas.disks if area.failure} == {gone}


async def test_areas_of_a_node_that_has_ended_are_an_error(autojump_clock):
    """A mount asked for at that moment gets a line, and no traceback (seed 40881)."""
    lab = Lab()
    async with lab.areas() as areas:
        await areas.read_slots()
    with pytest.raises(DeviceError, match="this node has ended"):
        await areas.read_slots()


async def test_two_of_three_lost_is_an_error_that_names_both(autojump_clock):
    lab = Lab()
    async with lab.areas() as areas:
        for disk in (A, C):
            lab.ports["n", disk].cut("pulled")
        with pytest.raises(DeviceError, match=r"2 of 3 membership areas fail: .*n-A.*n-C"):
            await areas.write_slot(slot(3, 1))
        with pytest.raises(DeviceError, match="2 of 3"):
            await areas.read_header()
        assert not await areas.put_header(header(1))


async def test_one_that_hangs_holds_nobody_up_and_gets_nothing_older_afterwards(autojump_clock):
    lab = Lab()
    async with lab.areas() as areas:
        await areas.write_slot(slot(3, 1))
        await trio.sleep(1)
        lab.disks[B].hang()
        began = trio.current_time()
        for counter in range(2, 30):
            await areas.write_slot(slot(3, counter))
        assert trio.current_time() - began < 1
        lab.disks[B].resume()
        await trio.sleep(60)
        await areas.write_slot(slot(3, 30))
        await trio.sleep(1)
        for disk in lab.disks.values():
            alone = Areas(CLUSTER, [Area(A, disk)], SimClock())
            found = await alone.read_slot(3)
            assert found is not None
            assert found.counter == 30
        writes = [w for w in lab.disks[B].writes if w.offset == (HEARTBEAT_BLOCK + 3) * BLOCK_BYTES]
        assert len(writes) == 3  # the first, the one that hung, the last: what nobody waited for was dropped


async def test_of_two_copies_of_a_slot_the_later_counts(autojump_clock):
    lab = Lab()
    async with lab.areas() as areas:
        await areas.write_slot(slot(3, 5))
        await trio.sleep(1)
        lab.ports["n", A].cut("away")
        await areas.write_slot(slot(3, 6, incarnation=9))
        lab.ports["n", A].mend()
        found, damaged = await areas.read_slots()
        assert (found[3].counter, found[3].incarnation, damaged) == (6, 9, set())


@pytest.mark.seed("002-45")
async def test_a_header_on_a_minority_is_unsettled_and_the_next_one_settles(autojump_clock):
    lab = Lab()
    async with lab.areas() as areas:
        assert await areas.put_header(header(1))
        await trio.sleep(1)
        await write_header(lab.disks[A], header(2))  # its writer died after the first area
        reading = await areas.read_header()
        assert (reading.header.generation, reading.settled) == (2, False)
        lab.ports["n", A].cut("gone")
        reading = await areas.read_header()
        assert (reading.header.generation, reading.settled) == (1, True)  # nobody saw it on a majority
        lab.ports["n", A].mend()
        assert await areas.put_header(header(3))
        await trio.sleep(1)
        assert [await lab.header_on(disk) for disk in (A, B, C)] == [3, 3, 3]


@pytest.mark.seed("002-42")
async def test_repair_brings_a_wiped_and_a_stale_area_up_to_date(autojump_clock):
    lab = Lab()
    async with lab.areas() as areas:
        lab.ports["n", C].cut("away")
        for generation in (1, 2, 3):
            assert await areas.put_header(header(generation))
        image = DatabaseImage(4, 3, b"y" * 9000, 7)
        await areas.write_image(image)
        lab.ports["n", C].mend()
        lab.disks[B].corrupt(HEADER_BLOCK * BLOCK_BYTES + 60)
        lab.disks[B].corrupt(HEADER_BLOCK * BLOCK_BYTES + 2048 + 60)
        reading = await areas.read_header()
        assert set(reading.stale) == {B, C}
        assert not reading.settled
        assert set(await areas.repair(header(3), image, reading.stale)) == {B, C}
        reading = await areas.read_header()
        assert (reading.header.generation, reading.settled) == (3, True)
        alone = Areas(CLUSTER, [Area(C, lab.disks[C])], SimClock())
        assert await alone.read_image() == image


async def test_repair_never_replaces_a_newer_header(autojump_clock):
    lab = Lab()
    async with lab.areas() as areas:
        assert await areas.put_header(header(1))
        await trio.sleep(1)
        await write_header(lab.disks[A], header(5))
        assert await areas.repair(header(1), None, (A,)) == []
        assert await lab.header_on(A) == 5


async def test_a_single_damaged_area_raises_what_is_wrong(autojump_clock):
    lab = Lab(1)
    areas = lab.areas(groups=((A,),))
    await areas.put_header(header(1))
    for at in (60, 2048 + 60):
        lab.disks[A].corrupt(HEADER_BLOCK * BLOCK_BYTES + at)
    with pytest.raises(CorruptRecord, match="checksum"):
        await areas.read_header()


async def test_who_is_refused_by_a_reservation_anywhere_is_fenced(autojump_clock):
    class Refusing:
        name = "b"

        async def write(self, *_: object, **__: object) -> None:
            await trio.lowlevel.checkpoint()
            raise Fenced("b: reservation conflict")

    lab = Lab()
    async with lab.areas() as areas:
        next(area for area in areas.disks if area.disk == B).device = Refusing()
        with pytest.raises(Fenced, match="reservation"):
            await areas.write_slot(slot(3, 1))


# -- ballots on three disks --------------------------------------------------------------------------------------


@pytest.mark.seed("002-32", "002-40")
async def test_rivals_that_each_miss_another_disk_decide_one_owner(autojump_clock):
    for seed in range(12):
        lab = Lab(latency=(0.0005, 0.02))
        rng = random.Random(seed)
        for generation in (1, 2, 3):
            outcomes = set()

            async def run(node: int, generation=generation, lab=lab, seed=seed, outcomes=outcomes, rng=rng) -> None:
                name = f"n{node}"
                async with lab.areas(name) as areas:
                    lab.ports[name, rng.choice(DISKS[:3])].cut("no path")
                    me = (node, 70 + node)
                    outcome = await take_generation(areas, me, generation, clock=SimClock(), rng=SimRng(seed + node))
                    outcomes.add(outcome)

            async with trio.open_nursery() as nursery:
                for node in range(4):
                    nursery.start_soon(run, node)
            assert len(outcomes) == 1, (seed, outcomes)
            assert isinstance(outcomes.pop(), Decided)


async def test_while_the_set_changes_both_majorities_are_needed(autojump_clock):
    lab = Lab(3)
    async with lab.areas(groups=((A, B, C), (A,))) as areas:
        assert await areas.put_header(header(1, areas=(A, B, C), areas_before=(A,)))
        lab.ports["n", A].cut("the old one")
        assert not await areas.put_header(header(2))
        lab.ports["n", A].mend()
        lab.ports["n", B].cut("one of the new")
        assert await areas.put_header(header(3))
        lab.ports["n", C].cut("two of the new")
        assert not await areas.put_header(header(4))


def test_headers_carry_the_areas():
    made = header(7, naming=4, areas=(A, B, C), areas_before=(D,))
    assert (made.naming, made.areas, made.areas_before) == (4, (A, B, C), (D,))
    assert (header(7).areas, header(7).areas_before) == ((), ())


async def test_a_header_is_not_written_over_one_that_it_was_not_made_from(autojump_clock):
    lab = Lab()
    async with lab.areas() as areas:
        assert await areas.put_header(header(1), base=0)
        assert not await areas.put_header(header(2), base=0)  # knows nothing of generation 1
        assert (await areas.read_header()).header.generation == 1
        assert await areas.put_header(header(3), base=1)
        assert await areas.put_header(header(3), base=1)  # again: it stands there already
        assert not await areas.put_header(header(4), base=3, within=0.0)  # too late
        assert (await areas.read_header()).header.generation == 3
