"""The crash matrix's own parts: what may survive a power loss, and that the judge finds what is wrong."""

from __future__ import annotations

import stat

import pytest

from matrixfs.fs.inode import Inode
from tests.crash.application import overlaid, tagged
from tests.crash.history import ROOT, Broken, History, Tree
from tests.crash.points import DROPPED, KEPT, TORN, Point, points
from tests.sim.disk import Media, SimDisk, Write

BLOCK = 4096


def point_of(disk: SimDisk, k: int) -> Point:
    return next(each for each in points(disk, every=True) if each.k == k)


def block_of(disk: SimDisk, choice: int, k: int, block: int) -> bytes:
    point = point_of(disk, k)
    media, _ = point.crashed(choice, seed=1)
    return media.read(block * BLOCK, BLOCK)


async def written() -> SimDisk:
    disk = SimDisk(1 << 20, 512)
    await disk.write(0, b"a" * BLOCK)
    await disk.flush()
    await disk.write(0, b"b" * BLOCK)
    await disk.write(BLOCK, b"c" * BLOCK, durable=True)
    return disk


async def test_points_are_before_flushes_and_durable_writes_and_at_the_end() -> None:
    disk = await written()
    assert [point.k for point in points(disk)] == [1, 3, 4]
    assert [point.k for point in points(disk, every=True)] == [0, 1, 2, 3, 4]


async def test_every_fate_of_every_write_at_risk_is_a_choice() -> None:
    disk = await written()
    point = point_of(disk, 3)
    assert [write.data[:1] for write in point.at_risk] == [b"b", b"c"]
    assert [write.data[:1] for write in point.in_flight] == [b"c"]
    assert point.choices() == 9
    fates = {tuple(point.fates(choice, 1)) for choice in range(9)}
    assert fates == {(one, other) for one in (DROPPED, KEPT, TORN) for other in (DROPPED, KEPT, TORN)}


async def test_what_is_safe_stays_and_what_is_at_risk_may_go() -> None:
    disk = await written()
    dropped, kept = 0, 1 + 3
    assert block_of(disk, dropped, 3, 0) == b"a" * BLOCK
    assert block_of(disk, dropped, 3, 1) == bytes(BLOCK)
    assert block_of(disk, kept, 3, 0) == b"b" * BLOCK
    assert block_of(disk, kept, 3, 1) == b"c" * BLOCK
    assert block_of(disk, 0, 4, 1) == b"c" * BLOCK, "a durable write that returned is safe"


async def test_a_torn_write_is_torn_between_sectors() -> None:
    disk = await written()
    point = point_of(disk, 3)
    seen = set()
    for seed in range(30):
        media, _ = point.crashed(2 + 2 * 3, seed)
        content = media.read(0, BLOCK)
        sectors = [content[at : at + 512] for at in range(0, BLOCK, 512)]
        assert set(sectors) <= {b"a" * 512, b"b" * 512}
        seen.add(content)
    assert len(seen) > 10


def test_one_choice_is_the_same_in_every_run() -> None:
    writes = [Write(i * BLOCK, bytes([i]) * BLOCK, False) for i in range(9)]
    one, other = (Point(7, Media(512), writes, writes) for _ in range(2))
    for choice in range(9):
        assert one.fates(choice, 4) == other.fates(choice, 4)
        assert one.crashed(choice, 4)[0].read(0, 9 * BLOCK) == other.crashed(choice, 4)[0].read(0, 9 * BLOCK)
    assert one.fates(5, 4) != one.fates(6, 4)


# --- the judge ------------------------------------------------------------------------------------------------


class Made(Inode):
    """An inode that only has a number."""

    def __init__(self, number: int) -> None:
        self.address = number
        self.incarnation = number
        self.atime_ns = 0


FILE = (stat.S_IFREG | 0o644, 0, 1)


async def story() -> tuple[SimDisk, History]:
    """Thing 1 is made, written, fsynced (entry 1), written again; thing 2 is made; thing 1 is renamed over it."""
    disk = SimDisk(1 << 20, 512)
    history = History(disk, 1)
    assert history.made(Made(100), b"") == 1
    history.changed(0, {("name", ROOT, b"one"): 1, ("attributes", 1): FILE})
    history.wrote(0, 1, 0, tagged(1, 1, 0, 2048))
    sync = history.fsync_begins(0, 1)
    await disk.flush()
    history.synced(sync)
    history.wrote(0, 1, 1, overlaid(history.contents[1][-1].data, 512, tagged(1, 2, 512, 1024)))
    history.made(Made(101), b"")
    history.changed(0, {("name", ROOT, b"two"): 2, ("attributes", 2): FILE})
    history.changed(0, {("name", ROOT, b"one"): None, ("name", ROOT, b"two"): 1, ("attributes", 2): None})
    return disk, history


