"""F1: nothing is checked while a node is, or may be, at work (R4)."""

from __future__ import annotations

import random

import pytest
import trio

from matrixfs.fsck.alive import NodeWatch
from matrixfs.fsck.run import Mode, run_fsck
from membership.errors import OperatorError
from membership.label import BLOCK_BYTES, DEFAULT_TIMING, Label, read_label
from membership.lease.area import write_slot
from membership.lease.records import FLAG_LEFT, HeartbeatSlot, slot_block
from membership.san.header import make_header, write_header
from tests.damage.test_damages import Listener
from tests.damage.volume import FixedClock, Volume, small_store

WATCHED = 2 * DEFAULT_TIMING.renew


async def store_with_slot(flags: int = 0, incarnation: int = 9) -> tuple[Volume, HeartbeatSlot, Label]:
    volume = await small_store()
    label = await read_label(volume.disk)
    slot = HeartbeatSlot(
        owner=label.owner, address=slot_block(3), incarnation=incarnation, counter=1, name="n1", flags=flags
    )
    await write_slot(volume.disk, slot)
    return volume, slot, label


async def watch(volume: Volume, label: Label, *, will_write: bool) -> tuple[float, list[str]]:
    """Seconds it took, and what it said."""
    said: list[str] = []
    start = trio.current_time()
    await NodeWatch(volume.disk, label, FixedClock()).refuse_if_alive(will_write=will_write, say=said.append)
    return trio.current_time() - start, said


async def test_nobody_ever_was_there(autojump_clock: object) -> None:
    volume = await small_store()
    assert await watch(volume, await read_label(volume.disk), will_write=True) == (0, [])


async def test_nodes_that_left_are_no_reason_to_wait(autojump_clock: object) -> None:
    volume, _, label = await store_with_slot(FLAG_LEFT)
    assert await watch(volume, label, will_write=True) == (0, [])


@pytest.mark.parametrize("will_write", [False, True])
@pytest.mark.parametrize("at", [0.1, WATCHED - 0.1])
async def test_a_live_node_is_refused_by_name(autojump_clock: object, will_write: bool, at: float) -> None:
    volume, slot, label = await store_with_slot()

    async def renew() -> None:
        await trio.sleep(at)
        slot.counter += 1
        await write_slot(volume.disk, slot)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(renew)
        with pytest.raises(OperatorError, match="node 'n1' is working on it; stop matrixd on all nodes first"):
            await watch(volume, label, will_write=will_write)


async def test_a_node_that_starts_while_we_watch_is_seen(autojump_clock: object) -> None:
    volume, slot, label = await store_with_slot()

    async def start() -> None:
        await trio.sleep(0.1)
        other = HeartbeatSlot(owner=label.owner, address=slot_block(7), incarnation=1, name="n7")
        await write_slot(volume.disk, other)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(start)
        with pytest.raises(OperatorError, match="'n7'"):
            await watch(volume, label, will_write=False)


async def test_a_reader_waits_two_renewals_for_a_silent_node(autojump_clock: object) -> None:
    volume, _, label = await store_with_slot()
    assert await watch(volume, label, will_write=False) == (pytest.approx(WATCHED), [])


@pytest.mark.parametrize("held", ["member", "fencing"])
async def test_a_writer_waits_until_the_lease_of_a_silent_node_is_over(autojump_clock: object, held: str) -> None:
    volume, slot, label = await store_with_slot()
    whose = {3: slot.incarnation}
    header = make_header(
        label.owner, 5, members=whose if held == "member" else {}, fencing=whose if held == "fencing" else {}
    )
    await write_header(volume.disk, header)
    seconds, said = await watch(volume, label, will_write=True)
    assert seconds == pytest.approx(DEFAULT_TIMING.dead)
    assert said == ["node 'n1' did not leave the cluster cleanly; waiting 6 s for the lease to end"]


async def test_a_node_that_wakes_up_before_its_lease_ends_is_refused(autojump_clock: object) -> None:
    volume, slot, label = await store_with_slot()
    await write_header(volume.disk, make_header(label.owner, 5, members={3: 9}, fencing={}))

    async def renew() -> None:
        await trio.sleep(DEFAULT_TIMING.dead - 0.1)
        slot.counter += 1
        await write_slot(volume.disk, slot)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(renew)
        with pytest.raises(OperatorError, match="n1"):
            await watch(volume, label, will_write=True)


@pytest.mark.parametrize("members", [{}, {3: 8}, {4: 9}])
async def test_a_node_whose_fence_was_confirmed_holds_nothing(autojump_clock: object, members: dict[int, int]) -> None:
    volume, _, label = await store_with_slot()
    await write_header(volume.disk, make_header(label.owner, 5, members=members, fencing={}))
    assert await watch(volume, label, will_write=True) == (pytest.approx(WATCHED), [])


async def test_damaged_slots_and_header_count_as_dangerous(autojump_clock: object) -> None:
    volume, _, label = await store_with_slot()
    await write_header(volume.disk, make_header(label.owner, 5, members={}, fencing={}))
    volume.disk.corrupt(slot_block(3) * BLOCK_BYTES + 60)
    seconds, said = await watch(volume, label, will_write=True)
    assert seconds == pytest.approx(DEFAULT_TIMING.dead)
    assert "node 3" in said[0]
    for at in (100, 2200):
        volume.disk.corrupt(BLOCK_BYTES + at)
    assert (await watch(volume, label, will_write=True))[0] == pytest.approx(DEFAULT_TIMING.dead)


async def test_a_repair_stops_when_a_node_starts_meanwhile(autojump_clock: object) -> None:
    volume, _, label = await store_with_slot(FLAG_LEFT)
    volume.disk.corrupt(100)  # the label: something to repair

    class Starter(Listener):
        def ask(self, fixable: int) -> bool:
            volume.disk.corrupt(slot_block(5) * BLOCK_BYTES)
            volume.disk.mark()
            return True

    with pytest.raises(OperatorError, match="node 5"):
        await run_fsck(volume.disk, Mode.ASK, FixedClock(), random.Random(1), Starter())
    assert volume.disk.log == []
