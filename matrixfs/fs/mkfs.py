"""Make an empty filesystem in a data area (what mkfs.matrixfs calls after the label is safe).

Only what a mount reads or writes at once is written: the superblock and its copy, the root and the orphan
directories, the journals (zeroed), one bitmap block per allocation group; so a large area takes little
longer than a small one.  Nothing else needs zeroing: every metadata block carries
the new filesystem's uuid, and what an earlier one left behind carries another (R7).

Invariant M1: block 0 is zero, durably, before anything else is written, and becomes the superblock only
when all the rest is durable; so an interrupted mkfs is no filesystem rather than a damaged one.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from matrixfs.fs.parallel import for_each
from matrixfs.ondisk.group import BITMAP_BYTES, GroupRecord
from matrixfs.ondisk.inode import TREE, InodeRecord
from matrixfs.ondisk.journal import CLEAN, JournalHeader
from matrixfs.ondisk.superblock import (
    GROUP_SHIFT_MAX,
    GROUP_SHIFT_MIN,
    INCOMPATIBLE_NEW,
    JOURNAL_BLOCKS_MIN,
    JOURNALS_MAX,
    ORPHANS_START,
    QUOTA_INODE,
    QUOTAS,
    ROOT_INODE,
    SYSTEM_BLOCKS,
    Superblock,
)
from membership.errors import OperatorError
from membership.label import BLOCK_BYTES, NAME_BYTES_MAX
from membership.records import Record
from membership.seams import Clock, Rng, SectorDevice

AREA_BLOCKS_MIN = 2048  # 8 MiB: below it the journals would leave no room for files
GROUPS_WANTED = 16  # several nodes each prefer groups of their own, so small stores get smaller groups
GROUPS_MIN = 4
CLEAR_BLOCKS = 256  # zeroed at once: 1 MiB
CLEAR_WORKERS = 8
JOURNAL_BLOCKS_DEFAULT_MIN = 256
JOURNAL_BLOCKS_DEFAULT_MAX = 16384
JOURNAL_SHARE = 4  # by default all journals together take at most 1/4 of the area
JOURNAL_BLOCKS_LIMIT = 1 << 24  # superblock.check_untrusted refuses more
WRITERS = 32  # writes in flight: enough for the store's queue, few enough to bound memory


@dataclass(frozen=True, slots=True)
class Geometry:
    """Where the parts of an area lie, in blocks: see ``matrixfs/ondisk/superblock.py`` for each."""

    blocks_total: int
    journals: int
    journal_blocks: int
    group_start: int
    group_shift: int
    groups: int


def plan_volume(blocks_total: int, journals: int, journal_blocks: int | None) -> Geometry:
    """Choose the geometry of an area.

    Args:
        blocks_total: blocks of the area.
        journals: how many nodes can mount at once.
        journal_blocks: blocks of each journal, or None to choose by the size of the area.

    Raises:
        OperatorError: the area is too small for what was asked.
    """
    if not 1 <= journals <= JOURNALS_MAX:
        raise OperatorError(f"{journals} journals: choose between 1 and {JOURNALS_MAX}, one for every node that mounts")
    if journal_blocks is not None and not JOURNAL_BLOCKS_MIN <= journal_blocks <= JOURNAL_BLOCKS_LIMIT:
        raise OperatorError(
            f"journals of {_size_text(journal_blocks)}: choose between {_size_text(JOURNAL_BLOCKS_MIN)}"
            f" and {_size_text(JOURNAL_BLOCKS_LIMIT)}"
        )
    if blocks_total < AREA_BLOCKS_MIN:
        raise OperatorError(
            f"the data area has {_size_text(blocks_total)}, a filesystem needs {_size_text(AREA_BLOCKS_MIN)}:"
            " give it a larger store"
        )
    shift = min(GROUP_SHIFT_MAX, max(GROUP_SHIFT_MIN, (blocks_total // GROUPS_WANTED).bit_length() - 1))
    chosen = journal_blocks if journal_blocks is not None else _journal_blocks_default(blocks_total, journals)
    group_start = _round_up(SYSTEM_BLOCKS + journals * chosen, 1 << shift)
    if journal_blocks is None:
        # Groups start at a multiple of their size; what that leaves over makes the journals longer instead of idle.
        chosen = min(JOURNAL_BLOCKS_DEFAULT_MAX, (group_start - SYSTEM_BLOCKS) // journals)
    # The last block is the superblock's copy; a last group of less than two blocks could hold nothing.
    groups = max(0, (blocks_total - 1 - group_start - 2) // (1 << shift) + 1)
    if groups < GROUPS_MIN:
        raise OperatorError(
            f"{journals} journals of {_size_text(chosen)} leave too little of {_size_text(blocks_total)}"
            " for files: take fewer or shorter journals, or a larger store"
        )
    return Geometry(blocks_total, journals, chosen, group_start, shift, groups)


async def format_volume(
    device: SectorDevice,
    *,
    name: str,
    journals: int,
    journal_blocks: int | None,
    clock: Clock,
    rng: Rng,
    quotas: bool = False,
) -> Superblock:
    """Write an empty filesystem.

    Args:
        device: the data area alone; its offset 0 is the filesystem's block 0.
        name: what mount(8) calls the filesystem.
        journals: how many nodes can mount at once.
        journal_blocks: blocks of each journal, or None to choose by the size of the area.
        clock: for the time of creation.
        rng: for the uuid, the directory hash seed and the journals' salts.
        quotas: whether what users, groups and projects use is counted.

    Raises:
        OperatorError: the name or the sizes won't do; nothing was written.
        DeviceError: I/O failed; the area holds no filesystem.
    """
    _check_name(name)
    geometry = plan_volume(device.size_bytes // BLOCK_BYTES, journals, journal_blocks)
    superblock = _superblock(name, geometry, clock, rng)
    superblock.features_read_only = QUOTAS if quotas else 0
    await device.write(0, bytes(BLOCK_BYTES), durable=True)  # M1
    await clear_journals(device, superblock.journal_start, superblock.journals * superblock.journal_blocks)
    await write_all(device, _system_records(superblock, rng))
    await write_all(device, (empty_group(superblock, index) for index in range(superblock.groups)))
    await device.flush()
    await device.write(0, superblock.encode(), durable=True)
    await device.flush()
    return superblock


async def clear_journals(device: SectorDevice, start: int, blocks: int) -> None:
    """Write zeros through journals.  Raises DeviceError, Fenced.

    No frame of an earlier filesystem is left, and a store in a sparse file gets its blocks now (measured on ext4: a
    durable write takes 0.25 ms into written blocks, 4 ms into a hole).
    """
    end = start + blocks
    chunks = [(at, min(CLEAR_BLOCKS, end - at)) for at in range(start, end, CLEAR_BLOCKS)]
    await for_each(
        chunks, lambda chunk: device.write(chunk[0] * BLOCK_BYTES, bytes(chunk[1] * BLOCK_BYTES)), workers=CLEAR_WORKERS
    )


def empty_group(superblock: Superblock, index: int) -> GroupRecord:
    """Group ``index`` with nothing in it but its own block.

    Bits past the group's end are set: whoever looks for clear bits never finds one that is no block.
    """
    blocks = superblock.group_size(index)
    bits = ((1 << BITMAP_BYTES * 8) - 1) ^ ((1 << blocks) - 1) | 1
    return GroupRecord(
        owner=superblock.owner,
        address=superblock.group_block(index),
        generation=1,
        index=index,
        blocks=blocks,
        free=blocks - 1,
        bitmap=bits.to_bytes(BITMAP_BYTES, "little"),
    )


def superblock_copy(superblock: Superblock) -> Superblock:
    """The same superblock as it stands in the last block of the area."""
    fields = {name: getattr(superblock, name) for name in superblock.FIELDS}
    last = superblock.blocks_total - 1
    return Superblock(owner=superblock.owner, address=last, generation=superblock.generation, **fields)


def _check_name(name: str) -> None:
    """Raise OperatorError unless ``name`` can stand in fstab and in messages as one word."""
    usable = name.isprintable() and not any(c.isspace() or c in "/," for c in name) and name[:1] not in ("", "-", ".")
    if not usable or len(name.encode()) > NAME_BYTES_MAX:
        raise OperatorError(f"{name!r} can't name a filesystem: use letters and digits, at most {NAME_BYTES_MAX} bytes")


def _journal_blocks_default(blocks_total: int, journals: int) -> int:
    by_size = max(JOURNAL_BLOCKS_DEFAULT_MIN, min(JOURNAL_BLOCKS_DEFAULT_MAX, blocks_total // 256))
    by_share = max(JOURNAL_BLOCKS_MIN, blocks_total // JOURNAL_SHARE // journals)
    return min(by_size, by_share)


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step


def _size_text(blocks: int) -> str:
    size = blocks * BLOCK_BYTES
    return f"{size / (1 << 20):.4g} MiB" if size >= 1 << 20 else f"{size >> 10} KiB"


def _superblock(name: str, geometry: Geometry, clock: Clock, rng: Rng) -> Superblock:
    uuid = bytearray(rng.randbytes(16))
    uuid[6] = uuid[6] & 0x0F | 0x40  # RFC 9562: version 4,
    uuid[8] = uuid[8] & 0x3F | 0x80  # variant 1
    return Superblock(
        owner=bytes(uuid),
        address=0,
        generation=1,
        name=name,
        features_incompatible=INCOMPATIBLE_NEW,
        blocks_total=geometry.blocks_total,
        journal_start=SYSTEM_BLOCKS,
        journal_blocks=geometry.journal_blocks,
        journals=geometry.journals,
        group_start=geometry.group_start,
        groups=geometry.groups,
        group_shift=geometry.group_shift,
        hash_seed=_random_u64(rng),
        created_ns=clock.wall_ns(),
    )


def _system_records(superblock: Superblock, rng: Rng) -> list[Record]:
    """All but the groups and block 0."""
    records: list[Record] = [_directory(superblock, ROOT_INODE, 0o755)]
    for index in range(superblock.journals):
        records += journal_records(superblock, index, rng)
    if superblock.has_quotas:
        records.append(quota_inode(superblock))
    records.append(superblock_copy(superblock))
    return records


def journal_records(superblock: Superblock, index: int, rng: Rng) -> list[Record]:
    """What an empty journal consists of: its orphan directory and its header."""
    header = JournalHeader(
        owner=superblock.owner,
        address=superblock.journal_block(index),
        generation=1,
        index=index,
        state=CLEAN,
        salt=_random_u64(rng),
        sequence_first=1,
        block_first=1,
    )
    return [_directory(superblock, ORPHANS_START + index, 0o700), header]


def quota_inode(superblock: Superblock) -> InodeRecord:
    """The inode of the quotas' tree, with nothing in it."""
    return InodeRecord(
        owner=superblock.owner, address=QUOTA_INODE, generation=1,
        mode=stat.S_IFREG | 0o600, nlink=1, incarnation=1, layout=TREE,
    )  # fmt: skip


def _directory(superblock: Superblock, inode: int, permissions: int) -> InodeRecord:
    """An empty directory that is its own parent."""
    now = superblock.created_ns
    return InodeRecord(
        owner=superblock.owner,
        address=inode,
        generation=1,
        mode=stat.S_IFDIR | permissions,
        nlink=2,
        atime_ns=now,
        mtime_ns=now,
        ctime_ns=now,
        btime_ns=now,
        incarnation=1,
        layout=TREE,
        parent=inode,
    )


def _random_u64(rng: Rng) -> int:
    value: int = struct.unpack("<Q", rng.randbytes(8))[0]
    return value


async def write_all(device: SectorDevice, records: Iterable[Record]) -> None:
    """Write each record to its address, ``WRITERS`` at a time.  Raises DeviceError, Fenced."""

    async def write(record: Record) -> None:
        await device.write(record.address * BLOCK_BYTES, record.encode())

    await for_each(records, write, workers=WRITERS)
