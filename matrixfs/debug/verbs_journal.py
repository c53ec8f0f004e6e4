"""Verbs for what belongs to one node: its journal, and the orphans that it left."""

from __future__ import annotations

import stat
from typing import Any

from matrixfs.debug.contents import images_of
from matrixfs.debug.finding import index_of
from matrixfs.debug.items import Item, Items, line, problem
from matrixfs.debug.store import Store
from matrixfs.debug.structures import fields_of, verdict
from matrixfs.debug.trees import leaf_items
from matrixfs.fsck.context import printable
from matrixfs.ondisk.journal import FrameRecord, JournalHeader, is_data
from matrixfs.ondisk.superblock import ORPHANS_START


async def journal(store: Store, index: str, *, frames: bool) -> Items:
    """A journal's header, and with ``frames`` what its log holds."""
    number = index_of(index, store.superblock.journals, "journal")
    blocks = store.journal_blocks(number)
    data = await store.read(blocks[0])
    yield store.show(JournalHeader, data, f"journal {number}", blocks[0])
    if frames:
        async for item in _frames(store, blocks, fields_of(JournalHeader, data)):
            yield item


async def _frames(store: Store, blocks: range, header: dict[str, Any]) -> Items:
    """The frames that a replay would read, in order; each has the next sequence number, so none comes twice."""
    sequence, position, count = header["sequence_first"], header["block_first"], 0
    while True:
        found = await _frame_at(store, blocks, position, sequence, header["salt"])
        if found is None:
            break
        position, data = found
        title = f"frame {sequence} at position {position}"
        yield store.show(FrameRecord, data, title, blocks[position])
        async for item in _images(store, blocks[position + 1 :], data, title):
            yield item
        position += 1 + fields_of(FrameRecord, data)["images"]
        sequence, count = sequence + 1, count + 1
    text = f"the log ends before sequence {sequence}, after {count} frames"
    yield line("end", text, {"frames": count, "sequence_next": sequence})


async def _frame_at(store: Store, blocks: range, position: int, sequence: int, salt: int) -> tuple[int, bytes] | None:
    """The frame numbered ``sequence``: at ``position``, or at 1 when it did not fit there."""
    for at in dict.fromkeys((position, 1)):
        if not 1 <= at < len(blocks):
            continue
        data = await store.read(blocks[at])
        fields = fields_of(FrameRecord, data)
        if data[:8] == FrameRecord.MAGIC and (fields["sequence"], fields["salt"]) == (sequence, salt):
            return at, data
    return None


async def _images(store: Store, behind: range, data: bytes, title: str) -> Items:
    """What the images of a frame are, in the blocks behind it."""
    read = await store.read_many(behind[: fields_of(FrameRecord, data)["images"]])
    listed = images_of(data)
    for number, image in sorted(read.items()):
        block, generation = listed.get(number - behind[0], (0, 0))
        if is_data(generation):
            values: dict[str, Any] = {"block": number, "structure": "data", "of_block": block}
            yield line("image", f"    image in block {number}: file data of block {block}", values)
            continue
        kind = store.kinds.get(image[:8])
        name = kind.__name__ if kind is not None else "no structure"
        address = int.from_bytes(image[32:40], "little")
        wrong = verdict(kind, image, store.superblock.owner, address) if kind is not None else "no known magic"
        values = {"block": number, "structure": name, "of_block": address}
        problems = [f"{title}, image in block {number}: {wrong}"] if wrong else []
        yield line("image", f"    image in block {number}: {name} of block {address}", values, problems)


# --- orphans ----------------------------------------------------------------------------------------------------


async def orphans(store: Store) -> Items:
    """The inodes without names, by the journal whose list they stand in."""
    for index in range(store.superblock.journals):
        directory, wrong = await store.inode(ORPHANS_START + index)
        count = 0
        if directory is not None:
            async for node, entries in leaf_items(store, directory):
                for text in node.problems:
                    yield problem(f"orphan directory {index}: {text}")
                for entry in entries:
                    count += 1
                    yield await _orphan(store, index, entry.inode, printable(entry.name))
        problems = [f"orphan directory of journal {index}: {wrong}"] if wrong else []
        yield line("orphans", f"journal {index}: {count} orphans", {"journal": index, "orphans": count}, problems)


async def _orphan(store: Store, journal_index: int, number: int, name: str) -> Item:
    inode, wrong = await store.inode(number)
    values: dict[str, Any] = {"journal": journal_index, "inode": number, "name": name}
    if inode is None:
        return line("orphan", f"  inode {number}", values, [wrong])
    values |= {"mode": inode.mode, "size": inode.size, "blocks": inode.blocks}
    text = f"  inode {number}: {stat.filemode(inode.mode & 0xFFFF)}, {inode.size} bytes, {inode.blocks} blocks"
    return line("orphan", text, values, [wrong] if wrong else [])
