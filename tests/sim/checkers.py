"""What must hold in a run of the filesystem simulation, whatever happens (R2; style.md 3.5).

- ``NameState`` and ``ContentState``: an acknowledged operation is visible on every node at once; what a node did and
  nobody saw nor fsynced may be lost with that node, and with nothing else.
- ``AppendLog``: appended records are whole, each there once, in each writer's order, and durable after fsync.
- ``assert_clean``: fsck finds nothing.

Not checked: the order of operations that overlap in time on one object (their outcome is learnt from the next quiet
look), and times.
"""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass, field
from typing import Any

from matrixfs.fs.inode import Inode
from matrixfs.fsck.area import Area
from matrixfs.fsck.check import check_filesystem
from matrixfs.fsck.problems import Findings
from matrixfs.fsck.store import replay_journals
from matrixfs.ondisk.superblock import Superblock
from membership.seams import SectorDevice

ANYTHING = object()


class NoProgress:
    """Nobody watches the checks of a simulation."""

    def report(self, stage: str, done: int, total: int) -> None:
        """Nothing to do."""


async def fsck(device: SectorDevice, superblock: Superblock) -> Findings:
    """Replay what is dirty and check everything."""
    findings = Findings()
    await replay_journals(device, superblock, findings)
    await check_filesystem(Area(device, superblock), findings, NoProgress())
    return findings


async def assert_clean(device: SectorDevice, superblock: Superblock, *, notes: bool = True) -> None:
    """Fail with every problem that fsck finds; ``notes`` (what a crash may leave) are allowed."""
    findings = await fsck(device, superblock)
    bad = [
        f"{finding.problem.code}: {finding.text}"
        for finding in findings.kept
        if not (notes and finding.problem.is_note)
    ]
    assert not bad, "; ".join(bad)


class State:
    """What one name means, or one file holds: the values it may have now.

    ``fallback`` is what else it may turn out to be if ``owner`` dies now; None stands for "anything".
    """

    def __init__(self, value: Any = ANYTHING) -> None:
        self.possible: list[Any] = [value]
        self.fallback: list[Any] = []
        self.owner: int | None = None

    @property
    def known(self) -> bool:
        """Whether there is exactly one possibility."""
        return len(self.possible) == 1 and self.possible[0] is not ANYTHING

    @property
    def value(self) -> Any:
        """The only possibility."""
        assert self.known
        return self.possible[0]

    def allows(self, value: Any) -> bool:
        """Whether a quiet look may see ``value``."""
        return any(one is ANYTHING or one == value for one in self.possible)

    def saw(self, node: int, value: Any, what: object) -> None:
        """A look that nothing overlapped saw ``value``."""
        assert self.allows(value), f"{what}: node {node} saw {value!r}, possible was {self.possible!r}"
        if self.owner == node:  # its own unsaved work proves nothing
            self.fallback += [one for one in self.possible if one != value] if len(self.possible) > 1 else []
        elif ANYTHING in self.possible:  # done by we don't know whom, perhaps by this node
            self.owner, self.fallback = node, [ANYTHING]
        else:
            self.owner, self.fallback = None, []
        self.possible = [value]

    def changed(self, node: int, value: Any) -> None:
        """``node`` made it ``value`` and nothing overlapped."""
        older = self.fallback if self.owner == node else []
        self.fallback = [*older, *self.possible]
        self.owner = node
        self.possible = [value]

    def lost_sight(self) -> None:
        """Operations overlapped, or one never returned."""
        self.possible = [ANYTHING]
        self.fallback, self.owner = [], None

    def durable(self, node: int) -> None:
        """All that ``node`` did is safe."""
        if self.owner == node:
            self.fallback, self.owner = [], None

    def died(self, node: int) -> None:
        """``node`` is gone with what was not safe."""
        if self.owner == node:
            self.possible += [one for one in self.fallback if one not in self.possible]
            self.fallback, self.owner = [], None


