"""Nodes on a store that is nearly full and in pieces: what write(2) took is there (``matrixfs/fs/promises.py``)."""

from __future__ import annotations

import errno
import logging
import random
import stat

import pytest
import trio

from matrixfs.fs import attributes, data, namespace, ranges, xattrs
from matrixfs.fs.opening import read_superblock
from matrixfs.fs.volume import Volume
from matrixfs.ondisk.superblock import ROOT_INODE
from membership.label import BLOCK_BYTES
from tests.sim.checkers import assert_clean
from tests.sim.fs_world import MIB, World, run_world

PUNCH = ranges.PUNCH_HOLE | ranges.KEEP_SIZE
FILES = 6  # of each program
STEPS = 60


async def crowd(volume: Volume, leave: int) -> None:
    """Take all blocks but some, and leave most of these one by one."""
    made = await namespace.create(volume, ROOT_INODE, b"ballast", stat.S_IFREG | 0o644, 0, 0)
    free = (await attributes.statfs(volume)).free - leave // 2 - 40
    await ranges.fallocate(volume, made.ino, 0, 0, free * BLOCK_BYTES)
    for number in range(leave // 2):
        await ranges.fallocate(volume, made.ino, PUNCH, (7 + number * 11 % free) * BLOCK_BYTES, BLOCK_BYTES)
    await volume.sync()


class Program:
    """Works on files of its own, and knows what is in them."""

    def __init__(self, volume: Volume, name: bytes, seed: int) -> None:
        self.volume = volume
        self.name = name
        self.rng = random.Random(seed)
        self.files: dict[int, bytearray] = {}
        self.refused = 0

    async def run(self) -> None:
        for step in range(STEPS):
            try:
                await self.step(step)
            except OSError as error:
                assert error.errno == errno.ENOSPC, error
                self.refused += 1
            await trio.sleep(self.rng.choice((0.0, 0.0, 0.001, 0.02, 0.3)))

    async def step(self, step: int) -> None:
        rng, volume = self.rng, self.volume
        if len(self.files) < FILES or rng.random() < 0.1:
            made = await namespace.create(volume, ROOT_INODE, b"%s-%d" % (self.name, step), stat.S_IFREG | 0o644, 0, 0)
            self.files[made.ino] = bytearray()
            return
        ino = rng.choice(list(self.files))
        content = self.files[ino]
        kind = rng.random()
        if kind < 0.7:
            at = rng.choice((len(content), rng.randrange(200_000)))
            piece = rng.randbytes(rng.choice((10, 3000, 5000, 9000, 40_000)))
            piece = piece[: await data.write(volume, ino, at, piece, partly=step % 2 > 0)]
            content.extend(bytes(max(0, at + len(piece) - len(content))))
            content[at : at + len(piece)] = piece
        elif kind < 0.8:
            size = rng.randrange(100_000)
            await attributes.setattr(volume, ino, attributes.Changes(size=size))
            content[size:] = bytes(max(0, size - len(content)))
        elif kind < 0.9:
            at = rng.randrange(100_000)
            length = rng.randrange(1, 30_000)
            await ranges.fallocate(volume, ino, PUNCH, at, length)
            end = min(at + length, len(content))
            content[at:end] = bytes(max(0, end - at))
        elif kind < 0.95:
            await xattrs.put(volume, ino, b"user.a", rng.randbytes(3500), 0)
        else:
            await data.fsync(volume, ino, False)


def work(seed: int, nodes: int, leave: int, *, journal_data: bool, caplog: pytest.LogCaptureFixture) -> int:
    """Programs on nodes; how often they were refused."""
    refused: list[int] = []

    async def body(world: World) -> None:
        world.journal_data = journal_data
        mounts = await world.start(*range(nodes))
        await crowd(mounts[0].volume, leave)
        programs = [
            Program(mount.volume, b"%d-%d" % (mount.journal, number), seed * 100 + mount.journal * 10 + number)
            for mount in mounts
            for number in range(3)
        ]
        async with trio.open_nursery() as nursery:
            for program in programs:
                nursery.start_soon(program.run)
        for mount in mounts:
            await mount.volume.sync()
            assert not mount.volume.write_back.errors
            assert mount.volume.allocator.promises.total == 0
        for program in programs:
            refused.append(program.refused)
            for ino, content in program.files.items():
                assert await data.read(mounts[-1].volume, ino, 0, 1 << 24) == content, f"inode {ino}"
        for node in list(world.mounts):
            await world.leave(node)
        await assert_clean(world.disk, await read_superblock(world.disk), notes=False)

    with caplog.at_level(logging.WARNING):
        run_world(seed, body, size=8 * MIB, journals=nodes, journal_blocks=200)
    assert "is lost" not in caplog.text
    return sum(refused)


@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize("journal_data", [False, True], ids=["ordered", "journal"])
def test_what_was_taken_is_written(nodes: int, journal_data: bool, caplog: pytest.LogCaptureFixture) -> None:
    assert work(1, nodes, 160, journal_data=journal_data, caplog=caplog), "never full: this proves nothing"
    assert "promised" not in caplog.text, "a group went before what rests on it was written back (PR4)"


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize("journal_data", [False, True], ids=["ordered", "journal"])
def test_what_was_taken_is_written_whatever_the_seed(
    nodes: int, journal_data: bool, caplog: pytest.LogCaptureFixture
) -> None:
    for seed in range(2, 40):
        assert work(seed, nodes, (100, 160, 260)[seed % 3], journal_data=journal_data, caplog=caplog)
