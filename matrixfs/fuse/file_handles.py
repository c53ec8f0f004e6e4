"""File handles: name_to_handle_at(2), open_by_handle_at(2), and through them NFS servers.

A handle is made by the kernel: node id, so the inode's number, and generation, both the same on all nodes; so it opens
on any node, before and after any mount (FUSE_EXPORT_SUPPORT).  Of an inode that it has forgotten the kernel asks for
"." in the node, and then compares generations; to find a directory's place in the tree it asks for "..", and looks for
the name there.  No name is handed out by that, only inodes, which purges reach by their numbers (K2).

The root's generation is 0 to the kernel, and it never forgets the root.
"""

from __future__ import annotations

import errno
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matrixfs.fuse.api import Attributes, Inode, Volume

DOTS = (b".", b"..")


async def by_number(attributes: Attributes, volume: Volume, ino: int, name: bytes) -> Inode:
    """The inode, or, for "..", the directory that it is in.

    Raises OSError ESTALE for what there is no more, or never was.
    """
    inode: Inode = await attributes.by_number(volume, ino)
    if name == b".":
        return inode
    if not stat.S_ISDIR(inode.mode):
        raise OSError(errno.ESTALE, f"inode {ino} is in no directory that it knows")
    parent: Inode = await attributes.by_number(volume, inode.parent or ino)
    return parent
