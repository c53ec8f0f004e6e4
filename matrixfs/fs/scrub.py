"""A scrub: the tree walked while it is mounted and in use, each object judged under its lock (issue 5, "Online scrub").

Invariants:

U1. An object is judged in one instant of it: under its lock, held to read; a name and what it names under both locks.
    So no change that is under way on any node is taken for damage.
U2. A block counts as free only when its group says so under the group's lock: a copy on the store may be older than
    what the group's holder knows.  That lock is asked for only when the copy says free.
U3. What could harm others if it were changed is put in quarantine (FLAG_QUARANTINED in the inode): from then on no
    node reads, changes or deletes it, everything else goes on, and ``fsck.matrixfs`` finds it.  What can't be decoded
    is unreachable as it is, and what is only counted wrongly is told and left alone.
U4. Memory is bounded by the depth of the tree and one object.

What only a look at everything at once can find (blocks that two objects name, blocks that nobody does, names of one
file) is left to ``fsck.matrixfs``.
"""

from __future__ import annotations

import errno
from collections import deque
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from matrixfs.fs import data, data_journal, directories, tree, xattrs
from matrixfs.fs.blocks import EntryTable, ExtentList
from matrixfs.fs.groups import decode_group_untrusted
from matrixfs.fs.held import Held
from matrixfs.ondisk.inode import FLAG_QUARANTINED
from matrixfs.ondisk.superblock import QUOTA_INODE, ROOT_INODE
from membership.errors import CorruptionError, DeviceError
from membership.label import BLOCK_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

    from matrixfs.fs.groups import Group
    from matrixfs.fs.inode import Inode
    from matrixfs.fs.volume import Volume
    from matrixfs.ondisk.directory import Entry

NAMES_AT_ONCE = 256  # read under one hold of their directory
DATA_AT_ONCE = 1 << 20  # bytes read under one hold of a file


class Damage(NamedTuple):
    """What is wrong with one object.

    Attributes:
        ino: its inode number.
        path: one of its names, from the tree's root.
        text: what is wrong.
        is_quarantined: nobody can use it any more (U3).
    """

    ino: int
    path: bytes
    text: str
    is_quarantined: bool


@dataclass(slots=True)
class Totals:
    """How far a scrub is."""

    directories: int = 0
    others: int = 0
    blocks: int = 0  # of metadata, inodes included
    data_bytes: int = 0  # read
    damaged: int = 0


@dataclass(slots=True)
class _Directory:
    """One on the way from the root to where the walk is."""

    ino: int
    path: bytes
    key: int = 0  # of the next name to read
    names: deque[Entry] = field(default_factory=deque)


@dataclass(slots=True)
class _Content:
    """What the leaves of one object's tree add up to."""

    runs: list[tuple[int, int]]  # (first block, length) of all it names, its own included
    tree_blocks: set[int] = field(default_factory=set)  # and those of its attributes
    data_blocks: int = 0
    names: int = 0
    name_bytes: int = 0
    subdirectories: int = 0
    problem: str = ""


