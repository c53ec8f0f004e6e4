"""The orphan directories: inodes without a name, which wait to be freed (anchors.md 7.4)."""

from __future__ import annotations

import stat

from matrixfs.fsck.context import Context
from matrixfs.fsck.directory import DirectoryCheck, Place, Verdict
from matrixfs.fsck.fixes import FreeInode, SetInode
from matrixfs.fsck.inodes import check_content, check_inode_fields
from matrixfs.fsck.problems import (
    ENTRY_DANGLING,
    ORPHAN,
    ORPHAN_LINKED,
    ORPHAN_MARK,
    ORPHAN_NAME,
    ORPHAN_NLINK,
    ORPHAN_NOT_EMPTY,
    ORPHAN_UNLISTED,
)
from matrixfs.fsck.walk import NamespaceWalk, decode_inode, read_system_directory
from matrixfs.ondisk.inode import InodeRecord
from matrixfs.ondisk.superblock import ORPHANS_START


async def check_orphans(context: Context) -> None:
    """Check all orphan directories; the names below the root were walked before.  Raises DeviceError."""
    for journal in range(context.area.superblock.journals):
        directory = await read_system_directory(context, ORPHANS_START + journal)
        if directory is not None:
            await DirectoryCheck(context, directory, _Orphans(context, journal).enter, counts_links=False).run()


class _Orphans:
    """Judges the entries of one orphan directory."""

    def __init__(self, context: Context, journal: int) -> None:
        self._context = context
        self._journal = journal

    async def enter(self, place: Place, data: bytes | None) -> Verdict:
        """See ``directory.EnterEntry``."""
        context, number = self._context, place.entry.inode
        if place.entry.name != b"%016x" % number:
            context.findings.add(ORPHAN_NAME, place.removal, directory=place.directory, inode=number, name=place.name)
        if context.area.superblock.is_inode_number(number) and context.map.is_inode(number):
            context.findings.add(ORPHAN_LINKED, place.removal, inode=number, directory=place.directory)
            return Verdict(is_removed=True)
        inode = decode_inode(context, number, data, place.name) if data is not None else None
        if data is None or (inode is not None and inode.mode == 0):
            context.findings.add(
                ENTRY_DANGLING, place.removal, name=place.name, directory=place.directory, inode=number
            )
            return Verdict(is_removed=True)
        if inode is not None:
            await self._orphan(place, inode)
        return Verdict()

    async def _orphan(self, place: Place, inode: InodeRecord) -> None:
        context, number = self._context, inode.address
        if inode.nlink:
            context.findings.add(ORPHAN_NLINK, inode=number, directory=place.directory, found=inode.nlink)
        elif inode.orphaned_by != self._journal + 1:
            fix = SetInode(number, (("orphaned_by", self._journal + 1),))
            found = f"journal {inode.orphaned_by - 1}" if inode.orphaned_by else "none"
            context.findings.add(ORPHAN_MARK, fix, inode=number, expected=self._journal, found=found)
        if await claim_nameless(context, inode) and not inode.nlink:
            context.counts.orphans += 1
            context.findings.add(ORPHAN, FreeInode(number, place.removal), inode=number, journal=self._journal)


async def claim_nameless(context: Context, inode: InodeRecord) -> bool:
    """Check and claim an inode without a name; False when it can't simply be freed.  Raises DeviceError."""
    number = inode.address
    context.claim(number, number)
    context.map.mark_inode(number)
    if not check_inode_fields(context, inode):
        return False
    if not stat.S_ISDIR(inode.mode):
        return (await check_content(context, inode)).is_whole
    check = await NamespaceWalk(context).run(inode, counts_links=False)
    if check.children:
        context.findings.add(ORPHAN_NOT_EMPTY, inode=number)
        return False
    return check.walk.is_whole


async def report_unlisted(context: Context, inode: InodeRecord) -> None:
    """Report an orphan that no orphan directory lists.  Raises DeviceError."""
    if await claim_nameless(context, inode):
        context.counts.orphans += 1
        context.findings.add(ORPHAN_UNLISTED, FreeInode(inode.address, None), inode=inode.address)
