"""What the programs of a recorded run did and were told, and which trees that allows when the power goes at entry k.

    H1  A node's operations on names and attributes survive as a prefix of the order in which they returned: each is
        whole or did not happen, and none without those before it (J1: one log, whole operations).
    H2  The prefix of a node reaches at least to what had returned when an fsync or sync of its began that has returned,
        to its last operation on what any node fsynced (R10), and on anything that another node has used since (R8).
    H3  Each sector of a file is what the file had there after one of its changes: not an older one than an fsync
        covered, nor than a change of another node's that its writer has seen.  J4 leaves no other zeros, fsync or not.
    H4  A sector that a truncation took from the file is not shown again when the file is longer again.
    H5  Nothing else is there: no name, no inode, no byte.
        With data=journal (``blocks_whole``) so is each block as a whole, where no copy_file_range in steps is among
        the changes; and the files in ``exact``, which get small writes only, are whole as they were after a change.
    H6  An access time is one that was shown to somebody; none has to be there.

Times are counts of entries of the disk's log.  All operations of a run return one after the other, in one process, and
each is noted without a checkpoint after the change in memory, so the order here is the order of the changes.
"""

from __future__ import annotations

import itertools
import stat
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from matrixfs.fs.inode import Inode
from matrixfs.ondisk.superblock import ROOT_INODE
from membership.label import BLOCK_BYTES
from tests.sim.checkers import difference
from tests.sim.disk import SimDisk

FLAGS = b"(flags, project)"  # the name of an extended attribute that none can have
SECTOR = 512
ROOT = 0  # the root directory's thing

Thing: TypeAlias = int  # a file or directory in the whole of its life, numbered in the order of creation
Key: TypeAlias = tuple[str, Thing] | tuple[str, Thing, bytes]  # what can be known of a thing: its second item
Value: TypeAlias = object  # None: there is no such name, attribute...


class Broken(Exception):
    """What was found is not what was promised."""


class Version(NamedTuple):
    """A value, from an operation's return on."""

    node: int
    number: int  # of the operation, among those of its node; from 1
    value: Value


class Content(NamedTuple):
    """A file's bytes after one change."""

    begun: int  # when the change began: any part of it may be there from then on
    node: int
    data: bytes
    in_steps: bool = False  # the size may be any between the one before and this


class Sync(NamedTuple):
    """What an fsync or sync that has begun will cover."""

    numbers: dict[int, int]  # of each node's operations
    contents: dict[Thing, int]


@dataclass(slots=True)
class Floor:
    """The least number that must be there, as it grew."""

    times: list[int] = field(default_factory=lambda: [-1])
    numbers: list[int] = field(default_factory=lambda: [0])

    def at(self, time: int) -> int:
        return self.numbers[bisect_right(self.times, time) - 1]

    def rise(self, time: int, number: int) -> None:
        if number > self.numbers[-1]:
            self.times.append(time)
            self.numbers.append(number)


@dataclass(slots=True)
class Tree:
    """What is found on a disk."""

    values: dict[Key, Value] = field(default_factory=dict)
    contents: dict[Thing, bytes] = field(default_factory=dict)
    accesses: dict[Thing, int] = field(default_factory=dict)


