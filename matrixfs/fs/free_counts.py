"""How much is free, without a look at every group each time: what statfs(2) answers (issue 5, "statfs that is right").

What this node holds it knows exactly.  Of the other groups it remembers what it read last, and reads on in turns:
``TURN`` of them at most every ``TURN_SECONDS``, whoever asks how often.  So an answer for a store of up to 64 GiB is
that old at most, plus what other nodes have not yet brought to its place (seconds); for a larger one as many turns
older as it has multiples of that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from matrixfs.fs.parallel import for_each
from matrixfs.ondisk.group import GroupRecord
from membership.errors import CorruptionError
from membership.label import BLOCK_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

    from matrixfs.fs.groups import Group
    from matrixfs.ondisk.superblock import Superblock
    from membership.seams import Clock, SectorDevice

READS_AT_ONCE = 32
TURN = 1024  # groups; 64 GiB
TURN_SECONDS = 1.0


class FreeCounts:
    """Free blocks by group.

    Args:
        device: the filesystem's area.
        superblock: its layout; may grow.
        clock: for the turns.
        known: the group itself where this node holds it, None for others.
    """

    def __init__(
        self, device: SectorDevice, superblock: Superblock, clock: Clock, known: Callable[[int], Group | None]
    ) -> None:
        self._device = device
        self._superblock = superblock
        self._clock = clock
        self._known = known
        self._counts: list[int] = []
        self._used: set[int] = set()  # groups that this node has held
        self._next = 0  # of the next turn
        self._turned_at = -TURN_SECONDS
        self._turning = trio.Lock()

    def used(self, index: int) -> None:
        """Note that this node holds a group, and may change it."""
        self._used.add(index)

    def given_up(self, index: int, free: int) -> None:
        """Note that it gave one up, and with how many free blocks."""
        self._used.discard(index)
        if index < len(self._counts):
            self._counts[index] = free

    async def total(self) -> int:
        """Free blocks of all groups.  Raises DeviceError, Fenced."""
        async with self._turning:  # who asks meanwhile gets the same answer
            groups = self._superblock.groups
            if self._clock.monotonic() >= self._turned_at + TURN_SECONDS or len(self._counts) < groups:
                await self._turn(groups)
        for index in self._used:
            group = self._known(index)
            if group is not None:
                self._counts[index] = group.free  # and so it stays until its next turn, should a peer take it
        return sum(self._counts)

    async def _turn(self, groups: int) -> None:
        """Read on; at first, and when the filesystem has grown, all that was never read."""
        fresh = range(len(self._counts), groups)
        self._counts += [0] * len(fresh)
        due = {(self._next + step) % groups for step in range(min(TURN, groups))}
        self._next = (self._next + TURN) % groups
        try:
            await for_each(sorted(due | set(fresh)), self._read, workers=READS_AT_ONCE)
        except BaseException:
            del self._counts[fresh.start :]
            raise
        self._turned_at = self._clock.monotonic()

    async def _read(self, index: int) -> None:
        if self._known(index) is not None:
            return
        address = self._superblock.group_block(index)
        data = await self._device.read(address * BLOCK_BYTES, BLOCK_BYTES)
        try:
            owner = self._superblock.owner
            found = GroupRecord.decode_untrusted(data, f"group {index}", owner=owner, address=address)
        except CorruptionError:
            self._counts[index] = 0  # it has no blocks that anybody could use
        else:
            self._counts[index] = found.free + max(0, self._superblock.group_size(index) - found.blocks)
