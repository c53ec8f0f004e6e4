"""The superblock: what the filesystem is called, where its parts lie, which features it uses."""

from __future__ import annotations

from typing import NamedTuple

from matrixfs.ondisk.extent import UNWRITTEN
from matrixfs.ondisk.inode import FLAG_JOURNAL_DATA, FLAGS_OF_USERS
from membership.errors import CorruptRecord
from membership.label import BLOCK_BYTES, NAME_BYTES_MAX
from membership.records import Record, i64, record, text, u32, u64, u64_array

ROOT_INODE = 1
ORPHANS_START = 2
JOURNALS_MAX = 64
QUOTA_INODE = ORPHANS_START + JOURNALS_MAX  # of the quotas' tree (quota.py), where there are some
SYSTEM_BLOCKS = 128
GROUP_SHIFT_MIN = 8
GROUP_SHIFT_MAX = 14
JOURNAL_BLOCKS_MIN = 64
RUNS_MAX = 8  # further runs of journals

# R12.  Unknown bits: compatible ones are ignored, read-only-compatible ones forbid writing, incompatible ones opening.
COMPATIBLE_KNOWN = 0
QUOTAS = 1  # read-only-compatible: whoever changes anything counts it
READ_ONLY_COMPATIBLE_KNOWN = QUOTAS
EXTENDED_ATTRIBUTES = 1  # inodes may have some (xattr.py)
UNWRITTEN_EXTENTS = 2  # extents have flags
JOURNAL_RUNS = 4  # incompatible, set when there is a further run
FILE_FLAGS = 8  # incompatible: inodes have flags as chattr(1) sets them, and projects
JOURNALLED_DATA = 16  # incompatible: journals may hold file data
# Of filesystems that this version makes.
INCOMPATIBLE_NEW = EXTENDED_ATTRIBUTES | UNWRITTEN_EXTENTS | FILE_FLAGS | JOURNALLED_DATA
INCOMPATIBLE_KNOWN = INCOMPATIBLE_NEW | JOURNAL_RUNS
_NO_RUNS = (0,) * RUNS_MAX


class JournalRun(NamedTuple):
    """Journals that lie one behind the other."""

    first: int  # number of the first of them
    start: int  # block
    journals: int
    blocks: int  # of each, header included

    @property
    def end(self) -> int:
        """Block behind the last one."""
        return self.start + self.journals * self.blocks


