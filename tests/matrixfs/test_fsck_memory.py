"""F6: what fsck keeps in memory, and how many reads it has in flight."""

from __future__ import annotations

import random
import tracemalloc

import pytest
import trio

from matrixfs.fsck.area import READERS, Area
from matrixfs.fsck.check import check_filesystem
from matrixfs.fsck.links import FOUND_MAX, SLOTS_MIN, LinkCounts, Names
from matrixfs.fsck.problems import Findings
from membership.seams import SectorDevice
from tests.damage.build import Builder
from tests.damage.volume import Volume, small_volume


class Quiet:
    def report(self, stage: str, done: int, total: int) -> None:
        assert 0 <= done <= total


class Watched:
    """A device that takes a millisecond for each read, and knows how many are in flight."""

    def __init__(self, device: SectorDevice) -> None:
        self.device = device
        self.reads = self.now = self.most = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self.device, name)

    async def read(self, offset: int, length: int) -> bytes:
        self.reads += 1
        self.now += 1
        self.most = max(self.most, self.now)
        await trio.sleep(0.001)
        self.now -= 1
        return await self.device.read(offset, length)


async def small_directories(directories: int, files: int) -> Volume:
    volume = await small_volume(blocks=16384)
    builder = Builder(volume)
    for number in range(directories):
        builder.directory(f"d{number}")
    numbers = list(range(directories)) * files
    random.Random(1).shuffle(numbers)  # so that a directory's files don't lie together
    for at, number in enumerate(numbers):
        builder.file(f"d{number}/f{at}")
    await builder.write()
    return volume


async def test_many_small_directories_are_read_in_parallel(autojump_clock: object) -> None:
    volume = await small_directories(500, 4)
    watched = Watched(volume.disk)
    start = trio.current_time()
    context = await check_filesystem(Area(watched, volume.superblock), Findings(), Quiet())  # type: ignore[arg-type]
    waited = (trio.current_time() - start) * 1000
    assert context.findings.kept == []
    assert (context.counts.files, context.counts.directories) == (2000, 501)
    assert watched.most == READERS
    assert watched.reads / waited > READERS / 3, "reads in flight on the average"


async def test_memory_does_not_grow_with_the_files(autojump_clock: object) -> None:
    """The same store with eight times as many files: the check takes no more."""
    peaks = []
    for files in (1, 8):
        volume = await small_directories(150, files)
        tracemalloc.start()
        await check_filesystem(Area(volume.disk, volume.superblock), Findings(), Quiet())
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + (9 << 20), "what is read ahead has a bound, see AHEAD_MAX"


@pytest.mark.parametrize("seed", range(3))
def test_link_counts_agree_with_a_dictionary(seed: int) -> None:
    rng = random.Random(seed)
    counts, model = LinkCounts(), dict[int, Names]()
    for _ in range(5000):
        number = rng.choice((rng.randrange(1, 1 << 20), rng.randrange(1, 1 << 38)))
        assert counts.get(number) == model.get(number)
        old = model.get(number, Names(rng.randrange(1 << 32), 0, rng.randrange(16)))
        model[number] = old._replace(found=old.found + 1)
        counts.put(number, model[number])
    assert dict(counts.items()) == model
    assert len(counts) == len(model)
    assert 16 * len(model) <= counts.size_bytes <= 48 * len(model)


def test_link_counts_of_neighbours_stay_quick_and_small() -> None:
    counts = LinkCounts()
    assert counts.size_bytes == 16 * SLOTS_MIN
    for number in range(1, 20_000):
        counts.put(number, Names(2, 1, 8))
    assert counts.size_bytes == 16 << 15
    counts.put(1, Names(2, 1 << 60, 8))
    assert counts.get(1) == Names(2, FOUND_MAX, 8)
