"""format_volume: geometry for every size, what is written, and that a torn mkfs is no filesystem (M1)."""

from __future__ import annotations

import random
import stat

import pytest

from matrixfs.fs.mkfs import (
    AREA_BLOCKS_MIN,
    CLEAR_BLOCKS,
    GROUPS_MIN,
    empty_group,
    format_volume,
    plan_volume,
    superblock_copy,
)
from matrixfs.fs.replay import read_journal_header
from matrixfs.ondisk.group import GroupRecord
from matrixfs.ondisk.inode import TREE, InodeRecord
from matrixfs.ondisk.journal import CLEAN
from matrixfs.ondisk.superblock import ORPHANS_START, ROOT_INODE, SYSTEM_BLOCKS, Superblock
from membership.errors import CorruptRecord, DeviceError, OperatorError
from membership.label import BLOCK_BYTES
from tests.damage.volume import FixedClock
from tests.sim.disk import SimDisk

GIB_BLOCKS = 1 << 18


async def make(
    blocks: int = AREA_BLOCKS_MIN, *, sector_bytes: int = 512, **options: object
) -> tuple[SimDisk, Superblock]:
    disk = SimDisk(blocks * BLOCK_BYTES, sector_bytes)
    arguments = {"name": "web", "journals": 3, "journal_blocks": None, "clock": FixedClock(), "rng": random.Random(7)}
    return disk, await format_volume(disk, **{**arguments, **options})


async def read_block(disk: SimDisk, block: int) -> bytes:
    return await disk.read(block * BLOCK_BYTES, BLOCK_BYTES)


@pytest.mark.parametrize(
    "blocks", [2048, 2049, 2303, 2304, 4095, 10000, 1 << 16, (1 << 18) - 1, 1 << 18, 1 << 21, 1 << 28]
)
@pytest.mark.parametrize("journals", [1, 3, 8, 64])
def test_every_plan_passes_the_superblocks_own_check(blocks: int, journals: int) -> None:
    try:
        plan = plan_volume(blocks, journals, None)
    except OperatorError:
        assert blocks < 10000 and journals == 64  # 64 journals don't fit 8 MiB
        return
    fields = {name: getattr(plan, name) for name in type(plan).__dataclass_fields__}
    superblock = Superblock(owner=bytes(16), journal_start=SYSTEM_BLOCKS, **fields)
    superblock.check_untrusted("plan", blocks)
    assert plan.groups >= GROUPS_MIN
    assert superblock.group_size(plan.groups - 1) >= 2
    assert superblock.group_block(plan.groups) + 2 > blocks - 1, "blocks of a whole group are left over at the end"
    assert plan.group_start <= max(blocks // 2, 768)


def test_large_areas_get_large_groups_and_a_small_system_area() -> None:
    plan = plan_volume(GIB_BLOCKS, 8, None)
    assert plan.group_shift == 14
    assert plan.group_start * 16 <= GIB_BLOCKS
    assert plan.journal_blocks >= GIB_BLOCKS // 256
    assert plan_volume(16 * GIB_BLOCKS, 8, None).journal_blocks == 16384


@pytest.mark.parametrize(
    ("blocks", "journals", "journal_blocks", "text"),
    [
        (2047, 1, None, "larger store"),
        (4096, 0, None, "between 1 and 64"),
        (4096, 65, None, "between 1 and 64"),
        (4096, 4, 63, "between 256 KiB"),
        (4096, 4, 1 << 25, "between 256 KiB"),
        (4096, 8, 500, "fewer or shorter journals"),
    ],
)
def test_impossible_sizes_are_refused_in_one_line(
    blocks: int, journals: int, journal_blocks: int | None, text: str
) -> None:
    with pytest.raises(OperatorError, match=text) as caught:
        plan_volume(blocks, journals, journal_blocks)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "a b", "a/b", "-n", "a,b", "x" * 65, "ü" * 33, "a\n"])
async def test_bad_names_are_refused_and_nothing_is_written(name: str) -> None:
    disk = SimDisk(AREA_BLOCKS_MIN * BLOCK_BYTES)
    with pytest.raises(OperatorError, match="can't name"):
        await format_volume(disk, name=name, journals=1, journal_blocks=None, clock=FixedClock(), rng=random.Random(7))
    assert disk.log == []


