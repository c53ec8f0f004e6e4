"""The probe on simulated LUNs: every fault that a target may have is found, and nothing is left behind."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio

from matrixfs.blockstore.scsi.probe import SCRATCH_BLOCK, SCRATCH_BLOCKS, probe
from membership.errors import DeviceError, OperatorError
from membership.fence.reservations import ALL_REGISTRANTS, REGISTRANTS_ONLY, Leak, LunTraits
from membership.label import BLOCK_BYTES, DATA_BLOCK, DATABASE_BLOCK, DATABASE_SLOT_BLOCKS, DATABASE_SLOTS
from tests.sim.disk import SimDisk
from tests.sim.lun import CONFORMING, ISTGT, TGT, Plan, Quirks, SimLun, SimNexus, traits_of


def make(quirks: Quirks) -> tuple[SimLun, list[SimNexus]]:
    return SimLun(SimDisk(8 << 20, seed=3, latency=(0.001, 0.02)), quirks), []


async def run(lun: SimLun, opened: list[SimNexus], lines: list[str] | None = None) -> LunTraits:
    async def open_nexus(name: str) -> SimNexus:
        opened.append(lun.nexus(name))
        return opened[-1]

    return await probe(open_nexus, progress=(lines if lines is not None else []).append)


FAULTS = {
    "conforming": CONFORMING,
    "tgt": TGT,
    "istgt": ISTGT,
    "nothing holds": replace(CONFORMING, kinds=()),
    "only all registrants holds": replace(CONFORMING, kinds=(ALL_REGISTRANTS,)),
    "abort aborts nothing": replace(CONFORMING, abort_stops=False),
    "reset resets nothing": replace(CONFORMING, reset_stops=False),
    "neither stops": replace(CONFORMING, abort_stops=False, reset_stops=False),
    "no reset, no abort": replace(CONFORMING, lun_reset=False, preempt_and_abort=False),
    "dies with its holder": replace(CONFORMING, dies_with_session=True),
    "racy counter": replace(CONFORMING, compare_and_write="racy"),
    "holder's unregistering does not release": replace(CONFORMING, holder_releases=False),
    **{f"leaks {leak.name}": replace(CONFORMING, leaks=leak) for leak in Leak},
}


@pytest.mark.parametrize("quirks", FAULTS.values(), ids=FAULTS.keys())
async def test_finds_what_is_there(quirks, autojump_clock) -> None:
    lun, opened = make(quirks)
    lines: list[str] = []
    traits = await run(lun, opened, lines)
    expected = traits_of(quirks)
    if not expected.kind:  # the rest is not even tried
        expected = LunTraits(compare_and_write=True)
    assert traits == expected, "\n".join(lines)
    assert lines
    # Q3
    assert (lun.keys, lun.kind) == ([], 0)
    assert not any(nexus.connected for nexus in opened)
    assert lun.disk.media.read(0, lun.disk.capacity) == bytes(lun.disk.capacity)


async def test_writes_scratch_blocks_only(autojump_clock) -> None:
    lun, opened = make(CONFORMING)
    await run(lun, opened)
    first = min(write.offset for write in lun.disk.writes)
    last = max(write.offset + write.length for write in lun.disk.writes)
    assert first == SCRATCH_BLOCK * BLOCK_BYTES
    assert last <= (SCRATCH_BLOCK + SCRATCH_BLOCKS) * BLOCK_BYTES
    assert SCRATCH_BLOCK == DATABASE_BLOCK + DATABASE_SLOTS * DATABASE_SLOT_BLOCKS
    assert SCRATCH_BLOCK + SCRATCH_BLOCKS == DATA_BLOCK


async def test_refuses_a_lun_in_use(autojump_clock) -> None:
    for holder_only in (False, True):
        lun, opened = make(CONFORMING)
        stranger = lun.nexus("stranger")
        await stranger.register(0x123ABC)
        await stranger.reserve(0x123ABC, REGISTRANTS_ONLY)
        if holder_only:
            lun.entries.clear()
        lun.disk.mark()
        with pytest.raises(OperatorError, match="in use"):
            await run(lun, opened)
        assert (len(lun.keys), lun.kind) == (0 if holder_only else 1, REGISTRANTS_ONLY)
        assert not any(write.data.strip(b"\0") for write in lun.disk.writes)
        assert not any(nexus.connected for nexus in opened)


@pytest.mark.parametrize("command", ["register", "reserve", "preempt", "reset_lun", "read_keys", "clear"])
@pytest.mark.parametrize("skip", [2, 5])
async def test_an_error_proves_nothing_and_ends_nothing(command, skip, autojump_clock) -> None:
    """A command that fails once makes its trait False; the others are found, and the LUN is left clean."""
    lun, opened = make(CONFORMING)
    seen = 0

    def fail() -> None:
        nonlocal seen
        seen += 1
        if seen == skip:
            lun.plans.append(Plan("before", command, DeviceError("broken")))
        elif seen < skip:
            lun.plans.append(Plan("before", command, fail))

    lun.plans.append(Plan("before", command, fail))
    traits = await run(lun, opened)
    assert (lun.keys, lun.kind) == ([], 0)
    assert traits != LunTraits()
    wrong = [name for name in LunTraits.__slots__ if getattr(traits, name) != getattr(traits_of(CONFORMING), name)]
    assert len(wrong) <= 2
    assert traits.compare_and_write


async def test_cancelled_it_still_cleans_up(autojump_clock) -> None:
    lun, opened = make(CONFORMING)
    with trio.move_on_after(0.3) as scope:
        await run(lun, opened)
    assert scope.cancelled_caught
    assert (lun.keys, lun.kind) == ([], 0)
    assert lun.disk.media.read(0, lun.disk.capacity) == bytes(lun.disk.capacity)
