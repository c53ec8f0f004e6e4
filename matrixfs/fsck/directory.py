"""One directory: its names in order, and what it counts of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple

from matrixfs.fsck.area import AHEAD_MAX
from matrixfs.fsck.context import Context, printable
from matrixfs.fsck.fixes import LowerLinks, RemoveEntry, SetInode
from matrixfs.fsck.inodes import check_blocks
from matrixfs.fsck.problems import (
    DIRECTORY_CHILDREN,
    DIRECTORY_NLINK,
    DIRECTORY_SIZE,
    ENTRY_KEY,
    ENTRY_TWICE,
    Problem,
)
from matrixfs.fsck.trees import Leaf, TreeWalk
from matrixfs.fsck.xattrs import check_attributes
from matrixfs.ondisk.directory import DISAMBIGUATION_BITS, Entry, first_key, unpack_entries_untrusted
from matrixfs.ondisk.inode import InodeRecord


class Place(NamedTuple):
    """Where an entry is."""

    directory: int
    block: int
    entry: Entry

    @property
    def name(self) -> str:
        """The entry's name for people."""
        return printable(self.entry.name)

    @property
    def removal(self) -> RemoveEntry:
        """The repair that takes it out."""
        return RemoveEntry(self.directory, self.block, self.entry.key)


class Verdict(NamedTuple):
    """What an entry turned out to be."""

    is_subdirectory: bool = False
    is_removed: bool = False  # a repair takes it out


EnterEntry = Callable[[Place, bytes | None], Awaitable[Verdict]]
"""Judges an entry; gets the inode's block unless it was checked before or its number is impossible."""


class DirectoryCheck:
    """The check of one directory.

    Args:
        context: the check.
        inode: the directory, with sound fields.
        enter: judges its entries.
        counts_links: whether nlink is 2 + subdirectories: not so for orphan directories.
    """

    def __init__(self, context: Context, inode: InodeRecord, enter: EnterEntry, *, counts_links: bool = True) -> None:
        self._context = context
        self._inode = inode
        self._enter = enter
        self._counts_links = counts_links
        self._seed = context.area.superblock.hash_seed
        self._hash = -1  # of the last entry, and the names that have it
        self._names: set[bytes] = set()
        self._size = self._children = self._subdirectories = 0
        self._unjudged: list[Place] = []
        self._size_removed = self._children_removed = 0
        self.walk = TreeWalk(context, inode, self._leaf)

    @property
    def children(self) -> int:
        """Names seen."""
        return self._children

    async def run(self) -> None:
        """Check everything.  Raises DeviceError."""
        await self.walk.run()
        await self._judge_all()
        await check_attributes(self._context, self._inode, self.walk)
        self._context.use(self._inode, self.walk.blocks)
        if self.walk.is_whole:
            self._check_totals()

    async def _leaf(self, leaf: Leaf) -> None:
        """See ``TreeWalk``."""
        context = self._context
        context.progress.report("names", context.map.claimed, context.expected_blocks)
        entries = unpack_entries_untrusted(leaf.body, leaf.entries, "entries")
        number = self._inode.address
        self._unjudged += [Place(number, leaf.block, entry) for entry in entries if self._check_key(leaf, entry)]
        if len(self._unjudged) >= AHEAD_MAX:
            await self._judge_all()

    async def _judge_all(self) -> None:
        """Judge the names seen so far: many together, because neighbours by hash lie far apart on the store."""
        places, self._unjudged = self._unjudged, []
        wanted = {place.entry.inode for place in places if self._is_new_inode(place.entry.inode)}
        read = await self._context.area.read_many(wanted)
        for place in places:
            await self._judge(place, read.get(place.entry.inode))

    def _is_new_inode(self, number: int) -> bool:
        context = self._context
        return context.area.superblock.is_inode_number(number) and not context.map.is_inode(number)

    def _check_key(self, leaf: Leaf, entry: Entry) -> bool:
        """Whether the entry can be found by its name; False, with a finding, when it lies outside its leaf."""
        self._size += entry.size
        self._children += 1
        if not leaf.low <= entry.key < leaf.high:
            self.walk.out_of_order(leaf.block, entry.key)
            return False
        if entry.key >> DISAMBIGUATION_BITS != self._hash:
            self._hash = entry.key >> DISAMBIGUATION_BITS
            self._names.clear()
        if entry.name in self._names:
            self._add(ENTRY_TWICE, entry)
        elif entry.key - first_key(entry.name, self._seed) not in range(1 << DISAMBIGUATION_BITS):
            self._add(ENTRY_KEY, entry)
        self._names.add(entry.name)
        return True

    def _add(self, problem: Problem, entry: Entry) -> None:
        self._context.findings.add(problem, directory=self._inode.address, name=printable(entry.name))

    async def _judge(self, place: Place, data: bytes | None) -> None:
        verdict = await self._enter(place, data)
        self._subdirectories += verdict.is_subdirectory
        if verdict.is_removed:
            self._size_removed += place.entry.size
            self._children_removed += 1

    def _check_totals(self) -> None:
        """Compare what the directory says with what was seen; repairs say what is true after the removals."""
        findings, inode = self._context.findings, self._inode
        number = inode.address
        check_blocks(findings, inode, self.walk.blocks)
        if inode.size != self._size:
            fix = SetInode(number, (("size", self._size - self._size_removed),))
            findings.add(DIRECTORY_SIZE, fix, inode=number, found=inode.size, expected=self._size)
        if inode.children != self._children:
            fix = SetInode(number, (("children", self._children - self._children_removed),))
            findings.add(DIRECTORY_CHILDREN, fix, inode=number, found=inode.children, expected=self._children)
        links = 2 + self._subdirectories
        if self._counts_links and inode.nlink != links:
            set_links = LowerLinks(number, links) if links < inode.nlink else SetInode(number, (("nlink", links),))
            findings.add(DIRECTORY_NLINK, set_links, inode=number, found=inode.nlink, expected=links)
