"""Many inodes at once, before they are asked for: what listing a directory with attributes lives on (003-42).

Their locks cost one message per master instead of one each, their blocks one read per run of neighbours.  Nothing is
waited for that a peer stands against, and nothing fails: what did not come is taken one by one as always, and says then
why.  Only as much is taken as the caller is about to use: locks that peers take back before that were paid for twice.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

from matrixfs.fs.parallel import for_each
from matrixfs.locks.lock import Lock
from matrixfs.locks.modes import PR
from membership.errors import CorruptionError, MatrixError
from membership.label import BLOCK_BYTES

if TYPE_CHECKING:
    from matrixfs.fs.volume import Volume

READS_AT_ONCE = 32
RUN_MAX = 64  # blocks in one read: 256 KiB
GAP_MAX = 8  # blocks read in vain between two that are wanted: a listing takes them in the order of their hashes

log = logging.getLogger(__name__)


async def inodes(volume: Volume, numbers: Iterable[int]) -> None:
    """Cache these inodes under PR, as far as that needs no peer.  Returns with no lock held; never fails."""
    locks: list[Lock] = []
    for number in sorted(set(numbers)):
        with suppress(OSError):  # no inode's number: a damaged directory
            locks.append(volume.inode_lock(number))
    await volume.locks.prefetch(locks, PR)
    held = [lock for lock in locks if lock.try_hold(PR)]  # several, but none is waited for: the lock order holds
    try:
        unread = [lock for lock in held if lock.subject is None]
        await for_each(runs_of(unread), lambda run: _read(volume, run), workers=READS_AT_ONCE)
    except MatrixError as error:
        log.debug("not read ahead: %s", error)
    finally:
        for lock in held:
            lock.drop(PR)


def runs_of(locks: list[Lock]) -> list[list[Lock]]:
    """Runs of inodes that lie close together, of ``locks`` sorted by number."""
    runs: list[list[Lock]] = []
    for lock in locks:
        run = runs[-1] if runs else None
        near = run is not None and lock.number - run[-1].number <= GAP_MAX
        if run is not None and near and lock.number - run[0].number < RUN_MAX:
            run.append(lock)
        else:
            runs.append([lock])
    return runs


async def _read(volume: Volume, run: list[Lock]) -> None:
    first = run[0].number
    data = await volume.device.read(first * BLOCK_BYTES, (run[-1].number + 1 - first) * BLOCK_BYTES)
    for lock in run:
        at = (lock.number - first) * BLOCK_BYTES
        with suppress(OSError, CorruptionError):
            volume.take_in(lock, data[at : at + BLOCK_BYTES])
