"""What one mount knows of a lock, as plain data for ``matrixctl``: its own side, and the master's if it is one (R14).

Rows of several mounts are put together in ``matrixfs.cli.locks_chain``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from dlm.modes import NAMES
from dlm.names import Resource
from matrixfs.locks.cache import LockCache
from matrixfs.locks.lock import Lock
from matrixfs.locks.resources import CHANGE, OPEN

WAITERS_MAX = 50  # shown of one lock; the oldest


class Manager(Protocol):
    """What is asked of the lock manager (``dlm.service.LockService``)."""

    def dump(self, resources: Iterable[Resource]) -> list[dict[str, Any]]:
        """What this node knows of these resources as a master and as a client."""
        ...

    def contended(self) -> list[Resource]:
        """The resources mastered here that somebody waits for."""
        ...


def contended(cache: LockCache, manager: Manager) -> list[Resource]:
    """Every resource somebody waits for, as far as this mount knows, longest wait first."""
    waited = sorted(cache.contended(), key=lambda lock: lock.waiters[0].since if lock.waiters else float("inf"))
    return list(dict.fromkeys((*(lock.resource for lock in waited), *manager.contended())))


def rows(cache: LockCache, manager: Manager, resources: Iterable[Resource], now: float) -> list[dict[str, Any]]:
    """What this mount knows of each resource.

    Args:
        cache: its locks.
        manager: its peer of the lockspace.
        resources: which.
        now: monotonic seconds.

    Returns:
        Maps with domain, object, master; held, doing, waiters ([mode, seconds] each) and waiting (how many) of this
        mount; when it is the master, granted and ghosts ([node, mode] each), queue and revokes ([node, mode, seconds]).
    """
    return [_row(cache.find(resource), resource, dump, now) for resource, dump in _dumps(manager, resources)]


def _dumps(manager: Manager, resources: Iterable[Resource]) -> list[tuple[Resource, dict[str, Any]]]:
    wanted = list(resources)
    return list(zip(wanted, manager.dump(wanted), strict=True))


def _row(lock: Lock | None, resource: Resource, dump: dict[str, Any], now: float) -> dict[str, Any]:
    row: dict[str, Any] = {"domain": resource.domain, "object": resource.object, "master": dump["master"]}
    if lock is not None:
        row["held"] = NAMES[lock.mode]
        row["doing"] = doing(lock)
        row["waiting"] = len(lock.waiters)
        row["waiters"] = [[NAMES[each.mode], round(now - each.since, 3)] for each in lock.waiters][:WAITERS_MAX]
    elif "held" in dump:
        row["held"], row["doing"] = dump["held"], "being given back"
    if "granted" in dump:
        row["granted"] = [[node, mode] for node, mode in dump["granted"].items()]
        row["queue"] = [each[:3] for each in dump["waiting"]]
        row["revokes"] = dump["revokes"]
        row["ghosts"] = [[node, mode] for node, _, mode in dump["ghosts"]]
    return row


def doing(lock: Lock) -> str:
    """What this mount does with a lock, in words."""
    users = lock.readers + lock.writers + lock.exclusive
    operations = f"{users} operation{'s' if users != 1 else ''} under way"
    if lock.resource[0] == CHANGE and lock.exclusive:
        return "it holds the filesystem frozen (matrixctl fs thaw)"
    if lock.demoting:
        return "flushing and purging for a peer"
    if lock.revoking:
        return f"{operations}, then it is given to a peer"
    if users:
        return "open here" if lock.resource[0] == OPEN else operations
    if lock.revoke_to is not None:
        return "in use a moment ago: its turn is not over"
    return "cached, not in use" if lock.mode else "nothing"
