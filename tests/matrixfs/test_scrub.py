"""A scrub of a mounted tree: what it finds, what it puts in quarantine, and that changes are no damage (issue 5)."""

from __future__ import annotations

import errno

import pytest
import trio
import trio.lowlevel

from matrixfs.fs import attributes, data, namespace, readdir, xattrs
from matrixfs.fs.groups import Group
from matrixfs.fs.inode import Inode
from matrixfs.fs.scrub import Damage, Scrub
from matrixfs.locks.modes import EX
from matrixfs.ondisk.inode import FLAG_QUARANTINED
from matrixfs.ondisk.superblock import ROOT_INODE
from membership.errors import CorruptRecord
from membership.label import BLOCK_BYTES
from tests.matrixfs.local import Local, mounted

NAMES = 300  # more than one leaf, and more than one batch
BYTES = 3 * BLOCK_BYTES


async def scrub(local: Local, *, read_data: bool = False) -> tuple[Scrub, list[Damage]]:
    found: list[Damage] = []
    walk = Scrub(local.volume, found.append, read_data=read_data)
    await walk.run()
    return walk, found


async def fill(local: Local) -> tuple[Inode, Inode]:
    """A directory of many, and a file with blocks in it."""
    top = await local.directory(b"top")
    for number in range(NAMES):
        await local.file(b"%d" % number, top.ino)
    await namespace.symlink(local.volume, top.ino, b"link", b"nowhere", 0, 0)
    file = await local.file(b"file", top.ino)
    await data.write(local.volume, file.ino, 0, b"x" * BYTES)
    await xattrs.put(local.volume, top.ino, b"user.large", b"v" * 9000, 0)
    await local.volume.sync()
    return top, file


async def test_a_sound_tree_is_seen_whole() -> None:
    async with mounted() as local:
        await fill(local)
        walk, found = await scrub(local, read_data=True)
        assert found == []
        totals = walk.totals
        assert (totals.directories, totals.others, totals.damaged) == (2, NAMES + 2, 0)
        assert totals.data_bytes == BYTES
        assert totals.blocks > 2 + NAMES + 2


async def test_a_block_that_its_group_calls_free_puts_the_file_in_quarantine() -> None:
    async with mounted() as local:
        volume = local.volume
        top, file = await fill(local)
        (extent,) = file.root.extents
        group = await volume.allocator.hold(1, near=extent.physical)
        group._mark(extent.physical - group.address, 1, False)
        volume.allocator.drop(group)
        _, found = await scrub(local)
        assert [(each.ino, each.path, each.is_quarantined) for each in found] == [(file.ino, b"/top/file", True)]
        assert "free by its group" in found[0].text
        for use in (
            lambda: data.read(volume, file.ino, 0, 1),
            lambda: data.write(volume, file.ino, 0, b"x"),
            lambda: attributes.getattr(volume, file.ino),
            lambda: namespace.unlink(volume, top.ino, b"file"),
        ):
            with pytest.raises(CorruptRecord, match="quarantine") as caught:
                await use()
            assert caught.value.errno == errno.EIO
        listed = await readdir.entries(volume, top.ino, 0, NAMES + 2)
        assert len(listed) == NAMES + 2, "its name stays visible"
        await local.file(b"others go on", top.ino)
        _, again = await scrub(local)
        assert [(each.ino, each.is_quarantined) for each in again] == [(file.ino, False)], "it is told again"
        group = await volume.allocator.hold(1, near=extent.physical)
        group._mark(extent.physical - group.address, 1, True)
        volume.allocator.drop(group)


