"""Carrying out repairs, through a journal as a mount's changes go (F5).

Changed blocks are collected with their generation raised by one, written to a clean journal as transactions, and
brought home by the same replay that recovers a dead node.  A crash leaves a dirty journal, which the next fsck or
mount replays; a second fsck repairs the rest.  Where one repair takes several transactions (a large orphan), the
first one takes the names away and the later ones free the blocks, so what a crash leaves is leaked at worst.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Callable, Iterable
from typing import TypeVar

from fastcrc import crc32

from matrixfs.fs.mkfs import superblock_copy
from matrixfs.fs.replay import read_journal_header, replay
from matrixfs.fsck import quota_tree
from matrixfs.fsck.area import Area
from matrixfs.fsck.blockmap import BlockMap
from matrixfs.fsck.context import Context, Progress
from matrixfs.fsck.fixes import (
    ClearBits,
    Fix,
    FreeInode,
    LowerLinks,
    RebuildGroup,
    RebuildQuotas,
    RemoveEntry,
    SetBits,
    SetInode,
    SetKind,
    WriteLabel,
    WriteSuperblock,
)
from matrixfs.fsck.groups import enlarge, is_short, padding
from matrixfs.fsck.inodes import check_content
from matrixfs.fsck.lost import greatest_generation
from matrixfs.fsck.problems import Findings
from matrixfs.fsck.trees import Leaf, TreeWalk
from matrixfs.fsck.xattrs import check_attributes
from matrixfs.ondisk.directory import DirectoryLeafRecord, Entry, pack_entries, unpack_entries_untrusted
from matrixfs.ondisk.group import BITMAP_BYTES, GroupRecord
from matrixfs.ondisk.inode import INLINE, InodeRecord
from matrixfs.ondisk.journal import CLEAN, DIRTY, IMAGES_MAX, FrameRecord, pack_frame_body
from matrixfs.ondisk.superblock import QUOTA_INODE
from membership.errors import CorruptRecord, OperatorError
from membership.label import BLOCK_BYTES, Label
from membership.records import Record, next_generation
from membership.seams import Rng, SectorDevice

TRANSACTION_MAX = 400  # images of one transaction, where the journal has room for them

_R = TypeVar("_R", bound=Record)


class Repair:
    """One round of repairs.

    Args:
        disk: the whole disk, for its label.
        label: its sound label.
        area: the data area, with a sound superblock.
        rng: for the salt of the frames.
        progress: shown while large orphans are walked.
    """

    def __init__(self, disk: SectorDevice, label: Label, area: Area, rng: Rng, progress: Progress) -> None:
        self._disk = disk
        self._label = label
        self._area = area
        self._rng = rng
        self._progress = progress
        self._owner = area.superblock.owner
        self._changed: dict[int, Record] = {}  # block -> what it shall be

    async def run(self, fixes: Iterable[Fix]) -> None:
        """Carry out ``fixes`` in an order that is safe to interrupt.  All are durable on return.

        Raises:
            OperatorError: no journal can take them.
            CorruptRecord: the store changed since it was checked.
            DeviceError, Fenced: I/O failed.
        """
        freed: list[FreeInode] = []
        quotas: RebuildQuotas | None = None
        for fix in fixes:
            if isinstance(fix, FreeInode):
                freed.append(fix)
            elif isinstance(fix, RebuildQuotas):  # whatever is wrong with them, once, where nothing else lies
                quotas = fix
            else:
                await self._apply(fix)
        if quotas is not None:
            await self.rebuild_quotas(quotas)
        if freed:
            await self._free(freed)
        await self._commit()

    async def _apply(self, fix: Fix) -> None:
        match fix:
            case SetInode(inode, changes):
                await self._set_inode(inode, changes)
            case LowerLinks(inode, nlink):
                await self._set_inode(inode, (("nlink", nlink),))
            case RemoveEntry():
                await self._remove_entry(fix)
            case SetKind(directory, block, key, kind):
                await self._edit_entries(
                    directory, block, lambda old: [e._replace(kind=kind) if e.key == key else e for e in old]
                )
            case SetBits(group, bits):
                await self._set_group(group, set_bits=bits)
            case ClearBits(group, bits, floor):
                await self._set_group(group, clear_bits=bits, floor=floor)
            case RebuildGroup(group, bitmap, floor):
                self._rebuild_group(group, bitmap, floor)
            case WriteSuperblock(block):
                superblock = self._area.superblock
                data = (superblock if block == 0 else superblock_copy(superblock)).encode()
                await self._area.device.write(block * BLOCK_BYTES, data, durable=True)
            case WriteLabel(block):
                self._label.address = block
                await self._disk.write(block * BLOCK_BYTES, self._label.encode(), durable=True)
            case _:
                raise AssertionError(fix)

    # --- inodes and names -------------------------------------------------------------------------------------

    async def _set_inode(self, number: int, changes: Iterable[tuple[str, int]]) -> None:
        inode = await self._edit(number, InodeRecord)
        for name, value in changes:
            setattr(inode, name, value)

    async def _remove_entry(self, fix: RemoveEntry) -> None:
        removed = await self._edit_entries(
            fix.directory, fix.block, lambda old: [entry for entry in old if entry.key != fix.key]
        )
        inode = await self._edit(fix.directory, InodeRecord)
        inode.size = max(0, inode.size - sum(entry.size for entry in removed))
        inode.children = max(0, inode.children - len(removed))

    async def _edit_entries(
        self, directory: int, block: int, change: Callable[[list[Entry]], list[Entry]]
    ) -> list[Entry]:
        """Change the entries of a leaf, or of the inode itself; return those that are gone."""
        if block == directory:
            inode = await self._edit(directory, InodeRecord)
            old = unpack_entries_untrusted(inode.tail, inode.entries, f"inode {directory}")
            new = change(old)
            inode.tail, inode.entries = pack_entries(new), len(new)
        else:
            leaf = await self._edit(block, DirectoryLeafRecord)
            old = unpack_entries_untrusted(leaf.body, leaf.entries, f"block {block}")
            new = change(old)
            leaf.body, leaf.entries = pack_entries(new), len(new)
        kept = {entry.key for entry in new}
        return [entry for entry in old if entry.key not in kept]

    async def _free(self, fixes: list[FreeInode]) -> None:
        """Make tombstones of inodes without names, then free their blocks."""
        superblock = self._area.superblock
        freed = Context(self._area, BlockMap(superblock.blocks_total), self._progress, Findings())
        floor = 0
        for fix in fixes:
            inode = await self._edit(fix.inode, InodeRecord)
            freed.map.claim(fix.inode)
            floor = max(floor, inode.generation, await self._claim_tree(freed, inode))
            if fix.entry is not None:
                await self._remove_entry(fix.entry)
            inode.mode = inode.nlink = inode.orphaned_by = inode.flags = 0
            inode.size = inode.blocks = inode.depth = inode.entries = inode.children = 0
            inode.layout, inode.tail = INLINE, b""
            inode.attributes, inode.inline_length, inode.inline_attributes = 0, 0, b""
        await self._commit()
        for index in range(superblock.groups):
            bits = freed.map.bits(superblock.group_block(index), superblock.group_size(index))
            if bits:
                await self._set_group(index, clear_bits=bits, floor=floor)

    @staticmethod
    async def _claim_tree(freed: Context, inode: InodeRecord) -> int:
        """Claim an inode's blocks; return the greatest generation among them."""
        if stat.S_ISDIR(inode.mode):
            walk = TreeWalk(freed, inode, _ignore)
            await walk.run()
            await check_attributes(freed, inode, walk)
        else:
            walk = await check_content(freed, inode)
        return walk.generation

    # --- quotas -----------------------------------------------------------------------------------------------

    async def rebuild_quotas(self, fix: RebuildQuotas) -> None:
        """Write the quotas' tree anew, then free the old one: what a crash leaves is rebuilt by the next fsck.

        Raises OperatorError when there is no space; DeviceError, Fenced.
        """
        found = quota_tree.bodies(fix)
        places = await self._take(quota_tree.blocks_needed(len(found)))
        try:
            inode = await self._edit(QUOTA_INODE, InodeRecord)
        except CorruptRecord:
            inode = InodeRecord(owner=self._owner, address=QUOTA_INODE, generation=1)
            self._changed[QUOTA_INODE] = inode
        for record in quota_tree.plant(inode, found, iter(places), self._owner):
            self._changed[record.address] = record
        await self._commit()
        by_group: dict[int, int] = {}
        for block in fix.old:
            index = self._area.superblock.group_of(block)
            by_group[index] = by_group.get(index, 0) | 1 << (block - self._area.superblock.group_block(index))
        for index, bits in by_group.items():
            floor = await greatest_generation(self._area, index, bits)
            await self._set_group(index, clear_bits=bits, floor=floor)

    async def _take(self, count: int) -> list[quota_tree.Place]:
        """Mark free blocks in use; (block, generation to begin with) of each."""
        superblock = self._area.superblock
        taken: list[quota_tree.Place] = []
        for index in range(superblock.groups):
            if len(taken) == count:
                break
            group = await self._edit(superblock.group_block(index), GroupRecord)
            bits = int.from_bytes(group.bitmap, "little")
            free = [at for at in range(group.blocks) if not bits >> at & 1][: count - len(taken)]
            await self._set_group(index, set_bits=sum(1 << at for at in free))
            taken += [(group.address + at, next_generation(group.generation_floor)) for at in free]
        if len(taken) < count:
            raise OperatorError(f"{self._area.device.name}: no space for the quotas: {count} blocks are needed")
        return taken

    # --- groups ---------------------------------------------------------------------------------------------------

    async def _set_group(self, index: int, *, set_bits: int = 0, clear_bits: int = 0, floor: int = 0) -> None:
        """Change a group's bitmap; all that follows from it is set right too."""
        group = await self._edit(self._area.superblock.group_block(index), GroupRecord)
        if is_short(group, index, self._area.superblock.group_size(index)):
            enlarge(group, self._area.superblock.group_size(index))
        bits = int.from_bytes(group.bitmap, "little") & ~clear_bits | set_bits
        self._settle_group(group, index, bits, max(group.generation_floor, floor))

    def _rebuild_group(self, index: int, bitmap: bytes, floor: int) -> None:
        block = self._area.superblock.group_block(index)
        group = GroupRecord(owner=self._owner, address=block, generation=next_generation(floor))
        self._settle_group(group, index, int.from_bytes(bitmap, "little"), floor)
        self._changed[block] = group

    def _settle_group(self, group: GroupRecord, index: int, bits: int, floor: int) -> None:
        size = self._area.superblock.group_size(index)
        bits |= padding(size)
        group.index, group.blocks, group.generation_floor = index, size, floor
        group.bitmap = bits.to_bytes(BITMAP_BYTES, "little")
        group.free = size - (bits & ((1 << size) - 1)).bit_count()

    # --- blocks and the journal -------------------------------------------------------------------------------

    async def _edit(self, block: int, kind: type[_R]) -> _R:
        """The record in a block, to be changed by the caller.  Raises CorruptRecord, DeviceError."""
        changed = self._changed.get(block)
        if changed is None:
            where = f"block {block}"
            changed = kind.decode_untrusted(await self._area.read(block), where, owner=self._owner, address=block)
            changed.generation = next_generation(changed.generation)
            self._changed[block] = changed
        if not isinstance(changed, kind):
            raise CorruptRecord(f"block {block}", "magic", kind.MAGIC, changed.MAGIC)
        return changed

    async def _commit(self) -> None:
        """Make all changes durable."""
        records = [self._changed[block] for block in sorted(self._changed)]
        self._changed = {}
        if not records:
            return
        index = await self._clean_journal()
        # Frame heads need room too: one for every IMAGES_MAX images.
        room = self._area.superblock.journal_length(index) - 1
        portion = min(TRANSACTION_MAX, room * IMAGES_MAX // (IMAGES_MAX + 1) - 1)
        for at in range(0, len(records), portion):
            await self._write_transaction(index, records[at : at + portion])

    async def _clean_journal(self) -> int:
        for index in range(self._area.superblock.journals):
            try:
                header = await read_journal_header(self._area.device, self._area.superblock, index)
            except CorruptRecord:
                continue
            if header.state == CLEAN:
                return index
        raise OperatorError(f"{self._area.device.name}: no clean journal to repair with")

    async def _write_transaction(self, index: int, records: list[Record]) -> None:
        """Log the records as one transaction, and replay it."""
        device, superblock = self._area.device, self._area.superblock
        header = await read_journal_header(device, superblock, index)
        header.state, header.node = DIRTY, 0
        header.incarnation, header.salt = struct.unpack("<QQ", self._rng.randbytes(16))  # nobody's
        header.sequence_first = header.block_first = position = 1
        header.generation = next_generation(header.generation)
        await device.write(header.address * BLOCK_BYTES, header.encode(), durable=True)
        parts = [records[at : at + IMAGES_MAX] for at in range(0, len(records), IMAGES_MAX)]
        for part, images in enumerate(parts):
            payload = b"".join(image.encode() for image in images)
            frame = FrameRecord(
                owner=self._owner,
                address=header.address + position,
                generation=part + 1,
                salt=header.salt,
                sequence=part + 1,
                part=part,
                parts=len(parts),
                images=len(images),
                payload_crc=crc32.iscsi(payload),
                body=pack_frame_body([(image.address, image.generation) for image in images], []),
            )
            await device.write(frame.address * BLOCK_BYTES, frame.encode() + payload, durable=True)
            position += 1 + len(images)
        await replay(device, superblock, index, expect=None)


async def _ignore(leaf: Leaf) -> None:
    """A directory that is freed has no names worth looking at."""
