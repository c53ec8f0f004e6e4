"""The images that are spoilt, and damages of several fields at once that single changes hardly ever make."""

from __future__ import annotations

import dataclasses
import functools
import lzma
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path

from matrixfs.ondisk.directory import DirectoryLeafRecord, Entry, first_key, pack_entries
from matrixfs.ondisk.extent import Extent, ExtentLeafRecord, pack_extents, unpack_extents_untrusted
from matrixfs.ondisk.group import GroupRecord
from matrixfs.ondisk.index import IndexRecord, pack_pairs
from matrixfs.ondisk.inode import FLAG_TRUNCATING, INLINE, TREE, InodeRecord
from matrixfs.ondisk.journal import JournalHeader
from matrixfs.ondisk.quota import AMOUNT_MAX, QuotaRecord
from matrixfs.ondisk.superblock import ORPHANS_START, QUOTA_INODE, ROOT_INODE, Superblock
from membership.label import BLOCK_BYTES, DATA_BLOCK
from membership.records import GENERATION_MAX
from tests.damage.build import Built, sample
from tests.damage.fuzz import MASK, Image
from tests.damage.volume import DataImage, LogWriter, Volume, small_store
from tests.sim.disk import SimDisk

GOLDEN = Path(__file__).parent.parent / "golden"
_MADE: list[Built] = []
BLOCKS = 2304  # of the area: about the smallest that a filesystem can have


async def build() -> Built:
    """One of everything, an orphan of each journal, and a dirty journal with an image of every kind; made once."""
    if not _MADE:
        _MADE.append(await _build())
    made = _MADE[0]
    disk = SimDisk(made.volume.disk.size_bytes, made.volume.disk.sector_bytes)
    disk.restore(made.volume.disk.snapshot())
    superblock = dataclasses.replace(made.superblock)
    return Built(Volume(disk, superblock, made.volume.first), dict(made.inodes))


async def _build() -> Built:
    builder = sample(await small_store(blocks=BLOCKS))
    builder.has_quotas = True
    orphan = builder.file("dir/open and unlinked")
    builder.extents(orphan, [3] * 40)
    builder.orphan(1, orphan)
    removed = builder.directory("dir/open and removed")
    builder.orphan(0, removed)
    builder.directories[removed.parent].nlink -= 1
    built = await builder.write()
    writer = LogWriter(built.volume, 1)
    await writer.open()
    many, deep = await built.inode("many"), await built.inode("deep")
    index = await built.record(child(many.tail), IndexRecord)
    below = await built.record(child(deep.tail), IndexRecord)
    images = [
        many, index, await built.record(child(index.body), ExtentLeafRecord),
        await built.record(child(below.body), DirectoryLeafRecord), await built.group(many.address),
    ]  # fmt: skip
    for image in images:
        image.generation += 1
    await writer.frame(images[:2], part=0, parts=2)
    data_block = unpack_extents_untrusted((await built.inode("extents")).tail, 1, "", BLOCKS)[0].physical
    data = DataImage(data_block, b"data".ljust(BLOCK_BYTES))
    await writer.frame([*images[2:], data], revokes=[built.superblock.group_start + 200], part=1, parts=2)
    built.volume.disk.mark()
    return built


async def built_image() -> Image:
    return await Image((await build()).volume.disk).scan()


async def golden_image(name: str) -> Image:
    content = golden(name)
    disk = SimDisk(len(content), 4096)
    await disk.write(0, content, durable=True)
    disk.mark()
    return await Image(disk).scan()


@functools.cache
def golden(name: str) -> bytes:
    return lzma.decompress((GOLDEN / f"{name}.img.xz").read_bytes())


def child(body: bytes, position: int = 0) -> int:
    return int.from_bytes(body[16 * position + 8 : 16 * position + 16], "little")


# --- damages of several fields --------------------------------------------------------------------------------

Plot = Callable[[Built], Awaitable[None]]
PLOTS: list[Plot] = []


def plot(function: Plot) -> Plot:
    PLOTS.append(function)
    return function


async def _index(built: Built, name: str) -> IndexRecord:
    found: IndexRecord = await built.record(child((await built.inode(name)).tail), IndexRecord)
    return found


async def _add(built: Built, directory: str | int, name: bytes, ino: int, kind: int = 4) -> None:
    """A name that all counts know."""
    inode = await built.inode(directory)
    built.inodes["plotted"] = inode.address
    leaf, entries = await built.entries("plotted")
    entry = Entry(first_key(name, built.superblock.hash_seed), ino, kind, name)
    await built.set_entries(leaf, [*entries, entry])
    inode = await built.inode(inode.address)
    inode.size, inode.children = inode.size + entry.size, inode.children + 1
    await built.put(inode)


