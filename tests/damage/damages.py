"""One planted damage per problem code (F3): each takes a sample tree and spoils one thing."""

from __future__ import annotations

import random
import stat
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from matrixfs.fs.grow import prepare_journals
from matrixfs.ondisk.directory import DirectoryLeafRecord, Entry, first_key
from matrixfs.ondisk.extent import UNWRITTEN, ExtentLeafRecord, pack_extents, unpack_extents_untrusted
from matrixfs.ondisk.group import BITMAP_BYTES
from matrixfs.ondisk.index import IndexRecord
from matrixfs.ondisk.inode import (
    FLAG_DIRSYNC,
    FLAG_IMMUTABLE,
    FLAG_NODUMP,
    FLAG_QUARANTINED,
    FLAG_TRUNCATING,
    INLINE,
    TREE,
)
from matrixfs.ondisk.quota import (
    GROUP,
    USER,
    Limits,
    QuotaRecord,
    counters_key,
    iterate_limits,
    limits_key,
    pack_limits,
)
from matrixfs.ondisk.superblock import FILE_FLAGS, ORPHANS_START, QUOTA_INODE, ROOT_INODE
from matrixfs.ondisk.xattr import ACL_ACCESS, BODY_BYTES, AttributeRecord, pack_attributes
from membership.label import BLOCK_BYTES
from tests.damage.build import Builder, Built, sample
from tests.damage.volume import LogWriter, small_store

Plant = Callable[[Built], Awaitable[None]]


@dataclass(frozen=True)
class Damage:
    """A damage, and what fsck must make of it."""

    code: str
    plant: Plant
    prepare: Callable[[Builder], None] | None
    also: frozenset[str]  # codes that the same damage can't help causing
    repaired: bool

    async def make(self) -> Built:
        builder = sample(await small_store())
        if self.prepare is not None:
            self.prepare(builder)
        built = await builder.write()
        await self.plant(built)
        built.volume.disk.mark()
        return built


DAMAGES: list[Damage] = []


def damage(
    code: str, *, prepare: Callable[[Builder], None] | None = None, also: tuple[str, ...] = (), repaired: bool = True
) -> Callable[[Plant], Plant]:
    def register(plant: Plant) -> Plant:
        DAMAGES.append(Damage(code, plant, prepare, frozenset(also), repaired))
        return plant

    return register


async def flip(built: Built, block: int, at: int = 3000) -> None:
    """Flip a bit of a block of the area."""
    built.volume.disk.corrupt((built.volume.first + block) * BLOCK_BYTES + at)


def child(tail: bytes, position: int = 0) -> int:
    """Child block of an index pair."""
    return int.from_bytes(tail[16 * position + 8 : 16 * position + 16], "little")


# --- label, superblock, journals ---------------------------------------------------------------------------


@damage("label-copy")
async def _(built: Built) -> None:
    built.volume.disk.corrupt(100)


@damage("label-copy")
async def _(built: Built) -> None:
    built.volume.disk.corrupt(built.volume.disk.size_bytes - 100)


@damage("superblock")
async def _(built: Built) -> None:
    await flip(built, 0, 140)


@damage("superblock-copy")
async def _(built: Built) -> None:
    await flip(built, built.superblock.blocks_total - 1)


@damage("superblock-copy")
async def _(built: Built) -> None:
    superblock = built.superblock
    superblock.address, superblock.created_ns = superblock.blocks_total - 1, 5
    await built.put(superblock)
    superblock.address = 0


@damage("superblock-later")
async def _(built: Built) -> None:
    built.superblock.generation += 1
    await built.put(built.superblock)


@damage("superblock-lost", repaired=False)
async def _(built: Built) -> None:
    await flip(built, 0)
    await flip(built, built.superblock.blocks_total - 1)


@damage("journal-header", repaired=False)
async def _(built: Built) -> None:
    await flip(built, built.superblock.journal_block(1))


@damage("journal-log", repaired=False)
async def _(built: Built) -> None:
    writer = LogWriter(built.volume, 1)
    await writer.open()
    block = await writer.frame()
    await writer.frame()
    await flip(built, block)