_RECORD = re.compile(rb"(\d+):(\d+):(\d+):(x*)\Z")


def record_of(writer: tuple[int, int], sequence: int, padding: int) -> bytes:
    """One line of an append log; ``writer`` is (node, incarnation)."""
    return b"%d:%d:%d:%s\n" % (*writer, sequence, b"x" * padding)


@dataclass
class AppendLog:
    """A file that everybody appends to."""

    ino: int
    acknowledged: dict[tuple[int, int], list[int]] = field(default_factory=dict)  # writer -> padding by sequence
    durable: dict[tuple[int, int], int] = field(default_factory=dict)  # writer -> records that must survive
    dead: set[tuple[int, int]] = field(default_factory=set)
    lengths: dict[tuple[int, int], int] = field(default_factory=dict)  # of dead writers, once seen: never changes

    def expected(self) -> dict[tuple[int, int], int]:
        """How many records of each writer must be there now."""
        alive = {writer: len(acked) for writer, acked in self.acknowledged.items() if writer not in self.dead}
        return {**self.durable, **alive, **self.lengths}

    def check(self, content: bytes, expected: dict[tuple[int, int], int], reader: int) -> None:
        """``content`` was read by ``reader``; ``expected`` is from before the read began."""
        assert content[-1:] in (b"", b"\n"), f"log {self.ino}: torn record at the end: {content[-80:]!r}"
        seen: dict[tuple[int, int], int] = {}
        for line in content.split(b"\n")[:-1]:
            match = _RECORD.match(line)
            assert match is not None, f"log {self.ino}: torn record {line[:80]!r} of {len(line)} bytes"
            writer, sequence = (int(match[1]), int(match[2])), int(match[3])
            assert sequence == seen.get(writer, 0), f"log {self.ino}: {writer}: {sequence} after {seen.get(writer, 0)}"
            acked = self.acknowledged.get(writer, [])
            assert sequence >= len(acked) or acked[sequence] == len(match[4]), f"log {self.ino}: {line[:80]!r}"
            seen[writer] = sequence + 1
        for writer, count in expected.items():
            assert seen.get(writer, 0) >= count, f"log {self.ino}: {writer}: {seen.get(writer, 0)} of {count} records"
        for writer, count in seen.items():
            if writer in self.dead:
                assert count == self.lengths.setdefault(writer, count), (
                    f"log {self.ino}: {writer} wrote after its death"
                )
            if writer[0] != reader:
                self.durable[writer] = max(count, self.durable.get(writer, 0))


def identity(inode: Inode) -> tuple[int, int, int]:
    """What a name means: tells apart successive inodes of one number."""
    return (inode.ino, inode.incarnation, stat.S_IFMT(inode.mode))


def difference(found: bytes, expected: bytes) -> str:
    """Where two contents differ."""
    pairs = enumerate(zip(found, expected, strict=False))
    at = next((i for i, (a, b) in pairs if a != b), min(len(found), len(expected)))
    there = f"{found[at : at + 8]!r}, expected {expected[at : at + 8]!r}"
    return f"{len(found)} bytes, expected {len(expected)}; first difference at {at}: {there}"


def check_mixture(found: bytes, versions: list[bytes], what: object) -> None:
    """After a crash without fsync every byte must be one that the file had there, or a hole's zero."""
    allowed = max(map(len, versions))
    assert len(found) <= allowed, f"{what}: {len(found)} bytes, never had more than {allowed}"
    for at in range(0, len(found), 8):
        piece = found[at : at + 8]
        candidates = [version[at : at + 8].ljust(8, b"\0")[: len(piece)] for version in versions]
        if piece in candidates or not piece.strip(b"\0"):
            continue
        for i, byte in enumerate(piece):
            assert byte == 0 or any(candidate[i] == byte for candidate in candidates), f"{what}: alien byte at {at + i}"
