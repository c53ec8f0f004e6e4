"""Filesystems made by hand from the formats alone: what fsck is tested on, without the code that mounts."""

from __future__ import annotations

import stat
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from matrixfs.fs.mkfs import empty_group, quota_inode, superblock_copy
from matrixfs.ondisk.directory import (
    DISAMBIGUATION_BITS,
    DirectoryLeafRecord,
    Entry,
    first_key,
    pack_entries,
    unpack_entries_untrusted,
)
from matrixfs.ondisk.extent import Extent, ExtentLeafRecord, pack_extents
from matrixfs.ondisk.group import BITMAP_BYTES, GroupRecord
from matrixfs.ondisk.index import BODY_BYTES, IndexRecord, pack_pairs
from matrixfs.ondisk.inode import FLAG_IMMUTABLE, FLAG_NODUMP, INLINE, TAIL_BYTES, TREE, InodeRecord
from matrixfs.ondisk.quota import (
    COUNTERS_PER_BLOCK,
    GROUP,
    LIMITS_PER_BLOCK,
    NO_LIMITS,
    PROJECT,
    USER,
    Limits,
    QuotaRecord,
    counters_key,
    limits_key,
    pack_counters,
    pack_limits,
)
from matrixfs.ondisk.superblock import ORPHANS_START, QUOTAS, ROOT_INODE, SYSTEM_BLOCKS, Superblock
from matrixfs.ondisk.xattr import BODY_BYTES as CHAIN_BODY_BYTES
from matrixfs.ondisk.xattr import INLINE_BYTES, AttributeRecord, pack_attributes
from membership.label import BLOCK_BYTES
from membership.records import Record
from tests.damage.volume import Volume

NOW = 1_700_000_000_000_000_000


@dataclass
class Built:
    """What a builder wrote, by the names it was given."""

    volume: Volume
    inodes: dict[str, int]

    @property
    def superblock(self) -> Superblock:
        return self.volume.superblock

    async def inode(self, name: str | int) -> InodeRecord:
        return await self.record(self.inodes[name] if isinstance(name, str) else name, InodeRecord)

    async def record(self, block: int, kind: type[Any]) -> Any:
        return kind.decode_untrusted(
            await self.volume.read(block), f"block {block}", owner=self.superblock.owner, address=block
        )

    async def put(self, record: Record) -> None:
        await self.volume.write(record.address, record.encode())

    async def change(self, name: str | int, **fields: Any) -> None:
        """Change fields of an inode in place."""
        inode = await self.inode(name)
        for field_name, value in fields.items():
            setattr(inode, field_name, value)
        await self.put(inode)

    async def group(self, block: int) -> GroupRecord:
        """The group that holds ``block``."""
        return await self.record(self.superblock.group_block(self.superblock.group_of(block)), GroupRecord)

    async def mark(self, block: int, length: int = 1, *, used: bool) -> None:
        """Change the bitmap, and the count with it."""
        group = await self.group(block)
        bits = int.from_bytes(group.bitmap, "little")
        mask = ((1 << length) - 1) << (block - group.address)
        bits = bits | mask if used else bits & ~mask
        group.bitmap = bits.to_bytes(BITMAP_BYTES, "little")
        group.free = group.blocks - (bits & ((1 << group.blocks) - 1)).bit_count()
        await self.put(group)

    async def entries(self, directory: str, name: bytes | None = None) -> tuple[Record, list[Entry]]:
        """The leaf of a directory of depth 0, or the one with ``name`` of a directory of depth 1, and its entries."""
        inode = await self.inode(directory)
        if inode.depth == 0:
            return inode, unpack_entries_untrusted(inode.tail, inode.entries, directory)
        assert inode.depth == 1
        for at in range(inode.entries):
            child = int.from_bytes(inode.tail[16 * at + 8 : 16 * at + 16], "little")
            leaf = await self.record(child, DirectoryLeafRecord)
            entries = unpack_entries_untrusted(leaf.body, leaf.entries, directory)
            if any(entry.name == name for entry in entries):
                return leaf, entries
        raise AssertionError(f"{name!r} is not in {directory}")

    async def set_entries(self, leaf: Any, entries: Sequence[Entry]) -> None:
        name = "tail" if isinstance(leaf, InodeRecord) else "body"
        setattr(leaf, name, pack_entries(sorted(entries)))
        leaf.entries = len(entries)
        await self.put(leaf)