@plot
async def an_index_block_is_its_own_child(built: Built) -> None:
    for name in ("many", "deep"):
        index = await _index(built, name)
        index.body = pack_pairs([0], [index.address])
        index.entries, index.level = 1, 1
        await built.put(index)


@plot
async def a_tree_six_levels_deep_goes_round(built: Built) -> None:
    index = await _index(built, "many")
    index.level, index.entries, index.body = 5, 1, pack_pairs([0], [index.address])
    await built.put(index)
    await built.change("many", depth=6)


@plot
async def a_tree_of_three_levels_of_which_each_names_one_block_only(built: Built) -> None:
    """15 million ways lead to one leaf: no walk may take them all."""
    for name in ("many", "deep"):
        index = await _index(built, name)
        leaf, upper = child(index.body), child(index.body, 1)
        index.entries, index.body = 250, pack_pairs([0, *range(1, 250)], [leaf] * 250)
        await built.put(index)
        above = IndexRecord(
            owner=index.owner, address=upper, generation=9, inode=index.inode, level=2, entries=250,
            body=pack_pairs([0, *range(1000, 250_000, 1000)], [index.address] * 250),
        )  # fmt: skip
        await built.put(above)
        keys = [0, *range(1 << 20, 240 << 20, 1 << 20)]
        await built.change(name, depth=3, entries=240, tail=pack_pairs(keys, [upper] * 240))


@plot
async def the_root_of_a_tree_is_its_own_child(built: Built) -> None:
    number = built.inodes["many"]
    await built.change("many", depth=1, entries=1, tail=pack_pairs([0], [number]))


@plot
async def two_files_share_a_tree(built: Built) -> None:
    many = await built.inode("many")
    await built.change("extents", depth=many.depth, entries=many.entries, tail=many.tail, size=many.size)


@plot
async def a_directory_and_a_file_share_a_tree(built: Built) -> None:
    deep = await built.inode("deep")
    await built.change("many", depth=deep.depth, entries=deep.entries, tail=deep.tail)


@plot
async def a_directory_is_in_itself(built: Built) -> None:
    await _add(built, "dir/sub", b"itself", built.inodes["dir/sub"])


@plot
async def directories_are_each_others_parents(built: Built) -> None:
    await _add(built, "dir/sub", b"above", built.inodes["dir"])
    await built.change("dir", parent=built.inodes["dir/sub"])


@plot
async def a_name_means_the_root(built: Built) -> None:
    await _add(built, "dir/sub", b"root", ROOT_INODE)


@plot
async def a_name_means_an_orphan_directory(built: Built) -> None:
    await _add(built, "dir/sub", b"orphans", ORPHANS_START)


@plot
async def the_orphan_directory_lists_itself_and_the_root(built: Built) -> None:
    for number in (ORPHANS_START, ROOT_INODE):
        await _add(built, ORPHANS_START, b"%016x" % number, number)
        await built.change(number, nlink=0, orphaned_by=1)


@plot
async def an_orphan_is_listed_twice(built: Built) -> None:
    number = built.inodes["dir/open and unlinked"]
    await _add(built, ORPHANS_START, b"%016x" % number, number, 8)


@plot
async def a_name_means_an_orphan(built: Built) -> None:
    await _add(built, "dir/sub", b"again", built.inodes["dir/open and unlinked"], 8)


@plot
async def an_orphan_that_an_orphan_directory_lists_is_removed_again(built: Built) -> None:
    number = built.inodes["small"]
    await _add(built, ORPHANS_START, b"%016x" % number, number, 8)


@plot
async def files_own_metadata_and_each_others_blocks(built: Built) -> None:
    group = built.superblock.group_start
    extents = [Extent(0, built.inodes["small"], 1), Extent(1, group, 2), Extent(5, built.inodes["many"], 9)]
    await built.change("extents", tail=pack_extents(extents), entries=3, size=20 * BLOCK_BYTES)


@plot
async def a_file_owns_blocks_that_are_free(built: Built) -> None:
    last = built.superblock.group_block(built.superblock.groups - 1)
    await built.change("extents", tail=pack_extents([Extent(0, last + 3, 9)]), entries=1)


@plot
async def a_file_owns_the_journals(built: Built) -> None:
    await built.change("extents", tail=pack_extents([Extent(0, 128, 64)]), entries=1)


@plot
async def all_groups_say_that_everything_is_free(built: Built) -> None:
    for index in range(built.superblock.groups):
        group = await built.record(built.superblock.group_block(index), GroupRecord)
        group.bitmap, group.free = b"\1", group.blocks - 1
        await built.put(group)


