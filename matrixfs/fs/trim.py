"""Telling the store which blocks nobody needs: what was freed (``-o discard``), or all that is free (``all``).

Rules:
    TR1 A block is discarded only while it is *taken* from its group (``groups``), so under the group's lock, and nobody
        else can get it before the store has answered.  It was free to be given out before that, which means that the
        transaction that freed it is durable, no write of its old content is under way, and no image of it is replayed
        (J5, R7): a discard there is no worse than the write of the next file's data.
    TR2 What was freed is noted when it may be given out again, and discarded by rounds, as far as it is still free and
        its group still ours: no lock is asked for, and what is not discarded then is left to ``all``.
    TR3 A step holds back few blocks, for a short time: who finds no space meanwhile waits for its end and looks again
        (``Allocator.hold``).  A group that a peer wants is given up between two steps.
    TR4 A discard is a write to the fencing gate.  A store that has none says so once; nothing else fails for it.

Source: issue 5; mount(8) of ext4 (``discard``), fstrim(8), ioctl(2) FITRIM.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from matrixfs.locks.modes import EX
from membership.errors import CorruptionError, DeviceError, OperatorError
from membership.label import BLOCK_BYTES

if TYPE_CHECKING:
    from matrixfs.fs.volume import Volume

Discard = Callable[[int, int], Awaitable[None]]  # (offset, length) in bytes of the area

STEP_BLOCKS = 2048  # discarded at once: 8 MiB
NOTED_MAX = 50_000  # runs; more are left to ``all``
ROUND_SECONDS = 1.0

log = logging.getLogger(__name__)


class NoDiscard(OperatorError):
    """The store can't be told what is free."""

    errno = errno.EOPNOTSUPP


@dataclass(slots=True)
class Totals:
    """What a trim of all groups has done so far."""

    groups: int = 0
    runs: int = 0
    blocks: int = 0


class Trims:
    """The discards of one mount.

    Args:
        volume: whose groups.
    """

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._noted: dict[int, list[tuple[int, int]]] = {}  # group -> (first block, end)
        self._count = 0
        self._turn = trio.Lock()  # one step at a time
        self._step_ended: trio.Event | None = None  # of the step under way
        self.discard: Discard | None = None  # None: the store has no such thing, as far as is known
        self.automatic = False  # ``-o discard``
        self.statistics = {"discards": 0, "blocks": 0, "forgotten": 0}

    # --- what was freed ------------------------------------------------------------------------------------

    def freed(self, index: int, start: int, length: int) -> None:
        """Blocks of a group may be given out again.  No checkpoint."""
        if not self.automatic:
            return
        if self._count >= NOTED_MAX:
            self.statistics["forgotten"] += length
            return
        self._noted.setdefault(index, []).append((start, start + length))
        self._count += 1

    async def run(self) -> None:
        """Discard what was freed, in rounds; until the volume closes."""
        while await self._volume.pause(ROUND_SECONDS):
            await self.round()

    async def round(self) -> None:
        """Discard what was freed up to now (TR2).  Raises Fenced."""
        if not self._noted:
            return
        noted, self._noted, self._count = self._noted, {}, 0
        try:
            for index in sorted(noted):
                for first, end in _merged(noted[index]):
                    if not await self._between(index, first, end):
                        break
        except CorruptionError as error:  # the group has not changed: whoever uses it says so louder
            log.warning("what was freed is not discarded: %s", error)
        except (DeviceError, NoDiscard) as error:
            self.automatic = False
            log.warning("what is freed is not discarded any more: %s", error)

    async def _between(self, index: int, first: int, end: int) -> bool:
        """Discard what is free of [first, end); False when the group is not ours any more."""
        at: int | None = first
        while at is not None:
            await self._volume.changes.enter()
            try:
                lock = self._volume.allocator.lock(index)
                if lock.mode != EX or not lock.try_hold(EX):
                    return False
                try:
                    at = await self._step(index, at, end, 1)
                finally:
                    lock.drop(EX)
            finally:
                self._volume.changes.leave()
        return True

    # --- all that is free ----------------------------------------------------------------------------------

    async def all(self, blocks_min: int, totals: Totals) -> None:
        """Discard every free run of at least ``blocks_min`` blocks, of all groups, with the locks of each in turn.

        Raises:
            NoDiscard: the store has none.
            CorruptionError, DeviceError, Fenced.
        """
        for index in range(self._volume.superblock.groups):
            await self._group(index, blocks_min, totals, 0, self._volume.superblock.blocks_total)
            totals.groups += 1

    async def between(self, start: int, length: int, least: int) -> int:
        """As ``all``, in a range of the area; in bytes, as FITRIM has them.  Returns how many.  Raises as ``all``."""
        totals = Totals()
        first, end = -(-start // BLOCK_BYTES), (start + length) // BLOCK_BYTES
        for index in range(self._volume.superblock.groups):
            await self._group(index, max(1, -(-least // BLOCK_BYTES)), totals, first, end)
        return totals.blocks * BLOCK_BYTES

    async def _group(self, index: int, blocks_min: int, totals: Totals, first: int, end: int) -> None:
        superblock = self._volume.superblock
        at: int | None = max(first, superblock.group_block(index))
        end = min(end, superblock.group_block(index) + superblock.group_size(index))
        while at is not None and at < end:
            await self._volume.changes.enter()
            try:
                (group,) = await self._volume.allocator.hold_all([index])
                try:
                    before = self.statistics["blocks"]
                    at = await self._step(index, at, min(end, group.address + group.blocks), blocks_min)
                finally:
                    self._volume.allocator.drop(group)
            finally:
                self._volume.changes.leave()
            done = self.statistics["blocks"] - before
            totals.blocks += done
            totals.runs += done > 0

    async def _step(self, index: int, at: int, end: int, blocks_min: int) -> int | None:
        """Discard the next free run of a held group, or a part of it; where to go on, None at the end (TR1, TR3)."""
        if self.discard is None:
            raise NoDiscard("the store can't be told what is free: it has no discard")
        async with self._turn:
            group = await self._volume.allocator.load(self._volume.allocator.lock(index))
            found = group.next_free(at, end, blocks_min)
            if found is None:
                return None
            # No checkpoint up to the discard.
            start, length = found[0], min(found[1], STEP_BLOCKS)
            taken = group.take(length, start)
            assert taken == (start, length), f"group {index}: {taken}, not {start}+{length}"
            self._step_ended = trio.Event()
            try:
                await self.discard(start * BLOCK_BYTES, length * BLOCK_BYTES)
                self.statistics["discards"] += 1
                self.statistics["blocks"] += length
            except DeviceError as error:
                if error.errno != errno.EOPNOTSUPP:
                    raise
                raise NoDiscard(f"the store can't be told what is free: {error}") from None
            finally:
                group.untake(start, length)
                self._step_ended.set()
                self._step_ended = None
        return start + length

    async def over(self) -> bool:
        """Whether blocks were held back; returns when they are free again (TR3)."""
        if self._step_ended is None:
            return False
        await self._step_ended.wait()
        return True


def _merged(runs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The runs (first, end) in order; those that touch are one."""
    found: list[tuple[int, int]] = []
    for first, end in sorted(runs):
        if found and first <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((first, end))
    return found
