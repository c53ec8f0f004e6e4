"""Verbs for the store's own parts: stat, label, superblock, group, map, journal, orphans, block."""

from __future__ import annotations

import uuid
from typing import Any

from matrixfs.debug.finding import index_of, number_of
from matrixfs.debug.items import Item, Items, facts, line, row
from matrixfs.debug.store import Store
from matrixfs.debug.structures import fields_of, show, time_text, verdict
from matrixfs.fs.groups import free_runs
from matrixfs.fsck.area import read_groups
from matrixfs.fsck.context import reason
from matrixfs.ondisk.features import feature_names
from matrixfs.ondisk.group import BITMAP_BYTES, GroupRecord
from matrixfs.ondisk.journal import CLEAN, DIRTY, JournalHeader
from matrixfs.ondisk.superblock import ORPHANS_START, ROOT_INODE, Superblock
from membership.errors import CorruptRecord
from membership.label import BLOCK_BYTES, Label

DUMP_BYTES = 256  # of a block that holds no structure
STATES = {CLEAN: "clean", DIRTY: "dirty"}


async def stat_store(store: Store) -> Items:
    """The store in a few lines."""
    superblock, label = store.superblock, store.label
    used = free = damaged = 0
    async for _, group in read_groups(store.area):
        if isinstance(group, CorruptRecord):
            damaged += 1
        else:
            free += group.free
            used += group.blocks - group.free
    values: dict[str, Any] = {
        "filesystem": superblock.name,
        "uuid": str(uuid.UUID(bytes=superblock.owner)),
        "cluster": label.cluster_name if label is not None else "(label damaged)",
        "disk": label.name if label is not None else "(label damaged)",
        "created": time_text(superblock.created_ns),
        "features": ", ".join(feature_names(superblock.features_incompatible)) or "none",
        "blocks": superblock.blocks_total,
        "blocks_system": superblock.group_start + 1,
        "blocks_used": used,
        "blocks_free": free,
        "groups": superblock.groups,
        "groups_damaged": damaged,
        "blocks_per_group": 1 << superblock.group_shift,
        "journals": superblock.journals,
        "journal_blocks": superblock.journal_blocks,
    }
    wrong = [f"{damaged} groups are damaged: see map"] if damaged else []
    yield facts("stat", f"store {store.device.name}", values, wrong)
    for index in range(superblock.journals):
        yield await _journal_state(store, index)


async def _journal_state(store: Store, index: int) -> Item:
    block = store.superblock.journal_block(index)
    data = await store.read(block)
    header = fields_of(JournalHeader, data)
    wrong = verdict(JournalHeader, data, store.superblock.owner, block)
    state = STATES.get(header["state"], f"state {header['state']}")
    values = {
        "journal": index,
        "block": block,
        "state": state,
        "node": header["node"],
        "generation": header["generation"],
    }
    text = f"  journal {index} at block {block}: {state}, last used by node {header['node']}"
    return line("journal", text, values, [f"journal {index}: header: {wrong}"] if wrong else [])


async def label(store: Store, *, copy: bool) -> Items:
    """The disk's label, or its copy."""
    known = store.label
    end = known.data_block + known.data_blocks if known is not None else store.device.size_bytes // BLOCK_BYTES - 1
    block = end if copy else 0
    data = await store.device.read(block * BLOCK_BYTES, BLOCK_BYTES)
    yield show(Label, data, f"label in block {block} of the disk", owner=None, address=block, blocks_total=0)


async def superblock(store: Store, *, copy: bool) -> Items:
    """The superblock, or its copy, also when it can't be used."""
    window = store.window()
    block = store.copy_block if copy else 0
    data = await window.read(block * BLOCK_BYTES, BLOCK_BYTES)
    yield show(Superblock, data, f"superblock in block {block}", owner=None, address=block, blocks_total=0)


async def group(store: Store, index: str) -> Items:
    """One allocation group and its free runs."""
    number = index_of(index, store.superblock.groups, "group")
    block = store.superblock.group_block(number)
    yield store.show(GroupRecord, await store.read(block), f"group {number}", block)


async def free_map(store: Store) -> Items:
    """What is free, a line for each group."""
    largest_of_all = 0
    async for index, found in read_groups(store.area):
        block = store.superblock.group_block(index)
        if isinstance(found, CorruptRecord):
            yield line("group", f"group {index:<6} block {block}", {"group": index, "block": block}, [
                f"group {index} is damaged ({reason(found)})"
            ])  # fmt: skip
            continue
        runs = free_runs(found.bitmap, min(found.blocks, BITMAP_BYTES * 8))
        free, largest = sum(length for _, length in runs), max((length for _, length in runs), default=0)
        largest_of_all = max(largest_of_all, largest)
        values = {
            "group": index, "block": block, "blocks": found.blocks, "free": free, "runs": len(runs), "largest": largest,
        }  # fmt: skip
        spread = f"{free:>6} of {found.blocks} free in {len(runs)} runs, largest {largest}"
        text = f"group {index:<6} block {block:<12} {spread}"
        wrong = (
            [] if free == found.free else [f"group {index} says {found.free} blocks are free, its bitmap says {free}"]
        )
        yield line("group", text, values, wrong)
    yield line("largest", f"the largest free run has {largest_of_all} blocks", {"largest": largest_of_all})


# --- any block ------------------------------------------------------------------------------------------------


async def block(store: Store, number: str) -> Items:
    """Whatever lies in a block: what it is for, and the structure in it, or its first bytes."""
    at = number_of(number, "the number of a block")
    data = await store.read(at)
    yield line("place", f"block {at}: {await _place(store, at)}", {"block": at, "place": await _place(store, at)})
    kind = store.kinds.get(data[:8])
    if kind is not None:
        yield store.show(kind, data, f"block {at}", at)
        return
    lines = [row(f"{i:#06x}", data[i : i + 32].hex(" ", 4)) for i in range(0, DUMP_BYTES, 32)]
    yield Item(
        ["  no structure of this filesystem; its first bytes:", *lines],
        {"kind": "bytes", "block": at, "hex": data.hex()},
    )


async def _place(store: Store, at: int) -> str:
    """What a block is for, by its number."""
    superblock = store.superblock
    fixed = {
        0: "the superblock",
        superblock.blocks_total - 1: "the superblock's copy",
        ROOT_INODE: "the root directory",
    }
    if at in fixed:
        return fixed[at]
    if ORPHANS_START <= at < ORPHANS_START + superblock.journals:
        return f"the orphan directory of journal {at - ORPHANS_START}"
    for index in range(superblock.journals):
        if at in store.journal_blocks(index):
            return f"journal {index}, position {store.journal_blocks(index).index(at)}"
    if at < superblock.group_start:
        return "not used"
    try:
        index = superblock.group_of(at)
    except CorruptRecord:
        return "behind the filesystem"
    bit = at - superblock.group_block(index)
    if bit == 0:
        return f"the bitmap of group {index}"
    group_fields = fields_of(GroupRecord, await store.read(superblock.group_block(index)))
    used = bit < BITMAP_BYTES * 8 and group_fields["bitmap"][bit >> 3] >> (bit & 7) & 1
    return f"in group {index}, which says it is {'in use' if used else 'free'}"
