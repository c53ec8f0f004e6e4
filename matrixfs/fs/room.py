"""Before an application is told that there is no space: what is free in truth is made so (ENOSPC, EDQUOT).

A file that was removed gives its blocks back when it is deleted, in the background, by the node that removed it
(``opens``); what was freed can be given out again after the next commit; a freed inode number after ``settle``; and
what is buffered was promised more than it needs (``promises``).  None of that is a reason for ENOSPC.  So an operation
that met it ends, drops its locks, and is done again after a round:

R1. A round waits with no lock held.  What it waits for may need any.
R2. It tries the orphans of all nodes, as a node does that mounts: its own ones, and those that others have not come to.
R3. It is bounded: a file that is open elsewhere stays, and one more caller joins the round under way.
R4. On a store that is full in truth it costs little: after a round in vain the next one, and who needs it, waits for
    ``REST`` seconds.  Refusing without a round would miss what another node freed since the last.

Source: issue 5 ("freed space usable at once by others; ENOSPC only when full").
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio

from membership.errors import MatrixError

if TYPE_CHECKING:
    from matrixfs.fs.volume import Volume

log = logging.getLogger(__name__)

SECONDS_MAX = 30.0  # a round waits at most so long for deletions
REST = 0.02  # seconds; a round in vain takes some 2 ms


class Room:
    """The rounds of one mount."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._under_way = trio.Lock()
        self._rounds = 0
        self._found = False
        self._rests_until = 0.0

    async def make(self) -> bool:
        """Make room; whether an operation that met ENOSPC or EDQUOT may do better now.  No lock may be held."""
        rounds = self._rounds
        async with self._under_way:
            if self._rounds == rounds:
                clock = self._volume.clock
                await clock.sleep(max(0.0, self._rests_until - clock.monotonic()))
                self._found = await self._round()
                self._rounds += 1
                if not self._found:
                    self._rests_until = clock.monotonic() + REST
            return self._found

    async def _round(self) -> bool:
        volume = self._volume
        deleted, left, spare = volume.opens.deleted, volume.opens.left_to_others, self._spare
        tried = 0
        for journal in range(volume.superblock.journals):
            try:
                tried += await volume.opens.adopt(journal)
            except MatrixError as error:  # damaged: its orphans stay until fsck
                log.warning("journal %d: its removed files can't be listed: %s", journal, error)
        await volume.opens.drained(SECONDS_MAX)
        await volume.changes.enter()
        try:
            await volume.write_back.all()
            await volume.allocator.settle()
            await volume.journal.commit()
        finally:
            volume.changes.leave()
        deleted_by_others = tried > volume.opens.left_to_others - left  # those that they were about to
        return volume.opens.deleted > deleted or deleted_by_others or self._spare > spare

    @property
    def _spare(self) -> int:
        """Blocks that can be had here and were not promised."""
        allocator = self._volume.allocator
        return allocator.available - allocator.promises.total
