"""An inode is given to another user, group or project, and with it all that is counted for it (quotas)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matrixfs.fs.held import Held
from matrixfs.fs.inode import Inode
from matrixfs.fs.quotas import NOBODY, Owner, owner_of

if TYPE_CHECKING:
    from matrixfs.fs.volume import Volume


async def owner_changes(volume: Volume, held: Held, inode: Inode, owner: Owner) -> None:
    """The last wait before ``set_owner``, for an exclusively held inode: room with its new owner.

    Raises OSError EDQUOT, ENOSPC; CorruptRecord, DeviceError, Fenced.
    """
    if volume.quotas is not None:
        await volume.write_back.flush(inode)  # what is buffered is promised to the old one
        old = owner_of(inode)
        moved = Owner(*(new if new != before else NOBODY for new, before in zip(owner, old, strict=True)))
        await held.quota((old, 0, 0), (moved, inode.blocks, 1))
    await volume.journal.admit()


def set_owner(volume: Volume, inode: Inode, owner: Owner) -> None:
    """Give an inode, for which ``owner_changes`` waited, to somebody else.  Part of a change."""
    if volume.quotas is None:
        inode.uid, inode.gid, inode.project = owner
    else:
        volume.quotas.move(inode, owner)