# --- inodes --------------------------------------------------------------------------------------------------


@damage("inode-damaged", repaired=False)
async def _(built: Built) -> None:
    await flip(built, built.inodes["small"])


@damage("inode-damaged", repaired=False, also=("lost-inode", "block-leaked", "inode-nlink"))
async def _(built: Built) -> None:
    await flip(built, built.inodes["dir"])


@damage("inode-type", repaired=False)
async def _(built: Built) -> None:
    await built.change("small", mode=0o170000)


@damage("inode-layout", repaired=False)
async def _(built: Built) -> None:
    await built.change("small", layout=9)


@damage("inode-layout", repaired=False, also=("block-leaked",))
async def _(built: Built) -> None:
    await built.change("extents", depth=99)


@damage("inode-layout", repaired=False)
async def _(built: Built) -> None:
    await built.change("small", size=4000)


@damage("inode-layout", repaired=False, also=("inode-nlink",))
async def _(built: Built) -> None:
    await built.change("dir/sub", layout=INLINE, size=0)


@damage("inode-layout", repaired=False)
async def _(built: Built) -> None:
    await built.change("small", depth=1)


@damage("inode-layout", repaired=False)
async def _(built: Built) -> None:
    await built.change("fifo", size=5)


@damage("inode-layout", repaired=False)
async def _(built: Built) -> None:
    await built.change("device", layout=TREE)


@damage("inode-flags", repaired=False)
async def _(built: Built) -> None:
    await built.change("small", flags=1 << 30)


@damage("inode-user-flags")
async def _(built: Built) -> None:
    await built.change("small", flags=FLAG_DIRSYNC | FLAG_IMMUTABLE)


async def without_file_flags(built: Built) -> None:
    built.superblock.features_incompatible &= ~FILE_FLAGS
    for block in (built.superblock.blocks_total - 1, 0):
        built.superblock.address = block
        await built.put(built.superblock)


@damage("inode-user-flags")
async def _(built: Built) -> None:
    await without_file_flags(built)
    await built.change("dir", flags=FLAG_NODUMP)


@damage("inode-project")
async def _(built: Built) -> None:
    await without_file_flags(built)
    await built.change("empty", flags=0)
    await built.change("small", project=7)


@damage("inode-quarantined")
async def _(built: Built) -> None:
    await built.change("small", flags=FLAG_QUARANTINED)


@damage("inode-size", repaired=False)
async def _(built: Built) -> None:
    await built.change("extents", size=1 << 63)


@damage("symlink-target", repaired=False)
async def _(built: Built) -> None:
    await built.change("symlink", size=0)


@damage("symlink-target", repaired=False)
async def _(built: Built) -> None:
    await built.change("symlink", tail=b"sm\0ll")


@damage("symlink-target", repaired=False)
async def _(built: Built) -> None:
    await built.change("long symlink", size=4096)


@damage("inode-blocks")
async def _(built: Built) -> None:
    await built.change("many", blocks=7)


@damage("inode-blocks")
async def _(built: Built) -> None:
    await built.change("deep", blocks=7)


@damage("inode-blocks")
async def _(built: Built) -> None:
    await built.change("small", blocks=1)


@damage("inode-nlink")
async def _(built: Built) -> None:
    await built.change("linked", nlink=4)


@damage("inode-nlink")
async def _(built: Built) -> None:
    await built.change("linked", nlink=2)


@damage("inode-nlink")
async def _(built: Built) -> None:
    await built.change("linked", nlink=1)


@damage("inode-nlink")
async def _(built: Built) -> None:
    await built.change("small", nlink=0)


@damage("inode-nlink")
async def _(built: Built) -> None:
    await built.change("small", nlink=2)


@damage("inode-orphan-mark")
async def _(built: Built) -> None:
    await built.change("small", orphaned_by=1)


@damage("extent-past-eof")
async def _(built: Built) -> None:
    await built.change("extents", size=5 * BLOCK_BYTES)


