"""All names, from the root down: every directory once, every inode when its first name comes by."""

from __future__ import annotations

import contextlib
import stat
from array import array

from matrixfs.fsck.area import AHEAD_MAX
from matrixfs.fsck.context import Context, reason
from matrixfs.fsck.directory import DirectoryCheck, Place, Verdict
from matrixfs.fsck.fixes import LowerLinks, SetInode, SetKind
from matrixfs.fsck.inodes import check_blocks, check_content, check_inode_fields, has_blocks, kind_of
from matrixfs.fsck.links import Names
from matrixfs.fsck.problems import (
    DIRECTORY_PARENT,
    DIRECTORY_TWICE,
    ENTRY_DANGLING,
    ENTRY_KIND,
    INODE_DAMAGED,
    INODE_NLINK,
    INODE_ORPHAN_MARK,
    SYSTEM_DIRECTORY,
)
from matrixfs.ondisk.directory import unpack_entries_untrusted
from matrixfs.ondisk.inode import InodeRecord
from matrixfs.ondisk.superblock import ROOT_INODE
from membership.errors import CorruptRecord

DIRECTORY_KIND = stat.S_IFDIR >> 12
DIRECTORIES_AT_ONCE = 128  # whose names are read at the same time


def decode_inode(context: Context, number: int, data: bytes, name: str) -> InodeRecord | None:
    """The inode in a block; None, with a finding, when it is damaged: its block is in use all the same."""
    superblock = context.area.superblock
    try:
        return InodeRecord.decode_untrusted(data, f"inode {number}", owner=superblock.owner, address=number)
    except CorruptRecord as error:
        context.findings.add(INODE_DAMAGED, inode=number, name=name, reason=reason(error))
        context.map.claim(number)
        return None


async def read_system_directory(context: Context, number: int) -> InodeRecord | None:
    """The root or an orphan directory, or None with a finding.  Raises DeviceError."""
    inode = decode_inode(context, number, await context.area.read(number), "a directory of the filesystem itself")
    if inode is None or not check_inode_fields(context, inode):
        return None
    if not stat.S_ISDIR(inode.mode):
        context.findings.add(SYSTEM_DIRECTORY, inode=number)
        return None
    check_parent(context, inode, number)
    return inode


def check_parent(context: Context, inode: InodeRecord, parent: int) -> None:
    """Compare a directory's parent with the directory it was found in."""
    if inode.parent != parent:
        fix = SetInode(inode.address, (("parent", parent),))
        context.findings.add(DIRECTORY_PARENT, fix, inode=inode.address, found=inode.parent, expected=parent)


