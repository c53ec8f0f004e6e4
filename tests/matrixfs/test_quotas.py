"""Quotas: what users, groups and projects use is counted exactly, and kept within limits (decision 0023)."""

from __future__ import annotations

import errno
import random
import stat

import pytest

from matrixfs.fs import attributes, data, namespace, ranges, xattrs
from matrixfs.fs.opening import read_superblock
from matrixfs.fs.volume import Volume
from matrixfs.fsck.area import Area
from matrixfs.fsck.check import check_filesystem
from matrixfs.fsck.problems import ORPHAN, Findings
from matrixfs.fsck.store import replay_journals
from matrixfs.ondisk.quota import GROUP, PROJECT, USER
from matrixfs.ondisk.superblock import ROOT_INODE
from tests.matrixfs.local import Local, eventually, mounted, small_disk
from tests.sim.checkers import NoProgress
from tests.sim.disk import SimDisk


async def used(volume: Volume, kind: int, number: int) -> list[int]:
    """What this mount counts of an id."""
    assert volume.quotas is not None
    return list((await volume.quotas.store.own(kind, number)).counters[number % 252])


async def make(volume: Volume, name: bytes, uid: int, gid: int = 0, length: int = 0) -> int:
    made = await namespace.create(volume, ROOT_INODE, name, stat.S_IFREG | 0o644, uid, gid)
    if length:
        await data.write(volume, made.ino, 0, b"x" * length)
    return made.ino


async def test_blocks_and_inodes_are_counted(autojump_clock: object) -> None:
    async with mounted(await small_disk(quotas=True)) as local:
        volume = local.volume
        ino = await make(volume, b"a", 7, 8, 40_960)
        assert await used(volume, USER, 7) == [0, 1], "what is buffered is promised"
        await data.fsync(volume, ino, datasync=False)
        assert await used(volume, USER, 7) == [10, 1]
        assert await used(volume, GROUP, 8) == [10, 1]
        assert (await used(volume, PROJECT, 0))[0] == 10
        await attributes.setattr(volume, ino, attributes.Changes(size=4097))
        assert await used(volume, USER, 7) == [2, 1]
        await attributes.setattr(volume, ino, attributes.Changes(uid=9))
        assert await used(volume, USER, 7) == [0, 0]
        assert await used(volume, USER, 9) == [2, 1]
        await namespace.unlink(volume, ROOT_INODE, b"a")
        await eventually(lambda: volume.opens.deleted == 1)
        assert await used(volume, USER, 9) == [0, 0]


async def findings_of(disk: SimDisk) -> list[str]:
    """What fsck says of a data area, journals replayed."""
    superblock = await read_superblock(disk)
    findings = Findings()
    await replay_journals(disk, superblock, findings)
    await check_filesystem(Area(disk, superblock), findings, NoProgress())
    return [finding.text for finding in findings.kept if finding.problem is not ORPHAN]


async def churn(local: Local, rng: random.Random, rounds: int, made: dict[bytes, int]) -> None:
    """Random operations of everything that changes what is used."""
    volume = local.volume
    for _ in range(rounds):
        name, choice = b"%d" % rng.getrandbits(60), rng.randrange(10)
        some = rng.choice(sorted(made)) if made else b""
        try:
            if choice < 3 or not made:
                made[name] = await make(volume, name, rng.randrange(5), rng.randrange(300), rng.randrange(60_000))
            elif choice == 3:
                await data.write(volume, made[some], rng.randrange(900_000), b"y" * rng.randrange(30_000))
            elif choice == 4:
                await attributes.setattr(volume, made[some], attributes.Changes(size=rng.randrange(60_000)))
            elif choice == 5:
                owner = attributes.Changes(uid=rng.randrange(5), gid=rng.randrange(300))
                await attributes.setattr(volume, made[some], owner)
            elif choice == 6:
                await ranges.fallocate(volume, made[some], rng.choice([0, 3]), rng.randrange(90_000), 40_000)
            elif choice == 7:
                await xattrs.put(volume, made[some], b"user.a", b"z" * rng.randrange(9000), 0)
            elif choice == 8:
                await namespace.symlink(volume, ROOT_INODE, name, b"t" * 4000, rng.randrange(5), 0)
            else:
                await namespace.unlink(volume, ROOT_INODE, some)
                del made[some]
        except OSError as error:
            assert error.errno == errno.EDQUOT  # noqa: PT017 - some operations succeed


@pytest.mark.parametrize("clean", [True, False])
async def test_fsck_counts_the_same(clean: bool, autojump_clock: object) -> None:
    disk = await small_disk(quotas=True, size=32 << 20)
    made: dict[bytes, int] = {}
    for seed, index in enumerate((0, 1, 0)):  # one journal gives back what another counted
        async with mounted(disk, clean=clean, index=index) as local:
            await churn(local, random.Random(seed), 150, made)
            if not clean:
                await local.volume.sync()
                await churn(local, random.Random(seed + 10), 20, {})
        if not clean:
            disk.power_loss()
        assert await findings_of(disk) == []