# --- trees ------------------------------------------------------------------------------------------------------


@damage("tree-root", repaired=False, also=("block-leaked",))
async def _(built: Built) -> None:
    inode = await built.inode("extents")
    await built.change("extents", tail=inode.tail[24:48] + inode.tail[:24])


@damage("tree-root", repaired=False, also=("lost-inode", "block-leaked", "inode-nlink"))
async def _(built: Built) -> None:
    await built.change("dir", entries=200)


@damage("tree-root", repaired=False, also=("block-leaked",))
async def _(built: Built) -> None:
    await built.change("many", entries=0)


async def _spoil_index(built: Built, **fields: Any) -> None:
    inode = await built.inode("many")
    index = await built.record(child(inode.tail), IndexRecord)
    for name, value in fields.items():
        setattr(index, name, value)
    await built.put(index)


@damage("tree-index", repaired=False, also=("block-leaked",))
async def _(built: Built) -> None:
    await flip(built, child((await built.inode("many")).tail))


@damage("tree-index", repaired=False, also=("block-leaked",))
async def _(built: Built) -> None:
    await _spoil_index(built, level=2)


@damage("tree-index", repaired=False, also=("block-leaked",))
async def _(built: Built) -> None:
    await _spoil_index(built, inode=built.inodes["extents"])


@damage("tree-index", repaired=False, also=("block-leaked",))
async def _(built: Built) -> None:
    await _spoil_index(built, entries=0)


async def _first_leaf(built: Built, name: str, kind: type[Any]) -> Any:
    index = await built.record(child((await built.inode(name)).tail), IndexRecord)
    return await built.record(child(index.body), kind)


@damage("tree-leaf", repaired=False, also=("block-leaked",))
async def _(built: Built) -> None:
    await flip(built, (await _first_leaf(built, "many", ExtentLeafRecord)).address)


@damage("tree-leaf", repaired=False, also=("lost-inode",))
async def _(built: Built) -> None:
    leaf = await _first_leaf(built, "deep", DirectoryLeafRecord)
    leaf.inode += 1
    await built.put(leaf)


@damage("tree-leaf", repaired=False, also=("block-leaked",))
async def _(built: Built) -> None:
    leaf = await _first_leaf(built, "many", ExtentLeafRecord)
    leaf.entries = 168
    await built.put(leaf)


@damage("tree-root", repaired=False, also=("block-leaked",))
async def _(built: Built) -> None:
    inode = await built.inode("extents")
    flags = (UNWRITTEN << 1).to_bytes(4, "little")
    await built.change("extents", tail=inode.tail[:20] + flags + inode.tail[24:])


@damage("tree-leaf", repaired=False, also=("block-leaked",))
async def _(built: Built) -> None:
    leaf = await _first_leaf(built, "many", ExtentLeafRecord)
    leaf.body = leaf.body[:23] + b"\x80" + leaf.body[24:]
    await built.put(leaf)


@damage("tree-order", repaired=False, also=("block-leaked",))
async def _(built: Built) -> None:
    leaf = await _first_leaf(built, "many", ExtentLeafRecord)
    extents = unpack_extents_untrusted(leaf.body, leaf.entries, "", 1 << 40)
    last = extents[-1]
    leaf.body = pack_extents([*extents[:-1], last._replace(logical=last.logical + 1000)])
    await built.put(leaf)


@damage("tree-order", repaired=False, also=("lost-inode", "block-leaked", "inode-nlink"))
async def _(built: Built) -> None:
    inode = await built.inode("deep")
    first, second = child(inode.tail), child(inode.tail, 1)
    pairs = inode.tail[:8] + second.to_bytes(8, "little") + inode.tail[16:24] + first.to_bytes(8, "little")
    await built.change("deep", tail=pairs + inode.tail[32:])


@damage("tree-order", repaired=False, also=("block-leaked",))
async def _(built: Built) -> None:
    index = await built.record(child((await built.inode("many")).tail), IndexRecord)
    index.body = index.body[:48] + (1 << 40).to_bytes(8, "little") + index.body[56:]
    await built.put(index)


