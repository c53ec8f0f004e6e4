"""Growing a filesystem: where everything comes to lie, and that the power may go at every write of it."""

from __future__ import annotations

import errno
import tracemalloc
from collections.abc import Callable
from dataclasses import replace

import pytest

from matrixfs.fs import attributes, data, namespace
from matrixfs.fs.grow import Growth, plan, prepare, prepare_journals
from matrixfs.fs.journal_space import JournalSpace
from matrixfs.fs.mkfs import format_volume, superblock_copy
from matrixfs.fs.opening import read_superblock
from matrixfs.fs.promises import TREE_BLOCKS_MAX
from matrixfs.fs.replay import read_journal_header
from matrixfs.fsck import store
from matrixfs.fsck.problems import Findings
from matrixfs.ondisk.journal import DIRTY
from matrixfs.ondisk.superblock import INCOMPATIBLE_NEW, JOURNAL_RUNS, ROOT_INODE, RUNS_MAX, Superblock
from membership.errors import CorruptRecord, OperatorError
from membership.label import BLOCK_BYTES
from tests.matrixfs.local import Local, mounted
from tests.sim.checkers import assert_clean, fsck
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
LONG_TEAR = ["drop", pytest.param("tear", marks=pytest.mark.long)]


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


async def look(image: SimDisk) -> tuple[Superblock, set[str]]:
    """What fsck says of the superblock, its copy, and everything behind them: notes only."""
    findings = Findings()
    found = await store.read_superblock(image, findings)
    assert found is not None
    everything = [*findings.kept, *(await fsck(image, found)).kept]
    assert not [finding.text for finding in everything if not finding.problem.is_note]
    return found, {finding.problem.code for finding in everything}


async def content(mount: Local, name: bytes) -> bytes:
    found = await namespace.lookup(mount.volume, ROOT_INODE, name)
    assert found is not None
    return await data.read(mount.volume, found.ino, 0, found.size)


