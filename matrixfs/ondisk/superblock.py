"""The superblock: what the filesystem is called, where its parts lie, which features it uses."""

from __future__ import annotations

from membership.errors import CorruptRecord
from membership.label import BLOCK_BYTES, NAME_BYTES_MAX
from membership.records import Record, i64, record, text, u32, u64

ROOT_INODE = 1
ORPHANS_START = 2
JOURNALS_MAX = 64
SYSTEM_BLOCKS = 128
GROUP_SHIFT_MIN = 8
GROUP_SHIFT_MAX = 14
JOURNAL_BLOCKS_MIN = 64

# R12.  Unknown bits: compatible ones are ignored, read-only-compatible ones forbid writing, incompatible ones opening.
COMPATIBLE_KNOWN = 0
READ_ONLY_COMPATIBLE_KNOWN = 0
INCOMPATIBLE_KNOWN = 0


@record(magic=b"MXFSSUPR", size=BLOCK_BYTES)
class Superblock(Record):
    """``owner`` is the filesystem's uuid, which every metadata block repeats."""

    name: str = text(48, NAME_BYTES_MAX, "name given to mount(8)")
    features_compatible: int = u64(112, "features an older node may ignore")
    features_read_only: int = u64(120, "features that an older node may only read beside")
    features_incompatible: int = u64(128, "features without which the area can't be understood")
    blocks_total: int = u64(136, "blocks of the area, the copy of this block included")
    journal_start: int = u64(144, "first block of journal 0")
    journal_blocks: int = u32(152, "blocks of each journal, header included")
    journals: int = u32(156, "number of journals: nodes that can mount at once")
    group_start: int = u64(160, "first block of group 0, a multiple of 1 << group_shift")
    groups: int = u32(168, "number of allocation groups")
    group_shift: int = u32(172, "log2 of the blocks of a group; also the lock manager's placement shift")
    hash_seed: int = u64(176, "seed of the directory hash, so that nobody can plan collisions")
    created_ns: int = i64(184, "wall clock at mkfs, ns since the epoch")

    def group_of(self, block: int) -> int:
        """Index of the group that holds ``block``.  Raises CorruptRecord when it lies in none."""
        index = (block - self.group_start) >> self.group_shift
        if not 0 <= index < self.groups:
            raise CorruptRecord(f"block {block}", "place", "in an allocation group", "outside")
        return index

    def group_block(self, index: int) -> int:
        """Block number of the bitmap of group ``index``."""
        return self.group_start + (index << self.group_shift)

    def group_size(self, index: int) -> int:
        """Blocks of group ``index``, its bitmap included: the last one may be short."""
        end = self.blocks_total - 1
        return min(1 << self.group_shift, end - self.group_block(index))

    def journal_block(self, index: int) -> int:
        """Block number of the header of journal ``index``."""
        return self.journal_start + index * self.journal_blocks

    def is_inode_number(self, number: int) -> bool:
        """Whether an inode could have this number at all."""
        if number == ROOT_INODE or ORPHANS_START <= number < ORPHANS_START + self.journals:
            return True
        return self.is_data_range(number, 1)

    def is_data_range(self, start: int, length: int) -> bool:
        """Whether the blocks can belong to a file: inside one allocation group, its bitmap excluded."""
        first, last = start - self.group_start, start + length - 1 - self.group_start
        return (
            first > 0
            and start + length < self.blocks_total
            and first >> self.group_shift == last >> self.group_shift < self.groups
            and first & (1 << self.group_shift) - 1 != 0
        )

    def check_untrusted(self, where: str, blocks_available: int) -> None:
        """Check what the other decoders rely on.  Raises CorruptRecord."""
        if self.features_incompatible & ~INCOMPATIBLE_KNOWN:
            raise CorruptRecord(where, "incompatible features")
        if not GROUP_SHIFT_MIN <= self.group_shift <= GROUP_SHIFT_MAX:  # before anything is shifted by it
            raise CorruptRecord(where, "group shift", f"{GROUP_SHIFT_MIN}..{GROUP_SHIFT_MAX}", self.group_shift)
        checks = (
            ("journals", 1 <= self.journals <= JOURNALS_MAX),
            ("journal blocks", JOURNAL_BLOCKS_MIN <= self.journal_blocks <= 1 << 24),
            ("journal start", self.journal_start >= SYSTEM_BLOCKS),
            ("group start", self.group_start >= self.journal_start + self.journals * self.journal_blocks),
            ("group alignment", self.group_start & ((1 << self.group_shift) - 1) == 0),
            ("groups", self.groups >= 1 and self.group_block(self.groups - 1) + 2 <= self.blocks_total - 1),
            ("size", self.blocks_total <= blocks_available),
        )
        for check, holds in checks:
            if not holds:
                raise CorruptRecord(where, check)
