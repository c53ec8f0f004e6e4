"""What a node does before it gives up an inode's lock (R8, 002-08, 002-35).

==== ============================= ======================================================================
step when                          what
==== ============================= ======================================================================
1    from EX                       write buffered file data; what only goes over old blocks beside step 2
2    from EX, something changed    commit the journal, then write the inode's blocks in place, then revoke (J3)
3    below PR                      if the file is open here, let its OPEN lock stand for that (``opens``)
4    below PR                      drop what the kernel caches: names, attributes, pages
5    below PR                      drop what is cached here
==== ============================= ======================================================================

No local operation holds the lock while this runs (``locks.cache``), and none of the steps waits for one.
"""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

from matrixfs.fs import data_journal
from matrixfs.fs.inode import Inode
from matrixfs.locks.lock import Lock
from matrixfs.locks.modes import EX, PR

if TYPE_CHECKING:
    from matrixfs.fs.volume import Volume


class InodeCallouts:
    """Callouts of the INODE and RENAME domains; nothing is cached under the latter."""

    flushes = True  # buffered bytes become extents: a reader in between would see neither
    upgrades = True

    def __init__(self, volume: Volume) -> None:
        self._volume = volume

    async def surrender(self, lock: Lock, mode: int) -> None:
        """See the module."""
        inode: Inode | None = lock.subject
        if lock.mode == EX and lock.blocks:
            if inode is not None and inode.dirty is not None:
                await self._volume.write_back.flush_beside(inode, lambda: self._bring_home(lock))
            else:
                await self._bring_home(lock)
            self._volume.locks.trace.note("in place", lock.resource, mode)
        if mode < PR:
            await self._volume.opens.register(lock.number)
            if inode is not None:
                await self._purge_kernel(inode)
                self._volume.locks.trace.note("purged", lock.resource, mode)
            lock.subject = None
            lock.blocks.clear()

    async def _bring_home(self, lock: Lock) -> None:
        data = self._volume.journal.data.of(lock.number)
        await data_journal.bring_home(self._volume, [*lock.blocks.values(), *data])

    async def _purge_kernel(self, inode: Inode) -> None:
        if stat.S_ISDIR(inode.mode):
            await self._volume.kernel.purge_names(inode.ino)
        await self._volume.kernel.purge_inode(inode.ino)
