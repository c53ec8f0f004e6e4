"""Metadata blocks as objects in memory.  They are encoded once per transaction, whatever happened to them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING, Any

from matrixfs.ondisk.directory import (
    DISAMBIGUATION_BITS,
    ENTRY_BYTES,
    DirectoryLeafRecord,
    Entry,
    pack_entries,
    unpack_entries_untrusted,
)
from matrixfs.ondisk.extent import (
    EXTENT_BYTES,
    Extent,
    ExtentLeafRecord,
    pack_extents,
    unpack_extents_untrusted,
)
from matrixfs.ondisk.index import (
    BODY_BYTES,
    PAIR_BYTES,
    IndexRecord,
    pack_pairs,
    unpack_pairs_untrusted,
)
from matrixfs.ondisk.superblock import Superblock
from membership.errors import CorruptRecord
from membership.seams import Buffer

if TYPE_CHECKING:
    from matrixfs.fs.journal import Transaction


class Block:
    """A metadata block cached under a lock.

    ``generation`` is that of the image last handed to the journal; ``transaction`` the one that last took it.
    """

    __slots__ = ("address", "generation", "transaction")

    def __init__(self, address: int, generation: int) -> None:
        self.address = address
        self.generation = generation
        self.transaction: Transaction | None = None

    def encode(self, owner: bytes) -> bytes:
        """The block's 4 KiB as they go to the store."""
        raise NotImplementedError


