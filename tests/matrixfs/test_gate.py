"""The fencing gate: R3, R4, 002-22, 002-23, and who is told what when a right ends under a write in flight."""

from __future__ import annotations

import itertools
import math

import pytest
import trio

from matrixfs.blockstore import FencingGate
from membership.errors import DeviceError, Fenced, PeerError
from tests.sim.disk import SimDisk
from tests.sim.network import SimClock

MIB = 1 << 20
BLOCK = b"n" * 4096


def admitted(disk: SimDisk, seconds: float = 10.0) -> FencingGate:
    gate = FencingGate(disk, SimClock())
    gate.extend(trio.current_time() + seconds, 1)
    return gate


async def refuses_all(gate: FencingGate) -> None:
    for call in (gate.read(0, 4096), gate.write(0, BLOCK), gate.write(0, BLOCK, durable=True), gate.flush()):
        with pytest.raises(Fenced):
            await call


@pytest.mark.seed("002-37")
async def test_nothing_passes_before_admission_and_all_after(autojump_clock: trio.testing.MockClock) -> None:
    disk = SimDisk(MIB)
    gate = FencingGate(disk, SimClock())
    await refuses_all(gate)
    assert disk.operations == {"read": 0, "write": 0, "flush": 0}
    gate.extend(trio.current_time() + 1, 1)
    await gate.write(0, BLOCK)
    assert await gate.read(0, 4096) == BLOCK
    await gate.flush()


@pytest.mark.seed("002-22")
async def test_a_lapsed_lease_refuses_at_once_and_a_late_renewal_helps(autojump_clock: trio.testing.MockClock) -> None:
    disk = SimDisk(MIB)
    gate = admitted(disk, 4.0)
    await trio.sleep(3.999)
    await gate.write(0, BLOCK)
    await trio.sleep(0.001)
    await refuses_all(gate)
    assert len(disk.writes) == 1
    gate.extend(trio.current_time() + 4, 1)
    await gate.write(0, BLOCK)


@pytest.mark.seed("002-23")
async def test_fence_is_per_device_and_until_unfenced(autojump_clock: trio.testing.MockClock) -> None:
    one, two = SimDisk(MIB), SimDisk(MIB)
    gates = admitted(one), admitted(two)
    gates[0].fence("evicted")
    gates[0].fence("a later reason")
    await refuses_all(gates[0])
    await gates[1].write(0, BLOCK)
    assert gates[0].fenced == "evicted"
    with pytest.raises(Fenced, match="evicted"):
        gates[0].extend(math.inf, 2)
    with pytest.raises(PeerError):
        gates[0].unfence(math.inf, 1)  # the admission it was fenced under
    await refuses_all(gates[0])
    gates[0].unfence(trio.current_time() + 1, 2)
    await gates[0].write(0, BLOCK)
    assert gates[0].generation == 2
    assert gates[0].deadline == trio.current_time() + 1  # the old, longer lease is forgotten


async def test_generation_and_deadline_never_go_back(autojump_clock: trio.testing.MockClock) -> None:
    gate = admitted(SimDisk(MIB), 10)
    gate.extend(20, 5)
    with pytest.raises(PeerError):
        gate.extend(30, 4)
    assert (gate.generation, gate.deadline) == (5, 20)
    gate.extend(15, 6)
    assert (gate.generation, gate.deadline) == (6, 20)


@pytest.mark.parametrize("steps", list(itertools.product("efu", repeat=4)))
async def test_every_sequence_of_events(steps: tuple[str, ...], autojump_clock: trio.testing.MockClock) -> None:
    """The table in the module against a model: right = admitted and not fenced since."""
    gate = FencingGate(SimDisk(MIB), SimClock())
    fenced, right, generation = False, False, 0
    for step in steps:
        if step == "f":
            gate.fence("x")
            fenced = True
        elif step == "e":
            if fenced:
                with pytest.raises(Fenced):
                    gate.extend(math.inf, generation)
            else:
                gate.extend(math.inf, generation)
                right = True
        else:
            generation += 1
            gate.unfence(math.inf, generation)
            fenced, right = False, True
        if right and not fenced:
            await gate.write(0, BLOCK)
        else:
            await refuses_all(gate)


@pytest.mark.parametrize("ending", ["fence", "lapse"])
async def test_right_that_ends_in_flight(ending: str, autojump_clock: trio.testing.MockClock) -> None:
    """The write lands (it was on its way), but nobody is told that it is safe; a read returns nothing."""
    disk = SimDisk(MIB, latency=(1.0, 1.0))
    gate = admitted(disk, 0.5 if ending == "lapse" else 100)
    told: list[str] = []

    async def attempt(what: str) -> None:
        with pytest.raises(Fenced) as caught:
            await (gate.write(0, BLOCK) if what == "write" else gate.read(0, 4096) if what == "read" else gate.flush())
        told.append(f"{what}: {caught.value}")

    async with trio.open_nursery() as nursery:
        for what in ("write", "read", "flush"):
            nursery.start_soon(attempt, what)
        await trio.sleep(0.25)
        assert gate.in_flight == 3
        if ending == "fence":
            gate.fence("evicted")
        with trio.move_on_after(0.5):
            await gate.drained()
            pytest.fail("drained with operations in flight")
        await gate.drained()
        assert gate.in_flight == 0
    assert disk.media.read(0, 4096) == BLOCK
    unknown = [line for line in told if "may or may not be on the disk" in line]
    assert sorted(line.split(":")[0] for line in unknown) == ["flush", "write"]
    assert gate.statistics()["unknown_outcome"] == 2


async def test_an_extension_in_flight_keeps_the_right(autojump_clock: trio.testing.MockClock) -> None:
    gate = admitted(SimDisk(MIB, latency=(1.0, 1.0)), 0.5)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(gate.write, 0, BLOCK)
        await trio.sleep(0.25)
        gate.extend(10, 1)
    assert gate.statistics()["unknown_outcome"] == 0


async def test_device_errors_pass_through(autojump_clock: trio.testing.MockClock) -> None:
    disk = SimDisk(MIB)
    gate = admitted(disk)
    disk.fail("write", 4096, 512, times=1)
    with pytest.raises(DeviceError):
        await gate.write(4096, BLOCK)
    await gate.write(4096, BLOCK)
    assert gate.in_flight == 0


async def test_drained_returns_at_once_when_idle_and_close_closes(autojump_clock: trio.testing.MockClock) -> None:
    disk = SimDisk(MIB)
    gate = admitted(disk)
    await gate.drained()
    await gate.aclose()
    await refuses_all(gate)
    with pytest.raises(DeviceError):
        await disk.read(0, 512)
    await gate.aclose()
