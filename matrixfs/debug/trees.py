"""Trees below inodes, walked over damage: every block once, in order, with what is wrong with it (D3)."""

from __future__ import annotations

import stat
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from matrixfs.debug.contents import Content, entries, extents, pairs
from matrixfs.debug.store import Store
from matrixfs.debug.structures import fields_of, verdict
from matrixfs.ondisk.directory import DirectoryLeafRecord, Entry
from matrixfs.ondisk.extent import Extent, ExtentLeafRecord
from matrixfs.ondisk.index import IndexRecord
from matrixfs.ondisk.inode import DEPTH_MAX, TREE, InodeRecord
from membership.records import Record


@dataclass(slots=True)
class Node:
    """One block of a tree, or the root in the inode."""

    block: int
    level: int  # 0 = leaf
    low: int  # keys from here, by what stands above
    content: Content
    problems: list[str] = field(default_factory=list)


def is_directory(inode: InodeRecord) -> bool:
    """Whether its leaves are directory entries."""
    return stat.S_ISDIR(inode.mode & 0xFFFF)


async def nodes(store: Store, inode: InodeRecord) -> AsyncGenerator[Node, None]:
    """The root and all blocks below it, each before its children.  Raises DeviceError."""
    if inode.layout != TREE:
        return
    root = Node(
        inode.address, min(inode.depth, DEPTH_MAX), 0, _content(store, inode, inode.depth, inode.tail, inode.entries)
    )
    if inode.depth > DEPTH_MAX:
        root.problems.append(f"depth {inode.depth}: at most {DEPTH_MAX} is possible")
    root.problems += root.content.problems
    yield root
    seen = {inode.address}
    todo = _children(root)
    while todo:
        block, level, low = todo.pop()
        if block in seen:
            yield Node(
                block, level, low, Content("none", (), []), [f"block {block} is in the tree twice: not followed"]
            )
            continue
        seen.add(block)
        node = await _node(store, inode, block, level, low)
        yield node
        todo += _children(node)


def _children(node: Node) -> list[tuple[int, int, int]]:
    """(block, level, low) of what an index names, last first."""
    if node.level == 0:
        return []
    return [(child, node.level - 1, max(key, node.low)) for key, child in reversed(node.content.rows)]


async def _node(store: Store, inode: InodeRecord, block: int, level: int, low: int) -> Node:
    superblock = store.superblock
    if not superblock.group_start < block < superblock.blocks_total - 1:
        return Node(block, level, low, Content("none", (), []), [f"block {block} can't be part of a tree"])
    data = await store.read(block)
    kind = _kind(inode, level)
    if data[:8] != kind.MAGIC:
        return Node(block, level, low, Content("none", (), []), [f"block {block} holds no {kind.__name__}"])
    fields = fields_of(kind, data)
    node = Node(block, level, low, _content(store, inode, level, fields["body"], fields["entries"]))
    wrong = verdict(kind, data, superblock.owner, block)
    node.problems += [f"block {block}: {text}" for text in ([wrong] if wrong else []) + node.content.problems]
    if fields["inode"] != inode.address:
        node.problems.append(f"block {block} belongs to inode {fields['inode']}")
    if fields.get("level", level) != level:
        node.problems.append(f"block {block} says it is level {fields['level']}, it is {level}")
    return node


def _kind(inode: InodeRecord, level: int) -> type[Record]:
    if level:
        return IndexRecord
    return DirectoryLeafRecord if is_directory(inode) else ExtentLeafRecord


def _content(store: Store, inode: InodeRecord, level: int, body: bytes, count: int) -> Content:
    if level:
        return pairs(body, count)
    return entries(body, count) if is_directory(inode) else extents(body, count, store.superblock.blocks_total)


async def leaf_items(store: Store, inode: InodeRecord) -> AsyncGenerator[tuple[Node, list[Any]], None]:
    """(leaf or damaged node, its entries or extents) in order.  Raises DeviceError."""
    made = Entry if is_directory(inode) else Extent
    async with aclosing(nodes(store, inode)) as walk:
        async for node in walk:
            if node.level == 0:
                yield node, [item if isinstance(item, made) else made(*item) for item in node.content.rows]
            elif node.problems:
                yield node, []
