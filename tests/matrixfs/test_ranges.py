"""Ranges of a file (decision 0019): against a bytearray, with every other operation between, crashed and replayed."""

from __future__ import annotations

import errno
import os
import random
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from matrixfs.fs import attributes, blocks, data, extents, inode, ranges, tree
from matrixfs.fs.held import Held
from matrixfs.fs.opening import read_superblock
from matrixfs.fs.ranges import KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE
from matrixfs.ondisk.extent import Extent
from matrixfs.ondisk.inode import TAIL_BYTES
from membership.label import BLOCK_BYTES
from tests.matrixfs.local import Local, mounted, small_disk
from tests.sim.checkers import assert_clean
from tests.sim.disk import SimDisk

PUNCH = PUNCH_HOLE | KEEP_SIZE
FOREIGN = 0xEE  # what lies in free blocks: of another file, so it must never be seen
SMALL = 144  # bytes of a tree block's body, where trees shall be deep: 6 extents


def shrink(patch: pytest.MonkeyPatch) -> None:
    for module, name, size in (
        (blocks, "BODY_BYTES", SMALL), (tree, "BODY_BYTES", SMALL),
        (tree, "TAIL_BYTES", SMALL - 40), (inode, "TAIL_BYTES", SMALL - 40),
        (data, "TAIL_BYTES", SMALL - 40), (ranges, "TAIL_BYTES", SMALL - 40),
    ):  # fmt: skip
        patch.setattr(module, name, size)


async def dirty_disk(**options: Any) -> SimDisk:
    """An empty filesystem whose free blocks are full of another file's bytes."""
    disk = await small_disk(**options)
    async with mounted(disk) as mount:
        superblock = mount.volume.superblock
    for index in range(superblock.groups):
        start, size = superblock.group_block(index) + 1, superblock.group_size(index) - 1
        await disk.write(start * BLOCK_BYTES, bytes([FOREIGN]) * (size * BLOCK_BYTES), durable=True)
    disk.mark()
    return disk


async def without_feature(disk: SimDisk) -> SimDisk:
    """As a filesystem that an older mkfs made."""
    superblock = await read_superblock(disk)
    superblock.features_incompatible = 0
    await disk.write(0, superblock.encode(), durable=True)
    return disk


async def content(mount: Local, ino: int) -> bytes:
    return await data.read(mount.volume, ino, 0, 1 << 30)


async def mapped(mount: Local, ino: int, first: int, count: int) -> list[Extent]:
    """The pieces of a file's map, written back."""
    await data.fsync(mount.volume, ino, False)
    with Held(mount.volume) as held:
        found = await held.shared(ino)
        return [Extent(first, 0, count)] if found.inline else await extents.pieces(mount.volume, found, first, count)


