"""The mount process's part in growing: label before superblock, and what becomes of it when the power goes between."""

from __future__ import annotations

import os
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from matrixfs.blockstore import Window, open_store
from matrixfs.blockstore.device.block import BlockDevice
from matrixfs.blockstore.device.file import FileDevice
from matrixfs.fs.opening import read_superblock
from matrixfs.growing import Grower, Progress, current_superblock
from matrixfs.locks.modes import EX
from membership.errors import CorruptRecord, DeviceError, OperatorError
from membership.label import BLOCK_BYTES, DATA_BLOCK, read_label
from membership.orders import Told
from tests.contract.stores import loop_device
from tests.damage.test_damages import fsck
from tests.damage.volume import small_store
from tests.matrixfs.local import Local, mounted
from tests.sim.disk import SimDisk

BLOCKS, GAIN = 2304, 900
MIB = 1 << 20


class Measured:
    """A store that can be measured."""

    def __init__(self, disk: SimDisk) -> None:
        self.disk = disk
        self.name = disk.name

    async def measure(self) -> int:
        return self.disk.capacity


class Alone:
    """The only member: its barrier is no wait."""

    def __init__(self, local: Local, area: Window) -> None:
        self.volume = local.volume
        self.told: list[str] = []
        self._area = area

    async def at_barrier(self, action: Callable[[], Awaitable[None]]) -> None:
        await action()
        self.volume.superblock.take_over(await read_superblock(self._area))

    async def reply(self, told: Told) -> None:
        self.told.append(told.text)


def area_of(disk: SimDisk, blocks: int = BLOCKS) -> Any:
    area = Window(disk, DATA_BLOCK * BLOCK_BYTES, blocks * BLOCK_BYTES)
    area.rng = random.Random(1)  # type: ignore[attr-defined]  # as ``mounted`` wants it
    return area


async def grown() -> SimDisk:
    """A whole disk, enlarged and grown, with the log of that."""
    disk = (await small_store(blocks=BLOCKS)).disk
    area = area_of(disk)
    async with mounted(area) as local:
        disk.capacity += GAIN * BLOCK_BYTES
        disk.mark()
        member = Alone(local, area)
        grower = Grower(member, Measured(disk), disk, area)  # type: ignore[arg-type]
        progress = Progress()
        await grower._grow(local.volume, 4, progress)
        assert (progress.journals, progress.error) == (4, "")
        assert progress.blocks - progress.blocks_before > GAIN - 10 - 2 * 64
        assert member.told == [f"grown from {BLOCKS} to {BLOCKS + GAIN} blocks", "2 journals added, 4 in all"]
        before = len(disk.writes)
        await grower._grow(local.volume, 4, progress)
        assert (len(disk.writes), len(member.told)) == (before, 2), "a second time there is nothing to do"
        await local.volume.journal.checkpoint()
    return disk


@pytest.mark.parametrize("mode", ["drop", "tear"])
async def test_power_lost_at_every_write(mode: Any, autojump_clock: object) -> None:
    """Label, bitmaps, superblock, journals: fsck finds nothing, and the disk opens from its label."""
    disk = await grown()
    sizes = []
    for entry in range(len(disk.log) + 1):
        image = disk.crash_image(entry, mode, seed=entry)
        outcome = await fsck(image)
        assert not outcome.left.errors, [finding.text for finding in outcome.left.kept]
        label = await read_label(image)
        superblock = await current_superblock(Measured(image), image, area_of(image))  # type: ignore[arg-type]
        assert superblock.blocks_total <= label.data_blocks
        sizes.append((label.data_blocks, superblock.blocks_total, superblock.journals))
    assert sorted(set(sizes)) == [
        (BLOCKS, BLOCKS, 2), (BLOCKS + GAIN, BLOCKS, 2), (BLOCKS + GAIN, BLOCKS + GAIN, 2),
        (BLOCKS + GAIN, BLOCKS + GAIN, 4),
    ]  # fmt: skip
    assert sizes == sorted(sizes)


async def test_a_store_that_this_node_sees_too_small() -> None:
    """It was enlarged and grown, and this node has not been told."""
    disk = await grown()
    disk.capacity -= GAIN * BLOCK_BYTES
    with pytest.raises(OperatorError, match="cut short"):
        await current_superblock(Measured(disk), disk, area_of(disk))  # type: ignore[arg-type]
    disk.corrupt(DATA_BLOCK * BLOCK_BYTES + 150)
    with pytest.raises(CorruptRecord, match="checksum"):
        await current_superblock(Measured(disk), disk, area_of(disk))  # type: ignore[arg-type]


async def test_somebody_else_grows_it(autojump_clock: object) -> None:
    disk = (await small_store(blocks=BLOCKS)).disk
    area = area_of(disk)
    async with mounted(area) as local:
        grower = Grower(Alone(local, area), Measured(disk), disk, area)  # type: ignore[arg-type]
        lock = local.volume.locks.lock(grower._shape, grower)
        await lock.hold(EX, exclusive=True)
        with pytest.raises(OperatorError, match="another mount grows or freezes it"):
            await grower._grow(local.volume, 0, Progress())
        lock.drop(EX, exclusive=True)


async def test_questions_that_are_refused() -> None:
    disk = (await small_store(blocks=BLOCKS)).disk
    area = area_of(disk)
    async with mounted(area) as local:
        grower = Grower(Alone(local, area), Measured(disk), disk, area)  # type: ignore[arg-type]
        assert grower.grow({"fs": "other", "journals": 0}) == 0
        assert await grower.enlarge({"fs": "other", "size": 1}) is None
        for journals in (1, 65):
            with pytest.raises(OperatorError, match="it has 2 journals: it may get more, 64 in all, never fewer"):
                grower.grow({"fs": "web", "journals": journals})
        with pytest.raises(OperatorError, match="is no file: enlarge it where it is made"):
            await grower.enlarge({"fs": "web", "size": 1 << 30})
        with pytest.raises(OperatorError, match="being grown already, or unmounted"):  # nobody carries it out
            grower.grow({"fs": "web", "journals": 0})


async def test_a_file_is_enlarged_and_measured(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = Path("/var/tmp") / f"{tmp_path_factory.mktemp('grow').parent.name}-grow"
    path.write_bytes(bytes(8 * MIB))
    try:
        device, other = open_store(str(path)), open_store(str(path))
        assert isinstance(device, FileDevice)
        window = Window(other, MIB, 7 * MIB)
        device.enlarge(12 * MIB)
        device.enlarge(4 * MIB)  # it is longer already
        assert (device.size_bytes, await device.measure(), other.size_bytes) == (8 * MIB, 12 * MIB, 8 * MIB)
        with pytest.raises(DeviceError):
            window.extend(11 * MIB)
        assert await other.measure() == 12 * MIB
        window.extend(11 * MIB)
        await window.write(10 * MIB, b"w" * 4096)
        assert await device.read(11 * MIB, 4096) == b"w" * 4096
        os.truncate(path, 9 * MIB)
        assert await device.measure() == 12 * MIB, "never smaller: what is known to be there is asked for, and fails"
        await device.aclose()
        await other.aclose()
    finally:
        path.unlink()


async def test_a_block_device_is_measured(tmp_path: Path) -> None:
    backing = tmp_path / "backing"
    backing.write_bytes(bytes(8 * MIB))
    with loop_device(str(backing), 512) as path:
        device = open_store(path)
        assert isinstance(device, BlockDevice)
        assert await device.measure() == 8 * MIB
        os.truncate(backing, 12 * MIB)
        await trio.run_process(["losetup", "--set-capacity", path])
        assert await device.measure() == 12 * MIB
        await device.aclose()
