"""The trees below inodes, with blocks so small that a few entries make them deep, against a dict."""

from __future__ import annotations

import itertools
import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matrixfs.fs import blocks, directories, extents, inode, tree
from matrixfs.fs.allocation import Reservation
from matrixfs.fs.blocks import EntryTable, ExtentList, Index, TreeBlock
from matrixfs.fs.held import Held
from matrixfs.fs.inode import Inode
from matrixfs.ondisk.directory import DISAMBIGUATION_BITS, Entry
from matrixfs.ondisk.extent import (
    EXTENT_BYTES,
    LOGICAL_MAX,
    UNWRITTEN,
    Extent,
    pack_extents,
    unpack_extents_untrusted,
)
from matrixfs.ondisk.superblock import ROOT_INODE
from membership.errors import CorruptRecord
from tests.matrixfs.local import MIB, Local, mounted
from tests.sim.checkers import assert_clean

SMALL = 144  # bytes of a block's body: 9 index pairs, 6 extents, some 6 entries


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BODY_BYTES", SMALL)
    monkeypatch.setattr(tree, "BODY_BYTES", SMALL)
    monkeypatch.setattr(tree, "TAIL_BYTES", SMALL - 40)
    monkeypatch.setattr(inode, "TAIL_BYTES", SMALL - 40)


async def insert(mount: Local, root: Inode, item: Entry | Extent) -> None:
    await mount.volume.journal.admit()
    with Held(mount.volume) as held:
        path = await tree.descend(mount.volume, root, item[0])
        count = tree.blocks_needed(path, item)
        group = await held.group(count) if count else None
        with Reservation(mount.volume.journal, group, count) as spare:
            tree.insert(mount.volume, root, path, item, spare)


def check_tree(root: Inode, *, leaves_may_be_empty: bool = True) -> list[Entry | Extent]:
    """Walk it in memory: order, bounds, depth, capacity, counted blocks.  Returns all items in order."""
    items: list[Entry | Extent] = []
    found = 0

    def walk(node: object, level: int, low: int, high: int) -> None:
        nonlocal found
        if isinstance(node, Index):
            assert level > 0
            assert 1 <= len(node.keys) <= node.capacity
            assert node.keys[0] == 0
            assert node.keys == sorted(set(node.keys))
            bounds = [low, *node.keys[1:], high]
            assert bounds == sorted(bounds)
            for at, child in enumerate(node.children):
                block = root.lock.blocks[child]
                assert isinstance(block, TreeBlock)
                assert (block.address, block.inode, block.level) == (child, root.ino, level - 1)
                found += 1
                walk(block.content, level - 1, bounds[at], bounds[at + 1])
            return
        assert level == 0
        content = node.entries if isinstance(node, EntryTable) else node.extents  # type: ignore[attr-defined]
        assert leaves_may_be_empty or content or node is root.root
        assert all(low <= item[0] < high for item in content)
        if isinstance(node, EntryTable):
            assert node.used == sum(entry.size for entry in content) <= node.capacity
            assert node.keys == [entry.key for entry in content]
        else:
            assert isinstance(node, ExtentList)
            assert len(content) <= node.capacity
            assert node.starts == [extent.logical for extent in content]
        items.extend(content)

    walk(root.root, root.depth, 0, 1 << 63)
    assert [item[0] for item in items] == sorted({item[0] for item in items})
    return items


async def directory_of(mount: Local) -> Inode:
    """A directory that is held for good."""
    made = await mount.directory(b"d")
    await mount.volume.inode_lock(made.ino).hold(5, exclusive=True)
    return made


