"""The simulated disk keeps its own promises M1-M4: a fake that lies makes every test above it worthless."""

from __future__ import annotations

import random

import pytest
import trio

from membership.errors import DeviceError
from tests.sim.disk import Flush, Mode, SimDisk, Write

MIB = 1 << 20
SECTORS = pytest.mark.parametrize("sector", [512, 4096])


def block(i: int) -> bytes:
    return bytes([i]) * 4096


@SECTORS
async def test_drop_forgets_exactly_what_is_not_safe(sector: int) -> None:
    disk = SimDisk(MIB, sector)
    await disk.write(0, block(1))
    await disk.flush()
    await disk.write(0, block(2))  # over a safe one
    await disk.write(4096, block(3), durable=True)
    await disk.write(8192, block(4))
    assert await disk.read(0, 12288) == block(2) + block(3) + block(4)
    disk.power_loss(mode="drop")
    assert await disk.read(0, 12288) == block(1) + block(3) + block(0)


async def test_durable_does_not_carry_earlier_writes_along() -> None:
    disk = SimDisk(MIB)
    await disk.write(0, block(1))
    await disk.write(4096, block(2), durable=True)
    disk.power_loss(mode="drop")
    assert await disk.read(0, 8192) == block(0) + block(2)


async def test_flush_covers_only_writes_that_returned_before(autojump_clock: trio.testing.MockClock) -> None:
    disk = SimDisk(MIB)
    await disk.write(0, block(1))
    disk.hang()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(disk.flush)
        nursery.start_soon(disk.write, 4096, block(2))
        await trio.testing.wait_all_tasks_blocked()
        disk.resume()
    disk.power_loss(mode="drop")
    assert await disk.read(0, 8192) == block(1) + block(0)


@SECTORS
@pytest.mark.parametrize("mode", ["drop", "keep-some", "keep-all", "tear"])
@pytest.mark.parametrize("seed", range(8))
async def test_power_loss_invents_nothing(sector: int, mode: Mode, seed: int) -> None:
    """Every sector afterwards is a value it had since it was last safe, and no older (M1, M3)."""
    rng = random.Random(seed)
    disk = SimDisk(64 * 4096, sector, seed)
    possible: dict[int, list[int]] = {i: [0] for i in range(8)}
    for step in range(1, 60):
        i = rng.randrange(8)
        durable = rng.random() < 0.2
        await disk.write(i * 4096, block(step), durable=durable)
        possible[i] = [step] if durable else [*possible[i], step]
        if rng.random() < 0.1:
            await disk.flush()
            possible = {i: values[-1:] for i, values in possible.items()}
    disk.power_loss(rng, mode)
    for i, values in possible.items():
        found = await disk.read(i * 4096, 4096)
        for at in range(0, 4096, sector):
            part = found[at : at + sector]
            assert len(set(part)) == 1, "a sector is atomic"
            assert part[0] in values
        if mode == "drop":
            assert found == block(values[0])
        elif mode == "keep-all":
            assert found == block(values[-1])


async def test_crash_image_at_every_k() -> None:
    disk = SimDisk(MIB)
    await disk.write(0, block(9))  # before the mark, not safe
    disk.mark()
    for i in range(6):
        await disk.write(i % 3 * 4096, block(i + 1), durable=i == 4)
        if i == 2:
            await disk.flush()
    expected = {0: (0, 0, 0), 3: (0, 0, 0), 4: (1, 2, 3), 5: (1, 2, 3), 6: (1, 5, 3), 7: (1, 5, 3)}
    assert [type(entry) for entry in disk.log].count(Flush) == 1
    assert len(disk.log) == 7
    for k, values in expected.items():
        image = disk.crash_image(k)
        assert await image.read(0, 12288) == b"".join(block(value) for value in values), k
    kept = disk.crash_image(0, "keep-all")
    assert await kept.read(0, 4096) == block(9)
    assert await disk.read(0, 12288) == block(4) + block(5) + block(6)  # the disk itself goes on


async def test_snapshot_and_restore() -> None:
    disk = SimDisk(MIB)
    await disk.write(0, block(1), durable=True)
    await disk.write(4096, block(2))
    before = disk.snapshot()
    await disk.write(0, block(3), durable=True)
    await disk.flush()
    for _ in range(2):
        disk.restore(before)
        assert await disk.read(0, 8192) == block(1) + block(2)
        disk.power_loss(mode="drop")
        assert await disk.read(0, 8192) == block(1) + block(0)


@pytest.mark.seed("002-20")
async def test_cut_port_loses_its_way_and_no_other(autojump_clock: trio.testing.MockClock) -> None:
    outcomes = set()
    for seed in range(20):
        disk = SimDisk(MIB, seed=seed, latency=(1.0, 1.0))
        a, b = disk.port("a"), disk.port("b")

        async def doomed() -> None:
            with pytest.raises(DeviceError, match="lost on the way"):
                await a.write(0, block(1) * 4, durable=True)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(doomed)
            await trio.testing.wait_all_tasks_blocked()
            assert a.in_flight == 1
            a.cut("fenced")
        assert a.in_flight == 0
        landed = await b.read(0, 16384)
        outcomes.add(landed.count(1) // 512)
        assert landed == bytes([1]) * landed.count(1) + bytes(16384 - landed.count(1))
        with pytest.raises(DeviceError, match="fenced"):
            await a.write(0, block(7))
        await trio.sleep(10)
        assert await b.read(0, 16384) == landed, "nothing lands later"
        a.mend()
        await a.write(0, block(7))
    assert {0, 32} < outcomes, "none, some and all were seen"


async def test_cut_frees_a_hung_task(autojump_clock: trio.testing.MockClock) -> None:
    disk = SimDisk(MIB)
    port = disk.port("a")
    disk.hang()
    async with trio.open_nursery() as nursery:

        async def doomed() -> None:
            with pytest.raises(DeviceError):
                await port.read(0, 512)

        nursery.start_soon(doomed)
        await trio.testing.wait_all_tasks_blocked()
        port.cut()


async def test_faults_and_corruption() -> None:
    disk = SimDisk(MIB)
    await disk.write(0, block(1), durable=True)
    await disk.write(4096, block(2))
    fault = disk.fail("read", 4096, 512)
    assert len(await disk.read(0, 4096)) == 4096
    with pytest.raises(DeviceError, match="read at 0"):
        await disk.read(0, 8192)
    disk.faults.remove(fault)
    disk.fail("flush", times=1)
    with pytest.raises(DeviceError):
        await disk.flush()
    await disk.flush()
    disk.corrupt(5, 0x80)
    disk.corrupt(4096, 1)
    assert (await disk.read(0, 512))[5] == 0x81
    assert (await disk.read(4096, 512))[0] == 3
    disk.power_loss(mode="drop")
    assert (await disk.read(0, 512))[5] == 0x81
    assert (await disk.read(4096, 512))[0] == 3


async def test_same_seed_same_fate() -> None:
    def fate(seed: int) -> bytes:
        disk = SimDisk(MIB, seed=seed)
        for i in range(20):
            disk.land(Write(i * 4096, block(i + 1), durable=False))
        disk.power_loss(mode="tear")
        return disk.media.read(0, 20 * 4096)

    assert fate(1) == fate(1)
    assert fate(1) != fate(2)
