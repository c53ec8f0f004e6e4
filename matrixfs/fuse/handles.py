"""What the kernel holds of us: inodes it knows (lookup counts) and files it has open (pure, no trio).

Invariants:
    H1  A node is here exactly while its lookup count is above 0; the kernel's FORGETs bring it down, counted by
        entry replies and read-directory replies ("." and ".." are not counted by the kernel, nor here).
    H2  The kernel's node id is the inode number, except for the root, whose node id is 1 by protocol.
    H3  A node remembers the incarnation last handed out (the kernel calls it generation).  The block of a freed inode
        is used again under another incarnation: what the kernel then still asks under the old one is stale (ESTALE).
    H4  File handle numbers are never used twice in one session.  Their highest bits tell the C extension, or are told
        by it (``extension/extension.h`` has the same numbers).
    H5  The kernel's pages are of ``Node.data_version``: that of the last open, when those of other data were dropped,
        or of a write since, if that alone made it and no READ was asked for since nobody had the file open.  A READ
        beside a write is the reason: the kernel unlocks written pages before the write has reached us, so they can be
        dropped, and be read again as they were.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matrixfs.fuse.listings import Listing
    from matrixfs.fuse.removed import Told

ROOT_NODE = 1
READ_ONLY_HANDLE = 1 << 62  # can't write
INODE_HANDLE = 1 << 61  # no handle but an inode's number: the kernel opened the file without asking
APPEND_HANDLE = 1 << 60  # a WRITE to the end of the file
TOLD_HANDLE = 1 << 59  # a WRITE, and so APPEND_HANDLE tells of it
_NUMBER = TOLD_HANDLE - 1


@dataclass(slots=True)
class Node:
    """One inode that the kernel knows."""

    incarnation: int
    lookups: int = 0
    opens: int = 0  # files the kernel has open on it
    pages: bool = False  # the kernel may hold pages (or the cached target of a symlink)
    data_version: int | None = None  # of the data in the kernel's pages (H5); None: not known
    was_read: bool = False  # a READ was asked for since nobody had it open,
    is_read: bool = False  # or since its pages were dropped
    kept: bool = False  # it counts as open as long as it is known (K6, K8)
    told: Told | None = None  # of a directory: what the kernel knows of it (removed.py)
    given: tuple[float, int, int] | None = None  # attributes that it takes in any case: when, to whom (K2)
    answered_at: float = 0.0  # when somebody was last told its attributes

    def opened(self, data_version: int, *, tells_reads: bool = False) -> bool:
        """Count an open; whether the kernel may keep its pages: they are of the data that the file has now (H5).

        ``tells_reads``: and not if all were written here, as reading them would then not be told, and it counts.
        """
        keep = self.data_version == data_version and (self.is_read or not tells_reads)
        self.data_version = data_version
        self.is_read &= keep
        self.was_read &= self.opens > 0
        self.opens += 1
        self.pages = True
        return keep


class NodeTable:
    """All inodes that the kernel knows."""

    def __init__(self, root: int = ROOT_NODE) -> None:
        self.root = root
        self._nodes: dict[int, Node] = {}

    def __len__(self) -> int:
        return len(self._nodes)

    def ino(self, node_id: int) -> int:
        """The kernel's node id as inode number (H2)."""
        return self.root if node_id == ROOT_NODE else node_id

    def node_id(self, ino: int) -> int:
        """The inode number as the kernel's node id (H2)."""
        return ROOT_NODE if ino == self.root else ino

    def get(self, ino: int) -> Node | None:
        """The node, or None when the kernel doesn't know it."""
        return self._nodes.get(ino)

    def known(self, ino: int) -> bool:
        """Whether the kernel may hold anything of this inode."""
        return ino == self.root or ino in self._nodes

    def incarnation(self, ino: int) -> int | None:
        """The incarnation the kernel knows it under; None when it doesn't, or for the root."""
        node = self._nodes.get(ino)
        return None if node is None else node.incarnation

    def kept(self) -> list[int]:
        """The inodes that count as open because the kernel knows them."""
        return [ino for ino, node in self._nodes.items() if node.kept]

    def looked_up(self, ino: int, incarnation: int) -> Node:
        """Count one reply that gives the kernel a reference (H1)."""
        node = self._nodes.get(ino)
        if node is None:
            assert ino != ROOT_NODE or self.root == ROOT_NODE, "inode 1 would be taken for the root"
            node = self._nodes[ino] = Node(incarnation)
        elif node.incarnation != incarnation:
            node.incarnation = incarnation  # the block was used again: what was known is about another file (H3)
            node.data_version = None
        node.lookups += 1
        return node

    def reads(self, ino: int) -> None:
        """A READ is asked for."""
        node = self._nodes.get(ino)
        if node is not None:
            node.was_read = node.is_read = True

    def wrote(self, ino: int, data_version: int | None) -> None:
        """A WRITE of the kernel left this version of the data; None: not known (H5)."""
        node = self._nodes.get(ino)
        if node is None or node.was_read or node.data_version is None:
            return
        if data_version == node.data_version + 1:
            node.data_version = data_version

    def check(self, ino: int, incarnation: int) -> None:
        """Raise OSError(ESTALE) when the kernel asked about another file than the one found (H3)."""
        node = self._nodes.get(ino)
        if node is not None and node.incarnation != incarnation:
            raise OSError(errno.ESTALE, f"inode {ino}: incarnation {node.incarnation} is gone")

    def forget(self, ino: int, count: int) -> bool:
        """Take back ``count`` lookups; True when the kernel now holds none."""
        node = self._nodes.get(ino)
        if node is None:
            return False  # the root: never looked up, forgotten at unmount
        node.lookups -= count
        if node.lookups > 0:
            return False
        del self._nodes[ino]
        return True


