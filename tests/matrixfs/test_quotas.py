"""Quotas: what users, groups and projects use is counted exactly, and kept within limits (decision 0023)."""

from __future__ import annotations

import errno
import random
import re
import stat
from collections.abc import Awaitable
from pathlib import Path

import pytest
import trio

import matrixfs.fs
from matrixfs.fs import attributes, data, namespace, quota_admin, ranges, xattrs
from matrixfs.fs.held import Held
from matrixfs.fs.opening import read_superblock
from matrixfs.fs.owners import owner_changes, set_owner
from matrixfs.fs.quotas import owner_of
from matrixfs.fs.scrub import Damage, Scrub
from matrixfs.fs.volume import Volume
from matrixfs.fsck.area import Area
from matrixfs.fsck.check import check_filesystem
from matrixfs.fsck.problems import ORPHAN, Findings
from matrixfs.fsck.store import replay_journals
from matrixfs.locks.lock import Lock
from matrixfs.ondisk.inode import FLAG_PROJECT_INHERIT
from matrixfs.ondisk.quota import GROUP, PROJECT, USER, Limits, limits_key
from matrixfs.ondisk.superblock import QUOTA_INODE, ROOT_INODE
from membership.errors import CorruptRecord, OperatorError
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


# --- limits ---------------------------------------------------------------------------------------------------


async def limit(volume: Volume, kind: int, number: int, **fields: int) -> None:
    await quota_admin.set_limits(volume, kind, number, lambda old: old._replace(**fields))


async def refused(work: Awaitable[object]) -> None:
    with pytest.raises(OSError) as error:
        await work
    assert error.value.errno == errno.EDQUOT


async def test_hard_limits_hold_to_the_block(autojump_clock: object) -> None:
    async with mounted(await small_disk(quotas=True)) as local:
        volume = local.volume
        await limit(volume, USER, 7, blocks_hard=10, inodes_hard=3)
        ino = await make(volume, b"a", 7, 0, 36_864)
        await data.write(volume, ino, 36_864, b"y" * 4096)  # the tenth, whatever bounds promises have
        await refused(data.write(volume, ino, 40_960, b"y"))
        await data.write(volume, ino, 100, b"over what there is")
        assert (await attributes.getattr(volume, ino)).size == 40_960
        await data.fsync(volume, ino, datasync=False)
        assert await used(volume, USER, 7) == [10, 1]
        await refused(ranges.fallocate(volume, ino, 0, 40_960, 4096))
        await refused(xattrs.put(volume, ino, b"user.a", b"v" * 3000, 0))
        await refused(namespace.symlink(volume, ROOT_INODE, b"long", b"t" * 4000, 7, 0))
        for name in (b"b", b"c"):
            await make(volume, name, 7)
        await refused(make(volume, b"d", 7))
        await refused(namespace.mkdir(volume, ROOT_INODE, b"e", 0o755, 7, 0))
        other = await make(volume, b"theirs", 9, 0, 5000)
        await data.fsync(volume, other, datasync=False)
        await refused(attributes.setattr(volume, other, attributes.Changes(uid=7)))
        assert (await attributes.getattr(volume, other)).uid == 9
        await attributes.setattr(volume, ino, attributes.Changes(size=8192))
        await data.write(volume, ino, 8192, b"z" * 20_000)
        await refused(data.write(volume, ino, 50_000, b"z" * 20_000))
    assert await findings_of(local.disk) == []


async def test_groups_and_projects_have_limits_too(autojump_clock: object) -> None:
    async with mounted(await small_disk(quotas=True)) as local:
        volume = local.volume
        await limit(volume, GROUP, 50, inodes_hard=1)
        await limit(volume, PROJECT, 6, blocks_hard=2)
        await make(volume, b"a", 7, 50)
        await refused(make(volume, b"b", 8, 50))
        shared = await namespace.mkdir(volume, ROOT_INODE, b"shared", 0o2775, 7, 51)
        await limit(volume, GROUP, 51, inodes_hard=1)
        await refused(namespace.create(volume, shared.ino, b"x", stat.S_IFREG | 0o644, 7, 7))
        with Held(volume) as held:
            directory = await held.exclusive(shared.ino)
            owner = owner_of(directory)._replace(project=6)
            await owner_changes(volume, held, directory, owner)
            set_owner(volume, directory, owner)
            directory.flags |= FLAG_PROJECT_INHERIT
            volume.touch(directory, data=False)
        await limit(volume, GROUP, 51, inodes_hard=0)
        made = await namespace.create(volume, shared.ino, b"y", stat.S_IFREG | 0o644, 7, 7)
        assert made.project == 6
        await data.write(volume, made.ino, 0, b"x" * 8192)
        await refused(data.write(volume, made.ino, 8192, b"x"))
        assert await used(volume, PROJECT, 6) == [2, 2]
        await limit(volume, PROJECT, 6, blocks_hard=0)
        await data.write(volume, made.ino, 8192, b"x")
    assert await findings_of(local.disk) == []


