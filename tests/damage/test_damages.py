"""Every planted damage is found under its own code, said in one line, and repaired or honestly left (F3)."""

from __future__ import annotations

import random

import pytest
import trio

from matrixfs.fs.replay import ReplayReport
from matrixfs.fsck.problems import PROBLEMS, Findings
from matrixfs.fsck.run import Mode, Outcome, run_fsck
from tests.damage.build import Built, sample
from tests.damage.damages import DAMAGES, Damage, flip
from tests.damage.volume import FixedClock, LogWriter, small_store
from tests.sim.disk import SimDisk


class Listener:
    """A Reporter that remembers, and answers as told."""

    def __init__(self, answer: bool = True) -> None:
        self.answer = answer
        self.lines: list[str] = []
        self.journals: list[tuple[int, ReplayReport, bool]] = []
        self.asked: list[int] = []

    def report(self, stage: str, done: int, total: int) -> None:
        assert stage

    def say(self, line: str) -> None:
        self.lines.append(line)

    def replayed(self, journal: int, report: ReplayReport, *, in_memory: bool) -> None:
        self.journals.append((journal, report, in_memory))

    def found(self, findings: Findings) -> None:
        self.lines += [finding.text for finding in findings.kept]

    def ask(self, fixable: int) -> bool:
        self.asked.append(fixable)
        return self.answer


async def fsck(disk: SimDisk, mode: Mode = Mode.LOOK, listener: Listener | None = None) -> Outcome:
    return await run_fsck(disk, mode, FixedClock(), random.Random(1), listener or Listener())


def codes(findings: Findings) -> set[str]:
    return set(findings.counts)


def identity(damage: Damage) -> str:
    same = [other for other in DAMAGES if other.code == damage.code]
    return f"{damage.code}-{same.index(damage)}"


def test_every_problem_has_a_damage() -> None:
    assert {damage.code for damage in DAMAGES} == set(PROBLEMS)


def test_what_has_a_cure_is_repaired_in_some_damage_and_what_has_none_in_no_damage() -> None:
    repaired = {damage.code for damage in DAMAGES if damage.repaired}
    assert repaired == {code for code, problem in PROBLEMS.items() if problem.cure}


@pytest.mark.parametrize("damage", DAMAGES, ids=identity)
async def test_damage_is_found_under_its_code(damage: Damage) -> None:
    built = await damage.make()
    listener = Listener()
    outcome = await fsck(built.volume.disk, listener=listener)
    assert damage.code in codes(outcome.found), outcome.found
    assert codes(outcome.found) <= {damage.code} | damage.also
    assert codes(outcome.found) == codes(outcome.left)
    assert outcome.exit_code == (0 if PROBLEMS[damage.code].is_note else 4)
    assert built.volume.disk.log == [], "-n writes nothing"
    assert all(line.isprintable() for line in listener.lines)


@pytest.mark.parametrize("damage", DAMAGES, ids=identity)
async def test_damage_is_repaired_or_left_alone(damage: Damage) -> None:
    built = await damage.make()
    disk = built.volume.disk
    outcome = await fsck(disk, Mode.REPAIR)
    if damage.repaired:
        assert codes(outcome.left) == set(), outcome.left
        assert outcome.exit_code == (0 if PROBLEMS[damage.code].is_note else 1)
        assert outcome.rounds == 1, "one round finds all"
        disk.mark()
        again = await fsck(disk)
        assert (again.exit_code, codes(again.found)) == (0, set())
        power_lost = disk.crash_image(0)
        assert (await fsck(power_lost)).exit_code == 0, "repairs are durable"
    else:
        assert damage.code in codes(outcome.left)
        assert outcome.exit_code == 4
        assert codes(outcome.left) <= {damage.code} | damage.also