@record(magic=b"MXFSSUPR", size=BLOCK_BYTES)
class Superblock(Record):
    """``owner`` is the filesystem's uuid, which every metadata block repeats."""

    name: str = text(48, NAME_BYTES_MAX, "name given to mount(8)")
    features_compatible: int = u64(112, "features an older node may ignore")
    features_read_only: int = u64(120, "features that an older node may only read beside")
    features_incompatible: int = u64(128, "features without which the area can't be understood")
    blocks_total: int = u64(136, "blocks of the area, the copy of this block included")
    journal_start: int = u64(144, "first block of journal 0")
    journal_blocks: int = u32(152, "blocks of each journal of the first run, header included")
    journals: int = u32(156, "number of journals: nodes that can mount at once")
    group_start: int = u64(160, "first block of group 0, a multiple of 1 << group_shift")
    groups: int = u32(168, "number of allocation groups")
    group_shift: int = u32(172, "log2 of the blocks of a group; also the lock manager's placement shift")
    hash_seed: int = u64(176, "seed of the directory hash, so that nobody can plan collisions")
    created_ns: int = i64(184, "wall clock at mkfs, ns since the epoch")
    run_start: tuple[int, ...] = u64_array(192, RUNS_MAX, "first block of each further run", default=_NO_RUNS)
    run_journals: tuple[int, ...] = u64_array(256, RUNS_MAX, "its journals; 0: there is none", default=_NO_RUNS)
    run_blocks: tuple[int, ...] = u64_array(320, RUNS_MAX, "blocks of each of its journals", default=_NO_RUNS)

    @property
    def extent_flags(self) -> int:
        """Flags that extents may have here."""
        return UNWRITTEN if self.features_incompatible & UNWRITTEN_EXTENTS else 0

    @property
    def user_flags(self) -> int:
        """Flags of users that inodes may have here."""
        if not self.features_incompatible & FILE_FLAGS:
            return 0
        return FLAGS_OF_USERS if self.may_journal_data else FLAGS_OF_USERS & ~FLAG_JOURNAL_DATA

    @property
    def may_journal_data(self) -> bool:
        """Whether images of file data may lie in journals."""
        wanted = JOURNALLED_DATA | UNWRITTEN_EXTENTS
        return self.features_incompatible & wanted == wanted

    @property
    def has_quotas(self) -> bool:
        """Whether all that is used is counted."""
        return bool(self.features_read_only & QUOTAS)

    def is_counted(self, number: int) -> bool:
        """Whether what an inode uses is counted: the filesystem's own directories belong to nobody."""
        return number >= SYSTEM_BLOCKS

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
        run = self._run_of(index)
        return run.start + (index - run.first) * run.blocks

    def journal_length(self, index: int) -> int:
        """Blocks of journal ``index``, header included."""
        return self._run_of(index).blocks

    def runs(self) -> list[JournalRun]:
        """All runs of journals; the first one lies before the groups, each other one inside a group."""
        further = [row for row in zip(self.run_start, self.run_journals, self.run_blocks, strict=True) if row[1]]
        at = self.journals - sum(journals for _, journals, _ in further)
        found = [JournalRun(0, self.journal_start, at, self.journal_blocks)]
        for start, journals, blocks in further:
            found.append(JournalRun(at, start, journals, blocks))
            at += journals
        return found

    def runs_in(self, group: int) -> list[tuple[int, int]]:
        """(start block, length) of the journals inside an allocation group."""
        if not self.run_journals[0]:
            return []
        return [(run.start, run.end - run.start) for run in self.runs()[1:] if self.group_of(run.start) == group]

    def is_in_a_journal(self, block: int) -> bool:
        """Whether ``block``, which lies in the groups, belongs to a journal."""
        return bool(self.run_journals[0]) and any(run.start <= block < run.end for run in self.runs()[1:])

    def _run_of(self, index: int) -> JournalRun:
        for run in self.runs():
            if run.first <= index < run.first + run.journals:
                return run
        raise ValueError(f"there is no journal {index}")

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
            and not self.is_in_a_journal(start)
        )

    def capacity(self) -> int:
        """Blocks that files can have: those of all groups without their bitmaps and journals."""
        end = min(self.blocks_total - 1, self.group_block(self.groups))
        return end - self.group_start - self.groups - sum(run.end - run.start for run in self.runs()[1:])

    def take_over(self, newer: Superblock) -> None:
        """Become ``newer``, in place: whoever holds this object sees the grown filesystem (fs/grow.py, G6).

        Raises CorruptRecord when it is another filesystem, or one that has shrunk.
        """
        checks = (
            ("owner", newer.owner == self.owner),
            ("size", newer.blocks_total >= self.blocks_total),
            ("groups", newer.groups >= self.groups),
            ("layout", (newer.group_start, newer.group_shift) == (self.group_start, self.group_shift)),
            ("journals", newer.journals >= self.journals and newer.runs()[0] == self.runs()[0]),
        )
        for check, holds in checks:
            if not holds:
                raise CorruptRecord("superblock", check, "that of the mounted filesystem, grown")
        self.generation = newer.generation
        for name in self.FIELDS:
            setattr(self, name, getattr(newer, name))

    def check_untrusted(self, where: str, blocks_available: int) -> None:
        """Check what the other decoders rely on.  Raises CorruptRecord."""
        if self.features_incompatible & ~INCOMPATIBLE_KNOWN:
            raise CorruptRecord(where, "incompatible features")
        if not GROUP_SHIFT_MIN <= self.group_shift <= GROUP_SHIFT_MAX:  # before anything is shifted by it
            raise CorruptRecord(where, "group shift", f"{GROUP_SHIFT_MIN}..{GROUP_SHIFT_MAX}", self.group_shift)
        runs, has_runs = self.runs()[1:], bool(self.features_incompatible & JOURNAL_RUNS)
        checks = (
            ("journals", 1 <= self.journals <= JOURNALS_MAX),
            ("journal blocks", JOURNAL_BLOCKS_MIN <= self.journal_blocks <= 1 << 24),
            ("journal start", self.journal_start >= SYSTEM_BLOCKS),
            ("journal runs", sum(self.run_journals) < self.journals and (not runs or has_runs)),
            ("group start", self.group_start >= self.runs()[0].end),
            ("group alignment", self.group_start & ((1 << self.group_shift) - 1) == 0),
            ("groups", self.groups >= 1 and self.group_block(self.groups - 1) + 2 <= self.blocks_total - 1),
            ("size", self.blocks_total <= blocks_available),
        )
        for check, holds in checks:
            if not holds:
                raise CorruptRecord(where, check)
        if not all(self._may_hold(run) for run in runs):
            raise CorruptRecord(where, "journal run")

    def _may_hold(self, run: JournalRun) -> bool:
        """Whether a further run lies in one group, beside its bitmap and all other runs."""
        offset, last = run.start - self.group_start, run.end - 1 - self.group_start
        inside = offset > 0 and run.end <= self.blocks_total - 1
        inside &= offset >> self.group_shift == last >> self.group_shift < self.groups
        others = [other for other in self.runs()[1:] if other.start < run.end and run.start < other.end]
        bitmap = offset & ((1 << self.group_shift) - 1) == 0
        return inside and not bitmap and run.blocks >= JOURNAL_BLOCKS_MIN and others == [run]
