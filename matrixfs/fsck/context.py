"""What the passes of one check share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from matrixfs.fsck.area import Area
from matrixfs.fsck.blockmap import BlockMap
from matrixfs.fsck.links import LinkCounts
from matrixfs.fsck.problems import BLOCK_FORBIDDEN, BLOCK_SHARED, Findings
from membership.errors import CorruptRecord

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
    expected_blocks: int = 0  # that the groups say are in use: what progress is measured against

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
