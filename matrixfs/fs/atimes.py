"""Access times, as ``relatime`` has them, without a storm of locks.

- T1. Reading notes an access when it counts: the time on the inode is not after the last change, or a day old.  Else
  reading costs nothing.
- T2. A noted access is shown at once on this node (``shown``), and written to the inode by a background round under
  the exclusive lock: the others see it then.  So reading never waits for a lock it would not need otherwise.
- T3. A round writes all inodes whose exclusive lock is here.  For others it asks only ``QUIET_SECONDS`` after the last
  access that counted, and at most for ``ROUND_MAX``: taking the lock has the other readers' kernels drop their pages.
  ``NOTED_MAX`` are remembered; what is forgotten is an access time only.
- T4. A change of the inode on this node takes along what is noted, which its new ctime would make void: an access time
  that was shown does not go back.
- T5. A clean end writes down what is noted, as far as the locks are to be had; what a mount noted that dies is lost.

Source: mount(8), ``relatime``; POSIX lets a filesystem defer the update of access times.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from matrixfs.fs.inode import Inode
from matrixfs.locks.lock import Lock
from matrixfs.locks.modes import EX
from matrixfs.locks.resources import INODE, Resource
from matrixfs.ondisk.inode import FLAG_NOATIME
from membership.errors import MatrixError

if TYPE_CHECKING:
    from matrixfs.fs.volume import Volume

DAY_NS = 86_400 * 10**9
ROUND_SECONDS = 5.0
QUIET_SECONDS = 30
ASK_SECONDS_MAX = 0.2
ROUND_MAX = 64
NOTED_MAX = 4096

log = logging.getLogger(__name__)


class Atimes:
    """The noted accesses of one mount.

    Args:
        volume: whose inodes.
    """

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._noted: dict[int, int] = {}  # inode number -> when it was read
        self.enabled = True  # False for ``-o noatime`` and ``-o ro``

    def note(self, ino: int) -> None:
        """The inode was read just now."""
        lock = self._volume.locks.find(Resource(INODE, ino))
        inode: Inode | None = lock.subject if lock is not None else None
        if inode is not None and self.would_note(inode):
            self._noted[ino] = self._volume.clock.wall_ns()

    def would_note(self, inode: Any) -> bool:
        """Whether reading the inode now would be noted (T1)."""
        if not self.enabled or inode.flags & FLAG_NOATIME:
            return False
        atime_ns = self.shown(inode)
        is_due = atime_ns <= max(inode.mtime_ns, inode.ctime_ns)
        is_due = is_due or self._volume.clock.wall_ns() - atime_ns >= DAY_NS
        return is_due and (inode.ino in self._noted or len(self._noted) < NOTED_MAX)

    def shown(self, inode: Any) -> int:
        """The access time to tell of an inode (T2); one noted before its last change, ``utimes`` too, is void."""
        noted = self._noted.get(inode.ino, 0) if self._noted else 0
        return noted if noted > inode.ctime_ns and noted > inode.atime_ns else inode.atime_ns

    def take_along(self, inode: Inode) -> None:
        """The inode is about to get a new ctime: part of that change (T4)."""
        if self._noted:
            inode.atime_ns = self.shown(inode)
            self._noted.pop(inode.ino, None)

    async def run(self) -> None:
        """Write down what is noted, in rounds; until the volume closes."""
        while await self._volume.pause(ROUND_SECONDS):
            await self._round(self._volume.clock.wall_ns() - QUIET_SECONDS * 10**9)

    async def close(self) -> None:
        """Write down what is left; no operation is running (T5)."""
        await self._round(self._volume.clock.wall_ns())

    async def _round(self, quiet_ns: int) -> None:
        """Write what is free to take, and ask for some of what was read before ``quiet_ns``."""
        if not self._noted:
            return
        await self._volume.changes.enter()
        try:
            await self._write(quiet_ns)
        finally:
            self._volume.changes.leave()

    async def _write(self, quiet_ns: int) -> None:
        asked = 0
        for ino, noted in list(self._noted.items()):
            lock = self._volume.inode_lock(ino)
            try:
                if lock.try_hold(EX, exclusive=True):
                    await self._write_held(lock)
                elif noted <= quiet_ns and asked < ROUND_MAX:
                    asked += 1
                    if await lock.hold(EX, exclusive=True, timeout=ASK_SECONDS_MAX):
                        await self._write_held(lock)
            except (OSError, MatrixError) as error:  # it was deleted, or can't be read: there are louder ways
                log.debug("inode %d: access time not kept: %s", ino, error)
                self._noted.pop(ino, None)

    async def _write_held(self, lock: Lock) -> None:
        try:
            inode = await self._volume.load(lock)
            await self._volume.journal.admit()
            # No checkpoint from here (J1).
            atime_ns = self.shown(inode)
            self._noted.pop(lock.number, None)
            if atime_ns != inode.atime_ns and inode.nlink:
                inode.atime_ns = atime_ns
                self._volume.journal.add(inode)
        finally:
            lock.drop(EX, exclusive=True)