async def test_groups_are_held_with_leave_to_change_only(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who holds a group may enlarge it: while the filesystem is frozen, a doubt waits, and what is sound does not."""
    async with mounted() as local:
        volume = local.volume
        _, file = await fill(local)
        (extent,) = file.root.extents
        group = await volume.allocator.hold(1, near=extent.physical)
        found: list[Damage] = []
        change = volume.changes.lock
        assert await change.hold(EX, exclusive=True, timeout=60)
        await Scrub(volume, found.append, read_data=True).run()
        group._mark(extent.physical - group.address, 1, False)
        volume.allocator.drop(group)
        asked: list[set[int]] = []
        hold_all = volume.allocator.hold_all

        async def noted(indexes: set[int]) -> list[Group]:
            asked.append(indexes)
            return await hold_all(indexes)

        monkeypatch.setattr(volume.allocator, "hold_all", noted)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Scrub(volume, found.append, read_data=True).run)
            await trio.sleep(60)
            assert asked == []
            change.drop(EX, exclusive=True)
        assert asked == [{group.index}]
        assert [each.ino for each in found] == [file.ino]
        group._mark(extent.physical - group.address, 1, True)


async def test_what_is_buffered_for_a_file_in_quarantine_is_lost_and_fsync_says_so() -> None:
    async with mounted() as local:
        volume = local.volume
        _, file = await fill(local)
        await data.write(volume, file.ino, 0, b"y" * BYTES)
        group = await volume.allocator.hold(1, near=file.root.extents[0].physical)
        at = file.root.extents[0].physical - group.address
        group._mark(at, 1, False)
        volume.allocator.drop(group)
        await scrub(local)
        assert volume.write_back.length == 0
        with pytest.raises(OSError, match="could not be written"):
            await data.flush(volume, file.ino)
        group._mark(at, 1, True)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [("blocks", 77, "blocks: 77 by its inode"), ("children", 5, "names: 5"), ("size", 1, "bytes of names"),
     ("nlink", 9, "links: 9")],
)  # fmt: skip
async def test_a_wrong_count_is_told_and_left_alone(field: str, value: int, words: str) -> None:
    async with mounted() as local:
        top, _ = await fill(local)
        right = getattr(top, field)
        setattr(top, field, value)
        _, (damage,) = await scrub(local)
        assert (damage.path, damage.is_quarantined) == (b"/top", False)
        assert words in damage.text
        setattr(top, field, right)
        assert not top.flags & FLAG_QUARANTINED


async def test_a_damaged_block_hides_its_object_and_nothing_else() -> None:
    async with mounted() as local:
        _, file = await fill(local)
        await local.give_up(file.ino)
        local.disk.corrupt(file.ino * BLOCK_BYTES + 300)
        walk, found = await scrub(local)
        assert [(each.ino, each.is_quarantined) for each in found] == [(file.ino, False)]
        assert "checksum" in found[0].text
        assert walk.totals.others == NAMES + 1


async def test_names_that_lead_nowhere_or_elsewhere() -> None:
    async with mounted() as local:
        top, file = await fill(local)
        below = await local.directory(b"below", top.ino)
        below.parent, file.mode = ROOT_INODE, file.mode ^ 0o020000 ^ 0o100000 ^ 0o100000
        _, found = await scrub(local)
        assert {(each.path, each.text.split()[0]) for each in found} == {
            (b"/top/below", "directory"),
            (b"/top/file", "the"),
        }
        below.parent, file.mode = top.ino, file.mode ^ 0o020000


async def test_changes_under_way_are_no_damage(autojump_clock: trio.testing.MockClock) -> None:
    async with mounted() as local:
        volume = local.volume
        top, _ = await fill(local)
        found: list[Damage] = []

        async def change(worker: int) -> None:
            for number in range(60):
                name = b"w%d-%d" % (worker, number)
                made = await local.file(name, top.ino)
                await data.write(volume, made.ino, 0, b"z" * (number * 700))
                if number % 3 == 0:
                    await namespace.rename(volume, top.ino, name, ROOT_INODE, name, 0)
                elif number % 3 == 1:
                    await namespace.unlink(volume, top.ino, name)
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            for worker in range(3):
                nursery.start_soon(change, worker)
            for _ in range(5):
                await Scrub(volume, found.append, read_data=True).run()
        assert found == []
