"""Who waits for what in this mount, and why (R14)."""

from __future__ import annotations

from collections.abc import Iterable

from matrixfs.locks.lock import Lock
from matrixfs.locks.resources import CHANGE, describe

WAITS_SHOWN_MAX = 100


def waits(locks: Iterable[Lock], now: float) -> list[dict[str, object]]:
    """The longest waits: resource, wanted and held mode, seconds, and the reason: who must act before it ends.

    The node that a peer is, is known to the resource's master (``LockService.dump``).
    """
    waiting = [(waiter.since, waiter.mode, lock) for lock in locks for waiter in lock.waiters]
    waiting.sort(key=lambda wait: wait[0])
    return [
        {
            "resource": describe(lock.resource),
            "domain": lock.resource[0],
            "object": lock.resource[1],
            "wanted": mode,
            "held": lock.mode,
            "seconds": round(now - since, 3),
            "reason": _reason(lock),
        }
        for since, mode, lock in waiting[:WAITS_SHOWN_MAX]
    ]


def _reason(lock: Lock) -> str:
    if lock.resource[0] == CHANGE:
        return "a freeze (matrixctl fs thaw), or a peer or recovery"
    if lock.demoting:
        return "flushing and purging for a peer"
    if lock.revoking:
        return "local holders, then a peer"
    if lock.requested:
        return "a peer or recovery"
    return "local holders"
