"""Many tasks reserve, zero, free, write and copy on a disk that is too small: nothing is lost, nor another's."""

from __future__ import annotations

import errno
import random

import pytest
import trio

from matrixfs.fs import attributes, data, ranges
from matrixfs.fs.ranges import KEEP_SIZE, ZERO_RANGE
from membership.label import BLOCK_BYTES
from tests.matrixfs.local import MIB, Local, mounted
from tests.matrixfs.test_ranges import FOREIGN, PUNCH, content, dirty_disk, shrink
from tests.sim.checkers import assert_clean

FILES = 5
STEPS = 30
MODES = {"reserve": 0, "keep": KEEP_SIZE, "zero": ZERO_RANGE, "punch": PUNCH}
WORDS = ("write", "write", "write", "reserve", "reserve", "keep", "keep", "zero", "punch", "truncate", "copy", "fsync")


class Worker:
    """Changes one file, and knows what it must hold."""

    def __init__(self, mount: Local, files: list[int], number: int, rng: random.Random) -> None:
        self.mount = mount
        self.files = files
        self.ino = files[number]
        self.rng = rng
        self.model = bytearray()
        self.refused = 0

    async def run(self) -> None:
        for _ in range(STEPS):
            try:
                await self._step(self.rng.choice(WORDS))
            except OSError as error:
                assert error.errno == errno.ENOSPC, error
                self.refused += 1
                self.model[:] = await content(self.mount, self.ino)  # a part may have been done
            assert FOREIGN not in self.model
            assert await content(self.mount, self.ino) == self.model

    async def _step(self, word: str) -> None:
        rng, volume, model = self.rng, self.mount.volume, self.model
        at = rng.randrange(600) * BLOCK_BYTES + rng.choice((0, 0, rng.randrange(BLOCK_BYTES)))
        length = rng.choice((rng.randrange(1, 60_000), rng.randrange(1, 300) * BLOCK_BYTES))
        if word == "write":
            piece = bytes([rng.randrange(1, 100)]) * min(length, 100_000)
            await data.write(volume, self.ino, at, piece)
            model.extend(bytes(max(0, at - len(model))))
            model[at : at + len(piece)] = piece
        elif word == "truncate":
            await attributes.setattr(volume, self.ino, attributes.Changes(size=at))
            del model[at:]
            model.extend(bytes(at - len(model)))
        elif word == "copy":  # of what another worker is changing: whatever comes is taken over
            source = rng.choice(self.files)
            if source != self.ino:
                await ranges.copy(volume, source, at, self.ino, 0, length)
                model[:] = await content(self.mount, self.ino)
        elif word == "fsync":
            await data.fsync(volume, self.ino, False)
            self.mount.locks.revoke(volume.inode_lock(self.ino).resource, 0)
        else:
            await ranges.fallocate(volume, self.ino, MODES[word], at, length)
            if word in ("zero", "punch"):
                end = min(at + length, len(model))
                model[at:end] = bytes(max(0, end - at))
            if word in ("zero", "reserve"):
                model.extend(bytes(max(0, at + length - len(model))))


@pytest.mark.parametrize("seed", [1, 2, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(3, 30))])
async def test_a_crowd(autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    if seed % 2:
        shrink(monkeypatch)
    disk = await dirty_disk(seed=seed, size=8 * MIB)
    disk.latency = (0.0, 0.002)
    async with mounted(disk) as mount:
        files = [(await mount.file(b"f%d" % number)).ino for number in range(FILES)]
        filler = await mount.file(b"filler")
        await ranges.fallocate(mount.volume, filler.ino, KEEP_SIZE, 0, 900 * BLOCK_BYTES)
        workers = [Worker(mount, files, n, random.Random(100 * seed + n)) for n in range(FILES)]
        async with trio.open_nursery() as nursery:
            for worker in workers:
                nursery.start_soon(worker.run)
        assert any(worker.refused for worker in workers), "space must have ended"
        assert not mount.volume.write_back.errors
        superblock = mount.volume.superblock
    await assert_clean(disk, superblock, notes=False)
    async with mounted(disk) as mount:
        for worker in workers:
            assert await content(mount, worker.ino) == worker.model