class Index:
    """Sorted (key, child) pairs of an index block or of an inode's root."""

    __slots__ = ("capacity", "children", "keys")

    def __init__(self, keys: list[int], children: list[int], capacity: int) -> None:
        self.keys = keys
        self.children = children
        self.capacity = capacity

    @property
    def full(self) -> bool:
        """No room for another pair."""
        return len(self.keys) >= self.capacity

    def insert(self, position: int, key: int, child: int) -> None:
        """Put a pair before ``position``."""
        self.keys.insert(position, key)
        self.children.insert(position, child)

    def remove(self, position: int) -> None:
        """Drop a pair; the first one's key stays 0."""
        del self.keys[position]
        del self.children[position]
        if self.keys:
            self.keys[0] = 0

    def split(self) -> tuple[int, Index]:
        """Cut off the upper half; return (its lowest key, it)."""
        half = len(self.keys) // 2
        key = self.keys[half]
        right = Index([0, *self.keys[half + 1 :]], self.children[half:], BODY_BYTES // PAIR_BYTES)
        del self.keys[half:]
        del self.children[half:]
        return key, right

    def encode(self) -> bytes:
        """As on disk."""
        return pack_pairs(self.keys, self.children)


class EntryTable:
    """Directory entries of one leaf, sorted by key."""

    __slots__ = ("capacity", "entries", "keys", "used")

    def __init__(self, entries: list[Entry], capacity: int) -> None:
        self.entries = entries
        self.keys = [entry[0] for entry in entries]
        self.used = len(entries) * ENTRY_BYTES + sum([len(entry[3]) for entry in entries])
        self.capacity = capacity  # bytes

    def __len__(self) -> int:
        return len(self.entries)

    def fits(self, item: Entry) -> bool:
        """Whether there is room for one more."""
        return self.used + item.size <= self.capacity

    def add(self, item: Entry) -> None:
        """Put an entry in its place."""
        at = bisect_left(self.keys, item.key)
        self.keys.insert(at, item.key)
        self.entries.insert(at, item)
        self.used += item.size

    def replace(self, item: Entry) -> None:
        """Change what an existing key and name point to."""
        at = bisect_left(self.keys, item.key)
        assert self.entries[at].key == item.key
        self.entries[at] = item

    def remove(self, item: Entry) -> None:
        """Take an entry out."""
        at = bisect_left(self.keys, item.key)
        assert self.entries[at].key == item.key
        del self.keys[at]
        del self.entries[at]
        self.used -= item.size

    def takes(self, item: Entry) -> bool:
        """Whether there is room for one more in a block, or in the halves of one."""
        return self.used + item.size <= BODY_BYTES or self._cut(item) is not None

    def _cut(self, item: Entry) -> tuple[int, int] | None:
        """Where to split so that ``item`` fits, near the middle and never between equal hashes: (position, lowest key).

        None where too many names have one hash.
        """
        hashes = [key >> DISAMBIGUATION_BITS for key in self.keys]
        own = item.key >> DISAMBIGUATION_BITS
        best: tuple[int, int, int] | None = None
        last, below = -1, 0
        for at, first in enumerate([*hashes, own]):
            low = own < first
            left, right = below + low * item.size, self.used - below + (not low) * item.size
            if first > last and max(left, right) <= BODY_BYTES:
                found = (abs(2 * below - self.used), at, first << DISAMBIGUATION_BITS)
                best = min(best or found, found)
            if at < len(hashes):
                last, below = first, below + self.entries[at].size
        return None if best is None else best[1:]

    def split(self, item: Entry) -> tuple[int, EntryTable]:
        """Cut off about half of the bytes so that ``item`` has room; return (lowest key, upper part)."""
        cut = self._cut(item)
        assert cut is not None, "asked before anything was changed (takes)"
        half, separator = cut
        right = EntryTable(self.entries[half:], BODY_BYTES)
        del self.entries[half:]
        del self.keys[half:]
        self.used -= right.used
        return separator, right

    def encode(self) -> bytes:
        """As on disk."""
        return pack_entries(self.entries)


class ExtentList:
    """Extents of one leaf, sorted by their place in the file."""

    __slots__ = ("capacity", "extents", "starts")

    def __init__(self, extents: list[Extent], capacity: int) -> None:
        self.extents = extents
        self.starts = [extent.logical for extent in extents]
        self.capacity = capacity // EXTENT_BYTES

    def __len__(self) -> int:
        return len(self.extents)

    def fits(self, item: Extent) -> bool:
        """Whether there is room for one more, or none is needed because it continues another."""
        return len(self.extents) < self.capacity or self._continued(item) is not None

    def _continued(self, item: Extent) -> int | None:
        """Index of the extent that ``item`` continues."""
        at = bisect_left(self.starts, item.logical) - 1
        return at if at >= 0 and _continues(self.extents[at], item) else None

    def add(self, item: Extent) -> None:
        """Put an extent in its place, merged with those that it continues or that continue it."""
        at = self._continued(item)
        if at is None:
            at = bisect_left(self.starts, item.logical)
            self.starts.insert(at, item.logical)
            self.extents.insert(at, item)
        else:
            before = self.extents[at]
            self.extents[at] = before._replace(length=before.length + item.length)
        if at + 1 < len(self.extents) and _continues(self.extents[at], self.extents[at + 1]):
            merged = self.extents[at]
            self.extents[at] = merged._replace(length=merged.length + self.extents[at + 1].length)
            del self.extents[at + 1]
            del self.starts[at + 1]

    def at(self, logical: int) -> Extent | None:
        """The extent that holds this block of the file; None for a hole."""
        index = bisect_right(self.starts, logical) - 1
        return self.extents[index] if index >= 0 and logical < self.extents[index].end else None

    def after(self, logical: int) -> int | None:
        """Where the next extent behind this block begins."""
        index = bisect_right(self.starts, logical)
        return self.starts[index] if index < len(self.starts) else None

    def remove(self, item: Extent) -> None:
        """Take an extent out."""
        index = bisect_left(self.starts, item.logical)
        assert self.extents[index] == item
        del self.extents[index]
        del self.starts[index]

    def split(self, item: Extent) -> tuple[int, ExtentList]:
        """Make room for ``item``: cut off the upper half, or only the last extent where a file grows at its end."""
        half = len(self.extents) - 1 if item.logical > self.starts[-1] else len(self.extents) // 2
        right = ExtentList(self.extents[half:], BODY_BYTES)
        del self.extents[half:]
        del self.starts[half:]
        return right.starts[0], right

    def encode(self) -> bytes:
        """As on disk."""
        return pack_extents(self.extents)


def _continues(before: Extent, after: Extent) -> bool:
    """Whether one goes on where the other ends, in the file and on the store."""
    follows = (before.end, before.physical + before.length) == (after.logical, after.physical)
    return follows and before.flags == after.flags and before.length + after.length < 1 << 31


class TreeBlock(Block):
    """An index block or a leaf below an inode."""

    __slots__ = ("content", "inode", "level")

    def __init__(
        self, address: int, generation: int, inode: int, level: int, content: Index | EntryTable | ExtentList
    ) -> None:
        super().__init__(address, generation)
        self.inode = inode
        self.level = level
        self.content = content

    def encode(self, owner: bytes) -> bytes:
        """See ``Block.encode``."""
        content = self.content
        common: dict[str, Any] = {
            "owner": owner,
            "address": self.address,
            "generation": self.generation,
            "inode": self.inode,
            "body": content.encode(),
        }
        if isinstance(content, Index):
            return IndexRecord(level=self.level, entries=len(content.keys), **common).encode()
        if isinstance(content, EntryTable):
            return DirectoryLeafRecord(entries=len(content), **common).encode()
        return ExtentLeafRecord(entries=len(content), **common).encode()


def decode_tree_block_untrusted(
    data: Buffer, superblock: Superblock, address: int, inode: int, level: int, directory: bool
) -> TreeBlock:
    """The index block (``level`` > 0) or leaf at ``address`` of a tree.  Raises CorruptRecord."""
    kind: type[IndexRecord | DirectoryLeafRecord | ExtentLeafRecord]
    if level > 0:
        kind, name = IndexRecord, "index"
    elif directory:
        kind, name = DirectoryLeafRecord, "directory leaf"
    else:
        kind, name = ExtentLeafRecord, "extent leaf"
    where = f"block {address} ({name} of inode {inode})"
    found = kind.decode_untrusted(data, where, owner=superblock.owner, address=address)
    if found.inode != inode:
        raise CorruptRecord(where, "inode", inode, found.inode)
    content: Index | EntryTable | ExtentList
    if isinstance(found, IndexRecord):
        if found.level != level:
            raise CorruptRecord(where, "level", level, found.level)
        content = decode_index_untrusted(found.body, found.entries, where, superblock)
    elif isinstance(found, DirectoryLeafRecord):
        content = EntryTable(unpack_entries_untrusted(found.body, found.entries, where), BODY_BYTES)
    else:
        content = decode_extents_untrusted(found.body, found.entries, where, superblock)
    return TreeBlock(address, found.generation, inode, level, content)


def decode_index_untrusted(body: bytes, entries: int, where: str, superblock: Superblock) -> Index:
    """The pairs of an index block or root, children checked for range.  Raises CorruptRecord."""
    keys, children = unpack_pairs_untrusted(body, entries, where)
    for child in children:
        if not superblock.is_data_range(child, 1):
            raise CorruptRecord(where, "child block", "a block of a group", child)
    return Index(keys, children, len(body) // PAIR_BYTES)


def decode_extents_untrusted(body: bytes, entries: int, where: str, superblock: Superblock) -> ExtentList:
    """The extents of a leaf or root, each inside one group.  Raises CorruptRecord."""
    extents = unpack_extents_untrusted(body, entries, where, superblock.blocks_total, superblock.extent_flags)
    for extent in extents:
        if not superblock.is_data_range(extent.physical, extent.length):
            raise CorruptRecord(where, "extent", "blocks of one group", extent.physical)
    return ExtentList(extents, len(body))
