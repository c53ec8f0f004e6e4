"""Extended attributes of inodes, access control lists among them (``ondisk/xattr.py`` has the format).

Invariants:
    X1  All attributes of an inode change in one transaction with its ctime and, for an access control list, its mode
        (J1): a crash leaves the old ones or the new ones.
    X2  What is cached of them hangs on the inode and on its lock's blocks, and goes with them at surrender.
    X3  An access control list that says no more than a mode is not stored; chmod changes the list that there is.

One inode has at most 128 KiB of names and values in all, and 64 KiB of names: ENOSPC beyond, as of ext4 and xfs.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from matrixfs.fs import acl, file_flags
from matrixfs.fs.allocation import Reservation
from matrixfs.fs.blocks import Block
from matrixfs.fs.groups import Group
from matrixfs.fs.held import Held, free_metadata, reserve
from matrixfs.fs.inode import Inode
from matrixfs.fs.quotas import owner_of
from matrixfs.fs.sanity import check_used
from matrixfs.ondisk.superblock import EXTENDED_ATTRIBUTES
from matrixfs.ondisk.xattr import (
    ACL_ACCESS,
    ACL_DEFAULT,
    BODY_BYTES,
    CHAIN_BLOCKS_MAX,
    INLINE_BYTES,
    LIST_BYTES_MAX,
    NAME_BYTES_MAX,
    PACKED_BYTES_MAX,
    SPACES,
    VALUE_BYTES_MAX,
    AttributeRecord,
    is_known_name,
    list_bytes,
    pack_attributes,
    packed_bytes,
    unpack_attributes_untrusted,
)
from membership.errors import CorruptRecord
from membership.label import BLOCK_BYTES

if TYPE_CHECKING:
    from matrixfs.fs.volume import Volume


class AttributeBlock(Block):
    """One block of a chain."""

    __slots__ = ("body", "inode", "next")

    def __init__(self, address: int, generation: int, inode: int) -> None:
        super().__init__(address, generation)
        self.inode = inode
        self.next = 0
        self.body = b""

    def encode(self, owner: bytes) -> bytes:
        """See ``Block.encode``."""
        return AttributeRecord(
            owner=owner, address=self.address, generation=self.generation,
            inode=self.inode, next=self.next, used=len(self.body), body=self.body,
        ).encode()  # fmt: skip


class Attributes(NamedTuple):
    """All attributes of one inode, not to be changed in place, and the blocks they lie in."""

    entries: Mapping[bytes, bytes]
    chain: tuple[AttributeBlock, ...] = ()


NONE = Attributes({})
CAPABILITY = b"security.capability"


# --- reading -------------------------------------------------------------------------------------------------


async def load(volume: Volume, inode: Inode) -> Attributes:
    """The attributes of a held inode.  Raises CorruptRecord, DeviceError, Fenced."""
    if inode.bare:
        return NONE
    if inode.extended is None:
        chain = await _read_chain(volume, inode)
        packed = b"".join([block.body for block in chain]) if chain else inode.packed
        inode.extended = Attributes(unpack_attributes_untrusted(packed, f"inode {inode.ino} (attributes)"), chain)
    found: Attributes = inode.extended
    return found


async def _read_chain(volume: Volume, inode: Inode) -> tuple[AttributeBlock, ...]:
    chain: list[AttributeBlock] = []
    address = inode.attributes
    while address:
        where = f"block {address} (attributes of inode {inode.ino})"
        inside = volume.superblock.group_start < address < volume.superblock.blocks_total - 1
        if not inside or len(chain) == CHAIN_BLOCKS_MAX or any(block.address == address for block in chain):
            raise CorruptRecord(where, "chain", f"at most {CHAIN_BLOCKS_MAX} blocks of the groups", len(chain) + 1)
        block = inode.lock.blocks.get(address) or await _read_block(volume, inode, address, where)
        if not isinstance(block, AttributeBlock):  # it is the inode, or of its tree
            raise CorruptRecord(where, "chain", "a block of attributes", "another one of this inode")
        chain.append(block)
        address = block.next
    return tuple(chain)


async def _read_block(volume: Volume, inode: Inode, address: int, where: str) -> AttributeBlock:
    data = await volume.device.read(address * BLOCK_BYTES, BLOCK_BYTES)
    found = AttributeRecord.decode_untrusted(data, where, owner=volume.superblock.owner, address=address)
    found.check_untrusted(where, inode.ino)
    block = AttributeBlock(address, found.generation, inode.ino)
    block.next, block.body = found.next, found.body[: found.used]
    loaded: AttributeBlock = inode.lock.blocks.setdefault(address, block)  # another reader may have been faster
    return loaded


async def get(volume: Volume, ino: int, name: bytes) -> tuple[Inode, bytes | None]:
    """The inode, and the value of an attribute; None if it has no such.

    Raises:
        OSError: EOPNOTSUPP for a name of no namespace, EINVAL for a namespace alone, ERANGE for a long name; ESTALE.
        CorruptionError, DeviceError, Fenced: it can't be read.
    """
    _check_name(name)
    with Held(volume) as held:
        inode = await held.shared(ino)
        return inode, (await load(volume, inode)).entries.get(name)


async def names(volume: Volume, ino: int) -> tuple[Inode, list[bytes]]:
    """The inode, and the names of its attributes.  Raises as ``get``."""
    with Held(volume) as held:
        inode = await held.shared(ino)
        return inode, list((await load(volume, inode)).entries)


def _check_name(name: bytes) -> None:
    if len(name) > NAME_BYTES_MAX:
        raise OSError(errno.ERANGE, "attribute name too long")
    if not is_known_name(name):
        code = errno.EINVAL if name in SPACES else errno.EOPNOTSUPP
        raise OSError(code, f"{name!r} is no attribute that this filesystem keeps")


# --- changing ------------------------------------------------------------------------------------------------


async def put(
    volume: Volume, ino: int, name: bytes, value: bytes, flags: int, is_member: Callable[[int], bool] = lambda _: True
) -> Inode:
    """Set an attribute.

    Args:
        volume: the filesystem.
        ino: of which inode.
        name: with its namespace.
        value: at most 64 KiB.
        flags: 0, XATTR_CREATE or XATTR_REPLACE.
        is_member: whether the caller is in a group, or may do as if: set-group-ID outlives an access control list
            set by such only.

    Raises:
        OSError: EEXIST, ENODATA by the flags; EOPNOTSUPP, EINVAL, ERANGE for the name; E2BIG for the value; ENOSPC,
            EDQUOT; EINVAL, EACCES for an access control list; ESTALE; EPERM by flags.
        CorruptionError, DeviceError, Fenced: the present ones can't be read.
    """
    _check_name(name)
    if not volume.superblock.features_incompatible & EXTENDED_ATTRIBUTES:
        raise OSError(errno.EOPNOTSUPP, "made without extended attributes: fsck.matrixfs --upgrade adds them")
    if len(value) > VALUE_BYTES_MAX:
        raise OSError(errno.E2BIG, f"a value of {len(value)} bytes, {VALUE_BYTES_MAX} are possible")
    with Held(volume) as held:
        inode = await held.exclusive(ino)
        file_flags.check_change(inode)
        entries = dict((await load(volume, inode)).entries)
        if flags & os.XATTR_CREATE and name in entries:
            raise OSError(errno.EEXIST, "the attribute exists")
        if flags & os.XATTR_REPLACE and name not in entries:
            raise OSError(errno.ENODATA, "no such attribute")
        entries[name] = value
        mode = inode.mode
        if name in (ACL_ACCESS, ACL_DEFAULT):
            mode = acl.take(entries, name, mode, is_member(inode.gid))
        await store(volume, held, inode, entries)
        # No checkpoint since that change (X1).
        inode.mode = mode
        volume.touch(inode, data=False)
        await file_flags.keep_metadata(volume, inode)
        return inode


async def remove(volume: Volume, ino: int, name: bytes) -> Inode:
    """Remove an attribute.  Raises as ``get`` does, and OSError ENODATA, EPERM.

    An access control list need not be there, as Linux has it: the kernel asks for this also to set an empty one.
    """
    _check_name(name)
    with Held(volume) as held:
        inode = await held.exclusive(ino)
        file_flags.check_write(inode, appends=name == CAPABILITY)  # which appending takes away
        entries = dict((await load(volume, inode)).entries)
        if entries.pop(name, None) is None:
            if name in (ACL_ACCESS, ACL_DEFAULT):
                return inode
            raise OSError(errno.ENODATA, "no such attribute")
        await store(volume, held, inode, entries)
        volume.touch(inode, data=False)
        await file_flags.keep_metadata(volume, inode)
        return inode


async def store(volume: Volume, held: Held, inode: Inode, entries: dict[bytes, bytes]) -> None:
    """Replace all attributes of an exclusively held inode.  No checkpoint at its end.  OSError ENOSPC."""
    if packed_bytes(entries) > PACKED_BYTES_MAX or list_bytes(entries) > LIST_BYTES_MAX:
        raise OSError(errno.ENOSPC, "too many, or too large, attributes on one inode")
    chain = (await load(volume, inode)).chain
    blocks = blocks_needed(entries)
    gone = {volume.superblock.group_of(block.address) for block in chain[blocks:]}
    await held.quota((owner_of(inode), max(0, blocks - len(chain)), 0))
    groups = await held.groups(gone) if gone else {}
    with await reserve(volume, held, max(0, blocks - len(chain)), inode.ino) as spare:
        write(volume, inode, entries, spare, groups)


async def drop(volume: Volume, inode: Inode) -> None:
    """Free the attribute blocks of an exclusively held inode that is to be deleted; their content doesn't matter.

    Raises CorruptRecord, DeviceError, Fenced.
    """
    if inode.bare:
        return
    chain = await _read_chain(volume, inode)
    with Held(volume) as held:
        await held.quota((owner_of(inode), 0, 0))
        groups = await held.groups({volume.superblock.group_of(block.address) for block in chain})
        await volume.journal.admit()
        inode.extended = Attributes({}, chain)
        write(volume, inode, {}, None, groups)


def blocks_needed(entries: Mapping[bytes, bytes]) -> int:
    """Blocks of a chain for these attributes."""
    length = packed_bytes(entries)
    return 0 if length <= INLINE_BYTES else -(-length // BODY_BYTES)


def write(
    volume: Volume, inode: Inode, entries: Mapping[bytes, bytes], spare: Reservation | None, groups: dict[int, Group]
) -> None:
    """Replace all attributes of an inode: part of a change.  What is loaded says which blocks there are."""
    packed = pack_attributes(entries)
    wanted = blocks_needed(entries)
    chain = list(inode.extended.chain) if inode.extended is not None else []
    for _ in range(wanted - len(chain)):
        assert spare is not None
        block = AttributeBlock(spare.pop(), spare.group.generation_floor, inode.ino)
        inode.lock.blocks[block.address] = block
        volume.use(inode, 1)
        chain.append(block)
    check_used(volume.superblock, groups, [(block.address, 1) for block in chain[wanted:]])
    for block in chain[wanted:]:
        del inode.lock.blocks[block.address]
        volume.use(inode, -1)
        free_metadata(volume, groups[volume.superblock.group_of(block.address)], block)
    del chain[wanted:]
    following = [*(block.address for block in chain[1:]), 0]
    for at, block in enumerate(chain):
        body = packed[at * BODY_BYTES : (at + 1) * BODY_BYTES]
        if (block.body, block.next) != (body, following[at]):
            block.body, block.next = body, following[at]
            volume.journal.add(block)
    inode.attributes = chain[0].address if chain else 0
    inode.packed = b"" if chain else packed
    inode.extended = Attributes(entries, tuple(chain))
    volume.journal.add(inode)


def rewrite(volume: Volume, inode: Inode, entries: Mapping[bytes, bytes]) -> None:
    """Put what ``after_chmod`` made in the place of what it was made from: part of a change (X1)."""
    write(volume, inode, entries, None, {})