class NamespaceWalk:
    """A walk over the directories below one."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._stack = array("Q")  # directories whose fields are checked and whose names are not

    async def run_root(self) -> None:
        """Walk everything below the root.  Raises DeviceError."""
        root = await read_system_directory(self._context, ROOT_INODE)
        if root is not None:
            self._context.counts.directories += 1
            await self.run(root)

    async def run(self, top: InodeRecord, *, counts_links: bool = True) -> DirectoryCheck:
        """Walk everything below ``top``, which is claimed; return its own check.  Raises DeviceError."""
        check = DirectoryCheck(self._context, top, self.enter, counts_links=counts_links)
        await check.run()
        await self._drain()
        return check

    async def _drain(self) -> None:
        """Check the directories on the stack, and those that are found meanwhile; many small ones are read together."""
        context = self._context
        owner = context.area.superblock.owner
        while self._stack:
            numbers = self._stack[-DIRECTORIES_AT_ONCE:]
            del self._stack[-DIRECTORIES_AT_ONCE:]
            read = await context.area.read_many(numbers)
            inodes = [InodeRecord.decode_untrusted(read[at], f"inode {at}", owner=owner) for at in reversed(numbers)]
            await context.area.read_ahead(self._named_by(inodes))
            for inode in inodes:
                await DirectoryCheck(context, inode, self.enter).run()

    def _named_by(self, directories: list[InodeRecord]) -> set[int]:
        """Inodes that will be met first in small directories; of the others each leaf names enough by itself."""
        context = self._context
        numbers: set[int] = set()
        for inode in directories:
            if inode.depth or len(numbers) >= AHEAD_MAX:
                continue
            with contextlib.suppress(CorruptRecord):  # its check will say so
                numbers.update(entry.inode for entry in unpack_entries_untrusted(inode.tail, inode.entries, ""))
        is_inode_number = context.area.superblock.is_inode_number
        return {number for number in numbers if is_inode_number(number) and not context.map.is_inode(number)}

    async def enter(self, place: Place, data: bytes | None) -> Verdict:
        """Judge an entry (see ``directory.EnterEntry``)."""
        context, number = self._context, place.entry.inode
        if not context.area.superblock.is_inode_number(number):
            return self._dangling(place)
        if context.map.is_inode(number):
            return await self._next_name(place)
        assert data is not None
        inode = decode_inode(context, number, data, place.name)
        if inode is None:
            return Verdict(is_subdirectory=place.entry.kind == DIRECTORY_KIND)
        if inode.mode == 0:
            return self._dangling(place)
        return await self.first_name(place, inode)

    def _dangling(self, place: Place) -> Verdict:
        self._context.findings.add(
            ENTRY_DANGLING, place.removal, name=place.name, directory=place.directory, inode=place.entry.inode
        )
        return Verdict(is_removed=True)

    async def first_name(self, place: Place, inode: InodeRecord) -> Verdict:
        """Check the inode that an entry names for the first time.  Raises DeviceError."""
        context, number = self._context, inode.address
        context.claim(number, number)
        context.map.mark_inode(number)
        is_sound = check_inode_fields(context, inode)
        if is_sound:
            self._check_kind(place, kind_of(inode))
        if inode.orphaned_by and inode.nlink:
            fix = SetInode(number, (("orphaned_by", 0),))
            context.findings.add(INODE_ORPHAN_MARK, fix, inode=number, journal=inode.orphaned_by - 1)
        if stat.S_ISDIR(inode.mode):
            context.counts.directories += 1
            if is_sound:
                check_parent(context, inode, place.directory)
                self._stack.append(number)
            return Verdict(is_subdirectory=True)
        context.counts.files += 1
        if inode.nlink != 1:
            context.names.put(number, Names(inode.nlink, 1, kind_of(inode)))
        if is_sound and has_blocks(inode):
            await check_content(context, inode)
        elif is_sound:
            context.use(inode, 0)
            check_blocks(context.findings, inode, 0)
        return Verdict()

    async def _next_name(self, place: Place) -> Verdict:
        """An entry for an inode that was met before.  Raises DeviceError."""
        context, number = self._context, place.entry.inode
        names = context.names.get(number)
        if names is None:
            data = await context.area.read(number)
            inode = InodeRecord.decode_untrusted(data, f"inode {number}", owner=context.area.superblock.owner)
            if stat.S_ISDIR(inode.mode):
                context.findings.add(DIRECTORY_TWICE, name=place.name, directory=place.directory, inode=number)
                return Verdict(is_subdirectory=True)
            names = Names(inode.nlink, 1, kind_of(inode))
        context.names.put(number, names._replace(found=names.found + 1))
        self._check_kind(place, names.kind)
        return Verdict()

    def _check_kind(self, place: Place, kind: int) -> None:
        if place.entry.kind != kind:
            self._context.findings.add(
                ENTRY_KIND,
                SetKind(place.directory, place.block, place.entry.key, kind),
                name=place.name,
                directory=place.directory,
                inode=place.entry.inode,
                found=place.entry.kind,
                expected=kind,
            )


def check_link_counts(context: Context) -> None:
    """Compare the names that inodes count with those that were seen."""
    for number, names in context.names.items():
        if names.nlink == names.found:
            continue
        if names.found < names.nlink:
            context.findings.add(
                INODE_NLINK, LowerLinks(number, names.found), inode=number, found=names.nlink, expected=names.found
            )
            continue
        changes = (("nlink", names.found), ("orphaned_by", 0)) if names.nlink == 0 else (("nlink", names.found),)
        context.findings.add(
            INODE_NLINK, SetInode(number, changes), inode=number, found=names.nlink, expected=names.found
        )