@pytest.mark.parametrize("sector_bytes", [512, 4096])
async def test_all_records_are_there_and_owned_by_the_new_filesystem(sector_bytes: int) -> None:
    disk, superblock = await make(5000, sector_bytes=sector_bytes)
    found = Superblock.decode_untrusted(await read_block(disk, 0), "t", owner=superblock.owner, address=0)
    assert found == superblock
    last = superblock.blocks_total - 1
    copy = Superblock.decode_untrusted(await read_block(disk, last), "t", owner=superblock.owner, address=last)
    assert copy == superblock_copy(superblock)
    assert superblock.owner[6] >> 4 == 4 and superblock.hash_seed != 0
    for inode, permissions in [(ROOT_INODE, 0o755), *((ORPHANS_START + i, 0o700) for i in range(3))]:
        directory = InodeRecord.decode_untrusted(
            await read_block(disk, inode), "t", owner=superblock.owner, address=inode
        )
        assert directory.mode == stat.S_IFDIR | permissions
        assert (directory.nlink, directory.parent, directory.layout, directory.depth) == (2, inode, TREE, 0)
        assert (directory.size, directory.blocks, directory.entries, directory.children) == (0, 0, 0, 0)
        assert directory.mtime_ns == FixedClock().wall_ns()
    salts = set()
    for index in range(3):
        header = await read_journal_header(disk, superblock, index)
        assert header.state == CLEAN
        salts.add(header.salt)
        assert await read_block(disk, superblock.journal_block(index) + 1) == bytes(BLOCK_BYTES)
    assert len(salts) == 3
    free = 0
    for index in range(superblock.groups):
        block = superblock.group_block(index)
        group = GroupRecord.decode_untrusted(await read_block(disk, block), "t", owner=superblock.owner, address=block)
        assert group == empty_group(superblock, index)
        bits = int.from_bytes(group.bitmap, "little")
        assert group.free == sum(1 for bit in range(group.blocks) if not bits >> bit & 1) == group.blocks - 1
        assert bits >> group.blocks == (1 << 2048 * 8 - group.blocks) - 1, "bits past the end are in use"
        free += group.free
    assert free == superblock.blocks_total - 1 - superblock.group_start - superblock.groups


async def test_a_large_area_costs_few_writes() -> None:
    disk, superblock = await make(64 * GIB_BLOCKS)
    clears = -(-superblock.journals * superblock.journal_blocks // CLEAR_BLOCKS)
    assert len(disk.writes) == superblock.groups + 2 * superblock.journals + clears + 4
    journals = superblock.journals * superblock.journal_blocks * BLOCK_BYTES
    assert sum(write.length for write in disk.writes) < journals + (6 << 20)


@pytest.mark.parametrize("mode", ["drop", "keep-some", "tear"])
async def test_power_loss_at_any_write_leaves_no_filesystem(mode: str) -> None:
    disk, _ = await make()
    disk.mark()
    second = await format_volume(
        disk, name="mail", journals=3, journal_blocks=None, clock=FixedClock(), rng=random.Random(8)
    )
    ends = [k for k, entry in enumerate(disk.log) if getattr(entry, "offset", None) == 0]
    assert len(ends) == 2, "block 0 is cleared first and written last"
    assert ends[0] == 0
    for k in range(1, len(disk.log) + 1):
        crashed = disk.crash_image(k, mode, seed=k)
        data = await read_block(crashed, 0)
        if k <= ends[1]:
            assert data == bytes(BLOCK_BYTES)
            continue
        assert data == second.encode()
        for block in (
            ROOT_INODE,
            second.group_block(second.groups - 1),
            second.journal_block(2),
            second.blocks_total - 1,
        ):
            assert await read_block(crashed, block) == await read_block(disk, block), "durable before block 0"


async def test_an_io_error_comes_out_plain() -> None:
    disk = SimDisk(AREA_BLOCKS_MIN * BLOCK_BYTES)
    disk.fail("write", offset=SYSTEM_BLOCKS * BLOCK_BYTES, length=BLOCK_BYTES)
    with pytest.raises(DeviceError, match="write"):
        await format_volume(disk, name="web", journals=1, journal_blocks=None, clock=FixedClock(), rng=random.Random(7))
    with pytest.raises(CorruptRecord):
        Superblock.decode_untrusted(await read_block(disk, 0), "block 0")
