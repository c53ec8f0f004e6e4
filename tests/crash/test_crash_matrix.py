"""The short form of the crash matrix; ``scripts/test --crash`` is the long one (docs/testing.md)."""

from __future__ import annotations

import pytest

from matrixfs.fs import data, namespace
from matrixfs.fs.opening import read_superblock
from matrixfs.fs.replay import replay
from matrixfs.ondisk.superblock import ROOT_INODE
from tests.crash.matrix import Matrix, Plan
from tests.crash.points import DROPPED, KEPT, TORN
from tests.crash.workloads import WORKLOADS
from tests.matrixfs.local import mounted, small_disk
from tests.sim.checkers import assert_clean

POINTS = 30  # of each workload


def assert_sound(workload: str, seed: int, plan: Plan) -> None:
    counts = Matrix(workload, seed).run(plan)
    told = [f"{each.where.options()}: {each.story}: {each.found}" for each in counts.failures[:3]]
    assert not told, f"{len(counts.failures)} failures; " + "; ".join(told)
    assert counts.flushes and counts.used and counts.double
    assert all(counts.fates[fate] for fate in (DROPPED, KEPT, TORN))


@pytest.mark.seed("002-30", "002-32")
@pytest.mark.parametrize("workload", WORKLOADS)
def test_power_lost_at_some_points(workload: str) -> None:
    assert_sound(workload, 1, Plan(choices=2, points=POINTS))


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("workload", WORKLOADS)
def test_power_lost_at_every_point(workload: str) -> None:
    assert_sound(workload, 2, Plan())


async def test_a_clean_unmount_needs_no_replay_and_loses_nothing() -> None:
    disk = await small_disk()
    async with mounted(disk) as mount:
        made = await mount.file(b"f")
        await data.write(mount.volume, made.ino, 0, b"x" * 10_000)
        await namespace.unlink(mount.volume, ROOT_INODE, b"f")
        kept = await mount.file(b"g")
        await data.write(mount.volume, kept.ino, 0, b"y" * 10_000)
    image = disk.crash_image(len(disk.log), "drop")
    superblock = await read_superblock(image)
    assert (await replay(image, superblock, 0, expect=None)).frames == 0
    await assert_clean(image, superblock)
    async with mounted(image) as mount:
        found = await namespace.lookup(mount.volume, ROOT_INODE, b"g")
        assert found is not None
        assert await data.read(mount.volume, found.ino, 0, 1 << 20) == b"y" * 10_000
        assert await namespace.lookup(mount.volume, ROOT_INODE, b"f") is None