@pytest.mark.parametrize("blocks", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("gain", [700, pytest.param(3, marks=pytest.mark.long)])
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
        assert free - await fill(mount) < after.groups * TREE_BLOCKS_MAX + 30  # what each group keeps for trees
        assert await content(mount, b"kept") == b"k" * 100_000
    await assert_clean(disk, after, notes=False)


@pytest.mark.parametrize("mode", LONG_TEAR)
@pytest.mark.parametrize("blocks", SIZES.values(), ids=SIZES)
async def test_power_lost_at_every_write(blocks: int, mode: Mode) -> None:
    """The old filesystem or the new one, and neither needs a repair."""
    disk = await disk_of(blocks)
    before = await read_superblock(disk)
    disk.mark()
    after = (await grow(disk, blocks + 700)).after
    seen: list[int] = []
    codes: set[str] = set()
    for entry in range(len(disk.log) + 1):
        image = disk.crash_image(entry, mode, seed=entry)
        found, notes = await look(image)
        codes |= notes
        async with mounted(image) as mount:
            assert await content(mount, b"kept") == b"k" * 100_000
            if not seen or seen[-1] != found.generation or entry % 4 == 0:
                await fill(mount)
        assert (await look(image))[1] <= notes
        seen.append(found.generation)
    assert codes <= {"group-short"}
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


# --- journals that are added ---------------------------------------------------------------------------------


async def add(mount: Local, journals: int) -> None:
    """What matrixfs/growing.py does, without other mounts."""
    volume, space = mount.volume, JournalSpace(mount.volume)
    try:
        await space.take(journals)
        growth = await prepare_journals(mount.disk, volume.superblock, space.runs, space.length, SimRng(3))
        await growth.apply(mount.disk)
        volume.superblock.take_over(growth.after)
        space.use()
        await volume.journal.commit()
    finally:
        space.close()


async def test_journals_are_added_and_used() -> None:
    disk = await disk_of(6000)
    async with mounted(disk) as mount:
        free = await mount.volume.allocator.count_free()
        await add(mount, 5)
        superblock = mount.volume.superblock
        assert (superblock.journals, superblock.features_incompatible) == (7, INCOMPATIBLE_NEW | JOURNAL_RUNS)
        assert [run.journals for run in superblock.runs()] == [2, 3, 2]
        assert free - await mount.volume.allocator.count_free() == 5 * 64
        assert (await attributes.statfs(mount.volume)).blocks == superblock.capacity()
    found = await read_superblock(disk)
    assert {found.journal_length(index) for index in range(7)} == {64}
    assert len({found.journal_block(index) for index in range(7)}) == 7
    await assert_clean(disk, found, notes=False)
    async with mounted(disk, index=6, clean=False) as mount:
        made = await mount.file(b"by the last one")
        await data.write(mount.volume, made.ino, 0, b"x" * 9000)
        await data.fsync(mount.volume, made.ino, False)
        await fill(mount)
    assert (await read_journal_header(disk, found, 6)).state == DIRTY
    await assert_clean(disk, found)
    async with mounted(disk) as mount:
        assert await content(mount, b"by the last one") == b"x" * 9000
        assert await content(mount, b"kept") == b"k" * 100_000
    await assert_clean(disk, found)


@pytest.mark.parametrize("mode", LONG_TEAR)
async def test_power_lost_at_every_write_of_adding_journals(mode: Mode) -> None:
    disk = await disk_of(6000)
    async with mounted(disk, clean=False) as mount:
        disk.mark()
        await add(mount, 4)
        await mount.volume.journal.checkpoint()
    counts: list[int] = []
    codes: set[str] = set()
    for entry in range(len(disk.log) + 1):
        image = disk.crash_image(entry, mode, seed=entry)
        found, notes = await look(image)
        codes |= notes
        async with mounted(image) as mount:
            assert await content(mount, b"kept") == b"k" * 100_000
            if not counts or counts[-1] != found.journals:
                await fill(mount)
        await look(image)
        counts.append(found.journals)
        for index in range(found.journals):
            await read_journal_header(image, found, index)
    assert set(counts) == {2, 6}
    assert counts == sorted(counts)
    assert codes == {"superblock-later", "journal-unmarked"}


async def test_no_room_for_journals() -> None:
    async with mounted(await disk_of(4096)) as mount:
        await fill(mount)
        free = await mount.volume.allocator.count_free()
        with pytest.raises(OperatorError, match="no room for 9 journals of 256 KiB"):
            await add(mount, 9)
        assert await mount.volume.allocator.count_free() == free
    async with mounted(await disk_of(12_000)) as mount:
        for _ in range(RUNS_MAX):
            await add(mount, 1)
        with pytest.raises(OperatorError, match="no room for 1 journal"):
            await add(mount, 1)


RUN = {"run_start": 300, "run_journals": 2, "run_blocks": 64}
BAD_RUNS = {
    "without its bit": ({**RUN, "features_incompatible": 0}, "journal runs"),
    "more than there are": ({**RUN, "run_journals": 4}, "journal runs"),
    "before the groups": ({**RUN, "run_start": 100}, "journal run"),
    "a bitmap": ({**RUN, "run_start": 512}, "journal run"),
    "over the end of a group": ({**RUN, "run_start": 400}, "journal run"),
    "behind all": ({**RUN, "run_start": 1 << 60}, "journal run"),
    "too short": ({**RUN, "run_blocks": 63}, "journal run"),
    "endless": ({**RUN, "run_blocks": (1 << 64) - 1}, "journal run"),
}


@pytest.mark.parametrize(("fields", "check"), BAD_RUNS.values(), ids=BAD_RUNS)
async def test_impossible_runs_are_refused(fields: dict[str, int], check: str) -> None:
    superblock = replace(await read_superblock(await disk_of(4096)), journals=4, features_incompatible=JOURNAL_RUNS)
    for name, value in fields.items():
        setattr(superblock, name, (value, *[0] * 7) if name.startswith("run_") else value)
    with pytest.raises(CorruptRecord, match=check):
        Superblock.decode_untrusted(superblock.encode(), "x").check_untrusted("x", 1 << 40)


async def test_runs_that_overlap_are_refused() -> None:
    superblock = replace(await read_superblock(await disk_of(4096)), journals=4, features_incompatible=JOURNAL_RUNS)
    rows = ((300, 340, *[0] * 6), (1, 1, *[0] * 6), (64, 64, *[0] * 6))
    superblock.run_start, superblock.run_journals, superblock.run_blocks = rows
    with pytest.raises(CorruptRecord, match="journal run"):
        superblock.check_untrusted("x", 1 << 40)


async def test_a_shift_that_would_take_all_memory_is_refused_first() -> None:
    superblock = replace(await read_superblock(await disk_of(4096)), group_shift=(1 << 32) - 1)
    tracemalloc.start()
    try:
        with pytest.raises(CorruptRecord, match="group shift"):
            Superblock.decode_untrusted(superblock.encode(), "x").check_untrusted("x", 1 << 40)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


async def test_a_journal_that_there_is_not() -> None:
    superblock = await read_superblock(await disk_of(4096))
    for index in (-1, 2):
        with pytest.raises(ValueError, match="there is no journal"):
            superblock.journal_block(index)
