"""What several mounts know of a lock, put together: resource, master, holders, waiters (pure; R14).

Each mount knows its own side (what it holds, does, waits for, since when), a master the queue, and since when it has
seen each wait and asked each holder.  Rows come from ``matrixfs.locks.view``; other nodes made them, so nothing in them
is believed to be there (``_get``).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable

    from matrixfs.cli.asking import Answers, MountValue

OPEN = 3  # matrixfs/locks/resources.py
Key: TypeAlias = tuple[str, int, int]  # filesystem, domain, object
_WORDS = {"EX": "change", "PW": "change", "CW": "change", "PR": "read", "CR": "read"}


@dataclass(slots=True)
class Side:
    """One node's part in a lock."""

    node: int
    mode: str
    pid: int = 0  # of its mount process; 0: not known
    doing: str = ""
    seconds: float | None = None  # waiters: how long the oldest waits, by its mount, or else the master; None: no word
    count: int = 0  # waiters: operations
    users: list[dict[str, Any]] = field(default_factory=list)  # processes that have the file open
    asked: float | None = None  # holders: how long ago the master asked for it, and has got nothing yet


@dataclass(slots=True)
class Contention:
    """One lock, as the whole cluster sees it."""

    domain: int
    object: int
    filesystem: str
    name: str
    master: int
    holders: dict[int, Side] = field(default_factory=dict)
    waiters: dict[int, Side] = field(default_factory=dict)
    ghosts: list[list[Any]] = field(default_factory=list)
    told: bool = False  # the master told its queue

    @property
    def longest(self) -> float:
        """Seconds of the longest wait known."""
        return max((side.seconds or 0.0 for side in self.waiters.values()), default=0.0)


def combine(answers: Answers) -> list[Contention]:
    """All locks in the answers to ``locks``, longest wait first."""
    found: dict[Key, Contention] = {}
    masters: list[tuple[Contention, dict[str, Any]]] = []
    names = Names(answers)
    for mount in answers.mounts:
        names.learn(mount.filesystem, _maps(mount.value, "resources"))
    for mount in answers.mounts:
        for row in _maps(mount.value, "resources"):
            key = key_of(mount.filesystem, row)
            if key not in found:
                found[key] = Contention(key[1], key[2], key[0], names.name(key[0], row), _get(row, "master", int))
            lock = found[key]
            _own_side(lock, mount, row)
            if "granted" in row:
                lock.told = True
                masters.append((lock, row))
    for lock, row in masters:  # last: who did not answer is known from here only
        _masters_side(lock, row)
    for lock in found.values():
        for node in lock.waiters:
            if node in lock.holders and lock.holders[node].mode == "NL":
                del lock.holders[node]
    return sorted(found.values(), key=lambda lock: -lock.longest)


class Names:
    """What to call each lock: the best that any node knows."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self._best: dict[Key, tuple[int, str]] = {}

    def learn(self, filesystem: str, rows: Iterable[dict[str, Any]]) -> None:
        """Look at the rows of one mount."""
        for row in rows:
            sure = 0
            if isinstance(row.get("path"), bytes):
                sure = 2 if row.get("sure") else 1
            key = key_of(filesystem, row)
            if sure > self._best.get(key, (-1, ""))[0]:
                self._best[key] = sure, _shown_name(row, self._answers.mountpoint(filesystem))

    def name(self, filesystem: str, row: dict[str, Any]) -> str:
        """The name of the lock that ``row``, which was learned, is about."""
        return self._best[key_of(filesystem, row)][1]


def key_of(filesystem: str, row: dict[str, Any]) -> Key:
    """Which lock a row is about."""
    return filesystem, _get(row, "domain", int), _get(row, "object", int)


def _shown_name(row: dict[str, Any], mountpoint: str) -> str:
    """A path below our mount point, or words."""
    path = row.get("path")
    if not isinstance(path, bytes):  # to find it: find MOUNTPOINT -inum N
        return _get(row, "text", str) or f"{row.get('domain')} {row.get('object')}"
    text = mountpoint.rstrip("/") + os.fsdecode(path) if path != b"/" else mountpoint or "/"
    text = f"open state of {text}" if row.get("domain") == OPEN else text
    return text if row.get("sure") else f"{text} (as last seen)"


def _own_side(lock: Contention, mount: MountValue, row: dict[str, Any]) -> None:
    mode = _get(row, "held", str)
    if mode and mode != "NL":
        side = Side(mount.node, mode, mount.pid, _get(row, "doing", str))
        side.users = _maps(mount.value, "users")
        lock.holders[mount.node] = side
    waiters = [each for each in _get(row, "waiters", list) if isinstance(each, list) and len(each) == 2]
    waiters = [each for each in waiters if isinstance(each[1], float)]
    if waiters:
        wanted = "EX" if any(each[0] == "EX" for each in waiters) else str(waiters[0][0])
        seconds = max(each[1] for each in waiters)
        lock.waiters[mount.node] = Side(mount.node, wanted, mount.pid, "", seconds, _get(row, "waiting", int))


def _masters_side(lock: Contention, row: dict[str, Any]) -> None:
    for node, mode, _ in _parts(row, "granted"):
        lock.holders.setdefault(node, Side(node, mode))
    for node, mode, seconds in _parts(row, "queue"):
        side = lock.waiters.setdefault(node, Side(node, mode))
        if side.seconds is None:
            side.seconds = seconds
    for node, _, seconds in _parts(row, "revokes"):
        if node in lock.holders:
            lock.holders[node].asked = seconds
    lock.ghosts = [[node, mode] for node, mode, _ in _parts(row, "ghosts")]


def _parts(row: dict[str, Any], key: str) -> list[tuple[int, str, float | None]]:
    """Node, mode, and the seconds if they were told."""
    told = [each for each in _get(row, key, list) if isinstance(each, list) and len(each) in (2, 3)]
    told = [[*each, None][:3] for each in told if isinstance(each[0], int)]
    return [(node, str(mode), seconds if isinstance(seconds, float) else None) for node, mode, seconds in told]


def _maps(row: Any, key: str) -> list[dict[str, Any]]:
    return [each for each in _get(row, key, list) if isinstance(each, dict)]


def _get(row: Any, key: str, kind: type) -> Any:
    value = row.get(key) if isinstance(row, dict) else None
    return value if type(value) is kind else kind()


def purpose(mode: str) -> str:
    """A wanted mode in words."""
    return f"to {_WORDS.get(mode, mode)} it"