async def test_more_than_a_soft_limit_for_the_time_of_grace(autojump_clock: object) -> None:
    async with mounted(await small_disk(quotas=True)) as local:
        volume = local.volume
        assert volume.quotas is not None
        await quota_admin.set_grace(volume, USER, 100 * 10**9, None)
        await limit(volume, USER, 7, blocks_soft=5, blocks_hard=8)
        ino = await make(volume, b"a", 7, 0, 20_480)
        await data.fsync(volume, ino, datasync=False)
        assert volume.quotas.account(USER, 7).limits.blocks_until_ns == 0
        await data.write(volume, ino, 20_480, b"x")
        await data.fsync(volume, ino, datasync=False)
        end = volume.quotas.account(USER, 7).limits.blocks_until_ns
        assert 99 * 10**9 < end - volume.clock.wall_ns() <= 100 * 10**9
        await refused(data.write(volume, ino, 28_672, b"x" * 12_288))  # hard
        await trio.sleep(101)
        await refused(data.write(volume, ino, 24_576, b"x"))  # the time is over
        await data.write(volume, ino, 20_000, b"x")  # what it has
        await attributes.setattr(volume, ino, attributes.Changes(size=16_384))
        await data.write(volume, ino, 16_384, b"x" * 9000)  # begins anew
        await data.fsync(volume, ino, datasync=False)
        assert volume.quotas.account(USER, 7).limits.blocks_until_ns > end
        rows = await quota_admin.report(volume)
        assert [(row.blocks, row.inodes) for row in rows if (row.kind, row.number) == (USER, 7)] == [(7, 1)]
    async with mounted(local.disk) as again:  # limits and the end of grace are on the store
        volume = again.volume
        await trio.sleep(200)
        await refused(data.write(volume, ino, 40_960, b"x"))
    assert await findings_of(local.disk) == []


async def test_limits_that_cant_be_are_refused(autojump_clock: object) -> None:
    async with mounted(await small_disk(quotas=True)) as local:
        with pytest.raises(OperatorError):
            await limit(local.volume, USER, 0, blocks_hard=1)
        with pytest.raises(OperatorError):
            await limit(local.volume, USER, 5, blocks_hard=1, blocks_soft=2)
        await limit(local.volume, USER, 5, blocks_hard=3, blocks_soft=2)
        with pytest.raises(OperatorError):
            await limit(local.volume, USER, 5, blocks_hard=1)
        assert (await quota_admin.report(local.volume))[0].limits == Limits(blocks_hard=3, blocks_soft=2)
    async with mounted(await small_disk()) as without:
        with pytest.raises(OperatorError):
            await quota_admin.report(without.volume)


async def test_no_name_leads_to_the_quotas(autojump_clock: object) -> None:
    async with mounted(await small_disk(quotas=True)) as local:
        volume = local.volume
        await limit(volume, USER, 7, blocks_hard=10)
        with pytest.raises(OSError) as error:
            await attributes.getattr(volume, QUOTA_INODE)
        assert error.value.errno == errno.ESTALE


async def test_a_scrub_reads_all_quotas(autojump_clock: object) -> None:
    async with mounted(await small_disk(quotas=True)) as local:
        volume = local.volume
        assert volume.quotas is not None
        await limit(volume, USER, 7, blocks_hard=10)
        found: list[Damage] = []
        await Scrub(volume, found.append, read_data=False).run()
        assert found == []
        (extent,) = [each for each in await volume.quotas.store.extents() if each.logical == limits_key(USER, 7)]
        await give_up(local, volume.quotas.store.lock)
        await volume.device.write(extent.physical * 4096, b"x" * 4096, durable=True)
        await Scrub(volume, found.append, read_data=False).run()
        assert [(damage.ino, damage.is_quarantined) for damage in found] == [(QUOTA_INODE, False)]
        await give_up(local, volume.quotas.account(USER, 7).lock)
        with pytest.raises(CorruptRecord):
            await make(volume, b"a", 7)
        await make(volume, b"b", 9 * 84)  # nobody else is in that block


async def give_up(local: Local, lock: Lock) -> None:
    """A peer wants a lock."""
    local.locks.revoke(lock.resource, 0)
    await eventually(lambda: not lock.mode)


def test_what_is_counted_changes_in_few_places() -> None:
    """Whoever else set an inode's blocks or owner would have them counted wrongly."""
    found = set()
    for path in (Path(matrixfs.fs.__file__).parent).glob("*.py"):
        for line in path.read_text().splitlines():
            if re.search(r"\binode\.(blocks|uid|gid|project)\b(, inode\.\w+)* ([-+|]?)= ", line):
                found.add((path.stem, line.strip()))
    assert found == {
        ("volume", "before, inode.blocks = inode.blocks, max(0, inode.blocks + blocks)"),
        ("opens", "inode.blocks = 0"),
        ("quota_store", "inode.blocks += 1"),
        ("quotas", "inode.uid, inode.gid, inode.project = owner"),
        ("owners", "inode.uid, inode.gid, inode.project = owner"),
        ("namespace", "inode.uid, inode.gid, inode.project = owner"),
    }