# --- directories and names ----------------------------------------------------------------------------------


@damage("system-directory", repaired=False)
async def _(built: Built) -> None:
    await built.change(ORPHANS_START, mode=stat.S_IFREG | 0o600)


@damage("system-directory", repaired=False, also=("lost-inode", "block-leaked", "inode-nlink"))
async def _(built: Built) -> None:
    await built.change(ROOT_INODE, mode=stat.S_IFREG | 0o600)


async def _change_entry(built: Built, directory: str, name: bytes, **fields: Any) -> None:
    leaf, entries = await built.entries(directory, name)
    await built.set_entries(leaf, [e._replace(**fields) if e.name == name else e for e in entries])


async def _add_entry(built: Built, directory: str, entry: Entry) -> None:
    """Add an entry and count it, so that nothing else is wrong."""
    leaf, entries = await built.entries(directory)
    await built.set_entries(leaf, [*entries, entry])
    inode = await built.inode(directory)
    await built.change(directory, size=inode.size + entry.size, children=inode.children + 1)


def _entry(built: Built, name: bytes, inode: int, kind: int = 8) -> Entry:
    return Entry(first_key(name, built.superblock.hash_seed), inode, kind, name)


@damage("entry-dangling")
async def _(built: Built) -> None:
    await _add_entry(built, "dir/sub", _entry(built, b"nothing", 1 << 50))


@damage("entry-dangling")
async def _(built: Built) -> None:
    await _add_entry(built, "dir/sub", _entry(built, b"group", built.superblock.group_start))


@damage("entry-dangling")
async def _(built: Built) -> None:
    tombstone = await built.inode("small")
    tombstone.address = built.superblock.group_block(5) + 9
    tombstone.mode = tombstone.nlink = 0
    await built.put(tombstone)
    await _add_entry(built, "dir/sub", _entry(built, b"freed\n", tombstone.address))


def _dangling_orphan(builder: Builder) -> None:
    builder.add_entry(ORPHANS_START, b"%016x" % (1 << 50), 1 << 50, 8)


@damage("entry-dangling", prepare=_dangling_orphan)
async def _(built: Built) -> None:
    pass


@damage("entry-kind")
async def _(built: Built) -> None:
    await _change_entry(built, "dir", b"f1", kind=10)


@damage("entry-kind")
async def _(built: Built) -> None:
    await _change_entry(built, "dir/sub", b"linked three", kind=4)


@damage("entry-key", repaired=False)
async def _(built: Built) -> None:
    await _change_entry(built, "dir/sub", b"linked three", key=12345)


def _twice(builder: Builder) -> None:
    number = builder.inodes["linked"]
    builder.name("dir/sub", "linked three", number, 8)
    next(record for record in builder.records if record.address == number).nlink += 1  # type: ignore[attr-defined]


@damage("entry-twice", prepare=_twice, repaired=False)
async def _(built: Built) -> None:
    pass


@damage("directory-twice", repaired=False)
async def _(built: Built) -> None:
    await _add_entry(built, "dir/sub", _entry(built, b"again", built.inodes["deep"], 4))
    await built.change("dir/sub", nlink=3)


@damage("directory-twice", repaired=False)
async def _(built: Built) -> None:
    await _add_entry(built, "dir/sub", _entry(built, b"root", ROOT_INODE, 4))
    await built.change("dir/sub", nlink=3)


@damage("directory-parent")
async def _(built: Built) -> None:
    await built.change("dir/sub", parent=ROOT_INODE)


@damage("directory-parent")
async def _(built: Built) -> None:
    await built.change(ORPHANS_START + 1, parent=ROOT_INODE)


@damage("directory-nlink")
async def _(built: Built) -> None:
    await built.change("dir", nlink=2)


@damage("directory-nlink")
async def _(built: Built) -> None:
    await built.change(ROOT_INODE, nlink=9)


@damage("directory-size")
async def _(built: Built) -> None:
    await built.change("deep", size=1)


@damage("directory-children")
async def _(built: Built) -> None:
    await built.change("deep", children=1)


