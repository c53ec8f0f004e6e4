"""From what an administrator types to an inode: a number, or a path from the tree's root (D3).

A name is looked for where its hash says, as a mount does, by walking the whole directory: so one that stands in the
wrong place is found too, and told.  Symbolic links are not followed.
"""

from __future__ import annotations

import os
from contextlib import aclosing
from typing import NamedTuple

from matrixfs.debug.store import Store
from matrixfs.debug.trees import is_directory, leaf_items
from matrixfs.fsck.context import printable
from matrixfs.ondisk.directory import DISAMBIGUATION_BITS, Entry, first_key
from matrixfs.ondisk.inode import InodeRecord
from matrixfs.ondisk.superblock import QUOTA_INODE, ROOT_INODE
from membership.errors import CorruptionError, OperatorError


class Step(NamedTuple):
    """One name of a path."""

    directory: int
    block: int  # of the leaf
    entry: Entry
    problems: list[str]


async def find_inode(store: Store, what: str) -> tuple[InodeRecord, list[str]]:
    """The inode that ``what`` means, and what is wrong with it or on the way.

    Raises:
        OperatorError: it means none.
        CorruptionError: its block holds no inode.
        DeviceError: I/O failed.
    """
    problems: list[str] = []
    if what.startswith("/"):
        number = ROOT_INODE
        for step in await steps(store, what):
            problems += step.problems
            number = step.entry.inode
    else:
        number = number_of(what, "a path that begins with / or the number of an inode")
        is_quotas = number == QUOTA_INODE and store.superblock.has_quotas
        if not (is_quotas or store.superblock.is_inode_number(number)):
            raise OperatorError(f"{number} is no number that an inode can have")
    inode, wrong = await store.inode(number)
    if inode is None:
        raise CorruptionError(printable(what.encode(errors="surrogateescape")), f"inode ({wrong})")
    return inode, [*problems, *([wrong] if wrong else [])]


def number_of(text: str, wanted: str) -> int:
    """A number as people type it, decimal or 0x.  Raises OperatorError."""
    try:
        return int(text, 0)
    except ValueError:
        raise OperatorError(f"{printable(text.encode(errors='surrogateescape'))!r}: give {wanted}") from None


def index_of(text: str, count: int, what: str) -> int:
    """The number of one of ``count`` things.  Raises OperatorError."""
    number = number_of(text, f"the number of a {what}")
    if not 0 <= number < count:
        raise OperatorError(f"there is no {what} {number}: they are 0 to {count - 1}")
    return number


async def steps(store: Store, path: str) -> list[Step]:
    """Every name of a path, from the root.  Raises OperatorError when one is missing, DeviceError."""
    found: list[Step] = []
    number = ROOT_INODE
    for name in os.fsencode(path).split(b"/"):
        if name in {b"", b"."}:
            continue
        step = await _step(store, number, name)
        if step is None:
            shown = "/" + "/".join(printable(each.entry.name) for each in found)
            raise OperatorError(f"{shown}: holds no {printable(name)} (symbolic links are not followed)")
        found.append(step)
        number = step.entry.inode
    return found


async def _step(store: Store, number: int, name: bytes) -> Step | None:
    inode, wrong = await store.inode(number)
    problems = [wrong] if wrong else []
    if inode is None or not is_directory(inode):
        return None
    key = first_key(name, store.superblock.hash_seed)
    async with aclosing(leaf_items(store, inode)) as walk:
        async for node, entries in walk:
            problems += node.problems
            entry = next((entry for entry in entries if entry.name == name), None)
            if entry is None:
                continue
            if entry.key >> DISAMBIGUATION_BITS != key >> DISAMBIGUATION_BITS or entry.key < node.low:
                problems.append(f"{printable(name)} stands where no mount looks for it: key {entry.key}")
            return Step(number, node.block, entry, problems)
    return None
