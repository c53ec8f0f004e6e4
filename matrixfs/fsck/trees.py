"""The trees below inodes: every index block claimed and checked, every leaf shown to a visitor.

A child's keys lie from its own key in the index up to the next one's (``matrixfs/ondisk/index.py``); the first
child of an index goes down to where the index block itself begins.
"""

from __future__ import annotations

import stat
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from matrixfs.fsck.area import READ_AT_ONCE
from matrixfs.fsck.context import Context, reason
from matrixfs.fsck.problems import TREE_INDEX, TREE_LEAF, TREE_ORDER, TREE_ROOT
from matrixfs.ondisk.directory import DirectoryLeafRecord
from matrixfs.ondisk.extent import ExtentLeafRecord
from matrixfs.ondisk.index import IndexRecord, unpack_pairs_untrusted
from matrixfs.ondisk.inode import InodeRecord
from membership.errors import CorruptRecord

KEY_END = 1 << 64


class Leaf(NamedTuple):
    """A leaf, not yet taken apart."""

    block: int  # the inode's own for a tree of depth 0
    body: bytes
    entries: int
    low: int  # keys from here
    high: int  # up to, not including, here


class _Node(NamedTuple):
    """An index block, or an inode's root, taken apart."""

    block: int
    keys: list[int]
    children: list[int]
    level: int  # of the children: 0 = leaves
    low: int  # as Leaf's
    high: int


class TreeWalk:
    """A walk over one tree.

    Afterwards ``blocks`` counts its index blocks and leaves, and ``generation`` is the greatest among them.

    Args:
        context: the check.
        inode: whose tree, with a layout and depth that are sound.
        visit: gets every leaf, in order; raises CorruptRecord for content that can't be taken apart.
        taken: told each index block and leaf that was claimed.

    ``is_whole`` is False when something was reported that hides part of the tree.
    """

    def __init__(
        self,
        context: Context,
        inode: InodeRecord,
        visit: Callable[[Leaf], Awaitable[None]],
        taken: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._context = context
        self._inode = inode
        self._visit = visit
        self._taken = taken
        self._where = f"inode {inode.address}"
        self.blocks = 0
        self.generation = 0
        self.is_whole = True

    async def run(self) -> None:
        """Walk.  Raises DeviceError."""
        inode = self._inode
        try:
            if inode.depth == 0:
                await self._visit(Leaf(inode.address, inode.tail, inode.entries, 0, KEY_END))
                return
            keys, children = unpack_pairs_untrusted(inode.tail, inode.entries, self._where)
        except CorruptRecord as error:
            self.is_whole = False
            self._context.findings.add(TREE_ROOT, inode=inode.address, reason=reason(error))
            return
        await self._descend(_Node(inode.address, keys, children, inode.depth - 1, 0, KEY_END))

    async def _descend(self, node: _Node) -> None:
        """Check the children of an index block, ``READ_AT_ONCE`` at a time, in order."""
        parent, keys, children, level, low, high = node
        for key in keys[1:]:
            if not low < key < high:
                self.out_of_order(parent, key)
                return
        lows, highs = [low, *keys[1:]], [*keys[1:], high]
        for at in range(0, len(children), READ_AT_ONCE):
            chunk = slice(at, at + READ_AT_ONCE)
            sound = [self._take(child) for child in children[chunk]]
            wanted = [child for child, is_sound in zip(children[chunk], sound, strict=True) if is_sound]
            read = await self._context.area.read_many(wanted)
            for child, is_sound, child_low, child_high in zip(
                children[chunk], sound, lows[chunk], highs[chunk], strict=True
            ):
                if is_sound:
                    await self._child(child, read[child], level, child_low, child_high)

    def _take(self, block: int) -> bool:
        """Claim a block for the tree."""
        if not self._context.claim(self._inode.address, block):
            self.is_whole = False
            return False
        self.blocks += 1
        self._taken(block)
        return True

    async def _child(self, block: int, data: bytes, level: int, low: int, high: int) -> None:
        """Check one index block (``level`` > 0) or leaf."""
        findings, number = self._context.findings, self._inode.address
        owner = self._context.area.superblock.owner
        try:
            if level == 0:
                await self._leaf(block, data, low, high)
                return
            index = IndexRecord.decode_untrusted(data, self._where, owner=owner, address=block)
            self.generation = max(self.generation, index.generation)
            if index.inode != number:
                raise CorruptRecord(self._where, "inode", number, index.inode)
            if index.level != level:
                raise CorruptRecord(self._where, "level", level, index.level)
            keys, children = unpack_pairs_untrusted(index.body, index.entries, self._where)
        except CorruptRecord as error:
            self.is_whole = False
            problem = TREE_INDEX if level else TREE_LEAF
            findings.add(problem, inode=number, block=block, reason=reason(error))
            return
        await self._descend(_Node(block, keys, children, level - 1, low, high))

    async def _leaf(self, block: int, data: bytes, low: int, high: int) -> None:
        """Check a leaf's header and show it.  Raises CorruptRecord."""
        number = self._inode.address
        kind = DirectoryLeafRecord if stat.S_ISDIR(self._inode.mode) else ExtentLeafRecord
        owner = self._context.area.superblock.owner
        leaf = kind.decode_untrusted(data, self._where, owner=owner, address=block)
        self.generation = max(self.generation, leaf.generation)
        if leaf.inode != number:
            raise CorruptRecord(self._where, "inode", number, leaf.inode)
        await self._visit(Leaf(block, leaf.body, leaf.entries, low, high))

    def out_of_order(self, block: int, key: int) -> None:
        """Report a key that doesn't belong in ``block``."""
        self.is_whole = False
        self._context.findings.add(TREE_ORDER, inode=self._inode.address, block=block, key=key)
