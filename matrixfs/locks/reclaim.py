"""Which cached locks to give up on our own account (pure): those not used for long, and what memory has no room for.

========= ============== ============== ==========================================================================
kind      EX down to PR  PR or EX to NL why
========= ============== ============== ==========================================================================
inode     after 1 min    after 30 min   who walked or wrote a tree once makes nobody wait for it later; but what the
                                        kernel caches goes with PR, and its hits are not seen here: so not too soon
                                        (GFS2's users complain of 5 to 10 minutes, anchors.md 6.2)
open      -              after 1 min    left over from a file that was closed
rename    -              after 1 min    the one lock for moving directories
group     -              never          few, and each node keeps its own to allocate without a message
quota     -              never          one for each id that was counted; who comes back reads a sum that the shares of
                                        others are not in (fs/quotas.py, Q3)
========= ============== ============== ==========================================================================

Going down from EX to PR costs no purge, and mostly no write (all is in place after some seconds); it saves the next
reader elsewhere the wait for this node.

Age is looked at in passing: each round looks at some locks, in the order of the table, and a lock whose ``uses`` did
not change between two looks was not used.  Memory pressure takes the ones longest unused, whatever their age.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from dlm.modes import EX, NL, PR
from dlm.names import Resource
from matrixfs.locks.lock import Lock
from matrixfs.locks.resources import INODE, OPEN, RENAME

INTERVAL = 1.0  # seconds between two rounds
LOOKED_AT_MAX = 10_000  # locks a round looks at: some milliseconds
GIVEN_UP_MAX = 1_000  # locks a round gives up: each is a task, and mostly a message
LOCKS_MAX = 200_000  # cached locks beyond this are given up
LOCKS_MIN = 1_000  # memory pressure leaves so many


class Age(NamedTuple):
    """Seconds without use."""

    share: float | None  # until EX goes down to PR
    drop: float  # until it is given up


AGES = {INODE: Age(60.0, 1800.0), OPEN: Age(None, 60.0), RENAME: Age(None, 60.0)}


class Reclaim:
    """Decides what to give up.

    Args:
        locks: all cached locks, least recently made first.
        stalled: whether the kernel or the cgroup reports that memory is short; asked once a round.
    """

    def __init__(self, locks: Mapping[Resource, Lock], stalled: Callable[[], bool]) -> None:
        self._locks = locks
        self._stalled = stalled
        self._pass: Iterator[Lock] = iter(())
        self.stalls = 0  # rounds under memory pressure

    def round(self, now: float) -> list[tuple[Lock, int]]:
        """Locks to give up now, with the mode to keep."""
        looked_at = self._look(now)
        chosen = [(lock, keep) for lock in looked_at if (keep := _due(lock, now)) is not None][:GIVEN_UP_MAX]
        over = len(self._locks) - LOCKS_MAX
        if self._stalled():
            self.stalls += 1
            over = max(over, min(GIVEN_UP_MAX, len(self._locks) - LOCKS_MIN))
        if over > 0:
            chosen += self._oldest(min(over, GIVEN_UP_MAX), now)
        return chosen

    def _look(self, now: float) -> list[Lock]:
        """The next locks of the pass through the table, with the time of their last known use brought up to date."""
        looked_at: list[Lock] = []
        begun = False
        while len(looked_at) < LOOKED_AT_MAX:
            lock = next(self._pass, None)
            if lock is None:
                if begun:  # a table smaller than a round
                    break
                self._pass, begun = iter(list(self._locks.values())), True
                continue
            _notice(lock, now)
            looked_at.append(lock)
        return looked_at

    def _oldest(self, count: int, now: float) -> list[tuple[Lock, int]]:
        idle = [lock for lock in self._locks.values() if lock.resource[0] in AGES and lock.mode > NL and lock.idle]
        for lock in idle:
            _notice(lock, now)
        idle.sort(key=lambda lock: lock.used_at)
        return [(lock, NL) for lock in idle[:count]]


def _notice(lock: Lock, now: float) -> None:
    if lock.uses != lock.uses_seen:
        lock.uses_seen = lock.uses
        lock.used_at = now


def _due(lock: Lock, now: float) -> int | None:
    """The mode an unused lock should go down to; None: leave it."""
    age = AGES.get(lock.resource[0])
    if age is None or lock.mode == NL or not lock.idle:
        return None
    unused = now - lock.used_at
    if unused >= age.drop:
        return NL
    if age.share is not None and lock.mode == EX and unused >= age.share:
        return PR
    return None