class Scrub:
    """One walk over a mounted tree.

    Args:
        volume: the mounted filesystem.
        found: told each damage.
        read_data: also read every byte of every file; else only what leads there is looked at.
    """

    def __init__(self, volume: Volume, found: Callable[[Damage], None], *, read_data: bool) -> None:
        self._volume = volume
        self._found = found
        self._read_data = read_data
        self.totals = Totals()

    async def run(self) -> None:
        """Walk all of it.  Raises DeviceError, Fenced: the store failed, and the walk with it."""
        await self._judge_quotas()
        await self._judge(ROOT_INODE, b"/")
        way = [_Directory(ROOT_INODE, b"")]
        while way:
            at = way[-1]
            if not at.names and not await self._read_names(at):
                way.pop()
                continue
            entry = at.names.popleft()
            path = at.path + b"/" + entry.name
            if await self._is_as_named(at, entry, path) and await self._judge(entry.inode, path):
                way.append(_Directory(entry.inode, path))

    async def _judge_quotas(self) -> None:
        """Whether all blocks of quotas can be read.  What they count is left to fsck: it changes all the time."""
        if self._volume.quotas is not None:
            try:
                await self._volume.quotas.store.check()
            except CorruptionError as error:
                self._tell(QUOTA_INODE, b"(quotas)", str(error), is_quarantined=False)

    # --- names ---------------------------------------------------------------------------------------------

    async def _read_names(self, at: _Directory) -> bool:
        """Read on in a directory; False at its end, or where nothing more of it can be read."""
        try:
            with Held(self._volume) as held:
                directory = await held.shared(at.ino)
                if not directory.is_directory:
                    return False  # removed, and its number used again
                async with aclosing(directories.entries_from(self._volume, directory, at.key)) as listing:
                    async for entry in listing:
                        at.names.append(entry)
                        if len(at.names) == NAMES_AT_ONCE:
                            break
        except (OSError, CorruptionError):  # removed meanwhile; or damaged from here on, which was told: see _judge
            pass
        if at.names:
            at.key = at.names[-1].key + 1
        return bool(at.names)

    async def _is_as_named(self, at: _Directory, entry: Entry, path: bytes) -> bool:
        """Whether a name still leads to what it names, and that is of the kind it says (U1)."""
        volume = self._volume
        try:
            with Held(volume) as held:
                directory = await held.shared(at.ino)
                if (
                    not directory.is_directory
                    or (await directories.locate(volume, directory, entry.name)).entry != entry
                ):
                    return False
                problem = await self._named(held, at.ino, entry)
        except OSError:  # the directory was removed
            return False
        except CorruptionError:
            return False  # of the directory: told
        if problem:
            self._tell(entry.inode, path, problem, is_quarantined=False)
        return not problem

    async def _named(self, held: Held, parent: int, entry: Entry) -> str:
        """What is wrong between a name and its inode, both held; "" nothing."""
        try:
            inode = await held.shared(entry.inode)
        except CorruptionError as error:
            return str(error)
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
            return f"the name leads to inode {entry.inode}, which is deleted"
        if inode.mode >> 12 != entry.kind:
            return f"the name says kind {entry.kind}, inode {entry.inode} is of kind {inode.mode >> 12}"
        if inode.is_directory and inode.parent != parent:
            return f"directory {entry.inode} says it lies in {inode.parent}, its name lies in {parent}"
        return ""

    # --- objects -------------------------------------------------------------------------------------------

    async def _judge(self, ino: int, path: bytes) -> bool:
        """Look at one object; whether it is a directory to walk into."""
        try:
            with Held(self._volume) as held:
                inode = await held.shared(ino)
                content = await self._content(inode)
                suspect = content.problem or await self._unused(content.runs)
                told = _miscounted(inode, content)
                is_directory, size = inode.is_directory, inode.size
            harmful = await self._confirmed(ino) if suspect else ""
            told = harmful or told
        except CorruptionError as error:
            self._tell(ino, path, str(error), is_quarantined=False)
            return False
        except OSError:  # deleted since its name was read
            return False
        self._count(content, is_directory=is_directory)
        if harmful:
            await self._quarantine(ino)
        if told:
            self._tell(ino, path, told, is_quarantined=bool(harmful))
        elif self._read_data and not is_directory:
            await self._read_all(ino, path, size)
        return is_directory and not harmful

    async def _content(self, inode: Inode) -> _Content:
        """Take a held object's attributes and tree apart.  Raises CorruptRecord, DeviceError, Fenced."""
        content = _Content([(inode.ino, 1)] if inode.ino >= self._volume.superblock.group_start else [])
        content.tree_blocks |= {block.address for block in (await xattrs.load(self._volume, inode)).chain}
        content.runs += [(block, 1) for block in content.tree_blocks]
        if inode.inline:
            return content
        low, key = 0, 0
        while True:
            path = await tree.descend(self._volume, inode, key)
            blocks = {path.owner.address, *(step.owner.address for step in path.steps)} - {inode.ino}
            content.runs += [(block, 1) for block in blocks - content.tree_blocks]
            content.tree_blocks |= blocks
            _add_leaf(content, path.leaf, low, path.upper)
            if path.upper is None or content.problem:
                return content
            low = key = path.upper

    async def _confirmed(self, ino: int) -> str:
        """What is harmful about an object, with its groups held too (U2); "" nothing.

        To hold a group is to be able to change it, so leave for that comes before all locks (``changes``).
        """
        with Held(self._volume) as held:
            await held.changing()
            content = await self._content(await held.shared(ino))
            return content.problem or await self._unused(content.runs, held)

    async def _unused(self, runs: list[tuple[int, int]], held: Held | None = None) -> str:
        """Whether a group says of a block that nobody uses it, by what is known of it, or if ``held`` for certain."""
        superblock = self._volume.superblock
        by_group: dict[int, list[tuple[int, int]]] = {}
        for start, length in runs:
            while length:
                index = superblock.group_of(start)
                part = min(length, superblock.group_block(index) + superblock.group_size(index) - start)
                by_group.setdefault(index, []).append((start - superblock.group_block(index), part))
                start, length = start + part, length - part
        for index, parts in sorted(by_group.items()):
            free = _first_free(await self._bits(index), parts)
            if free >= 0 and held is not None:
                group = (await held.groups({index}))[index]
                free = _first_free(int.from_bytes(group.bitmap, "little"), parts)
            if free >= 0:
                return f"block {superblock.group_block(index) + free} is in use here, and free by its group"
        return ""

    async def _bits(self, index: int) -> int:
        """The bitmap of a group as this node knows it, else as it is on the store; 0 when it can't be read."""
        cached: Group | None = self._volume.allocator.lock(index).subject
        if cached is not None:
            return int.from_bytes(cached.bitmap, "little")
        address = self._volume.superblock.group_block(index)
        block = await self._volume.device.read(address * BLOCK_BYTES, BLOCK_BYTES)
        try:
            group = decode_group_untrusted(block, self._volume.superblock, index)
        except CorruptionError:
            return 0
        return int.from_bytes(group.bitmap, "little")

    async def _read_all(self, ino: int, path: bytes, size: int) -> None:
        """Read a file's bytes; a device that fails on them is a damage of this file."""
        offset = 0
        try:
            while offset < size:
                got = await data.read(self._volume, ino, offset, DATA_AT_ONCE)
                if not got:
                    return  # cut meanwhile
                offset += len(got)
                self.totals.data_bytes += len(got)
        except OSError:
            return  # deleted, or no file that is read: a device, a fifo, a symlink
        except (CorruptionError, DeviceError) as error:
            self._tell(ino, path, f"at byte {offset}: {error}", is_quarantined=False)

    async def _quarantine(self, ino: int) -> None:
        """Nobody uses it any more, on any node (U3)."""
        volume = self._volume
        with Held(volume) as held:
            inode = await held.exclusive(ino)
            await volume.journal.admit()
            # No checkpoint up to the change (J1).
            if inode.dirty is not None:  # must not be written where others' blocks may be by now
                volume.write_back.drop(inode)
                volume.write_back.errors[ino] = errno.EIO
            inode.flags |= FLAG_QUARANTINED
            volume.touch(inode, data=False)
            await data_journal.bring_home(volume, [*inode.lock.blocks.values(), *volume.journal.data.of(ino)])
            inode.lock.blocks.clear()
            inode.lock.subject = None  # whoever wants it reads it anew, and can't
        if inode.is_directory:
            await volume.kernel.purge_names(ino)
        await volume.kernel.purge_inode(ino)

    def _tell(self, ino: int, path: bytes, text: str, *, is_quarantined: bool) -> None:
        self.totals.damaged += 1
        self._found(Damage(ino, path, text, is_quarantined))

    def _count(self, content: _Content, *, is_directory: bool) -> None:
        self.totals.directories += is_directory
        self.totals.others += not is_directory
        self.totals.blocks += 1 + len(content.tree_blocks)


