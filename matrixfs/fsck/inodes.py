"""One inode: its fields (pure), and the content of everything but directories."""

from __future__ import annotations

import stat

from matrixfs.fsck.context import Context
from matrixfs.fsck.fixes import SetInode
from matrixfs.fsck.problems import (
    EXTENT_PAST_EOF,
    INODE_BLOCKS,
    INODE_FLAGS,
    INODE_LAYOUT,
    INODE_PROJECT,
    INODE_QUARANTINED,
    INODE_SIZE,
    INODE_TYPE,
    INODE_USER_FLAGS,
    SYMLINK_TARGET,
    Findings,
)
from matrixfs.fsck.trees import Leaf, TreeWalk
from matrixfs.fsck.xattrs import check_attributes
from matrixfs.ondisk.directory import KINDS
from matrixfs.ondisk.extent import unpack_extents_untrusted
from matrixfs.ondisk.inode import (
    DEPTH_MAX,
    FLAG_LETTERS,
    FLAG_QUARANTINED,
    FLAG_TRUNCATING,
    FLAGS_KNOWN,
    FLAGS_OF_USERS,
    INLINE,
    TAIL_BYTES,
    TREE,
    InodeRecord,
    flags_of_type,
)
from matrixfs.ondisk.superblock import FILE_FLAGS
from membership.label import BLOCK_BYTES

SIZE_MAX = (1 << 63) - 1  # off_t
TARGET_MAX = 4095  # PATH_MAX without its zero


def kind_of(inode: InodeRecord) -> int:
    """Kind byte of an entry that names it."""
    return stat.S_IFMT(inode.mode) >> 12


def check_inode_fields(context: Context, inode: InodeRecord) -> bool:
    """Check what an inode says of itself; False when its content can't be looked at."""
    findings, number = context.findings, inode.address
    if inode.flags & ~FLAGS_KNOWN:
        findings.add(INODE_FLAGS, inode=number, flags=inode.flags & ~FLAGS_KNOWN)
    flags = _check_user_flags(context, inode)
    if flags & FLAG_QUARANTINED:
        fix = SetInode(number, (("flags", flags & ~FLAG_QUARANTINED),))
        findings.add(INODE_QUARANTINED, fix, inode=number)
    if kind_of(inode) not in KINDS:
        findings.add(INODE_TYPE, inode=number, mode=inode.mode)
        return False
    layout_error = _layout_error(inode)
    if layout_error:
        findings.add(INODE_LAYOUT, inode=number, reason=layout_error)
        return False
    if inode.size > SIZE_MAX:
        findings.add(INODE_SIZE, inode=number, size=inode.size)
    elif stat.S_ISLNK(inode.mode):
        _check_target(findings, inode)
    return True


def _check_user_flags(context: Context, inode: InodeRecord) -> int:
    """Check flags and project as users set them; the flags as they should be."""
    superblock, number = context.area.superblock, inode.address
    wrong = inode.flags & FLAGS_OF_USERS & ~(superblock.user_flags & flags_of_type(inode.mode))
    right = inode.flags & ~wrong
    if wrong:
        fix = SetInode(number, (("flags", right),))
        letters = "".join(letter for flag, letter in FLAG_LETTERS.items() if wrong & flag)
        context.findings.add(INODE_USER_FLAGS, fix, inode=number, flags=letters)
    if inode.project and not superblock.features_incompatible & FILE_FLAGS:
        fix = SetInode(number, (("project", 0),))
        context.findings.add(INODE_PROJECT, fix, inode=number, project=inode.project)
    return right


def _layout_error(inode: InodeRecord) -> str:
    """Why the layout can't be; "" when it can."""
    if inode.layout not in (INLINE, TREE):
        return f"layout {inode.layout}"
    if inode.depth > DEPTH_MAX:
        return f"depth {inode.depth}, at most {DEPTH_MAX} is possible"
    if inode.layout == TREE:
        has_tree = stat.S_ISDIR(inode.mode) or stat.S_ISREG(inode.mode) or stat.S_ISLNK(inode.mode)
        return "" if has_tree else "a special file with blocks"
    if stat.S_ISDIR(inode.mode):
        return "a directory without a tree"
    if inode.depth:
        return f"inline with depth {inode.depth}"
    if inode.size > TAIL_BYTES:
        return f"{inode.size} bytes inline, room for {TAIL_BYTES}"
    if inode.size and not (stat.S_ISREG(inode.mode) or stat.S_ISLNK(inode.mode)):
        return f"a special file of {inode.size} bytes"
    return ""


def _check_target(findings: Findings, inode: InodeRecord) -> None:
    if not 1 <= inode.size <= TARGET_MAX:
        findings.add(SYMLINK_TARGET, inode=inode.address, reason=f"{inode.size} bytes")
    elif inode.layout == INLINE and b"\0" in inode.tail[: inode.size]:
        findings.add(SYMLINK_TARGET, inode=inode.address, reason="a zero byte")


def has_blocks(inode: InodeRecord) -> bool:
    """Whether there is anything beside its own block that ``check_content`` would look at."""
    return inode.layout == TREE or inode.attributes != 0 or inode.inline_length != 0


async def check_content(context: Context, inode: InodeRecord) -> TreeWalk:
    """Check and claim the blocks of an inode with sound fields that is no directory; return the walk.

    Raises DeviceError.
    """
    content = _Extents(context, inode)
    if inode.layout == TREE:
        await content.walk.run()
    await check_attributes(context, inode, content.walk)
    blocks = content.walk.blocks + content.blocks
    context.use(inode, blocks)
    if content.walk.is_whole:
        check_blocks(context.findings, inode, blocks)
    if content.is_past_end and not inode.flags & FLAG_TRUNCATING:
        fix = SetInode(inode.address, (("flags", inode.flags | FLAG_TRUNCATING),))
        context.findings.add(EXTENT_PAST_EOF, fix, inode=inode.address)
    return content.walk


def check_blocks(findings: Findings, inode: InodeRecord, blocks: int) -> None:
    """Compare an inode's count of blocks with what was seen."""
    if inode.blocks != blocks:
        fix = SetInode(inode.address, (("blocks", blocks),))
        findings.add(INODE_BLOCKS, fix, inode=inode.address, found=inode.blocks, expected=blocks)


class _Extents:
    """The extents of one file, in order."""

    def __init__(self, context: Context, inode: InodeRecord) -> None:
        self._context = context
        self._inode = inode
        self._end = 0  # of the extents before
        self._size_blocks = -(-inode.size // BLOCK_BYTES)
        self.blocks = 0
        self.is_past_end = False
        self.walk = TreeWalk(context, inode, self._leaf)

    async def _leaf(self, leaf: Leaf) -> None:
        """See ``TreeWalk``."""
        superblock = self._context.area.superblock
        known = superblock.extent_flags
        for extent in unpack_extents_untrusted(leaf.body, leaf.entries, "extents", superblock.blocks_total, known):
            if not leaf.low <= extent.logical < leaf.high or extent.logical < self._end:
                self.walk.out_of_order(leaf.block, extent.logical)
                return
            self._end = extent.end
            # Space that was reserved behind the end (fallocate) is unwritten.
            self.is_past_end |= self._end > self._size_blocks and extent.written
            if not self._context.claim(self._inode.address, extent.physical, extent.length):
                self.walk.is_whole = False
            self.blocks += extent.length
