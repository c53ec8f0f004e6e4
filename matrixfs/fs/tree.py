"""The tree below an inode: index blocks over leaves of directory entries or extents, by key.

A path is valid as long as its inode's lock is held exclusively and nothing was inserted.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, NamedTuple

from matrixfs.fs.blocks import Block, EntryTable, ExtentList, Index, TreeBlock, decode_tree_block_untrusted
from matrixfs.fs.inode import Inode
from matrixfs.fs.sanity import check_place
from matrixfs.ondisk.directory import Entry
from matrixfs.ondisk.extent import Extent
from matrixfs.ondisk.index import BODY_BYTES, PAIR_BYTES
from matrixfs.ondisk.inode import DEPTH_MAX, TAIL_BYTES
from membership.errors import CorruptRecord
from membership.label import BLOCK_BYTES

if TYPE_CHECKING:
    from matrixfs.fs.allocation import Reservation
    from matrixfs.fs.volume import Volume


class Step(NamedTuple):
    """One level of a path: the block that holds the index, the index, and the position taken in it."""

    owner: Block
    node: Index
    position: int


class Path(NamedTuple):
    """From the root to a leaf."""

    steps: list[Step]
    owner: Block
    leaf: EntryTable | ExtentList
    upper: int | None  # keys from here on are in later leaves; None = this is the last leaf


async def descend(volume: Volume, inode: Inode, key: int) -> Path:
    """The path to the leaf where ``key`` belongs.  Raises CorruptRecord, DeviceError, Fenced."""
    owner: Block = inode
    node = inode.root
    steps: list[Step] = []
    lower, upper = 0, None
    for level in range(inode.depth - 1, -1, -1):
        if not isinstance(node, Index):
            raise CorruptRecord(f"block {owner.address} (inode {inode.ino})", "tree depth")
        position = bisect_right(node.keys, key) - 1
        lower = max(lower, node.keys[position])
        if position + 1 < len(node.keys):
            upper = node.keys[position + 1]
        steps.append(Step(owner, node, position))
        child = node.children[position]
        owner = inode.lock.blocks.get(child) or await _load(volume, inode, child, level)
        assert isinstance(owner, TreeBlock)
        node = owner.content
        check_place(owner, level, lower, upper)
    assert isinstance(node, EntryTable | ExtentList)
    return Path(steps, owner, node, upper)


async def _load(volume: Volume, inode: Inode, address: int, level: int) -> TreeBlock:
    data = await volume.device.read(address * BLOCK_BYTES, BLOCK_BYTES)
    block = decode_tree_block_untrusted(data, volume.superblock, address, inode.ino, level, inode.is_directory)
    loaded: TreeBlock = inode.lock.blocks.setdefault(address, block)  # another reader may have been faster
    return loaded


def blocks_needed(path: Path, item: Entry | Extent) -> int:
    """Blocks that ``insert`` may use: none if the leaf has room, else for each level and a new root."""
    if path.leaf.fits(item):  # type: ignore[arg-type]
        return 0
    return len(path.steps) + 2


def insert(volume: Volume, inode: Inode, path: Path, item: Entry | Extent, spare: Reservation | None) -> None:
    """Put ``item`` into the tree.  No checkpoint; the inode's lock is held exclusively."""
    if path.leaf.fits(item):  # type: ignore[arg-type]
        path.leaf.add(item)  # type: ignore[arg-type]
        volume.journal.add(path.owner)
        return
    assert spare is not None
    if inode.depth == 0:
        path = _move_root_leaf(volume, inode, path, spare)
        if path.leaf.fits(item):  # type: ignore[arg-type]
            path.leaf.add(item)  # type: ignore[arg-type]
            return
    separator, right = path.leaf.split(item)  # type: ignore[arg-type]
    volume.journal.add(path.owner)
    block = _new_block(volume, inode, 0, right, spare)
    target = right if item[0] >= separator else path.leaf
    target.add(item)  # type: ignore[arg-type]
    _insert_child(volume, inode, path.steps, separator, block.address, spare)


def _move_root_leaf(volume: Volume, inode: Inode, path: Path, spare: Reservation) -> Path:
    """The leaf in the inode becomes a block of its own, and the root an index of one."""
    leaf = path.leaf
    moved: EntryTable | ExtentList
    if isinstance(leaf, EntryTable):
        moved = EntryTable(leaf.entries, BODY_BYTES)
    else:
        moved = ExtentList(leaf.extents, BODY_BYTES)
    block = _new_block(volume, inode, 0, moved, spare)
    return _new_root(volume, inode, block, 1)


def _new_root(volume: Volume, inode: Inode, child: TreeBlock, depth: int) -> Path:
    assert depth <= DEPTH_MAX
    root = Index([0], [child.address], TAIL_BYTES // PAIR_BYTES)
    inode.root, inode.depth = root, depth
    volume.journal.add(inode)
    leaf = child.content
    return Path([Step(inode, root, 0)], child, leaf, None)  # type: ignore[arg-type]


def _new_block(
    volume: Volume, inode: Inode, level: int, content: Index | EntryTable | ExtentList, spare: Reservation
) -> TreeBlock:
    block = TreeBlock(spare.pop(), spare.group.generation_floor, inode.ino, level, content)
    inode.lock.blocks[block.address] = block
    volume.use(inode, 1)
    volume.journal.add(block)
    volume.journal.add(inode)
    return block


def _insert_child(
    volume: Volume, inode: Inode, steps: list[Step], key: int, child: int, spare: Reservation
) -> None:
    """Put a new child beside the one the path took, splitting upwards as far as need be."""
    for level, (owner, index, position) in enumerate(reversed(steps), start=1):
        volume.journal.add(owner)
        if not index.full:
            index.insert(position + 1, key, child)
            return
        if owner is inode:  # the root moves down a level, into a block with more room
            moved = Index(index.keys, index.children, BODY_BYTES // PAIR_BYTES)
            moved.insert(position + 1, key, child)
            _new_root(volume, inode, _new_block(volume, inode, level, moved, spare), inode.depth + 1)
            return
        separator, right = index.split()
        block = _new_block(volume, inode, level, right, spare)
        if position < len(index.keys):  # the position stayed in the lower half
            index.insert(position + 1, key, child)
        else:
            right.insert(position + 1 - len(index.keys), key, child)
        key, child = separator, block.address
    raise AssertionError("the root is always the last step")


def prune(volume: Volume, inode: Inode, path: Path) -> list[TreeBlock]:
    """Take an emptied leaf out of the tree, and index blocks that empty with it; return them all.

    No checkpoint; the caller frees the blocks.
    """
    assert isinstance(path.owner, TreeBlock)
    freed = [path.owner]
    for owner, index, position in reversed(path.steps):
        index.remove(position)
        volume.journal.add(owner)
        if index.keys:
            break
        if owner is inode:
            inode.depth = 0
            inode.root = EntryTable([], TAIL_BYTES) if inode.is_directory else ExtentList([], TAIL_BYTES)
        else:
            assert isinstance(owner, TreeBlock)
            freed.append(owner)
    for block in freed:
        del inode.lock.blocks[block.address]
    volume.use(inode, -len(freed))
    volume.journal.add(inode)
    return freed
