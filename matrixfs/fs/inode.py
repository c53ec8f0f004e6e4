"""The inode in memory."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

from matrixfs.fs.blocks import (
    Block,
    EntryTable,
    ExtentList,
    Index,
    decode_extents_untrusted,
    decode_index_untrusted,
)
from matrixfs.ondisk.directory import DirectoryLeafRecord, unpack_entries_untrusted
from matrixfs.ondisk.extent import EXTENT_BYTES, ExtentLeafRecord
from matrixfs.ondisk.group import GroupRecord
from matrixfs.ondisk.index import IndexRecord
from matrixfs.ondisk.inode import (
    DEPTH_MAX,
    FLAG_QUARANTINED,
    FLAGS_KNOWN,
    FLAGS_OF_USERS,
    INLINE,
    TAIL_BYTES,
    TREE,
    InodeRecord,
)
from matrixfs.ondisk.quota import QuotaRecord
from matrixfs.ondisk.superblock import Superblock
from matrixfs.ondisk.xattr import INLINE_BYTES, AttributeRecord
from membership.errors import CorruptRecord
from membership.label import BLOCK_BYTES
from membership.records import HEADER
from membership.seams import Buffer

if TYPE_CHECKING:
    from matrixfs.fs.dirty import DirtyRanges
    from matrixfs.fs.xattrs import Attributes
    from matrixfs.locks.lock import Lock

NLINK_MAX = (1 << 31) - 1  # counts that leave room for one more; fsck corrects greater ones
COUNT_MAX = 1 << 52
OTHER_MAGICS = frozenset(
    kind.MAGIC
    for kind in (IndexRecord, DirectoryLeafRecord, ExtentLeafRecord, AttributeRecord, GroupRecord, QuotaRecord)
)

_COPIED = (
    "mode",
    "nlink",
    "uid",
    "gid",
    "blocks",
    "atime_ns",
    "mtime_ns",
    "ctime_ns",
    "btime_ns",
    "rdev",
    "incarnation",
    "data_version",
    "flags",
    "orphaned_by",
    "project",
    "parent",
    "children",
    "attributes",
)


class Inode(Block):
    """Attributes as in ``ondisk.inode``, the root of the tree, and data written but not yet on the store.

    ``size`` is what applications see; ``size_on_disk`` what a crash may leave: data first, size after it.
    """

    __slots__ = (*_COPIED, "depth", "dirty", "extended", "lock", "packed", "readable", "root", "size", "size_on_disk")

    mode: int
    nlink: int
    uid: int
    gid: int
    blocks: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    btime_ns: int
    rdev: int
    incarnation: int
    data_version: int
    flags: int
    orphaned_by: int
    project: int
    parent: int
    children: int
    attributes: int

    def __init__(self, address: int, generation: int, lock: Lock) -> None:
        super().__init__(address, generation)
        self.lock = lock
        for name in _COPIED:
            setattr(self, name, 0)
        self.size = self.size_on_disk = 0
        self.depth = 0
        self.root: bytes | Index | EntryTable | ExtentList = b""  # bytes: INLINE
        self.dirty: DirtyRanges | None = None
        self.packed = b""  # extended attributes that lie in the inode's block
        self.extended: Attributes | None = None  # all of them, once somebody asked
        self.readable = True  # False: a stand-in, in listings, for an inode whose block is damaged

    @property
    def ino(self) -> int:
        """The inode's number, which is its block's."""
        return self.address

    @property
    def blocks512(self) -> int:
        """Space in units of 512 bytes as stat(2) wants it; what is buffered counts as if it had its blocks.

        So does what lies in the inode: of a file without any space tar(1) and others don't read the content.
        """
        blocks = self.blocks + (-(-self.dirty.length // BLOCK_BYTES) if self.dirty is not None else 0)
        if not blocks and self.size and not isinstance(self.root, ExtentList):
            blocks = 1
        return blocks * 8

    @property
    def bare(self) -> bool:
        """Whether it has no extended attributes."""
        return not (self.attributes or self.packed) and self.readable

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.mode)

    @property
    def inline(self) -> bool:
        """Whether its data lies in the inode block."""
        return isinstance(self.root, bytes)

    @property
    def extents_free(self) -> int:
        """Extents more that the inode of a file can hold; none once it has a tree."""
        if isinstance(self.root, ExtentList):
            return self.root.capacity - len(self.root)
        return TAIL_BYTES // EXTENT_BYTES if self.inline else 0

    def encode(self, owner: bytes) -> bytes:
        """See ``Block.encode``."""
        root = self.root
        entries = 0
        if isinstance(root, bytes):
            layout, tail, size = INLINE, root, len(root)
        else:
            layout, tail, size = TREE, root.encode(), self.size_on_disk
            entries = len(root.keys) if isinstance(root, Index) else len(root)
        return InodeRecord(
            owner=owner,
            address=self.address,
            generation=self.generation,
            size=size,
            layout=layout,
            depth=self.depth,
            entries=entries,
            tail=tail,
            inline_length=len(self.packed),
            inline_attributes=self.packed,
            **{name: getattr(self, name) for name in _COPIED},
        ).encode()


def no_extents() -> ExtentList:
    """The root of a file that has outgrown its inode and has no blocks yet."""
    return ExtentList([], TAIL_BYTES)


def new_inode(address: int, generation: int, lock: Lock, mode: int) -> Inode:
    """An empty inode of the type in ``mode``."""
    inode = Inode(address, generation, lock)
    inode.mode = mode
    inode.nlink = 1
    if stat.S_ISDIR(mode):
        inode.root = EntryTable([], TAIL_BYTES)
        inode.nlink = 2
    return inode


def decode_inode_untrusted(data: Buffer, superblock: Superblock, lock: Lock) -> Inode:
    """The inode whose block was read under ``lock``.  Raises CorruptRecord."""
    number = lock.number
    where = f"block {number} (inode)"
    found = InodeRecord.decode_untrusted(data, where, owner=superblock.owner, address=number)
    inode = Inode(number, found.generation, lock)
    for name in _COPIED:
        setattr(inode, name, getattr(found, name))
    inode.size = inode.size_on_disk = found.size
    inode.depth = found.depth
    if found.flags & FLAG_QUARANTINED:
        raise CorruptRecord(where, "state, as a scrub found it: in quarantine until fsck.matrixfs has run")
    known = FLAGS_KNOWN & ~FLAGS_OF_USERS | superblock.user_flags
    if found.flags & ~known:
        raise CorruptRecord(where, "flags", f"{known:#x}", f"{found.flags:#x}")
    if found.mode and stat.S_IFMT(found.mode) >> 12 not in (1, 2, 4, 6, 8, 10, 12):
        raise CorruptRecord(where, "mode", "a file type", f"{found.mode:#o}")
    if found.nlink > NLINK_MAX or max(found.blocks, found.children) > COUNT_MAX:
        raise CorruptRecord(where, "counts", "what can be", f"{found.nlink}, {found.blocks}, {found.children}")
    if found.inline_length > INLINE_BYTES or (found.inline_length and found.attributes):
        raise CorruptRecord(where, "attributes", f"a chain, or at most {INLINE_BYTES} bytes here", found.inline_length)
    inode.packed = found.inline_attributes[: found.inline_length]
    inode.root = _decode_root_untrusted(found, where, superblock)
    return inode


def _decode_root_untrusted(
    found: InodeRecord, where: str, superblock: Superblock
) -> bytes | Index | EntryTable | ExtentList:
    if found.layout == INLINE:
        if found.size > TAIL_BYTES or found.depth or stat.S_ISDIR(found.mode):
            raise CorruptRecord(where, "inline size", f"at most {TAIL_BYTES}, no directory", found.size)
        return found.tail[: found.size]
    if found.layout != TREE:
        raise CorruptRecord(where, "layout", "INLINE or TREE", found.layout)
    if found.depth > DEPTH_MAX:
        raise CorruptRecord(where, "depth", f"at most {DEPTH_MAX}", found.depth)
    if found.size >= 1 << 63:
        raise CorruptRecord(where, "size", "below 2^63", found.size)
    if found.depth:
        return decode_index_untrusted(found.tail, found.entries, where, superblock)
    if stat.S_ISDIR(found.mode):
        return EntryTable(unpack_entries_untrusted(found.tail, found.entries, where), TAIL_BYTES)
    return decode_extents_untrusted(found.tail, found.entries, where, superblock)


def is_other_block(data: Buffer, superblock: Superblock, number: int) -> bool:
    """Whether the block holds something else by now: it is no inode, and none with a damaged magic either."""
    magic, _, _, _, owner, address, _ = HEADER.unpack_from(data)
    if magic == InodeRecord.MAGIC:
        return False
    return magic in OTHER_MAGICS or owner != superblock.owner or address != number
