"""Extended attributes of an inode: every block of the chain claimed and checked, then what they say together."""

from __future__ import annotations

from matrixfs.fsck.context import Context, reason
from matrixfs.fsck.problems import XATTR_BLOCK, XATTR_CONTENT, XATTR_LOOP
from matrixfs.fsck.trees import TreeWalk
from matrixfs.ondisk.acl import unpack_acl_untrusted
from matrixfs.ondisk.inode import InodeRecord
from matrixfs.ondisk.xattr import (
    ACL_ACCESS,
    ACL_DEFAULT,
    CHAIN_BLOCKS_MAX,
    INLINE_BYTES,
    AttributeRecord,
    unpack_attributes_untrusted,
)
from membership.errors import CorruptRecord


async def check_attributes(context: Context, inode: InodeRecord, walk: TreeWalk) -> None:
    """Check an inode's attributes; ``walk`` of its tree counts their blocks, too.  Raises DeviceError."""
    if not (inode.attributes or inode.inline_length):
        return
    packed = await _read_chain(context, inode, walk)
    if packed is None:
        walk.is_whole = False
        return
    try:
        if inode.inline_length > INLINE_BYTES or (inode.inline_length and inode.attributes):
            raise CorruptRecord("", "bytes in the inode", f"at most {INLINE_BYTES}, and no chain", inode.inline_length)
        found = unpack_attributes_untrusted(packed or inode.inline_attributes[: inode.inline_length], "")
        for name in (ACL_ACCESS, ACL_DEFAULT):
            if name in found:
                unpack_acl_untrusted(found[name], "")
    except CorruptRecord as error:
        context.findings.add(XATTR_CONTENT, inode=inode.address, reason=reason(error))


async def _read_chain(context: Context, inode: InodeRecord, walk: TreeWalk) -> bytes | None:
    """What the blocks hold; None, with a finding, when not all can be had."""
    number, superblock = inode.address, context.area.superblock
    bodies: list[bytes] = []
    block, seen = inode.attributes, set[int]()
    while block:
        if block in seen:
            context.findings.add(XATTR_LOOP, inode=number, block=block)
            return None
        seen.add(block)
        if not context.claim(number, block):
            return None
        walk.blocks += 1
        try:
            data = await context.area.read(block)
            found = AttributeRecord.decode_untrusted(data, "", owner=superblock.owner, address=block)
            walk.generation = max(walk.generation, found.generation)
            found.check_untrusted("", number)
            if len(bodies) == CHAIN_BLOCKS_MAX:
                raise CorruptRecord("", "blocks", f"at most {CHAIN_BLOCKS_MAX}", "more")
        except CorruptRecord as error:
            context.findings.add(XATTR_BLOCK, inode=number, block=block, reason=reason(error))
            return None
        bodies.append(found.body[: found.used])
        block = found.next
    return b"".join(bodies)
