"""Verbs for what belongs to a file: inode, tree, extents, directory, path, ls."""

from __future__ import annotations

import stat
from typing import Any

from matrixfs.debug.finding import find_inode, steps
from matrixfs.debug.items import Item, Items, line, problem
from matrixfs.debug.store import Store
from matrixfs.debug.trees import is_directory, leaf_items, nodes
from matrixfs.fsck.blockmap import BlockMap
from matrixfs.fsck.context import printable
from matrixfs.ondisk.directory import Entry
from matrixfs.ondisk.inode import InodeRecord
from membership.errors import OperatorError


async def inode(store: Store, what: str) -> Items:
    """An inode and the root of its tree."""
    found, problems = await find_inode(store, what)
    for text in problems:
        yield problem(text)
    yield store.show(InodeRecord, await store.read(found.address), f"inode {found.address}", found.address)


async def tree(store: Store, what: str) -> Items:
    """The blocks of a file's or directory's tree, each level indented."""
    found, problems = await find_inode(store, what)
    for text in problems:
        yield problem(text)
    count, depth = 0, 0
    async for node in nodes(store, found):
        count, depth = count + 1, max(depth, node.level)
        name = "leaf" if node.level == 0 else f"index, level {node.level}"
        where = f"root in inode {node.block}" if node.block == found.address else f"block {node.block}"
        holds = f"{len(node.content.rows)} {node.content.name}, keys from {node.low}"
        text = f"{'  ' * (depth - node.level)}{where}: {name}, {holds}"
        values = {"block": node.block, "level": node.level, "items": len(node.content.rows), "key": node.low}
        yield line("node", text, values, node.problems)
    if not count:
        yield line("node", "its content lies in the inode", {"block": found.address})


async def extents(store: Store, what: str) -> Items:
    """The extents of a file, in order."""
    found, problems = await find_inode(store, what)
    if is_directory(found):
        raise OperatorError(f"inode {found.address} is a directory: see directory, or tree")
    for text in problems:
        yield problem(text)
    blocks = count = end = 0
    async for node, items in leaf_items(store, found):
        for text in node.problems:
            yield problem(text)
        for extent in items:
            hole = f", after a hole of {extent.logical - end}" if extent.logical > end else ""
            values = dict(zip(extent._fields, extent, strict=True))
            more = "".join(f", {name} {value}" for name, value in list(values.items())[3:] if value)
            text = f"file block {extent.logical:<10} at block {extent.physical:<12} {extent.length} blocks{more}{hole}"
            yield line("extent", text, values)
            count, blocks, end = count + 1, blocks + extent.length, extent.logical + extent.length
    yield line("total", f"{count} extents, {blocks} blocks", {"extents": count, "blocks": blocks})


async def directory(store: Store, what: str) -> Items:
    """The entries of a directory as they lie in it, with keys."""
    found, problems = await find_inode(store, what)
    _check_directory(found)
    for text in problems:
        yield problem(text)
    async for node, entries in leaf_items(store, found):
        for text in node.problems:
            yield problem(text)
        for entry in entries:
            name = printable(entry.name)
            text = f"block {node.block:<10} key {entry.key:<20} kind {entry.kind:<3} inode {entry.inode:<10} {name}"
            values = {"block": node.block, **entry._asdict(), "name": name}
            yield line("entry", text, values)


async def path(store: Store, what: str) -> Items:
    """Where a path goes, name by name, and then its inode."""
    if not what.startswith("/"):
        raise OperatorError("give a path that begins with /")
    for step in await steps(store, what):
        name = printable(step.entry.name)
        text = f"directory {step.directory}, leaf in block {step.block}: {name} is inode {step.entry.inode}"
        values = {"directory": step.directory, "block": step.block, **step.entry._asdict(), "name": name}
        yield line("step", text, values, step.problems)
    async for item in inode(store, what):
        yield item


def _check_directory(found: InodeRecord) -> None:
    if not is_directory(found):
        raise OperatorError(f"inode {found.address} is no directory")


# --- listing --------------------------------------------------------------------------------------------------


async def ls(store: Store, what: str, *, recursive: bool) -> Items:
    """The names of a directory with their inodes; with ``recursive`` of all below, each directory once."""
    found, problems = await find_inode(store, what)
    for text in problems:
        yield problem(text)
    if not is_directory(found):
        yield _listed(what, found.address, found, "")
        return
    seen = BlockMap(store.superblock.blocks_total)
    seen.claim(found.address)
    todo = [(what.rstrip("/") if what.startswith("/") else f"inode {found.address}", found)]
    while todo:
        top, current = todo.pop()
        below: list[tuple[str, InodeRecord]] = []
        async for node, entries in leaf_items(store, current):
            for text in node.problems:
                yield problem(f"{top or '/'}: {text}")
            read = await store.read_many([entry.inode for entry in entries])
            for entry in entries:
                listed, child = _entry(store, top, entry, read.get(entry.inode))
                yield listed
                if child is None or not recursive:
                    continue
                if seen.claim(child.address) is not None:
                    yield problem(
                        f"{top}/{printable(entry.name)}: directory {child.address} is in the tree twice: not followed"
                    )
                    continue
                below.append((f"{top}/{printable(entry.name)}", child))
        todo += reversed(below)


def _entry(store: Store, top: str, entry: Entry, data: bytes | None) -> tuple[Item, InodeRecord | None]:
    """An entry as ``ls`` shows it, and the directory that it is, if it is one."""
    shown = f"{top}/{printable(entry.name)}"
    if data is None or not store.superblock.is_inode_number(entry.inode):
        return _listed(shown, entry.inode, None, f"{entry.inode} is no inode number"), None
    found, wrong = store.take_inode(entry.inode, data)
    if found is not None and not wrong and found.mode == 0:
        wrong = f"inode {entry.inode} was freed"
    elif found is not None and not wrong and stat.S_IFMT(found.mode & 0xFFFF) >> 12 != entry.kind:
        wrong = f"the entry has kind {entry.kind}, the inode mode {found.mode:#o}"
    is_below = found is not None and is_directory(found)
    return _listed(shown, entry.inode, found, wrong), found if is_below else None


def _listed(shown: str, number: int, found: InodeRecord | None, wrong: str) -> Item:
    values: dict[str, Any] = {"path": shown, "inode": number}
    if found is None:
        return line("name", f"{number:>10} ?????????? {shown}", values, [f"{shown}: {wrong}"])
    values |= {"mode": found.mode, "nlink": found.nlink, "uid": found.uid, "gid": found.gid, "size": found.size}
    mode = stat.filemode(found.mode & 0xFFFF)
    text = f"{number:>10} {mode} {found.nlink:>3} {found.uid:>5} {found.gid:>5} {found.size:>12} {shown}"
    return line("name", text, values, [f"{shown}: {wrong}"] if wrong else [])
