"""What every SectorDevice promises (``membership/seams.py``), as checks that run on each of them (style.md 3.17).

A check takes a ``Subject``: the device, and a way to open the same bytes anew.  Devices are at least 8 MiB.
"""

from __future__ import annotations

import errno
import mmap
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest
import trio
from trio.testing import assert_checkpoints

from matrixfs.blockstore.device.iscsi import IscsiDevice
from membership.errors import DeviceError
from membership.seams import SectorDevice

MIB = 1 << 20


@dataclass
class Subject:
    device: SectorDevice
    reopen: Callable[[], SectorDevice]  # another one over the same bytes; the caller closes it
    refusals: tuple[type[Exception], ...] = (DeviceError,)  # what a closed one raises

    async def another(self) -> SectorDevice:
        """``reopen``, and logged in where that takes more than a call."""
        device = self.reopen()
        if isinstance(device, IscsiDevice):
            await device.open()
        return device


def pattern(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


async def check_describes_itself(s: Subject) -> None:
    assert s.device.sector_bytes in {512, 4096}
    assert s.device.size_bytes >= 8 * MIB
    assert s.device.size_bytes % s.device.sector_bytes == 0
    assert isinstance(s.device.name, str)
    assert s.device.name


async def check_reads_what_was_written(s: Subject) -> None:
    sector = s.device.sector_bytes
    for seed, (offset, length) in enumerate(
        [(0, sector), (sector, 3 * sector), (4096, 4096), (MIB, MIB), (2 * MIB + sector, 3 * MIB + sector)]
    ):
        data = pattern(seed, length)
        await s.device.write(offset, data, durable=bool(seed % 2))
        found = await s.device.read(offset, length)
        assert type(found) is bytes
        assert found == data


async def check_leaves_neighbours_alone(s: Subject) -> None:
    sector = s.device.sector_bytes
    around = pattern(1, 5 * sector)
    await s.device.write(0, around)
    await s.device.write(2 * sector, pattern(2, sector))
    assert await s.device.read(0, 5 * sector) == around[: 2 * sector] + pattern(2, sector) + around[3 * sector :]


async def check_takes_every_buffer(s: Subject) -> None:
    data = pattern(3, 8192)
    mapped = mmap.mmap(-1, 3 * 4096)
    mapped[:8192] = data
    with memoryview(mapped) as view, view[:8192] as aligned, view[512 : 512 + 4096] as inside:
        words = memoryview(bytearray(data)).cast("Q")
        for each in (data, bytearray(data), memoryview(data), memoryview(bytearray(data)), aligned, inside, words):
            length = each.nbytes if isinstance(each, memoryview) else len(each)
            await s.device.write(4096, bytes(length))
            await s.device.write(4096, each)
            assert await s.device.read(4096, length) == bytes(each)
    mapped.close()  # raises if the device held on to it


async def check_last_sector(s: Subject) -> None:
    sector = s.device.sector_bytes
    data = pattern(4, sector)
    await s.device.write(s.device.size_bytes - sector, data)
    assert await s.device.read(s.device.size_bytes - sector, sector) == data


async def check_refuses_outside(s: Subject) -> None:
    sector, size = s.device.sector_bytes, s.device.size_bytes
    for offset, length in [(size, sector), (size - sector, 2 * sector), (1 << 62, sector), (-sector, sector)]:
        with pytest.raises(DeviceError) as read:
            await s.device.read(offset, length)
        assert read.value.errno == errno.EINVAL
        with pytest.raises(DeviceError) as written:
            await s.device.write(offset, bytes(length))
        assert written.value.errno == errno.EINVAL
        assert s.device.name in str(written.value)


async def check_misalignment_is_a_bug(s: Subject) -> None:
    sector = s.device.sector_bytes
    for offset, length in [(1, sector), (0, sector - 1), (sector // 2, sector)]:
        with pytest.raises(AssertionError):
            await s.device.read(offset, length)
        with pytest.raises(AssertionError):
            await s.device.write(offset, bytes(length))


async def check_empty_requests(s: Subject) -> None:
    assert await s.device.read(0, 0) == b""
    await s.device.write(s.device.size_bytes, b"")


async def check_every_call_is_a_checkpoint(s: Subject) -> None:
    with assert_checkpoints():
        await s.device.write(0, bytes(4096))
    with assert_checkpoints():
        await s.device.read(0, 4096)
    with assert_checkpoints():
        await s.device.read(0, 0)
    with assert_checkpoints():
        await s.device.flush()


async def check_many_at_once(s: Subject) -> None:
    length = 8192

    async def worker(i: int) -> None:
        data = pattern(i, length)
        await s.device.write(i * length, data, durable=i % 3 == 0)
        if i % 7 == 0:
            await s.device.flush()
        assert await s.device.read(i * length, length) == data

    async with trio.open_nursery() as nursery:
        for i in range(300):
            nursery.start_soon(worker, i)
    for i in range(300):
        assert await s.device.read(i * length, length) == pattern(i, length)


async def check_flushed_is_there_for_others(s: Subject) -> None:
    data = pattern(5, 64 * 1024)
    await s.device.write(MIB, data)
    await s.device.flush()
    await s.device.write(0, data[:4096], durable=True)
    other = await s.another()
    try:
        assert await other.read(MIB, len(data)) == data
        assert await other.read(0, 4096) == data[:4096]
    finally:
        await other.aclose()


async def check_two_share_the_bytes(s: Subject) -> None:
    other = await s.another()
    try:
        for i in range(20):
            await s.device.write(4096, pattern(i, 4096))
            assert await other.read(4096, 4096) == pattern(i, 4096)
    finally:
        await other.aclose()


async def check_cancelled_before_does_nothing(s: Subject) -> None:
    await s.device.write(0, bytes(4096))
    with trio.CancelScope() as scope:
        scope.cancel()
        await s.device.write(0, pattern(6, 4096))
    assert scope.cancelled_caught
    assert await s.device.read(0, 4096) == bytes(4096)


async def check_cancelled_in_flight_is_whole_or_not(s: Subject) -> None:
    """Cancel at every tick; whatever came of it, the device goes on and no operation hits memory given back."""
    old, new = pattern(7, 16384), pattern(8, 16384)
    for ticks in range(12):
        await s.device.write(0, old)

        async def attempt() -> None:
            await s.device.write(0, new)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(attempt)
            for _ in range(ticks):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        after = await s.device.read(0, 16384)
        assert after in {old, new}
        assert await s.device.read(0, 16384) == after  # nothing lands later


async def check_close_waits_and_refuses(s: Subject) -> None:
    outcomes: dict[int, bool] = {}

    async def worker(i: int) -> None:
        try:
            await s.device.write(i * 4096, pattern(i, 4096))
            outcomes[i] = True
        except s.refusals:
            outcomes[i] = False

    async with trio.open_nursery() as nursery:
        for i in range(64):
            nursery.start_soon(worker, i)
        await trio.lowlevel.checkpoint()
        await s.device.aclose()
    assert len(outcomes) == 64
    for call in (s.device.read(0, 4096), s.device.write(0, bytes(4096)), s.device.flush()):
        with pytest.raises(s.refusals):
            await call
    await s.device.aclose()  # idempotent
    other = await s.another()
    try:
        for i, done in outcomes.items():
            if done:
                assert await other.read(i * 4096, 4096) == pattern(i, 4096)
    finally:
        await other.aclose()


CHECKS: list[Callable[[Subject], Awaitable[None]]] = [
    check for name, check in sorted(globals().items()) if name.startswith("check_")
]