# --- orphans and the lost -------------------------------------------------------------------------------------


def _orphan_file(builder: Builder) -> None:
    orphan = builder.file("dir/open and unlinked")
    builder.extents(orphan, [3] * 40)
    builder.orphan(1, orphan)


@damage("orphan", prepare=_orphan_file)
async def _(built: Built) -> None:
    pass


def _orphan_directory(builder: Builder) -> None:
    orphan = builder.directory("dir/open and removed")
    builder.orphan(0, orphan)
    builder.directories[orphan.parent].nlink -= 1


@damage("orphan", prepare=_orphan_directory)
async def _(built: Built) -> None:
    pass


@damage("orphan", prepare=_orphan_file)
async def _(built: Built) -> None:
    await built.change("dir/open and unlinked", flags=FLAG_TRUNCATING, size=0)


@damage("orphan-name", prepare=_orphan_file, also=("orphan",))
async def _(built: Built) -> None:
    await _change_entry_of(built, ORPHANS_START + 1, name=b"0" * 16)


async def _change_entry_of(built: Built, directory: int, name: bytes) -> None:
    built.inodes["orphans"] = directory
    leaf, entries = await built.entries("orphans")
    await built.set_entries(leaf, [_entry(built, name, entries[0].inode)])


def _linked_orphan(builder: Builder) -> None:
    number = builder.inodes["small"]
    builder.add_entry(ORPHANS_START, b"%016x" % number, number, 8)


@damage("orphan-linked", prepare=_linked_orphan)
async def _(built: Built) -> None:
    pass


@damage("orphan-nlink", prepare=_orphan_file, repaired=False)
async def _(built: Built) -> None:
    await built.change("dir/open and unlinked", nlink=1)


@damage("orphan-mark", prepare=_orphan_file, also=("orphan",))
async def _(built: Built) -> None:
    await built.change("dir/open and unlinked", orphaned_by=1)


@damage("orphan-mark", prepare=_orphan_file, also=("orphan",))
async def _(built: Built) -> None:
    await built.change("dir/open and unlinked", orphaned_by=0)


@damage("orphan-not-empty", repaired=False, prepare=_orphan_directory)
async def _(built: Built) -> None:
    await _add_entry(built, "dir/open and removed", _entry(built, b"here", built.inodes["linked"]))
    await built.change("linked", nlink=4)


async def _remove_entry(built: Built, directory: str, name: bytes) -> None:
    leaf, entries = await built.entries(directory, name)
    await built.set_entries(leaf, [entry for entry in entries if entry.name != name])
    inode = await built.inode(directory)
    await built.change(directory, size=inode.size - 18 - len(name), children=inode.children - 1)


@damage("orphan-unlisted")
async def _(built: Built) -> None:
    await _remove_entry(built, "dir", b"f2")
    await built.change("dir/f2", nlink=0)


@damage("lost-inode", repaired=False)
async def _(built: Built) -> None:
    await _remove_entry(built, "dir", b"f2")


@damage("lost-inode", repaired=False)
async def _(built: Built) -> None:
    await _remove_entry(built, "dir", b"sub")
    await built.change("dir", nlink=2)


# --- extended attributes ------------------------------------------------------------------------------------


async def _attribute_block(built: Built, name: str, number: int = 0) -> AttributeRecord:
    block = (await built.inode(name)).attributes
    for _ in range(number):
        block = (await built.record(block, AttributeRecord)).next
    found: AttributeRecord = await built.record(block, AttributeRecord)
    return found


@damage("xattr-block", repaired=False, also=("block-leaked",))
async def _(built: Built) -> None:
    await flip(built, (await _attribute_block(built, "much tagged", 1)).address)


@damage("xattr-block", repaired=False)
async def _(built: Built) -> None:
    block = await _attribute_block(built, "tagged dir")
    block.inode += 1
    await built.put(block)


@damage("xattr-block", repaired=False, also=("block-leaked",))
async def _(built: Built) -> None:
    block = await _attribute_block(built, "much tagged", 1)
    block.used -= 1
    await built.put(block)


