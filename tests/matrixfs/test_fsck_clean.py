"""fsck on whole filesystems: nothing is found where nothing is wrong, and little is read."""

from __future__ import annotations

import random

import pytest

from matrixfs.fsck.area import Area, bit_runs, neighbours
from matrixfs.fsck.blockmap import CHUNK, BlockMap
from matrixfs.fsck.check import check_filesystem
from matrixfs.fsck.context import Context, printable
from matrixfs.fsck.overlay import Overlay
from matrixfs.fsck.problems import Findings
from membership.label import BLOCK_BYTES
from tests.damage.build import Builder, sample
from tests.damage.volume import Volume, small_volume


class Quiet:
    def report(self, stage: str, done: int, total: int) -> None:
        assert done >= 0


async def check(volume: Volume) -> Context:
    return await check_filesystem(Area(volume.disk, volume.superblock), Findings(), Quiet())


def texts(context: Context) -> list[str]:
    return [finding.text for finding in context.findings.kept]


async def test_an_empty_filesystem_is_clean() -> None:
    context = await check(await small_volume())
    assert texts(context) == []
    assert (context.counts.files, context.counts.directories) == (0, 1)


@pytest.mark.parametrize("sector_bytes", [512, 4096])
async def test_one_of_everything_is_clean(sector_bytes: int) -> None:
    volume = await small_volume(sector_bytes=sector_bytes)
    built = await sample(volume).write()
    deep, many = await built.inode("deep"), await built.inode("many")
    assert (deep.depth, many.depth) == (2, 2)
    context = await check(volume)
    assert texts(context) == []
    assert (context.counts.files, context.counts.directories) == (54, 6)
    assert context.counts.blocks_used == context.map.claimed
    assert volume.disk.log == [], "a check writes nothing"


async def test_ten_thousand_files_cost_few_reads() -> None:
    volume = await small_volume(blocks=16384)
    builder = Builder(volume)
    for number in range(100):
        builder.directory(f"d{number}")
        for file in range(100):
            builder.file(f"d{number}/f{file}", b"content")
    await builder.write()
    before = volume.disk.operations["read"]
    context = await check(volume)
    assert texts(context) == []
    assert context.counts.files == 10_000
    assert volume.disk.operations["read"] - before < 1500


async def test_a_directory_of_many_names_in_one_leaf_tree() -> None:
    volume = await small_volume(blocks=8192)
    builder = Builder(volume)
    for number in range(3000):
        builder.file(f"{number:0200}")
    await builder.write()
    assert texts(await check(volume)) == []


@pytest.mark.parametrize("seed", range(5))
def test_the_block_map_agrees_with_a_set(seed: int) -> None:
    rng = random.Random(seed)
    blocks = CHUNK * 2 + 77
    block_map, model = BlockMap(blocks), set[int]()
    for _ in range(60):
        start = rng.randrange(blocks)
        length = min(blocks - start, rng.choice((1, 1, 7, 8, 9, 300, CHUNK, CHUNK + 5)))
        wanted = range(start, start + length)
        conflicts = [block for block in wanted if block in model]
        assert block_map.claim(start, length) == (min(conflicts) if conflicts else None)
        model.update(wanted)
        assert block_map.claimed == len(model)
        at = rng.randrange(blocks // 8) * 8
        bits = block_map.bits(at, 64)
        assert bits == sum(1 << i for i in range(64) if at + i in model)
        probe = rng.randrange(blocks)
        assert block_map.is_claimed(probe) == (probe in model)
        assert not block_map.is_inode(probe)
    block_map.mark_inode(9)
    assert block_map.is_inode(9) and not block_map.is_inode(8)


def test_neighbours_cover_what_is_wanted_and_little_else() -> None:
    rng = random.Random(3)
    for _ in range(50):
        wanted = {rng.randrange(2000) for _ in range(rng.randrange(1, 300))}
        runs = list(neighbours(wanted))
        covered = {block for first, count in runs for block in range(first, first + count)}
        assert wanted <= covered
        assert all(count <= 64 for _, count in runs)
        assert sum(count for _, count in runs) <= 5 * len(wanted)
    assert list(neighbours(())) == []


def test_bit_runs() -> None:
    assert list(bit_runs(0b1101100)) == [(2, 2), (5, 2)]
    assert list(bit_runs(0)) == []
    assert list(bit_runs(1 << 16383 | 1)) == [(0, 1), (16383, 1)]


async def test_an_overlay_keeps_writes_to_itself() -> None:
    volume = await small_volume()
    overlay = Overlay(volume.disk)
    before = await volume.disk.read(0, 3 * BLOCK_BYTES)
    await overlay.write(BLOCK_BYTES, b"\1" * BLOCK_BYTES, durable=True)
    await overlay.flush()
    assert (
        await overlay.read(0, 3 * BLOCK_BYTES) == before[:BLOCK_BYTES] + b"\1" * BLOCK_BYTES + before[2 * BLOCK_BYTES :]
    )
    assert await volume.disk.read(0, 3 * BLOCK_BYTES) == before
    assert volume.disk.log == []
    assert (overlay.name, overlay.size_bytes) == (volume.disk.name, volume.disk.size_bytes)


def test_names_for_terminals() -> None:
    assert printable("grün".encode()) == "grün"
    assert printable(b"a\x1b[2Jb\n\xff") == "a\\x1b[2Jb\\x0a\\xff"