@plot
async def all_generations_are_the_greatest(built: Built) -> None:
    await _set_generations(built, MASK)


@plot
async def all_generations_are_the_greatest_that_can_be(built: Built) -> None:
    await _set_generations(built, GENERATION_MAX)


async def _set_generations(built: Built, generation: int) -> None:
    for number in (ROOT_INODE, *built.inodes.values()):
        await built.change(number, generation=generation)
    for index in range(built.superblock.groups):
        group = await built.record(built.superblock.group_block(index), GroupRecord)
        group.generation = group.generation_floor = generation
        await built.put(group)
    for journal in range(built.superblock.journals):
        header = await built.record(built.superblock.journal_block(journal), JournalHeader)
        header.generation = generation
        await built.put(header)


@plot
async def all_is_counted_as_the_greatest_that_can_be(built: Built) -> None:
    for block in await _quota_blocks(built):
        record = await built.record(block, QuotaRecord)
        record.body = AMOUNT_MAX.to_bytes(8, "little") * (len(record.body) // 8)
        await built.put(record)


@plot
async def the_quotas_tree_is_of_bitmaps_and_of_itself(built: Built) -> None:
    tree = await built.inode(QUOTA_INODE)
    extents = unpack_extents_untrusted(tree.tail, tree.entries, "", 1 << 40)
    for at, block in enumerate((built.superblock.group_block(1), QUOTA_INODE, built.inodes["small"])):
        extents[at] = extents[at]._replace(physical=block)
    await built.change(QUOTA_INODE, tail=pack_extents(extents))


async def _quota_blocks(built: Built) -> list[int]:
    tree = await built.inode(QUOTA_INODE)
    return [extent.physical for extent in unpack_extents_untrusted(tree.tail, tree.entries, "", 1 << 40)]


@plot
async def all_counts_are_zero(built: Built) -> None:
    for number in (ROOT_INODE, ORPHANS_START, *built.inodes.values()):
        await built.change(number, nlink=0, children=0, size=0, blocks=0)


@plot
async def all_counts_are_the_greatest(built: Built) -> None:
    top = (1 << 32) - 1
    for number in (ROOT_INODE, ORPHANS_START, *built.inodes.values()):
        times = {"mtime_ns": (1 << 63) - 1, "ctime_ns": (1 << 63) - 1}
        await built.change(number, nlink=top, children=MASK, blocks=MASK, data_version=MASK, **times)


@plot
async def every_inode_is_a_directory(built: Built) -> None:
    for number in built.inodes.values():
        inode: InodeRecord = await built.inode(number)
        await built.change(number, mode=stat.S_IFDIR | 0o755, layout=TREE, depth=min(inode.depth, 6))


@plot
async def groups_are_greater_than_memory(built: Built) -> None:
    superblock = await built.record(0, Superblock)
    superblock.group_shift = (1 << 32) - 1
    for block in (superblock.blocks_total - 1, 0):
        superblock.address = block
        await built.put(superblock)


@plot
async def files_without_extents_are_being_truncated(built: Built) -> None:
    for name in ("empty", "small", "symlink", "dir/sub"):
        await built.change(name, flags=FLAG_TRUNCATING)


@plot
async def a_link_of_exabytes(built: Built) -> None:
    await built.change("long symlink", size=1 << 62)


@plot
async def directories_lie_in_their_inodes(built: Built) -> None:
    for number in (ORPHANS_START, built.inodes["dir/sub"]):
        await built.change(number, layout=INLINE, size=0)


@plot
async def a_directory_of_names_of_one_hash(built: Built) -> None:
    first = first_key(b"same", built.superblock.hash_seed)
    entries = [Entry(first + i, built.inodes["small"], 8, b"n%03d" % i) for i in range(128)]
    inode = await built.inode("dir")
    await built.change(
        "dir", tail=pack_entries(entries), entries=len(entries), children=len(entries), size=22 * 128, nlink=inode.nlink
    )


@plot
async def a_directory_of_empty_names(built: Built) -> None:
    await built.change("dir", tail=pack_entries([Entry(1, built.inodes["small"], 8, b"")]), entries=1)


def cut(disk: SimDisk, blocks: int) -> SimDisk:
    """The store without what lies behind so many blocks."""
    short = SimDisk(blocks * BLOCK_BYTES, disk.sector_bytes)
    short.restore(disk.snapshot())
    return short


CUTS = (DATA_BLOCK + 2, DATA_BLOCK + 100, DATA_BLOCK + BLOCKS // 2, DATA_BLOCK + BLOCKS)
