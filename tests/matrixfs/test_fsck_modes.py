"""What fsck does beside -n and -y: -p, which decides nothing, and --upgrade, in an order that is safe to interrupt."""

from __future__ import annotations

import random

import pytest

from matrixfs.fsck import run as fsck_run
from matrixfs.fsck.problems import PROBLEMS
from matrixfs.fsck.report import upgrade_line
from matrixfs.fsck.run import Mode, Outcome, run_fsck
from matrixfs.fsck.upgrade import upgrade
from matrixfs.ondisk import superblock as ondisk
from matrixfs.ondisk.features import INCOMPATIBLE_NAMES, feature_names
from matrixfs.ondisk.superblock import Superblock
from tests.damage.build import Built, sample
from tests.damage.damages import DAMAGES, Damage
from tests.damage.test_damages import Listener, codes, dirty_store, identity
from tests.damage.volume import FixedClock, small_store
from tests.sim.disk import SimDisk


async def fsck(disk: SimDisk, mode: Mode, listener: Listener | None = None, *, upgrade: bool = False) -> Outcome:
    return await run_fsck(
        disk, mode, FixedClock(), random.Random(1), listener or Listener(answer=False), upgrade=upgrade
    )


# --- -p ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", DAMAGES, ids=identity)
async def test_preen_repairs_all_or_changes_nothing(damage: Damage) -> None:
    built = await damage.make()
    outcome = await fsck(built.volume.disk, Mode.PREEN)
    problem = PROBLEMS[damage.code]
    if damage.repaired and not problem.decides:
        assert codes(outcome.left) == set()
        assert outcome.exit_code == (0 if problem.is_note else 1)
        assert (await fsck(built.volume.disk, Mode.LOOK)).found.counts == {}
    else:
        assert outcome.exit_code == 4
        assert built.volume.disk.log == [], "nothing is changed"


async def test_one_decision_keeps_preen_from_all_repairs() -> None:
    built = await _damaged("group-free", "entry-dangling")
    outcome = await fsck(built.volume.disk, Mode.PREEN)
    assert (outcome.exit_code, built.volume.disk.log) == (4, [])
    assert (await fsck(built.volume.disk, Mode.REPAIR)).exit_code == 1


async def _damaged(*wanted: str) -> Built:
    chosen = [next(damage for damage in DAMAGES if damage.code == code) for code in wanted]
    built = await chosen[0].make()
    for damage in chosen[1:]:
        await damage.plant(built)
    built.volume.disk.mark()
    return built


async def test_preen_replays_journals_when_nothing_needs_a_decision() -> None:
    built = await dirty_store()
    listener = Listener()
    outcome = await fsck(built.volume.disk, Mode.PREEN, listener)
    assert outcome.exit_code == 0
    assert [in_memory for _, _, in_memory in listener.journals] == [True, False]
    assert (await built.inode("small")).uid == 1000
    assert (await fsck(built.volume.disk, Mode.PREEN)).exit_code == 0


async def test_preen_replays_nothing_when_something_needs_a_decision() -> None:
    built = await dirty_store()
    await next(damage for damage in DAMAGES if damage.code == "entry-dangling").plant(built)
    built.volume.disk.mark()
    assert (await fsck(built.volume.disk, Mode.PREEN)).exit_code == 4
    assert built.volume.disk.log == []


async def test_preen_of_a_clean_filesystem_reads_once_and_writes_nothing() -> None:
    disk = (await sample(await small_store()).write()).volume.disk
    reads = []
    for mode in (Mode.LOOK, Mode.PREEN):
        before = disk.operations["read"]
        assert (await fsck(disk, mode)).exit_code == 0
        reads.append(disk.operations["read"] - before)
    assert reads[0] == reads[1]
    assert disk.log == []