@dataclass(slots=True)
class Handle:
    """One open file or directory."""

    ino: int
    flags: int
    entries_limit: int = 32  # directories: how many entries fitted the kernel's buffer
    append_now: bool | None = None  # of one write: whether it is an append, after F_SETFL; None: not told
    unasked: bool = False  # the kernel opened it without asking
    removed: bool = False  # a directory, and removed on another node before it was opened: it counts as open nowhere
    listing: Listing | None = None  # of a directory: the last reply

    @property
    def append(self) -> bool:
        """Writes go to the true end of the file, whatever offset the kernel believes in (coherence.md 7)."""
        return bool(self.flags & os.O_APPEND) if self.append_now is None else self.append_now

    @property
    def overwrites(self) -> bool:
        """Writes may go over what an append-only file holds: it was opened before it was that, or would not be open."""
        return not (self.around_pages or self.unasked)

    @property
    def around_pages(self) -> bool:
        """The kernel reads and writes it around its page cache."""
        return bool(self.flags & os.O_APPEND)

    @property
    def synchronous(self) -> bool:
        """A write is durable before it is answered: O_SYNC or O_DSYNC (whose bit O_SYNC has too), with O_APPEND.

        For other descriptors the kernel asks for an FSYNC after each write; where it goes around its page cache it
        does not (measured on 6.18: 20 writes, no FSYNC).
        """
        wanted = os.O_APPEND | os.O_DSYNC
        return self.flags & wanted == wanted


class HandleTable:
    """All open files and directories, by file handle number."""

    def __init__(self) -> None:
        self._handles: dict[int, Handle] = {}
        self._next = 1

    def __len__(self) -> int:
        return len(self._handles)

    def add(self, ino: int, flags: int, *, removed: bool = False) -> int:
        """A new handle's number (H4)."""
        number = self._next
        self._next += 1
        if flags & os.O_ACCMODE == os.O_RDONLY:
            number |= READ_ONLY_HANDLE
        self._handles[number] = Handle(ino, flags, removed=removed)
        return number

    def __getitem__(self, number: int) -> Handle:
        if number & INODE_HANDLE:
            handle = Handle(number & _NUMBER, 0, unasked=True)
        else:
            try:
                handle = self._handles[number & (_NUMBER | READ_ONLY_HANDLE)]
            except KeyError:
                raise OSError(errno.EBADF, f"file handle {number} is not open") from None
        if not number & TOLD_HANDLE:
            return handle
        append = bool(number & APPEND_HANDLE)
        return Handle(handle.ino, handle.flags, append_now=append, unasked=handle.unasked)

    def remove(self, number: int) -> Handle:
        """Forget a handle and return it."""
        handle = self[number]
        del self._handles[number]
        return handle


class Pending:
    """How many local operations wait or run on each inode: an invalidation that blocks may wait for one of them."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}

    def enter(self, ino: int) -> None:
        """An operation on this inode or directory begins."""
        self._counts[ino] = self._counts.get(ino, 0) + 1

    def leave(self, ino: int) -> None:
        """It has ended."""
        left = self._counts[ino] - 1
        if left:
            self._counts[ino] = left
        else:
            del self._counts[ino]

    def busy(self, ino: int) -> bool:
        """Whether any is under way."""
        return ino in self._counts

    def total(self) -> int:
        """Operations under way on all inodes; one on two inodes counts twice."""
        return sum(self._counts.values())