@pytest.mark.parametrize("seed", range(6))
async def test_entries_against_a_dict(small_blocks: None, seed: int) -> None:
    rng = random.Random(seed)
    async with mounted(clean=False, size=24 * MIB) as mount:
        root = await directory_of(mount)
        base = root.blocks
        model: dict[int, Entry] = {}
        spread = rng.choice((300, 1 << 20, 1 << 55))
        for _ in range(500):
            key = rng.randrange(spread) << DISAMBIGUATION_BITS | rng.choice((0, 0, 1, 2))
            if key not in model and rng.random() < 0.8:
                entry = Entry(key, 1000 + len(model), 8, b"n" * rng.choice((1, 4, 8)))
                await insert(mount, root, entry)
                model[key] = entry
            elif model:
                key = rng.choice(list(model))
                path = await tree.descend(mount.volume, root, key)
                path.leaf.remove(model.pop(key))  # type: ignore[union-attr]
        assert check_tree(root) == [model[key] for key in sorted(model)]
        assert root.depth >= 2
        assert root.blocks - base == len(root.lock.blocks) - 1
        for key in [0, *rng.sample(sorted(model), 20)]:
            found = [entry async for entry in directories.entries_from(mount.volume, root, key)]
            assert found == [model[k] for k in sorted(model) if k >= key]
        await extents.drop_tree(mount.volume, root)
        assert (root.depth, root.blocks, list(root.lock.blocks)) == (0, base, [root.ino])


async def test_ascending_and_descending_keys(small_blocks: None) -> None:
    for order in (1, -1):
        async with mounted(clean=False) as mount:
            root = await directory_of(mount)
            keys = [number << DISAMBIGUATION_BITS for number in range(300)][::order]
            for key in keys:
                await insert(mount, root, Entry(key, 7, 8, b"nnn"))
            assert [item[0] for item in check_tree(root)] == sorted(keys)


