"""What a change of a file's content, or of its owner, takes away: set-user-ID, set-group-ID, security.capability.

Linux does so in ``file_remove_privs`` and ``notify_change`` (fs/inode.c, fs/attr.c); a kernel that leaves it to us by
FUSE_HANDLE_KILLPRIV_V2 believes that a file has none of them, unless it has just looked, and another node may have
given it some.  So we look, under the lock under which the file is changed.

Rules:
    PR1 Capabilities go, whoever writes.  Set-user-ID goes unless the writer keeps set-id bits (CAP_FSETID).
        Set-group-ID does, too, where the group may execute; where it may not, and the bit once meant mandatory locking,
        who is in the file's group keeps it.
    PR2 They go before the content changes, in a transaction of their own: a crash never leaves what somebody wrote with
        privileges that another gave to something else.
    PR3 Directories keep all of it.
"""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, Protocol

from matrixfs.fs import xattrs
from matrixfs.fs.held import Held
from matrixfs.fs.inode import Inode
from matrixfs.ondisk.xattr import CAPABILITY

if TYPE_CHECKING:
    from matrixfs.fs.volume import Volume

SET_ID = stat.S_ISUID | stat.S_ISGID


class Changer(Protocol):
    """Who changes a file.  Asked only where it matters."""

    def keeps_set_id(self) -> bool:
        """Whether he may leave set-id bits (CAP_FSETID)."""
        ...

    def is_member(self, gid: int) -> bool:
        """Whether he is in a group, or may do as if."""
        ...

    def took_away(self, inode: Inode) -> None:
        """Something went: the kernel doesn't know.  Must not wait."""
        ...


def without_set_id(mode: int, *, is_member: bool) -> int:
    """What is left of a file's mode (PR1, PR3)."""
    if stat.S_ISDIR(mode):
        return mode
    takes_group = mode & stat.S_IXGRP or not is_member
    return mode & ~stat.S_ISUID & ~(stat.S_ISGID if takes_group else 0)


async def take_away(volume: Volume, inode: Inode, changer: Changer) -> None:
    """Before an exclusively held inode is changed (PR1, PR2).

    Raises CorruptionError, DeviceError, Fenced: its attributes can't be read.
    """
    mode = inode.mode
    if mode & SET_ID and not changer.keeps_set_id():
        mode = without_set_id(mode, is_member=changer.is_member(inode.gid))
    entries = None if inode.bare or inode.is_directory else dict((await xattrs.load(volume, inode)).entries)
    capable = entries is not None and entries.pop(CAPABILITY, None) is not None
    if mode == inode.mode and not capable:
        return
    with Held(volume) as held:
        if entries is not None and capable:
            await xattrs.store(volume, held, inode, entries)
        else:
            await volume.journal.admit()
        # No checkpoint since, or from here (J1).
        inode.mode = mode
        volume.touch(inode, data=False)
    changer.took_away(inode)
