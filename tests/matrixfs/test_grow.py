"""Growing a filesystem: where everything comes to lie, and that the power may go at every write of it."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace

import pytest

from matrixfs.fs import attributes, data, namespace
from matrixfs.fs.grow import Growth, plan, prepare
from matrixfs.fs.mkfs import format_volume, superblock_copy
from matrixfs.fs.opening import read_superblock
from matrixfs.ondisk.superblock import ROOT_INODE, Superblock
from membership.errors import CorruptRecord
from membership.label import BLOCK_BYTES
from tests.matrixfs.local import Local, mounted
from tests.sim.checkers import assert_clean
from tests.sim.disk import Mode, SimDisk
from tests.sim.network import SimClock, SimRng

GROUP = 256
SIZES = {  # blocks before: how the end lies to the last group
    "short": 4096 - 100,
    "nearly full": 4096,
    "full, its copy where the next bitmap must be": 4097,
    "full, and a block over": 4098,
    "two blocks": 4099,
}
GAINS = (3, 157, 700)


async def disk_of(blocks: int) -> SimDisk:
    """A small filesystem; its sectors have 512 bytes, so that a block may be torn."""
    disk = SimDisk(blocks * BLOCK_BYTES, 512, seed=blocks)
    await format_volume(disk, name="t", journals=2, journal_blocks=64, clock=SimClock(), rng=SimRng(1))
    async with mounted(disk) as mount:
        kept = await mount.file(b"kept")
        await data.write(mount.volume, kept.ino, 0, b"k" * 100_000)
    return disk


async def grow(disk: SimDisk, blocks: int) -> Growth:
    """All that writes the disk."""
    before = await read_superblock(disk)
    disk.capacity = blocks * BLOCK_BYTES
    after = plan(before, blocks)
    assert after is not None
    growth = await prepare(disk, before, after)
    await growth.apply(disk)
    return growth


async def fill(mount: Local, name: bytes = b"full") -> int:
    """Write until nothing is left; how many blocks that took."""
    made, at = await mount.file(name), 0
    try:
        while True:
            at += await data.write(mount.volume, made.ino, at, bytes([1]) * BLOCK_BYTES * 16)
    except OSError as error:
        assert error.errno == errno.ENOSPC
    await data.fsync(mount.volume, made.ino, False)
    return at // BLOCK_BYTES


async def content(mount: Local, name: bytes) -> bytes:
    found = await namespace.lookup(mount.volume, ROOT_INODE, name)
    assert found is not None
    return await data.read(mount.volume, found.ino, 0, found.size)


@pytest.mark.parametrize("blocks", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("gain", GAINS)
async def test_the_grown_filesystem_is_as_large_as_one_made_so(blocks: int, gain: int) -> None:
    disk = await disk_of(blocks)
    before = await read_superblock(disk)
    growth = await grow(disk, blocks + gain)
    after = await read_superblock(disk)
    fresh = SimDisk(disk.capacity, 512)
    made = await format_volume(fresh, name="t", journals=2, journal_blocks=64, clock=SimClock(), rng=SimRng(1))
    assert (after.blocks_total, after.groups) == (made.blocks_total, made.groups)
    assert after == growth.after
    assert after.generation > before.generation
    assert after.capacity() == sum(after.group_size(index) - 1 for index in range(after.groups)) > before.capacity()
    copy = await disk.read((after.blocks_total - 1) * BLOCK_BYTES, BLOCK_BYTES)
    assert Superblock.decode_untrusted(copy, "copy") == superblock_copy(after)
    await assert_clean(disk, after)
    async with mounted(disk) as mount:
        assert (await attributes.statfs(mount.volume)).blocks == after.capacity()
        free = (await attributes.statfs(mount.volume)).free
        assert free - await fill(mount) < 40  # the file's tree, and what each group keeps for trees
        assert await content(mount, b"kept") == b"k" * 100_000
    await assert_clean(disk, after, notes=False)


@pytest.mark.parametrize("mode", ["drop", "tear"])
@pytest.mark.parametrize("blocks", SIZES.values(), ids=SIZES)
async def test_power_lost_at_every_write(blocks: int, mode: Mode) -> None:
    """The old filesystem or the new one, and neither needs a repair."""
    disk = await disk_of(blocks)
    before = await read_superblock(disk)
    disk.mark()
    after = (await grow(disk, blocks + 700)).after
    seen = []
    for entry in range(len(disk.log) + 1):
        image = disk.crash_image(entry, mode, seed=entry)
        found = await read_superblock(image)
        seen.append(found.generation)
        await assert_clean(image, found)
        async with mounted(image) as mount:
            assert await content(mount, b"kept") == b"k" * 100_000
            await fill(mount)
        await assert_clean(image, found, notes=False)
    assert seen == sorted(seen)
    assert {before.generation, after.generation} <= set(seen)


async def test_what_two_superblocks_differ_in_lies_in_one_sector() -> None:
    """G2: a superblock that is torn is one of the two."""
    disk = await disk_of(4097)
    old = await disk.read(0, BLOCK_BYTES)
    await grow(disk, 6000)
    assert (await disk.read(0, BLOCK_BYTES))[512:] == old[512:]


async def test_a_mount_goes_on_in_the_grown_filesystem() -> None:
    """Full, grown, and the same volume has room again; its last group is one that it holds already."""
    disk = await disk_of(SIZES["short"])
    async with mounted(disk) as mount:
        volume = mount.volume
        await fill(mount)
        before = replace(volume.superblock)
        with pytest.raises(OSError):
            await data.write(volume, (await mount.file(b"more")).ino, 0, bytes(BLOCK_BYTES * 200))
        await grow(disk, SIZES["short"] + 1000)
        volume.superblock.take_over(await read_superblock(disk))
        assert (await attributes.statfs(volume)).free >= 1000 - 4
        await volume.allocator.enlarge(before.groups - 1)
        found = await attributes.statfs(volume)
        assert (found.blocks, found.free >= 1000 - 4) == (volume.superblock.capacity(), True)
        assert await fill(mount, b"again") > 900
    await assert_clean(disk, await read_superblock(disk), notes=False)


def test_what_gains_nothing_is_no_plan() -> None:
    made = Superblock(
        blocks_total=4097, group_start=256, group_shift=8, groups=15, journals=1, journal_blocks=64, journal_start=128
    )
    assert [plan(made, 4097 + gain) for gain in (-1000, -1, 0, 1)] == [None] * 4
    later = plan(made, 4099)
    assert later is not None and (later.groups, later.capacity()) == (16, made.capacity() + 1)


CHANGES: dict[str, Callable[[Superblock], object]] = {
    "owner": lambda newer: setattr(newer, "owner", b"o" * 16),
    "size": lambda newer: setattr(newer, "blocks_total", 4000),
    "groups": lambda newer: setattr(newer, "groups", 3),
    "layout": lambda newer: setattr(newer, "group_start", 512),
    "journals": lambda newer: setattr(newer, "journals", 1),
}


@pytest.mark.parametrize("check", CHANGES)
async def test_a_mount_takes_over_no_other_filesystem(check: str) -> None:
    mine = await read_superblock(await disk_of(4096))
    newer, before = replace(mine), replace(mine)
    CHANGES[check](newer)
    with pytest.raises(CorruptRecord, match=check):
        mine.take_over(newer)
    assert mine == before
