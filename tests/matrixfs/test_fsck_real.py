"""fsck on what the filesystem itself wrote: clean after any crash, and mountable after a repair."""

from __future__ import annotations

import contextlib
import random
import stat

import pytest
import trio

from matrixfs.fs import data, namespace, rename
from matrixfs.fs.volume import Volume
from matrixfs.fsck.area import Area
from matrixfs.fsck.check import check_filesystem
from matrixfs.fsck.problems import Findings
from matrixfs.fsck.repair import Repair
from matrixfs.fsck.store import replay_journals
from matrixfs.ondisk.superblock import ROOT_INODE, Superblock
from membership.label import Label
from membership.seams import SectorDevice
from tests.sim.fs_world import World, run_world

FILE, DIRECTORY = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755


class Quiet:
    def report(self, stage: str, done: int, total: int) -> None:
        assert done >= 0


async def check(device: SectorDevice, superblock: Superblock) -> Findings:
    findings = Findings()
    await replay_journals(device, superblock, findings)
    await check_filesystem(Area(device, superblock), findings, Quiet())
    return findings


def errors(findings: Findings) -> list[str]:
    return [finding.text for finding in findings.kept if not finding.problem.is_note]


async def work(volume: Volume, rng: random.Random, steps: int, *, leave_open: float) -> None:
    """Operations of every kind on a handful of names in a few directories; some files stay open."""
    directories = [ROOT_INODE]
    for step in range(steps):
        parent = rng.choice(directories)
        name = b"name-%d" % rng.randrange(25)
        choice = rng.randrange(12)
        with contextlib.suppress(OSError):  # a name that is there, or isn't: as good as any other outcome
            if choice < 4:
                inode = await namespace.create(volume, parent, name, FILE, 0, 0)
                if rng.random() < leave_open:
                    volume.opens.opened(inode.ino)
                size = rng.choice((10, 3000, 5000, 40_000, 300_000))
                await data.write(volume, inode.ino, rng.choice((0, 0, 70_000)), rng.randbytes(size))
                if rng.random() < 0.3:
                    await data.fsync(volume, inode.ino, datasync=False)
            elif choice == 4:
                directories.append((await namespace.mkdir(volume, parent, b"d%d" % step, DIRECTORY, 0, 0)).ino)
            elif choice == 5:
                await namespace.symlink(volume, parent, b"l%d" % step, b"t" * rng.choice((5, 3900)), 0, 0)
            elif choice == 6:
                found = await namespace.lookup(volume, parent, name)
                if found is not None:
                    await namespace.link(volume, found.ino, rng.choice(directories), b"h%d" % step)
            elif choice == 7:
                target = rng.choice(directories)
                await rename.rename(volume, parent, name, target, b"name-%d" % rng.randrange(25))
            elif choice == 8:
                found = await namespace.lookup(volume, parent, name)
                if found is not None:
                    await data.write(volume, found.ino, rng.randrange(200_000), rng.randbytes(9000))
            elif choice == 9:
                await trio.sleep(rng.random() * 3)
            else:
                await namespace.unlink(volume, parent, name)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.seed("002-32")
def test_a_killed_mounts_store_is_clean_after_replay_and_mountable_after_repair(seed: int) -> None:
    async def body(world: World) -> None:
        rng = random.Random(seed)
        (mount,) = await world.start(0)
        with trio.move_on_after(rng.uniform(5, 30)):
            await work(mount.volume, rng, 120, leave_open=0.2)
        world.kill(0)
        findings = await check(world.disk, world.superblock)
        assert errors(findings) == []
        while findings.fixable:
            area = Area(world.disk, world.superblock)
            await Repair(world.disk, Label(), area, rng, Quiet()).run(f.fix for f in findings.fixable if f.fix)
            findings = await check(world.disk, world.superblock)
            assert errors(findings) == []
        world.dead.clear()  # fsck was its recovery
        (again,) = await world.start(1)
        await work(again.volume, rng, 60, leave_open=0)  # open files would keep it mounted
        await world.leave(1)
        assert errors(await check(world.disk, world.superblock)) == []

    run_world(seed, body, journal_blocks=256)


@pytest.mark.parametrize("seed", range(11, 15))
@pytest.mark.seed("002-32")
def test_power_lost_at_any_write_leaves_a_store_that_replays_to_clean(seed: int) -> None:
    async def body(world: World) -> None:
        rng = random.Random(seed)
        (mount,) = await world.start(0)
        world.disk.mark()
        with trio.move_on_after(20):
            await work(mount.volume, rng, 150, leave_open=0.2)
        world.kill(0)
        entries = len(world.disk.log)
        for k in sorted(rng.sample(range(entries + 1), 25)):
            for mode in ("drop", "tear"):
                crashed = world.disk.crash_image(k, mode, seed=k)
                assert errors(await check(crashed, world.superblock)) == [], (k, mode)

    run_world(seed, body, journal_blocks=256)
