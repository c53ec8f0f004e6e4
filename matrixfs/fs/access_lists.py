"""Access control lists of inodes: what create, chmod and the permission check of the FUSE layer make of them.

The rules themselves are in ``acl.py``.  The kernel checks permissions by the lists, leaves to us the umask and what a
directory hands down, and doesn't change the list at chmod (``fuse/extension/session.c`` agrees with it on that).
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from matrixfs.fs import acl, xattrs
from matrixfs.fs.allocation import Reservation
from matrixfs.fs.inode import Inode
from matrixfs.ondisk.acl import AclEntry, pack_acl, unpack_acl_untrusted
from matrixfs.ondisk.xattr import ACL_ACCESS, ACL_DEFAULT

if TYPE_CHECKING:
    from matrixfs.fs.volume import Volume


async def of(volume: Volume, inode: Inode) -> list[AclEntry] | None:
    """The access control list of a held inode; None where its mode says all.  Raises as ``xattrs.load``."""
    value = (await xattrs.load(volume, inode)).entries.get(ACL_ACCESS)
    return None if value is None else unpack_acl_untrusted(value, f"inode {inode.ino}: {ACL_ACCESS.decode()}")


async def after_chmod(volume: Volume, inode: Inode, mode: int) -> Mapping[bytes, bytes] | None:
    """The attributes of a held inode as chmod(2) makes them; None where they stay (X3).  They take the same space.

    Raises CorruptRecord, DeviceError, Fenced.
    """
    before = await of(volume, inode)
    if before is None:
        return None
    entries = (await xattrs.load(volume, inode)).entries
    return {**entries, ACL_ACCESS: pack_acl(acl.after_chmod(before, mode))}


class Inheritance(NamedTuple):
    """What a new inode gets from its directory: its mode and attributes; ``blocks`` are needed for them."""

    mode: int
    entries: Mapping[bytes, bytes] = {}

    @property
    def blocks(self) -> int:
        """Blocks to reserve."""
        return xattrs.blocks_needed(self.entries) if self.entries else 0

    def give(self, volume: Volume, inode: Inode, spare: Reservation) -> None:
        """To the new inode, after its lock knows it: part of the change that makes it."""
        if self.entries:
            xattrs.write(volume, inode, self.entries, spare, {})


async def inheritance(volume: Volume, directory: Inode, mode: int, umask: int) -> Inheritance:
    """What a new inode of ``mode`` in a held directory gets: its default access control list, or else the umask.

    Raises CorruptRecord, DeviceError, Fenced.
    """
    if stat.S_ISLNK(mode):
        return Inheritance(mode)
    default = (await xattrs.load(volume, directory)).entries.get(ACL_DEFAULT)
    if default is None:
        return Inheritance(mode & ~umask)
    rules = unpack_acl_untrusted(default, f"inode {directory.ino}: {ACL_DEFAULT.decode()}")
    own = acl.inherited(rules, mode)
    entries = {} if acl.is_minimal(own) else {ACL_ACCESS: pack_acl(own)}
    if stat.S_ISDIR(mode):
        entries[ACL_DEFAULT] = default
    return Inheritance(mode & ~acl.PERMISSIONS | acl.permissions_of(own), entries)