@dataclass
class Builder:
    """Collects a tree, then writes it.

    ``leaf_max`` and ``index_max`` make small trees deep: entries of a leaf, pairs of an index.
    """

    volume: Volume
    leaf_max: int = 1000
    index_max: int = 200
    records: list[Record] = field(default_factory=list)
    inodes: dict[str, int] = field(default_factory=dict)
    entries: dict[int, list[Entry]] = field(default_factory=dict)
    directories: dict[int, InodeRecord] = field(default_factory=dict)
    next: int = 0
    used: list[tuple[int, int]] = field(default_factory=list)
    has_quotas: bool = False

    def __post_init__(self) -> None:
        self.superblock = self.volume.superblock
        self.next = self.superblock.group_start
        for number in (ROOT_INODE, *range(ORPHANS_START, ORPHANS_START + self.superblock.journals)):
            self.directories[number] = self._inode(number, stat.S_IFDIR | 0o755, nlink=2, layout=TREE, parent=number)
            self.entries[number] = []

    def _inode(self, number: int, mode: int, **fields: Any) -> InodeRecord:
        times = {"atime_ns": NOW, "mtime_ns": NOW, "ctime_ns": NOW, "btime_ns": NOW}
        return InodeRecord(
            owner=self.superblock.owner,
            address=number,
            **{"generation": 2, "mode": mode, "nlink": 1, **times, **fields},
        )

    def take(self, length: int = 1) -> int:
        """Blocks that lie together in one group."""
        group = 1 << self.superblock.group_shift
        if self.next % group == 0:
            self.next += 1
        if (self.next % group) + length > group:
            self.next = (self.next // group + 1) * group + 1
        start, self.next = self.next, self.next + length
        assert self.next < self.superblock.blocks_total - 1, "the volume is too small for this tree"
        self.used.append((start, length))
        return start

    def name(self, parent: str, name: str, number: int, kind: int) -> None:
        """Add a name; ``parent`` "" is the root."""
        directory = self.inodes[parent] if parent else ROOT_INODE
        self.add_entry(directory, name.encode(), number, kind)

    def add_entry(self, directory: int, name: bytes, number: int, kind: int) -> None:
        key = first_key(name, self.superblock.hash_seed)
        while any(entry.key == key for entry in self.entries[directory] if entry.key >> 7 == key >> 7):
            key += 1
        self.entries[directory].append(Entry(key, number, kind, name))

    def add(self, path: str, mode: int, **fields: Any) -> InodeRecord:
        """An inode with a name and no content."""
        number = self.take()
        parent, _, name = path.rpartition("/")
        self.inodes[path] = number
        self.name(parent, name, number, stat.S_IFMT(mode) >> 12)
        inode = self._inode(number, mode, **fields)
        if stat.S_ISDIR(mode):
            inode.nlink, inode.layout = 2, TREE
            inode.parent = self.inodes[parent] if parent else ROOT_INODE
            self.directories[inode.parent].nlink += 1
            self.directories[number] = inode
            self.entries[number] = []
        else:
            self.records.append(inode)
        return inode

    def directory(self, path: str) -> InodeRecord:
        return self.add(path, stat.S_IFDIR | 0o755)

    def file(self, path: str, content: bytes = b"") -> InodeRecord:
        return self.add(path, stat.S_IFREG | 0o644, layout=INLINE, size=len(content), tail=content)

    def link(self, existing: str, path: str) -> None:
        parent, _, name = path.rpartition("/")
        inode = next(record for record in self.records if record.address == self.inodes[existing])
        assert isinstance(inode, InodeRecord)
        inode.nlink += 1
        self.name(parent, name, inode.address, stat.S_IFMT(inode.mode) >> 12)

    def extents(self, inode: InodeRecord, lengths: Sequence[int], hole: int = 0) -> None:
        """Give an inode extents of these lengths, with a hole of ``hole`` blocks between them."""
        extents: list[Extent] = []
        logical = 0
        for length in lengths:
            extents.append(Extent(logical, self.take(length), length))
            self.take()  # so that they don't lie together
            self.used.pop()
            logical += length + hole
        inode.layout = TREE
        inode.size = (logical - hole) * BLOCK_BYTES
        inode.blocks += sum(lengths)
        leaves = [extents[at : at + self.leaf_max] for at in range(0, len(extents), self.leaf_max)] or [[]]
        if len(leaves) == 1 and len(extents) * 24 <= TAIL_BYTES:
            inode.tail, inode.entries = pack_extents(extents), len(extents)
            return
        children = []
        for leaf in leaves:
            record = ExtentLeafRecord(
                inode=inode.address, entries=len(leaf), body=pack_extents(leaf), **self._head(self.take())
            )
            self.records.append(record)
            children.append((leaf[0].logical, record.address))
        self._index(inode, children)

    def attributes(self, inode: InodeRecord, attributes: dict[bytes, bytes]) -> None:
        """Give an inode extended attributes: in its block where they fit, else in a chain."""
        packed = pack_attributes(attributes)
        if len(packed) <= INLINE_BYTES:
            inode.inline_attributes, inode.inline_length = packed, len(packed)
            return
        bodies = [packed[at : at + CHAIN_BODY_BYTES] for at in range(0, len(packed), CHAIN_BODY_BYTES)]
        blocks = [self.take() for _ in bodies]
        for block, body, following in zip(blocks, bodies, [*blocks[1:], 0], strict=True):
            self.records.append(
                AttributeRecord(inode=inode.address, next=following, used=len(body), body=body, **self._head(block))
            )
        inode.attributes = blocks[0]
        inode.blocks += len(blocks)

    def orphan(self, journal: int, inode: InodeRecord) -> None:
        """Make an inode that ``add`` made nameless, and list it."""
        for entries in self.entries.values():
            entries[:] = [entry for entry in entries if entry.inode != inode.address]
        inode.nlink, inode.orphaned_by = 0, journal + 1
        self.add_entry(ORPHANS_START + journal, b"%016x" % inode.address, inode.address, stat.S_IFMT(inode.mode) >> 12)

    def _head(self, block: int) -> dict[str, Any]:
        return {"owner": self.superblock.owner, "address": block, "generation": 2}

    def _index(self, inode: InodeRecord, children: list[tuple[int, int]]) -> None:
        """Put index levels over (lowest key, block) of the leaves until the rest fits the inode."""
        inode.blocks += len(children)
        inode.depth = 1
        while len(children) > min(self.index_max, TAIL_BYTES // 16):
            above = []
            for at in range(0, len(children), self.index_max):
                part = children[at : at + self.index_max]
                record = IndexRecord(
                    inode=inode.address,
                    level=inode.depth,
                    entries=len(part),
                    body=pack_pairs([0, *(key for key, _ in part[1:])], [block for _, block in part]),
                    **self._head(self.take()),
                )
                self.records.append(record)
                above.append((part[0][0], record.address))
            inode.blocks += len(above)
            inode.depth += 1
            children = above
        keys = [0, *(key for key, _ in children[1:])]
        inode.tail, inode.entries = pack_pairs(keys, [block for _, block in children]), len(children)

    def _finish_directory(self, inode: InodeRecord, entries: list[Entry]) -> None:
        entries.sort()
        inode.size = sum(entry.size for entry in entries)
        inode.children = len(entries)
        if inode.size <= TAIL_BYTES and len(entries) <= self.leaf_max:
            inode.tail, inode.entries = pack_entries(entries), len(entries)
            self.records.append(inode)
            return
        leaf_max = min(self.leaf_max, BODY_BYTES // max(entry.size for entry in entries))
        children = []
        for at in range(0, len(entries), leaf_max):
            part = entries[at : at + leaf_max]
            record = DirectoryLeafRecord(
                inode=inode.address, entries=len(part), body=pack_entries(part), **self._head(self.take())
            )
            self.records.append(record)
            children.append((part[0].key >> DISAMBIGUATION_BITS << DISAMBIGUATION_BITS, record.address))
        self._index(inode, children)
        self.records.append(inode)

    def _plant_quotas(self) -> None:
        """Count everything, in journal 0's counters and some in journal 1's; user 1000 has limits."""
        counted = [inode for inode in self.records if isinstance(inode, InodeRecord) and inode.address >= SYSTEM_BLOCKS]
        extents = []
        for kind in (USER, GROUP, PROJECT):
            usage: dict[int, list[int]] = {}
            for inode in counted:
                used = usage.setdefault((inode.uid, inode.gid, inode.project)[kind], [0, 0])
                used[0] += inode.blocks
                used[1] += 1
            for journal, share in ((0, 5), (1, -5)):
                rows = [(0, 0)] * COUNTERS_PER_BLOCK
                for number, (blocks, inodes) in usage.items():
                    rows[number] = (blocks + share, inodes) if journal == 0 else (share, 0)
                extents.append(self._quota_block(counters_key(journal, kind, 0), pack_counters(rows)))
        rows = [NO_LIMITS] * LIMITS_PER_BLOCK
        rows[1000 % LIMITS_PER_BLOCK] = Limits(blocks_hard=100, blocks_soft=80)
        extents.append(self._quota_block(limits_key(USER, 1000), pack_limits(rows)))
        self.superblock.features_read_only |= QUOTAS
        tree = quota_inode(self.superblock)
        tree.tail, tree.entries, tree.blocks = pack_extents(sorted(extents)), len(extents), len(extents)
        self.records += [tree, self.superblock, superblock_copy(self.superblock)]

    def _quota_block(self, key: int, body: bytes) -> Extent:
        block = self.take()
        self.take()  # so that they don't lie together
        self.used.pop()
        self.records.append(QuotaRecord(key=key, body=body, **self._head(block)))
        return Extent(key, block, 1)

    async def write(self) -> Built:
        for number, inode in self.directories.items():
            self._finish_directory(inode, self.entries[number])
        if self.has_quotas:
            self._plant_quotas()
        groups = [empty_group(self.superblock, index) for index in range(self.superblock.groups)]
        starts = [group.address for group in groups]
        bits = [int.from_bytes(group.bitmap, "little") for group in groups]
        for start, length in self.used:
            index = bisect_right(starts, start) - 1
            bits[index] |= ((1 << length) - 1) << (start - starts[index])
        for group, value in zip(groups, bits, strict=True):
            group.bitmap = value.to_bytes(BITMAP_BYTES, "little")
            group.free = group.blocks - (value & ((1 << group.blocks) - 1)).bit_count()
            group.generation_floor = 1
        for record in [*self.records, *groups]:
            await self.volume.write(record.address, record.encode())
        await self.volume.disk.flush()
        self.volume.disk.mark()
        return Built(self.volume, self.inodes)


def sample(volume: Volume) -> Builder:
    """A tree with one of everything: deep and shallow directories and files, links, devices, a long symlink."""
    builder = Builder(volume, leaf_max=4, index_max=4)
    builder.file("empty").flags = FLAG_IMMUTABLE | FLAG_NODUMP
    builder.file("small", b"hello")
    builder.directory("dir")
    builder.directory("dir/sub")
    for number in range(3):
        builder.file(f"dir/f{number}", b"x" * number)
    builder.directory("deep")
    for number in range(40):
        builder.file(f"deep/file-{number:04}", b"%d" % number)
    builder.directory("deep/down")
    builder.extents(builder.file("extents"), [1, 2, 3])
    builder.extents(builder.file("many"), [1] * 40, hole=1)
    builder.file("linked")
    builder.link("linked", "dir/linked too")
    builder.link("linked", "dir/sub/linked three")
    builder.add("symlink", stat.S_IFLNK | 0o777, layout=INLINE, size=5, tail=b"small")
    long = builder.add("long symlink", stat.S_IFLNK | 0o777)
    builder.extents(long, [1])
    long.size = 4090
    builder.attributes(builder.file("tagged", b"x"), {b"user.x": b"1"})
    builder.attributes(builder.file("much tagged"), {b"user.x": b"1", b"user.y": b"y" * 10_000})
    builder.attributes(builder.directory("tagged dir"), {b"trusted.x": b"x" * 100})
    builder.add("fifo", stat.S_IFIFO | 0o600)
    builder.add("device", stat.S_IFCHR | 0o600, rdev=0x501)
    return builder