def crash_points(built: Built) -> range:
    count = len(built.volume.disk.log)
    return range(0, count + 1, max(1, count // 40))


@pytest.mark.parametrize("damage", [damage for damage in DAMAGES if damage.repaired], ids=identity)
@pytest.mark.parametrize("mode", ["drop", "tear"])
async def test_a_repair_may_crash_anywhere(damage: Damage, mode: str) -> None:
    """F5: power loss at any write of a repair; the next one ends with a clean filesystem, and nothing new is lost."""
    built = await damage.make()
    counts = (await fsck(built.volume.disk, Mode.REPAIR)).counts
    for k in crash_points(built):
        crashed = built.volume.disk.crash_image(k, mode, seed=k)
        outcome = await fsck(crashed, Mode.REPAIR)
        assert outcome.exit_code in (0, 1), (k, outcome.left)
        assert outcome.counts == counts


async def dirty_store() -> Built:
    """A sample whose journal 1 holds a change of the file "small" that is not in place."""
    built = await sample(await small_store()).write()
    writer = LogWriter(built.volume, 1)
    await writer.open()
    inode = await built.inode("small")
    inode.generation, inode.uid = 9, 1000
    await writer.frame([inode])
    built.volume.disk.mark()
    return built


async def test_looking_replays_in_memory_only() -> None:
    """F2."""
    built = await dirty_store()
    built.volume.disk.corrupt(100)
    listener = Listener()
    outcome = await fsck(built.volume.disk, Mode.LOOK, listener)
    assert codes(outcome.found) == {"label-copy"}
    assert [(journal, report.written, in_memory) for journal, report, in_memory in listener.journals] == [(1, 1, True)]
    assert built.volume.disk.log == []
    assert (await built.inode("small")).uid == 0


async def test_journals_are_replayed_before_anything_else() -> None:
    built = await dirty_store()
    listener = Listener()
    outcome = await fsck(built.volume.disk, Mode.REPAIR, listener)
    assert outcome.exit_code == 0, "a replay corrects no error"
    assert [(journal, in_memory) for journal, _, in_memory in listener.journals] == [(1, False)]
    assert (await built.inode("small")).uid == 1000


async def test_nothing_is_repaired_beside_a_journal_that_cannot_be_replayed() -> None:
    damage = next(damage for damage in DAMAGES if damage.code == "journal-log")
    built = await damage.make()
    await built.change("linked", nlink=4)
    await flip(built, 0, 140)
    before = await built.inode("linked")
    outcome = await fsck(built.volume.disk, Mode.REPAIR)
    assert codes(outcome.found) == {"journal-log", "inode-nlink", "superblock"}
    assert codes(outcome.left) == {"journal-log", "inode-nlink"}, "the superblock is in no journal"
    assert await built.inode("linked") == before


@pytest.mark.parametrize("mode", ["drop", "tear"])
async def test_many_orphans_are_freed_in_several_transactions(mode: str) -> None:
    """F5: more blocks than the journal holds at once; power loss anywhere between."""
    builder = sample(await small_store())
    for number in range(330):
        orphan = builder.file(f"orphan {number}")
        builder.extents(orphan, [1])
        builder.orphan(number % 2, orphan)
    built = await builder.write()
    assert built.superblock.journal_blocks < 330
    outcome = await fsck(built.volume.disk, Mode.REPAIR)
    assert (outcome.exit_code, outcome.repaired, outcome.rounds, codes(outcome.left)) == (0, 330, 1, set())
    for k in crash_points(built):
        crashed = built.volume.disk.crash_image(k, mode, seed=k)
        again = await fsck(crashed, Mode.REPAIR)
        assert codes(again.left) == set(), k
        assert again.counts == outcome.counts


async def test_asking() -> None:
    damage = next(damage for damage in DAMAGES if damage.code == "group-free")
    built = await damage.make()
    no = Listener(answer=False)
    assert (await fsck(built.volume.disk, Mode.ASK, no)).exit_code == 4
    assert no.asked == [1]
    assert built.volume.disk.log == []
    assert (await fsck(built.volume.disk, Mode.ASK)).exit_code == 1
    calm = Listener()
    assert (await fsck(built.volume.disk, Mode.ASK, calm)).exit_code == 0
    assert calm.asked == []


async def test_many_damages_at_once_are_all_repaired() -> None:
    """Damages of different objects planted together: still everything is repaired, in a few rounds."""
    wanted = [
        "group-free",
        "entry-dangling",
        "entry-kind",
        "inode-blocks",
        "directory-nlink",
        "block-leaked",
        "superblock",
    ]
    chosen = [next(damage for damage in DAMAGES if damage.code == code) for code in wanted]
    built = await chosen[0].make()
    for damage in chosen[1:]:
        await damage.plant(built)
    outcome = await fsck(built.volume.disk, Mode.REPAIR)
    assert codes(outcome.found) == set(wanted)
    assert outcome.exit_code == 1
    assert outcome.repaired == len(wanted)


async def test_nothing_is_freed_while_part_of_the_tree_is_unreadable() -> None:
    """F4: what a damaged leaf hides looks leaked, and must stay."""
    damage = next(damage for damage in DAMAGES if damage.code == "tree-leaf")
    built = await damage.make()
    before = [await built.volume.read(built.superblock.group_block(i)) for i in range(built.superblock.groups)]
    outcome = await fsck(built.volume.disk, Mode.REPAIR)
    assert outcome.exit_code == 4
    assert "block-leaked" in codes(outcome.left)
    assert [await built.volume.read(built.superblock.group_block(i)) for i in range(built.superblock.groups)] == before


async def test_freed_blocks_leave_their_generation_behind() -> None:
    """R7: metadata that takes a freed block must be newer than what lies there, or replay would skip it."""
    damage = next(damage for damage in DAMAGES if damage.code == "orphan")
    built = await damage.make()
    number = built.inodes["dir/open and unlinked"]
    await built.change(number, generation=41)
    await fsck(built.volume.disk, Mode.REPAIR)
    tombstone = await built.inode(number)
    assert (tombstone.mode, tombstone.nlink, tombstone.orphaned_by, tombstone.generation) == (0, 0, 0, 42)
    group = await built.group(number)
    assert group.generation_floor >= 42
    assert not int.from_bytes(group.bitmap, "little") >> (number - group.address) & 1


async def test_a_rebuilt_group_knows_the_generations_of_its_free_blocks() -> None:
    damage = next(damage for damage in DAMAGES if damage.code == "group-damaged")
    built = await damage.make()
    stale = await built.inode("small")
    stale.address = built.superblock.group_start + 250
    stale.generation, stale.mode = 99, 0
    await built.put(stale)
    assert (await fsck(built.volume.disk, Mode.REPAIR)).exit_code == 1
    assert (await built.group(stale.address)).generation_floor == 99


async def test_random_flips_never_crash_fsck_and_repairs_never_lose_what_was_sound() -> None:
    """R11: whatever bytes are on the store, fsck ends with findings and nothing left that it could repair."""
    damage = next(damage for damage in DAMAGES if damage.code == "block-leaked")
    built = await damage.make()
    disk, first = built.volume.disk, built.volume.first * 4096
    before = disk.snapshot()
    rng = random.Random(5)
    used = [block for block in range(first // 4096, disk.size_bytes // 4096) if any(await disk.read(block * 4096, 512))]
    for _ in range(60):
        for _ in range(rng.choice((1, 2, 5))):
            disk.corrupt(
                rng.choice(used) * 4096 + rng.choice((rng.randrange(300), rng.randrange(4096))), 1 << rng.randrange(8)
            )
        outcome = await fsck(disk, Mode.REPAIR)
        assert not outcome.left.fixable
        disk.restore(before)


async def test_hostile_records_with_good_checksums() -> None:
    """R11: fields at random, sealed with a good checksum, as a hostile writer could."""
    rng = random.Random(6)
    damage = next(damage for damage in DAMAGES if damage.code == "block-leaked")
    built = await damage.make()
    before = built.volume.disk.snapshot()
    names = ["deep", "many", "extents", "dir", "symlink", "linked"]
    fields = {
        "layout": 3,
        "depth": 8,
        "entries": 300,
        "size": 1 << 64,
        "mode": 1 << 32,
        "nlink": 1 << 32,
        "parent": 1 << 64,
    }
    for _ in range(80):
        for _ in range(rng.choice((1, 2))):
            field = rng.choice([*fields])
            await built.change(rng.choice(names), **{field: rng.randrange(fields[field])})
        inode = await built.inode("many")
        if rng.random() < 0.3:
            at = rng.randrange(len(inode.tail) - 8)
            await built.change("many", tail=inode.tail[:at] + rng.randbytes(8) + inode.tail[at + 8 :])
        outcome = await fsck(built.volume.disk, Mode.REPAIR)
        assert not outcome.left.fixable
        built.volume.disk.restore(before)


async def test_a_clean_store_takes_no_time(autojump_clock: trio.testing.MockClock) -> None:
    damage = next(damage for damage in DAMAGES if damage.code == "orphan")
    built = await damage.make()
    start = trio.current_time()
    await fsck(built.volume.disk)
    assert trio.current_time() == start, "no slot is in use: nobody to wait for"