@pytest.mark.parametrize("seed", range(6))
async def test_extents_against_a_dict(small_blocks: None, seed: int) -> None:
    """Random writes to a sparse file, then truncations: what ``pieces`` says is what was put in."""
    rng = random.Random(seed)
    async with mounted(clean=False, size=24 * MIB) as mount:
        made = await mount.file(b"f")
        await mount.volume.inode_lock(made.ino).hold(5, exclusive=True)
        made.root = ExtentList([], tree.TAIL_BYTES)
        model: dict[int, int] = {}
        for _ in range(200):
            logical, wanted = rng.randrange(2000), rng.randint(1, 6)
            free = next((n for n in range(wanted) if logical + n in model), wanted)
            if not free:
                continue
            group = await mount.volume.allocator.hold(free + 8)
            start, length = group.take(free, rng.choice((0, model.get(logical - 1, 0) + 1)))
            group.use(start, length)
            mount.volume.allocator.drop(group)
            await insert(mount, made, Extent(logical, start, length))
            made.blocks += length
            model |= {logical + n: start + n for n in range(length)}
        while True:
            check_tree(made)
            found: dict[int, int] = {}
            for piece in await extents.pieces(mount.volume, made, 0, 2100):
                assert await extents.piece(mount.volume, made, piece.logical, 2100) == piece
                found |= {piece.logical + n: piece.physical + n for n in range(piece.length)} if piece.physical else {}
            assert found == model
            first, count = rng.randrange(2000), rng.randint(1, 50)
            covered = await extents.pieces(mount.volume, made, first, count)
            assert [n for piece in covered for n in range(piece.logical, piece.logical + piece.length)] == list(
                range(first, first + count)
            )
            if not model:
                break
            limit = rng.choice((0, max(model) // 2, max(model)))
            await extents.truncate(mount.volume, made, limit)
            model = {logical: physical for logical, physical in model.items() if logical < limit}
            assert not made.flags
        assert (made.blocks, made.depth, list(made.lock.blocks)) == (0, 0, [made.ino])


async def test_neighbours_are_merged() -> None:
    leaf = ExtentList([], 10 * EXTENT_BYTES)
    leaf.add(Extent(0, 100, 5))
    leaf.add(Extent(5, 105, 5))
    leaf.add(Extent(10, 200, 5))
    leaf.add(Extent(20, 205, 1))
    assert leaf.extents == [Extent(0, 100, 10), Extent(10, 200, 5), Extent(20, 205, 1)]
    leaf.add(Extent(18, 203, 2))
    leaf.add(Extent(15, 205, 2, UNWRITTEN))
    assert leaf.extents[1:] == [Extent(10, 200, 5), Extent(15, 205, 2, UNWRITTEN), Extent(18, 203, 3)]
    leaf.add(Extent(17, 207, 1, UNWRITTEN))
    assert leaf.extents[2] == Extent(15, 205, 3, UNWRITTEN)


@given(st.lists(st.tuples(*[st.integers(0, 1 << 53)] * 2, st.integers(0, 1 << 32), st.integers(0, 3))), st.binary())
def test_whatever_bytes_a_leaf_has(items: list[tuple[int, int, int, int]], junk: bytes) -> None:
    """Extents in order, apart, in range, with known flags; or one error (R11)."""
    body = b"".join(struct.pack("<QQII", *item[:2], item[2] & 0xFFFFFFFF, item[3]) for item in sorted(items)) + junk
    for known in (0, UNWRITTEN):
        try:
            found = unpack_extents_untrusted(body, len(items), "leaf", 1 << 50, known)
        except CorruptRecord:
            continue
        assert pack_extents(found) == body[: len(items) * EXTENT_BYTES]
        assert all(before.end <= after.logical for before, after in itertools.pairwise(found))
        assert not any(extent.flags & ~known for extent in found)
    with pytest.raises(CorruptRecord):
        unpack_extents_untrusted(junk, len(junk) // EXTENT_BYTES + 1, "leaf", 1 << 50)


def test_an_index_splits_in_the_middle() -> None:
    index = Index([0, 10, 20, 30], [1, 2, 3, 4], 4)
    key, right = index.split()
    assert (key, index.keys, right.keys, right.children) == (20, [0, 10], [0, 30], [3, 4])


def test_equal_hashes_stay_in_one_leaf() -> None:
    same = [Entry(5 << DISAMBIGUATION_BITS | n, n, 8, b"n") for n in range(4)]
    table = EntryTable([Entry(0, 1, 8, b"a"), *same, Entry(9 << DISAMBIGUATION_BITS, 1, 8, b"z")], 1000)
    key, right = table.split(Entry(9 << DISAMBIGUATION_BITS | 1, 1, 8, b"new"))
    assert key == 5 << DISAMBIGUATION_BITS
    assert table.entries == [Entry(0, 1, 8, b"a")]
    assert right.entries[:4] == same


async def test_what_a_tree_gives_back_is_free_again(small_blocks: None) -> None:
    """Emptied and deleted: the group has its blocks back, and fsck agrees."""
    async with mounted() as mount:
        before = await mount.volume.allocator.count_free()
        made = await mount.directory(b"d")
        with Held(mount.volume) as held:
            directory = await held.exclusive(made.ino)
            for number in range(200):
                await insert(mount, directory, Entry(number << DISAMBIGUATION_BITS, 7, 8, b"nnn"))
            assert await mount.volume.allocator.count_free() < before - 40
            await extents.drop_tree(mount.volume, directory)
        assert await mount.volume.allocator.count_free() == before - 1
        disk, superblock = mount.disk, mount.volume.superblock
    await assert_clean(disk, superblock)


async def test_a_damaged_block_is_named() -> None:
    async with mounted(clean=False) as mount:
        for number in range(200):
            await mount.file(b"a name of some length, to fill a leaf soon %d" % number)
        await mount.give_up(ROOT_INODE)
        with Held(mount.volume) as held:
            root = await held.shared(ROOT_INODE)
            assert isinstance(root.root, Index)
            child = root.root.children[0]
            mount.disk.corrupt(child * 4096 + 500)
            with pytest.raises(CorruptRecord, match=f"block {child} .*checksum"):
                await tree.descend(mount.volume, root, 0)
            assert (await tree.descend(mount.volume, root, LOGICAL_MAX << 10)).upper is None