def _endless(builder: Builder) -> None:
    builder.attributes(builder.file("endless"), {b"user.%d" % n: b"x" * 60_000 for n in range(3)})


@damage("xattr-block", repaired=False, also=("block-leaked",), prepare=_endless)
async def _(built: Built) -> None:
    assert (await _attribute_block(built, "endless", 34)).next


@damage("xattr-loop", repaired=False)
async def _(built: Built) -> None:
    last = await _attribute_block(built, "much tagged", 2)
    last.next, last.used = (await built.inode("much tagged")).attributes, BODY_BYTES
    await built.put(last)


@damage("xattr-content", repaired=False)
async def _(built: Built) -> None:
    await built.change("tagged", inline_length=79)


@damage("xattr-content", repaired=False)
async def _(built: Built) -> None:
    await built.change("tagged", inline_length=11)


@damage("xattr-content", repaired=False)
async def _(built: Built) -> None:
    await built.change("much tagged", inline_length=12)


@damage("xattr-content", repaired=False)
async def _(built: Built) -> None:
    packed = pack_attributes({ACL_ACCESS: b"no list"})
    await built.change("tagged", inline_attributes=packed, inline_length=len(packed))


@damage("xattr-content", repaired=False)
async def _(built: Built) -> None:
    block = await _attribute_block(built, "tagged dir")
    block.body = b"\x08" + block.body[1:]
    await built.put(block)


# --- quotas -------------------------------------------------------------------------------------------------


def _with_quotas(builder: Builder) -> None:
    builder.has_quotas = True
    for path in ("small", "dir/f1", "extents"):
        inode = next(record for record in builder.records if record.address == builder.inodes[path])
        inode.uid = 100  # type: ignore[attr-defined]


async def _quota_block(built: Built, key: int) -> QuotaRecord:
    inode = await built.inode(QUOTA_INODE)
    extents = unpack_extents_untrusted(inode.tail, inode.entries, "", 1 << 40)
    block = next(extent.physical for extent in extents if extent.logical == key)
    return await built.record(block, QuotaRecord)


@damage("quota-tree", prepare=_with_quotas, also=("block-leaked",))
async def _(built: Built) -> None:
    await flip(built, QUOTA_INODE, 100)


@damage("quota-tree", prepare=_with_quotas, also=("block-leaked",))
async def _(built: Built) -> None:
    """The tree names a file's block."""
    inode, file = await built.inode(QUOTA_INODE), await built.inode("extents")
    extents = unpack_extents_untrusted(inode.tail, inode.entries, "", 1 << 40)
    theirs = unpack_extents_untrusted(file.tail, file.entries, "", 1 << 40)
    extents[2] = extents[2]._replace(physical=theirs[0].physical)
    await built.change(QUOTA_INODE, tail=pack_extents(extents))


@damage("quota-block", prepare=_with_quotas)
async def _(built: Built) -> None:
    await flip(built, (await _quota_block(built, counters_key(1, GROUP, 0))).address)


@damage("quota-block", prepare=_with_quotas)
async def _(built: Built) -> None:
    """Counters of a journal that there is not."""
    inode = await built.inode(QUOTA_INODE)
    *extents, last = unpack_extents_untrusted(inode.tail, inode.entries, "", 1 << 40)
    key = counters_key(7, USER, 0)
    block = await _quota_block(built, last.logical)
    block.key = key
    await built.put(block)
    await built.change(QUOTA_INODE, tail=pack_extents([*extents, last._replace(logical=key)]))


@damage("quota-limits", prepare=_with_quotas)
async def _(built: Built) -> None:
    block = await _quota_block(built, limits_key(USER, 1000))
    limits = list(iterate_limits(block.body))
    limits[1000 % len(limits)] = Limits(blocks_hard=10, blocks_soft=11)
    block.body = pack_limits(limits)
    await built.put(block)