class History:
    """See the module."""

    def __init__(self, disk: SimDisk, nodes: int, *, blocks_whole: bool = False) -> None:
        self._disk = disk
        self._blocks_whole = blocks_whole
        self.exact: set[Thing] = set()
        self.in_place: set[Thing] = set()  # not written through the journal each time
        self.serials = itertools.count(1)  # of writes, for their tags
        self.now: dict[Key, Value] = {}  # the tree as programs see it
        self.contents: dict[Thing, list[Content]] = {}
        self._accesses: dict[Thing, list[tuple[int, int]]] = {}  # when it was shown, and what
        self.living: dict[int, Thing] = {ROOT_INODE: ROOT}  # by inode number
        self.inodes: dict[Thing, int] = {ROOT: ROOT_INODE}
        self.identities: dict[tuple[int, int], Thing] = {}  # by inode number and incarnation
        self._versions: dict[Key, list[Version]] = {}
        self._returned: list[list[int]] = [[] for _ in range(nodes)]
        self._keys: list[list[list[Key]]] = [[] for _ in range(nodes)]  # that each operation changed
        self._floors = [Floor() for _ in range(nodes)]
        self._content_floors: dict[Thing, Floor] = {}
        self._last_user: dict[Thing, tuple[int, int]] = {}  # node, number of its operation
        self._stable: tuple[tuple[int, ...], dict[Key, Value]] = ((), {})

    @property
    def time(self) -> int:
        """Entries in the log."""
        return len(self._disk.log)

    def known(self, thing: Thing, content: bytes) -> bytes:
        """``content``, as the object that is in memory already if a file had it before."""
        return next((one.data for one in reversed(self.contents[thing]) if one.data == content), content)

    def known_of(self, thing: Thing) -> list[Key]:
        """Its attributes, extended ones too."""
        extended = [key for key, value in self.now.items() if key[:2] == ("extended", thing) and value is not None]
        return [("attributes", thing), *extended]

    # --- noting: no checkpoint between the operation and this ---------------------------------------------

    def made(self, inode: Inode, content: bytes | None = None) -> Thing:
        """A new thing; ``content`` is None for directories."""
        thing = len(self.inodes)
        self.living[inode.ino] = thing
        self.inodes[thing] = inode.ino
        self.identities[inode.ino, inode.incarnation] = thing
        self.accessed(thing, inode.atime_ns)
        if content is not None:
            self.contents[thing] = [Content(self.time, -1, content)]
            self._content_floors[thing] = Floor()
        return thing

    def changed(self, node: int, values: dict[Key, Value]) -> None:
        """An operation of ``node`` returned that gave these ``values``, all at once."""
        self._returned[node].append(self.time)
        self._keys[node].append(list(values))
        number = len(self._returned[node])
        for key, value in values.items():
            self._versions.setdefault(key, []).append(Version(node, number, value))
            self.now[key] = value
        for thing in {key[1] for key in values}:
            self.used(node, thing)
            self._last_user[thing] = (node, number)

    def used(self, node: int, thing: Thing) -> None:
        """An operation of ``node`` had the lock of ``thing``: what other nodes did to it is durable (R8)."""
        last = self._last_user.get(thing)
        if last is not None and last[0] != node:
            self._floors[last[0]].rise(self.time, last[1])
        versions = self.contents.get(thing)
        if versions is not None and versions[-1].node not in (node, -1):
            self._content_floors[thing].rise(self.time, len(versions) - 1)

    def wrote(self, node: int, thing: Thing, begun: int, data: bytes, *, in_steps: bool = False) -> None:
        """An operation of ``node`` that began at ``begun`` returned, and ``thing`` holds ``data`` now."""
        self.used(node, thing)
        self.contents[thing].append(Content(begun, node, data, in_steps))

    def accessed(self, thing: Thing, time_ns: int) -> None:
        """This access time of ``thing`` was shown."""
        self._accesses.setdefault(thing, []).append((self.time, time_ns))

    def fsync_begins(self, node: int, thing: Thing) -> Sync:
        """An fsync of ``thing`` begins: it covers all that ``node`` did, and what anybody did to this thing."""
        covers = {node: len(self._returned[node])}
        user, number = self._last_user.get(thing, (node, 0))
        covers.setdefault(user, number)
        versions = self.contents.get(thing)
        return Sync(covers, {thing: len(versions) - 1} if versions else {})

    def sync_begins(self, node: int) -> Sync:
        """A sync begins: it covers all that ``node`` did."""
        covered: dict[Thing, int] = {}
        for thing, versions in self.contents.items():
            mine = [index for index, version in enumerate(versions) if version.node in (node, -1)]
            covered[thing] = mine[-1] if mine else 0
        return Sync({node: len(self._returned[node])}, covered)

    def synced(self, sync: Sync) -> None:
        """It returned without an error."""
        for node, number in sync.numbers.items():
            self._floors[node].rise(self.time, number)
        for thing, index in sync.contents.items():
            self._content_floors[thing].rise(self.time, index)

    # --- judging -------------------------------------------------------------------------------------------

    def judge(self, found: Tree, time: int) -> None:
        """Raise Broken unless ``found`` may be what a power loss after ``time`` entries of the log leaves."""
        least = tuple(floor.at(time) for floor in self._floors)
        most = tuple(bisect_right(returned, time) for returned in self._returned)
        self._judge_values(found.values, least, most)
        for thing, data in found.contents.items():
            self._judge_content(thing, data, time)
        for thing, accessed_ns in found.accesses.items():
            if not any(accessed_ns == shown_ns and at <= time for at, shown_ns in self._accesses[thing]):
                raise Broken(f"thing {thing}: access time {accessed_ns}, which nobody was shown")

    def _judge_values(self, found: dict[Key, Value], least: tuple[int, ...], most: tuple[int, ...]) -> None:
        """H1, H2, H5: some prefix of every node's operations gives exactly what was found."""
        stable = self._stable_at(least)
        volatile = {
            key
            for keys, first, last in zip(self._keys, least, most, strict=True)
            for changed in keys[first:last]
            for key in changed
        }
        wrong = {key for key, _ in stable.items() ^ found.items() if key not in volatile}
        if wrong:
            key = min(wrong, key=_names_first)
            expected = _shown(stable.get(key))
            raise Broken(f"{self.called(key)}: {_shown(found.get(key))}, must be {expected} since an fsync")
        closest: list[Key] = []
        cuts = itertools.product(*(range(first, last + 1) for first, last in zip(least, most, strict=True)))
        for cut in sorted(cuts, key=sum, reverse=True):
            differing = [key for key in volatile if found.get(key) != self._value_at(key, cut)]
            if not differing:
                return
            if not closest or len(differing) < len(closest):
                closest, at = differing, cut
        key = min(closest, key=_names_first)
        raise Broken(
            f"no prefix of the operations gives this; nearest is {at} of {most}, at least {least}, where"
            f" {self.called(key)} is {_shown(found.get(key))}, expected {_shown(self._value_at(key, at))}"
            f" ({len(closest)} differ)"
        )

    def _stable_at(self, cut: tuple[int, ...]) -> dict[Key, Value]:
        """The whole tree as of a cut; points come in order, so one is remembered."""
        if self._stable[0] != cut:
            values = {key: self._value_at(key, cut) for key in self._versions}
            self._stable = cut, {key: value for key, value in values.items() if value is not None}
        return self._stable[1]

    def _value_at(self, key: Key, cut: tuple[int, ...]) -> Value:
        for version in reversed(self._versions.get(key, [])):
            if version.number <= cut[version.node]:
                return version.value
        return None

    def _judge_content(self, thing: Thing, found: bytes, time: int) -> None:
        """H3, H4."""
        first = self._content_floors[thing].at(time)
        history = self.contents[thing]
        possible = [version for version in history[first:] if version.begun <= time]
        versions = [version.data for version in possible]
        if found in versions:
            return
        if thing in self.exact:
            raise Broken(f"file {thing} is as after no change: {difference(found, versions[-1])}")
        units = [SECTOR]
        if self._blocks_whole and thing not in self.in_place and not any(version.in_steps for version in possible):
            units.append(BLOCK_BYTES)
        wrong = ""
        for at, size_from in enumerate(versions):  # the size is that of this change, or of a part of it
            around = [len(version) for version in versions[: at + 2]]
            partly = len(found) % BLOCK_BYTES == 0 and min(around) < len(found) < max(around)
            partly |= possible[at : at + 2][-1].in_steps and len(size_from) < len(found) < around[-1]
            if len(size_from) == len(found) or partly:
                bad = [(unit, offset) for unit in units for offset in _bad_units(found, versions, at, unit)]
                if not bad:
                    return
                wrong = wrong or self._describe(thing, found, versions, *bad[0])
        sizes = sorted({len(version) for version in versions})
        raise Broken(wrong or f"file {thing}: {len(found)} bytes; it had {sizes} since what an fsync covered")

    def _describe(self, thing: Thing, found: bytes, versions: list[bytes], unit: int, at: int) -> str:
        got = found[at : at + unit]
        older = [i for i, each in enumerate(self.contents[thing]) if each.data[at : at + unit] == got]
        others = [
            other
            for other, history in self.contents.items()
            if other != thing and any(got.strip(b"\0") and got in each.data for each in history)
        ]
        origin = f"as after change {older}" if older else f"bytes of file {others}" if others else "of nobody"
        if not got.strip(b"\0"):
            origin = "zeros"
        return (
            f"file {thing}: {unit} bytes at {at} are {origin}; allowed were {len(versions)} versions:"
            f" {difference(found, versions[-1])}"
        )

    def called(self, key: Key) -> str:
        """A key for people."""
        return f"{key[0]} {key[2]!r} of thing {key[1]}" if len(key) == 3 else f"{key[0]} of thing {key[1]}"


def _names_first(key: Key) -> tuple[bool, str]:
    return key[0] != "name", repr(key)


def _bad_units(found: bytes, versions: list[bytes], at: int, unit: int) -> Iterator[int]:
    """Offsets of sectors, or blocks, that none of ``versions`` explains, if the size is that of number ``at``."""
    for offset in range(0, len(found), unit):
        got = found[offset : offset + unit]
        cut = max((i for i in range(at + 1) if len(versions[i]) <= offset), default=0)  # H4
        if not any(version[offset : offset + len(got)] == got for version in versions[cut:]):
            yield offset


def _shown(value: Value) -> str:
    if isinstance(value, tuple) and value and isinstance(value[0], int):
        return f"({stat.filemode(value[0])}, {', '.join(map(str, value[1:]))})"
    if isinstance(value, bytes):
        return f"{len(value)} bytes, {value[:30]!r}"
    return "absent" if value is None else f"thing {value}" if isinstance(value, int) else repr(value)
