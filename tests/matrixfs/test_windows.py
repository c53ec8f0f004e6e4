"""Room kept behind files that grow (``matrixfs/fs/windows.py``; issue 5, "preallocation for appenders")."""

from __future__ import annotations

import trio

from matrixfs.fs import data, extents
from matrixfs.fs.groups import Group
from matrixfs.fs.mkfs import empty_group
from matrixfs.fs.windows import OWNERS_MAX, SIZE_MIN
from membership.label import BLOCK_BYTES
from tests.matrixfs.local import MIB, mounted
from tests.matrixfs.test_groups import superblock_of
from tests.sim.checkers import assert_clean

APPENDS = 200


def group_of(blocks: int = 4096) -> Group:
    return Group(empty_group(superblock_of(blocks), 2))


async def pieces_of(mount, ino: int) -> list[tuple[int, int]]:  # type: ignore[no-untyped-def]
    inode = await mount.volume.load(mount.volume.inode_lock(ino))
    found = await extents.pieces(mount.volume, inode, 0, APPENDS)
    return [(piece.physical, piece.length) for piece in found]


async def test_files_that_grow_side_by_side_are_not_cut_to_pieces(autojump_clock: trio.abc.Clock) -> None:
    async with mounted(size=64 * MIB, journal_blocks=256) as mount:
        files = [(await mount.file(b"log%d" % number)).ino for number in range(4)]
        for block in range(APPENDS):
            for ino in files:
                await data.write(mount.volume, ino, block * BLOCK_BYTES, b"x" * BLOCK_BYTES)
                await data.fsync(mount.volume, ino, False)
        for ino in files:
            pieces = await pieces_of(mount, ino)
            assert sum(length for _, length in pieces) == APPENDS
            assert len(pieces) < 10  # 200 without
    await assert_clean(mount.disk, mount.volume.superblock)


async def test_files_written_once_lie_close_together(autojump_clock: trio.abc.Clock) -> None:
    async with mounted() as mount:
        places = []
        for number in range(20):
            ino = (await mount.file(b"%d" % number)).ino
            await data.write(mount.volume, ino, 0, b"x" * 2 * BLOCK_BYTES)
            await data.fsync(mount.volume, ino, False)
            places.append((await pieces_of(mount, ino))[0][0])
        assert max(places) - min(places) < 20 * 3


def test_a_window_is_had_by_its_owner_as_long_as_others_find_room() -> None:
    group = group_of()
    first, _ = group.take(1)
    start, _ = group.take(1, first + 1, owner=7)
    other, _ = group.take(1, start + 1)
    assert other == start + 1 + SIZE_MIN, "behind the window"
    assert group.take(3, start + 1, owner=7) == (start + 1, 3)
    assert group.take(1, start + 1, owner=8)[0] != start + 4, "nor can another owner have it"
    left = group.available
    taken = 0
    while group.available:
        taken += group.take(1000)[1]
    assert taken == left, "the last blocks are everybody's"


def test_windows_are_bounded_in_number_and_in_size() -> None:
    group = group_of(1 << 18)
    ends = {owner: group.take(1, group.address + 1, owner=owner)[0] + 1 for owner in range(1, OWNERS_MAX + 20)}
    kept = {group.address + at: length for at, length in group._windows.close_all()}
    assert list(kept.values()) == [SIZE_MIN] * OWNERS_MAX
    assert list(kept) == list(ends.values())[-OWNERS_MAX:]
    full = group_of()
    full.take(full.available - SIZE_MIN)
    start, _ = full.take(1, owner=7)
    assert not full._windows.close_all(), "too little is left to keep any of it"