@damage("quota-usage", prepare=_with_quotas)
async def _(built: Built) -> None:
    block = await _quota_block(built, counters_key(1, USER, 0))
    block.body = block.body[: 100 * 16] + (7).to_bytes(8, "little") + block.body[100 * 16 + 8 :]
    await built.put(block)


# --- blocks ---------------------------------------------------------------------------------------------------------


async def _move_first_extent(built: Built, physical: int) -> None:
    inode = await built.inode("extents")
    extents = unpack_extents_untrusted(inode.tail, inode.entries, "", 1 << 40)
    await built.mark(extents[0].physical, used=False)
    await built.change("extents", tail=pack_extents([extents[0]._replace(physical=physical), *extents[1:]]))


@damage("block-forbidden", repaired=False)
async def _(built: Built) -> None:
    await _move_first_extent(built, built.superblock.group_block(3))


@damage("block-forbidden", repaired=False)
async def _(built: Built) -> None:
    await _move_first_extent(built, built.superblock.journal_block(0))


@damage("block-forbidden", repaired=False, also=("block-leaked",))
async def _(built: Built) -> None:
    inode = await built.inode("many")
    await built.change("many", tail=inode.tail[:8] + (2).to_bytes(8, "little") + inode.tail[16:])


@damage("block-shared", repaired=False)
async def _(built: Built) -> None:
    await _move_first_extent(built, built.inodes["small"])


@damage("block-shared", repaired=False)
async def _(built: Built) -> None:
    many = await _first_leaf(built, "many", ExtentLeafRecord)
    extents = unpack_extents_untrusted(many.body, many.entries, "", 1 << 40)
    await _move_first_extent(built, extents[0].physical)


@damage("block-forbidden", repaired=False, also=("block-leaked",))
async def _(built: Built) -> None:
    await built.change("tagged dir", attributes=built.superblock.blocks_total + 5)


@damage("block-shared", repaired=False, also=("block-leaked",))
async def _(built: Built) -> None:
    """Cross-linked: the chain of a directory is another file's."""
    await built.change("tagged dir", attributes=(await built.inode("much tagged")).attributes)


@damage("inode-blocks")
async def _(built: Built) -> None:
    await built.change("tagged dir", blocks=0)


@damage("block-leaked")
async def _(built: Built) -> None:
    await built.mark(built.superblock.group_block(4) + 9, 20, used=True)


@damage("block-missing")
async def _(built: Built) -> None:
    await built.mark(built.inodes["deep/file-0007"], used=False)


@damage("block-missing")
async def _(built: Built) -> None:
    await built.mark(built.superblock.group_block(2), used=False)


@damage("group-damaged")
async def _(built: Built) -> None:
    await flip(built, built.superblock.group_block(0))


@damage("group-shape")
async def _(built: Built) -> None:
    group = await built.group(built.superblock.group_block(2))
    group.index = 7
    await built.put(group)


@damage("group-short")
async def _(built: Built) -> None:
    group = await built.group(built.superblock.group_block(built.superblock.groups - 1))
    before, group.blocks = group.blocks, group.blocks - 3
    bits = (1 << before) - (1 << group.blocks)
    assert int.from_bytes(group.bitmap, "little") & bits == 0
    group.bitmap = (int.from_bytes(group.bitmap, "little") | bits).to_bytes(BITMAP_BYTES, "little")
    group.free -= 3
    await built.put(group)


@damage("journal-unmarked")
async def _(built: Built) -> None:
    start = built.superblock.group_block(built.superblock.groups - 2) + 1
    area = built.volume.device
    await (await prepare_journals(area, built.superblock, [(start, 2)], 64, random.Random(1))).apply(area)


@damage("group-free")
async def _(built: Built) -> None:
    group = await built.group(built.superblock.group_block(1))
    group.free += 1
    await built.put(group)


@damage("group-padding")
async def _(built: Built) -> None:
    group = await built.group(built.superblock.group_block(built.superblock.groups - 1))
    assert group.blocks < 256
    group.bitmap = (int.from_bytes(group.bitmap, "little") & ~(1 << group.blocks)).to_bytes(BITMAP_BYTES, "little")
    await built.put(group)