async def data_blocks(mount: Local, ino: int, size: int) -> set[int]:
    """The blocks that SEEK_DATA and SEEK_HOLE call data; checks that the two agree."""
    found: set[int] = set()
    at = 0
    while at < size:
        try:
            start = await ranges.seek(mount.volume, ino, at, os.SEEK_DATA)
        except OSError as error:
            assert error.errno == errno.ENXIO
            assert await ranges.seek(mount.volume, ino, at, os.SEEK_HOLE) == at
            break
        assert start >= at
        if start > at:
            assert await ranges.seek(mount.volume, ino, at, os.SEEK_HOLE) == at
        at = await ranges.seek(mount.volume, ino, start, os.SEEK_HOLE)
        assert start < at <= size
        found |= set(range(start // BLOCK_BYTES, -(-at // BLOCK_BYTES)))
    return found


def whole_blocks(start: int, end: int, size: int) -> set[int]:
    """The blocks that a range covers, or the file's part of the last one."""
    if end >= size:
        end = -(-end // BLOCK_BYTES) * BLOCK_BYTES
    return set(range(-(-start // BLOCK_BYTES), end // BLOCK_BYTES))


@dataclass
class Model:
    """What the file must hold: its bytes, and the blocks that may be data."""

    content: bytearray = field(default_factory=bytearray)
    may: set[int] = field(default_factory=set)
    reserved: set[int] = field(default_factory=set)  # must have space
    past: list[bytes] = field(default_factory=lambda: [b""])  # since the last fsync: what a crash may show

    def note(self) -> None:
        self.past.append(bytes(self.content))

    def put(self, at: int, piece: bytes) -> None:
        self.content.extend(bytes(max(0, at - len(self.content))))
        self.content[at : at + len(piece)] = piece
        self.may |= set(range(at // BLOCK_BYTES, -(-(at + len(piece)) // BLOCK_BYTES)))

    def resize(self, size: int) -> None:
        if size <= len(self.content):
            keep = -(-size // BLOCK_BYTES)
            self.may = {block for block in self.may if block < keep}
            self.reserved = {block for block in self.reserved if block < keep}
        del self.content[size:]
        self.content.extend(bytes(size - len(self.content)))

    def fallocate(self, mode: int, at: int, length: int) -> None:
        end, size = at + length, len(self.content)
        blocks_covered = set(range(at // BLOCK_BYTES, -(-end // BLOCK_BYTES)))
        if mode & (PUNCH_HOLE | ZERO_RANGE):
            self.content[at:end] = bytes(max(0, min(end, size) - at))
            self.may -= whole_blocks(at, end, size)
        if mode & PUNCH_HOLE:
            self.reserved -= whole_blocks(at, end, size)
        else:
            self.reserved |= blocks_covered
            if not mode & KEEP_SIZE and end > size:
                self.resize(end)

    def copy(self, at: int, to: int, length: int) -> int:
        piece = bytes(self.content[at : at + length])
        if piece:
            self.put(to, piece)
        return len(piece)

    def crashed(self, found: bytes) -> None:
        """Take over what a crash left, if it may have."""
        sizes = {len(past) for past in self.past}
        assert min(sizes) <= len(found) <= max(sizes)
        for at, byte in enumerate(found):
            assert byte == 0 or any(at < len(past) and past[at] == byte for past in self.past), at
        self.content = bytearray(found)
        self.may = set(range(-(-len(found) // BLOCK_BYTES)))
        self.reserved = set()
        self.past = [bytes(found)]


@dataclass
class Run:
    """A file under test, over several mounts."""

    mount: Local
    model: Model
    rng: random.Random
    ino: int

    async def step(self, name: str, at: int, length: int) -> None:
        volume, model, ino = self.mount.volume, self.model, self.ino
        if name == "write":
            piece = bytes(self.rng.randrange(1, 128) for _ in range(64)) * (length // 64 + 1)
            await data.write(volume, ino, at, piece[:length])
            model.put(at, piece[:length])
        elif name == "truncate":
            await attributes.setattr(volume, ino, attributes.Changes(size=at))
            model.resize(at)
        elif name == "copy":
            to = at + length + self.rng.choice((0, 1, 4096, 5000))
            assert await ranges.copy(volume, ino, at, ino, to, length) == model.copy(at, to, length)
        elif name == "fsync":
            await data.fsync(volume, ino, False)
            self.mount.disk.mark()
            model.past.clear()
        elif name == "give up":
            await self.mount.give_up(ino)
        else:
            mode = {"reserve": 0, "keep": KEEP_SIZE, "punch": PUNCH, "zero": ZERO_RANGE, "zero keep": 17}[name]
            await ranges.fallocate(volume, ino, mode, at, length)
            model.fallocate(mode, at, length)
        model.note()
        await self.check()

    async def check(self) -> None:
        assert await content(self.mount, self.ino) == self.model.content
        found = await data_blocks(self.mount, self.ino, len(self.model.content))
        for block in range(-(-len(self.model.content) // BLOCK_BYTES)):
            if any(self.model.content[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]):
                assert block in found, f"block {block} has data"
        if len(self.model.content) > TAIL_BYTES:
            assert found - {0} <= self.model.may, "a hole that is none"

    async def check_reserved(self) -> None:
        for piece in await mapped(self.mount, self.ino, 0, 64):
            if not piece.physical and len(self.model.content) > TAIL_BYTES:
                assert not self.model.reserved & set(range(piece.logical, piece.end))


OFFSETS = st.one_of(
    st.integers(0, 24 * BLOCK_BYTES), st.integers(0, 24).map(lambda block: block * BLOCK_BYTES),
    st.sampled_from((0, 1, TAIL_BYTES - 1, TAIL_BYTES, TAIL_BYTES + 1, 4095, 4097)),
)  # fmt: skip
STEPS = st.tuples(
    st.sampled_from(
        ("write", "write", "truncate", "copy", "fsync", "give up", "reserve", "keep", "punch", "zero", "zero keep")
    ),
    OFFSETS,
    st.one_of(st.integers(1, 20_000), st.integers(1, 5).map(lambda count: count * BLOCK_BYTES)),
)


async def scenario(steps: list[tuple[str, int, int]], crash: float, mode: Any, seed: int) -> None:
    """Do the steps, lose the power somewhere since the last fsync, look, and do them again."""
    disk = await dirty_disk(seed=seed)
    model = Model()
    ino = 0
    for leg in range(2):
        async with mounted(disk, clean=False) as mount:
            if leg == 0:
                ino = (await mount.file(b"f")).ino
                await mount.volume.sync()
                disk.mark()
            else:
                found = await content(mount, ino)
                model.crashed(found)
            run = Run(mount, model, random.Random(seed), ino)
            for step in steps:
                await run.step(*step)
            if leg == 1:
                await run.check_reserved()
        # A seed of its own: the salt of a mount's journal comes from the disk's.
        disk = disk.crash_image(int(crash * len(disk.log)), mode, seed=1000 * (leg + 1) + seed)
        async with mounted(disk) as mount:
            model.crashed(await content(mount, ino))
            superblock = mount.volume.superblock
        await assert_clean(disk, superblock, notes=False)


EXAMPLES = given(
    st.lists(STEPS, max_size=15), st.floats(0, 1), st.sampled_from(("drop", "keep-some", "keep-all", "tear")),
    st.integers(1, 900), st.booleans(),
)  # fmt: skip


def run(steps: list[tuple[str, int, int]], crash: float, mode: str, seed: int, deep: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if deep:
            shrink(patch)
        trio.run(scenario, steps, crash, mode, seed, clock=trio.testing.MockClock(autojump_threshold=0))


@settings(max_examples=45, deadline=None, derandomize=True)
@EXAMPLES
def test_against_a_bytearray(
    steps: list[tuple[str, int, int]], crash: float, mode: str, seed: int, deep: bool
) -> None:
    """RG1 to RG4, with trees of the real shape and deep ones."""
    run(steps, crash, mode, seed, deep)


@pytest.mark.long
@settings(max_examples=3000, deadline=None)
@EXAMPLES
def test_many_against_a_bytearray(
    steps: list[tuple[str, int, int]], crash: float, mode: str, seed: int, deep: bool
) -> None:
    run(steps, crash, mode, seed, deep)