def tree(content: bytes = tagged(1, 1, 0, 2048), **names: int) -> Tree:
    found = Tree({("name", ROOT, name.encode()): thing for name, thing in names.items()}, {})
    for thing in names.values():
        found.values["attributes", thing] = FILE
        found.contents[thing] = content if thing == 1 else b""
    return found


async def test_old_and_new_and_what_lies_between_are_allowed() -> None:
    _, history = await story()
    history.judge(tree(one=1), 1)
    history.judge(tree(one=1, two=2), 1)
    history.judge(tree(two=1), 1)
    mixed = tagged(1, 1, 0, 1024) + tagged(1, 2, 1024, 512) + tagged(1, 1, 1536, 512)
    history.judge(tree(mixed, two=1), 1)
    history.judge(Tree(), 0)
    with pytest.raises(Broken, match="are zeros"):
        history.judge(tree(bytes(2048), one=1), 0)


@pytest.mark.parametrize(
    ("found", "match"),
    [
        (Tree(), "since an fsync"),
        (tree(one=1, two=1), "no prefix"),
        (tree(one=1, two=2, three=3), "must be absent"),
        (tree(two=2), "since an fsync"),
        (tree(bytes(2048), one=1), "are zeros"),
        (tree(tagged(1, 1, 0, 512) + tagged(2, 1, 512, 1536), one=1), "of nobody"),
        (tree(tagged(1, 1, 0, 1024), one=1), "1024 bytes"),
        (tree(b"", one=1), "0 bytes"),
    ],
)
async def test_the_judge_finds_what_is_wrong(found: Tree, match: str) -> None:
    _, history = await story()
    with pytest.raises(Broken, match=match):
        history.judge(found, 1)


async def test_a_copy_may_be_there_in_part_and_another_write_may_not() -> None:
    disk, history = await story()
    content = history.contents[1][-1].data
    for whole, in_steps in ((content + bytes(1000), False), (content + bytes(3000), True)):
        history.wrote(0, 1, 1, whole, in_steps=in_steps)
    history.judge(tree(content + bytes(2500), two=1), 1)
    with pytest.raises(Broken, match="it had"):
        history.judge(tree(content + bytes(700), two=1), 1)


async def test_attributes_go_with_their_file_and_access_times_were_shown() -> None:
    _, history = await story()
    history.changed(0, {("extended", 1, b"user.a"): b"old"})
    history.accessed(1, 7)
    assert set(history.known_of(1)) == {("attributes", 1), ("extended", 1, b"user.a")}
    found = tree(two=1)
    found.accesses[1] = 7
    history.judge(found, 1)
    found.values["extended", 1, b"user.a"] = b"old"
    history.judge(found, 1)
    found.accesses[1] = 8
    with pytest.raises(Broken, match="nobody was shown"):
        history.judge(found, 1)
    found.values["extended", 1, b"user.a"] = b"other"
    with pytest.raises(Broken, match="5 bytes, b'other'"):
        history.judge(found, 1)


async def test_what_was_cut_does_not_come_back_with_the_size() -> None:
    disk = SimDisk(1 << 20, 512)
    history = History(disk, 1)
    history.made(Made(100), b"")
    history.changed(0, {("name", ROOT, b"one"): 1, ("attributes", 1): FILE})
    old = tagged(1, 1, 0, 4096)
    for content in (old, old[:100], old[:100].ljust(5000, b"\0")):
        history.wrote(0, 1, 0, content)
    history.judge(tree(old, one=1), 0)
    history.judge(tree(old[:100], one=1), 0)
    history.judge(tree(old[:100] + bytes(4900), one=1), 0)
    with pytest.raises(Broken, match="512 bytes at 512 are as after change"):
        history.judge(tree(old + bytes(904), one=1), 0)


async def test_what_another_node_used_is_durable() -> None:
    disk = SimDisk(1 << 20, 512)
    history = History(disk, 2)
    directory = history.made(Made(99), None)
    history.changed(0, {("name", ROOT, b"d"): directory, ("attributes", directory): (stat.S_IFDIR | 0o755, 0, 0)})
    await disk.flush()
    history.made(Made(100), b"")
    history.changed(1, {("name", directory, b"f"): 2, ("attributes", 2): FILE})
    empty = Tree({("name", ROOT, b"d"): directory, ("attributes", directory): (stat.S_IFDIR | 0o755, 0, 0)}, {})
    history.judge(empty, 1)
    history.judge(Tree(), 0)
    with pytest.raises(Broken):
        history.judge(Tree(), 1)
