"""A lapsed lease pauses, a fence ends (R3; ``blockstore/fencing/patience.py``)."""

from __future__ import annotations

import pytest
import trio

from matrixfs.blockstore.fencing.gate import FencingGate
from matrixfs.blockstore.fencing.patience import PatientDevice
from membership.errors import Fenced
from tests.sim.disk import SimDisk
from tests.sim.network import SimClock

BLOCK = b"x" * 4096


def stack(latency: tuple[float, float] = (0.0, 0.0)) -> tuple[SimDisk, FencingGate, PatientDevice]:
    disk = SimDisk(1 << 20, 4096, latency=latency)
    gate = FencingGate(disk, SimClock())
    return disk, gate, PatientDevice(gate)


@pytest.mark.seed("002-22")
async def test_nothing_reaches_the_store_while_the_lease_is_past(autojump_clock: object) -> None:
    disk, gate, patient = stack()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(patient.write, 0, BLOCK)
        await trio.sleep(100)
        assert disk.writes == []
        gate.extend(trio.current_time() + 4, 1)
    assert await patient.read(0, 4096) == BLOCK
    assert patient.pauses == 1


async def test_a_write_whose_right_ended_in_flight_is_done_again(autojump_clock: object) -> None:
    disk, gate, patient = stack(latency=(1.0, 1.0))
    gate.extend(trio.current_time() + 0.5, 1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(patient.write, 0, BLOCK)
        await trio.sleep(10)
        assert len(disk.writes) == 1  # it landed, but nobody was told
        gate.extend(trio.current_time() + 100, 1)
    assert len(disk.writes) == 2
    assert patient.pauses == 1


async def test_a_fence_ends_every_wait(autojump_clock: object) -> None:
    disk, gate, patient = stack()

    async def refused(operation: object) -> None:
        with pytest.raises(Fenced, match="evicted"):
            await operation  # type: ignore[misc]

    async with trio.open_nursery() as nursery:
        nursery.start_soon(refused, patient.write(0, BLOCK))
        nursery.start_soon(refused, patient.read(0, 4096))
        nursery.start_soon(refused, patient.flush())
        await trio.sleep(1)
        gate.fence("evicted")
    assert disk.writes == []
    assert disk.operations == {"read": 0, "write": 0, "flush": 0}
