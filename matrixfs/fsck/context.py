"""What the passes of one check share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from matrixfs.fsck.area import Area
from matrixfs.fsck.blockmap import BlockMap
from matrixfs.fsck.links import LinkCounts
from matrixfs.fsck.problems import BLOCK_FORBIDDEN, BLOCK_SHARED, Findings
from matrixfs.ondisk.inode import InodeRecord
from membership.errors import CorruptRecord

Usage: TypeAlias = dict[tuple[int, int], list[int]]  # by (type, id): blocks, inodes

STAGES = ("names", "lost", "groups")  # of one check, in order


class Progress(Protocol):
    """Where a check tells how far it is."""

    def report(self, stage: str, done: int, total: int) -> None:
        """``done`` of ``total`` blocks, in one of ``STAGES``; called often."""
        ...


@dataclass(slots=True)
class Counts:
    """For the summary line."""

    files: int = 0  # inodes of any type but directories
    directories: int = 0
    orphans: int = 0
    blocks_used: int = 0  # as the groups' bitmaps say, the system's own included


@dataclass(slots=True)
class Context:
    """One check."""

    area: Area
    map: BlockMap
    progress: Progress
    findings: Findings
    counts: Counts = field(default_factory=Counts)
    names: LinkCounts = field(default_factory=LinkCounts)  # only of inodes whose nlink is not 1 or whose names are more
    usage: Usage = field(default_factory=dict)  # what users, groups and projects use,
    counts_usage: bool = False  # where that is wanted
    expected_blocks: int = 0  # that the groups say are in use: what progress is measured against

    def use(self, inode: InodeRecord, blocks: int) -> None:
        """Count an inode for its owners."""
        if self.counts_usage and self.area.superblock.is_counted(inode.address):
            for owner in enumerate((inode.uid, inode.gid, inode.project)):
                used = self.usage.setdefault(owner, [0, 0])
                used[0] += blocks
                used[1] += 1

    def claim(self, inode: int, start: int, length: int = 1) -> bool:
        """Blocks belong to ``inode``; False, with a finding, when they can't or something else has them."""
        if not self.area.superblock.is_data_range(start, length):
            self.findings.add(BLOCK_FORBIDDEN, inode=inode, block=start)
            return False
        conflict = self.map.claim(start, length)
        if conflict is not None:
            self.findings.add(BLOCK_SHARED, inode=inode, block=conflict)
            return False
        return True


def reason(error: CorruptRecord) -> str:
    """What a decoder found, without the place."""
    return str(error).removeprefix(f"{error.where}: ")


def printable(name: bytes) -> str:
    """A file name for a terminal: names come from the disk, terminals obey escapes (R11)."""
    text = name.decode("utf-8", "surrogateescape")
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", "surrogateescape"))
