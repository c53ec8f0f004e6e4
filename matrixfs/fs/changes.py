"""Leave to change anything: a lock that every mount shares as long as it changes things, and that a freeze takes alone.

An operation that changes something holds the CHANGE lock in CW, before all others; any number of nodes do so at once.
Who freezes the filesystem takes it in EX, so each mount has to give CW up: its operations end, new ones wait, and all
that it changed is brought home (``rest``).  Reading needs no CHANGE lock and goes on, since a lock under which nothing
is dirty is given up without a write.

Invariants:

F1. Nothing but operations that hold CHANGE here adds to the journal, and what background work there is holds it too.
F2. When CW is given up, all is durable and in place, the log is empty and its header says CLEAN: a copy of the disk
    needs no replay.  The next commit writes the header again (journal J7).
F3. CW is a mode that writes, so a dead mount's stays with its ghost until its journal is replayed (R6): who got EX
    knows that nothing is left to replay either.
F4. Who holds CHANGE waits for other locks, never the other way round.  A mount that rests gives up all others at once,
    so the operations that are under way elsewhere come to their end, and with them the wait for EX.

Source: issue 5 ("freeze and thaw of the whole cluster"); decision 0021; GFS2's freeze lock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from matrixfs.locks.modes import CW
from matrixfs.locks.resources import CHANGE, Resource

if TYPE_CHECKING:
    from matrixfs.fs.volume import Volume
    from matrixfs.locks.lock import Lock


class Changes:
    """The CHANGE lock of one mount."""

    flushes = True
    upgrades = False

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self.lock = volume.locks.lock(Resource(CHANGE, 0), self)

    @property
    def permitted(self) -> bool:
        """Whether this mount may change something, since nobody has frozen the filesystem."""
        return self.lock.mode >= CW and not self.lock.exclusive

    async def enter(self) -> None:
        """Begin an operation that changes something; end it with ``leave``.  Waits as long as it is frozen."""
        if not self.lock.try_hold(CW):
            await self.lock.hold(CW)

    def leave(self) -> None:
        """The operation is over."""
        self.lock.drop(CW)

    async def surrender(self, lock: Lock, mode: int) -> None:
        """Callout: somebody freezes the filesystem.  From EX there is nothing to bring home: we froze it."""
        if mode < CW:
            await self.rest()

    async def rest(self) -> None:
        """Bring everything home (F2).  No operation that changes something is under way here.

        Other locks may be given up meanwhile, and flush what they cover: so look again until nothing is left.
        """
        volume = self._volume
        while not (volume.write_back.idle and volume.allocator.settled and volume.journal.resting):
            await volume.write_back.all()
            await volume.allocator.settle()
            await volume.journal.rest()