def test_what_needs_a_decision_can_be_repaired() -> None:
    assert {problem.code for problem in PROBLEMS.values() if problem.decides} == {
        "entry-dangling", "orphan-unlisted", "quota-block", "quota-limits", "quota-tree",
    }  # fmt: skip
    assert all(problem.cure and not problem.is_note for problem in PROBLEMS.values() if problem.decides)


# --- --upgrade -----------------------------------------------------------------------------------------------------

NEW = 0b111


@pytest.fixture
def newer(monkeypatch: pytest.MonkeyPatch) -> None:
    """This version knows all named features; the filesystems of these tests were made by one that knew none."""

    async def upgrade_all(area: SimDisk, superblock: Superblock) -> int:
        return await upgrade(area, superblock, NEW)

    monkeypatch.setattr(fsck_run, "upgrade_superblock", upgrade_all)
    for module in ("matrixfs.ondisk.superblock", "matrixfs.fsck.store"):
        monkeypatch.setattr(f"{module}.INCOMPATIBLE_KNOWN", NEW)


async def old_store() -> Built:
    built = await sample(await small_store()).write()
    superblock = built.superblock
    superblock.features_incompatible = 0
    for block in (superblock.blocks_total - 1, 0):
        superblock.address = block
        await built.put(superblock)
    await built.change("empty", flags=0)
    built.volume.disk.mark()
    return built


async def features(built: Built, disk: SimDisk) -> list[int]:
    """Of the superblock and its copy."""
    volume = built.volume.on(disk)
    blocks = (0, built.superblock.blocks_total - 1)
    return [
        Superblock.decode_untrusted(await volume.read(block), "t", address=block).features_incompatible
        for block in blocks
    ]


@pytest.mark.parametrize("mode", [Mode.ASK, Mode.REPAIR, Mode.PREEN])
async def test_upgrade_sets_all_features_on_both_superblocks(newer: None, mode: Mode) -> None:
    built = await old_store()
    outcome = await fsck(built.volume.disk, mode, upgrade=True)
    assert (outcome.exit_code, outcome.features_new) == (0, NEW)
    assert await features(built, built.volume.disk) == [NEW, NEW]
    assert "can't mount" in upgrade_line(outcome) and "unwritten extents" in upgrade_line(outcome)
    again = await fsck(built.volume.disk, mode, upgrade=True)
    assert (again.exit_code, again.features_new, codes(again.found)) == (0, 0, set())
    assert "has everything" in upgrade_line(again)


async def test_upgrade_may_crash_anywhere(newer: None) -> None:
    """Never does the superblock say more than its copy."""
    built = await old_store()
    disk = built.volume.disk
    await fsck(disk, Mode.REPAIR, upgrade=True)
    seen = set()
    for k in range(len(disk.log) + 1):
        for mode in ("drop", "tear", "keep-all"):
            crashed = disk.crash_image(k, mode, seed=k)
            primary, copy = await features(built, crashed)
            assert primary in {0, copy}
            seen.add((primary, copy))
            assert (await fsck(crashed, Mode.PREEN)).exit_code in {0, 1}
            assert await features(built, crashed) == [primary, primary]
    assert seen == {(0, 0), (0, NEW), (NEW, NEW)}


async def test_only_a_clean_filesystem_is_upgraded(newer: None) -> None:
    built = await old_store()
    await next(damage for damage in DAMAGES if damage.code == "group-free").plant(built)
    refused = await fsck(built.volume.disk, Mode.ASK, upgrade=True)
    assert (refused.exit_code, refused.features_new) == (4, 0)
    assert "repair it first" in upgrade_line(refused)
    assert await features(built, built.volume.disk) == [0, 0]
    assert (await fsck(built.volume.disk, Mode.REPAIR, upgrade=True)).features_new == NEW


def test_every_feature_has_a_name() -> None:
    assert all("unknown" not in name for name in feature_names(ondisk.INCOMPATIBLE_KNOWN))
    assert feature_names(0b101 | 1 << 40) == [INCOMPATIBLE_NAMES[1], INCOMPATIBLE_NAMES[4], "unknown 0x10000000000"]