def _add_leaf(content: _Content, leaf: EntryTable | ExtentList, low: int, upper: int | None) -> None:
    """Add up one leaf, whose keys must lie from ``low`` up to, not including, ``upper``."""
    keys = leaf.keys if isinstance(leaf, EntryTable) else leaf.starts
    if keys and (keys[0] < low or (upper is not None and keys[-1] >= upper)):
        content.problem = f"keys {keys[0]} to {keys[-1]} in a leaf for those from {low} up to {upper}"
        return
    if isinstance(leaf, EntryTable):
        content.names += len(leaf)
        content.name_bytes += sum(entry.size for entry in leaf.entries)
        content.subdirectories += sum(entry.kind == _DIRECTORY for entry in leaf.entries)
        return
    content.runs += [(extent.physical, extent.length) for extent in leaf.extents]
    content.data_blocks += sum(extent.length for extent in leaf.extents)


_DIRECTORY = 4  # DT_DIR


def _miscounted(inode: Inode, content: _Content) -> str:
    """Which count of an object is wrong; "" none."""
    pairs = [("blocks", inode.blocks, len(content.tree_blocks) + content.data_blocks)]
    if inode.is_directory:
        pairs += [
            ("names", inode.children, content.names),
            ("bytes of names", inode.size, content.name_bytes),
            ("links", inode.nlink, 2 + content.subdirectories),
        ]
    wrong = [f"{what}: {says} by its inode, {counted} counted" for what, says, counted in pairs if says != counted]
    return "; ".join(wrong)


def _first_free(bits: int, parts: list[tuple[int, int]]) -> int:
    """The first of some blocks, (offset in the group, length) each, that is free; -1 when all are in use."""
    for at, length in parts:
        mask = (1 << length) - 1 << at
        free = ~bits & mask
        if free:
            return (free & -free).bit_length() - 1
    return -1
