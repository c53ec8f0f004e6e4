"""fsck and quotas: turned on offline, made anew with the limits, and a tree of more blocks than an inode holds."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from matrixfs.fs import attributes, namespace, quota_admin
from matrixfs.fs.mkfs import quota_inode
from matrixfs.fsck.fixes import RebuildQuotas
from matrixfs.fsck.quota_tree import Place, blocks_needed, bodies, plant
from matrixfs.fsck.report import quotas_line
from matrixfs.fsck.run import Mode, Outcome, run_fsck
from matrixfs.ondisk.extent import ExtentLeafRecord, unpack_extents_untrusted
from matrixfs.ondisk.index import IndexRecord, unpack_pairs_untrusted
from matrixfs.ondisk.quota import USER, Limits, QuotaRecord, counters_key
from matrixfs.ondisk.superblock import ROOT_INODE, Superblock
from tests.damage.build import Built, sample
from tests.damage.damages import DAMAGES
from tests.damage.fuzz import area_disk
from tests.damage.test_damages import Listener
from tests.damage.volume import FixedClock, small_store
from tests.matrixfs.local import mounted
from tests.sim.disk import SimDisk


async def fsck(disk: SimDisk, mode: Mode = Mode.LOOK, *, quotas: bool = False) -> Outcome:
    return await run_fsck(disk, mode, FixedClock(), random.Random(1), Listener(), quotas=quotas)


async def without_quotas() -> Built:
    return await sample(await small_store()).write()


async def test_turned_on_offline_and_used(autojump_clock: object) -> None:
    built = await without_quotas()
    disk = built.volume.disk
    outcome = await fsck(disk, Mode.PREEN, quotas=True)
    assert (outcome.exit_code, outcome.quotas_new) == (0, True)
    assert quotas_line(outcome).startswith("quotas are on;")
    assert (await fsck(disk)).exit_code == 0
    again = await fsck(disk, Mode.PREEN, quotas=True)
    assert (again.exit_code, again.quotas_new, quotas_line(again)) == (0, False, "quotas were on already")
    async with mounted(area_disk(disk)) as local:
        volume = local.volume
        rows = {(row.kind, row.number): row for row in await quota_admin.report(volume)}
        before = rows[USER, 0]
        assert before.inodes > 50
        found = await namespace.lookup(volume, ROOT_INODE, b"extents")
        assert found is not None
        await attributes.setattr(volume, found.ino, attributes.Changes(uid=5))
        rows = {(row.kind, row.number): row for row in await quota_admin.report(volume)}
        assert (rows[USER, 5].blocks, rows[USER, 5].inodes) == (found.blocks, 1)
        assert rows[USER, 0].blocks == before.blocks - found.blocks


async def test_turning_on_may_crash_anywhere() -> None:
    built = await without_quotas()
    disk = built.volume.disk
    await fsck(disk, Mode.REPAIR, quotas=True)
    seen = set()
    for k in range(len(disk.log) + 1):
        for mode in ("drop", "tear", "keep-all"):
            crashed = disk.crash_image(k, mode, seed=k)
            outcome = await fsck(crashed, Mode.REPAIR)
            assert outcome.exit_code in {0, 1}, (k, outcome.left)
            again = await fsck(crashed, Mode.REPAIR, quotas=True)
            assert again.exit_code == 0
            seen.add(again.quotas_new)
            assert (await fsck(crashed)).exit_code == 0
    assert seen == {False, True}


async def test_only_on_a_clean_filesystem() -> None:
    built = await without_quotas()
    await next(damage for damage in DAMAGES if damage.code == "group-free").plant(built)
    disk = built.volume.disk
    refused = await run_fsck(disk, Mode.ASK, FixedClock(), random.Random(1), Listener(answer=False), quotas=True)
    assert (refused.exit_code, refused.quotas_new) == (4, False)
    assert "repair it first" in quotas_line(refused)
    outcome = await fsck(disk, Mode.REPAIR, quotas=True)
    assert (outcome.exit_code, outcome.quotas_new) == (1, True)


async def test_a_repair_keeps_the_limits() -> None:
    built = await next(damage for damage in DAMAGES if damage.code == "quota-usage").make()
    assert (await fsck(built.volume.disk, Mode.PREEN)).exit_code == 1
    async with mounted(area_disk(built.volume.disk)) as local:
        rows = await quota_admin.report(local.volume)
    assert [row.limits for row in rows if row.number == 1000] == [Limits(blocks_hard=100, blocks_soft=80)]


@pytest.mark.parametrize("count", [1, 160, 161, 168 * 240 + 1])
def test_trees_of_any_size(count: int) -> None:
    usage = tuple((USER, number * 252, 7, 1) for number in range(count))
    found = bodies(RebuildQuotas((), usage))
    assert len(found) == count
    places: Iterator[Place] = ((block, 3) for block in range(1000, 1000 + blocks_needed(count)))
    inode = quota_inode(Superblock(owner=b"o" * 16))
    records = {record.address: record for record in plant(inode, found, places, b"o" * 16)}
    assert len(records) == inode.blocks == blocks_needed(count)
    assert next(places, None) is None, "exactly so many"
    seen: dict[int, int] = {}

    def walk(body: bytes, entries: int, level: int) -> None:
        if level == 0:
            seen.update((each.logical, each.physical) for each in unpack_extents_untrusted(body, entries, "", 1 << 40))
            return
        for child in unpack_pairs_untrusted(body, entries, "")[1]:
            record = records[child]
            assert isinstance(record, IndexRecord if level > 1 else ExtentLeafRecord)
            walk(record.body, record.entries, level - 1)

    walk(inode.tail, inode.entries, inode.depth)
    assert sorted(seen) == sorted(counters_key(0, USER, number * 252) for number in range(count))
    assert all(isinstance(records[block], QuotaRecord) and records[block].key == key for key, block in seen.items())
