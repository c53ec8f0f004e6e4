"""File locks of one node, kept in lists: what the FUSE layer's tests put where the cluster's lock manager is."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import Any

import trio

FLOCK, POSIX = "flock", "posix"
END_MAX = 2**63 - 1


@dataclass(frozen=True)
class Held:
    kind: Any
    ino: int
    owner: Any  # a number, or (node, number) of another node's
    pid: int
    start: int
    end: int
    exclusive: bool

    @property
    def node(self) -> int:
        return self.owner[0] if isinstance(self.owner, tuple) else 1

    def hits(self, other: Held) -> bool:
        return (self.kind, self.ino) == (other.kind, other.ino) and self.start <= other.end and other.start <= self.end


class FakeLocks:
    """See ``matrixfs.fuse.api.FileLocks``."""

    def __init__(self) -> None:
        self._held: list[Held] = []
        self._waiting: list[Held] = []
        self._changed = trio.Event()
        self.failure = ""  # what ``set`` does instead of its work

    def _in_the_way(self, wanted: Held) -> Held | None:
        for held in self._held:
            if held.hits(wanted) and held.owner != wanted.owner and (held.exclusive or wanted.exclusive):
                return held
        return None

    async def set(
        self, kind: Any, ino: int, owner: Any, pid: int, start: int, end: int, exclusive: bool, *, wait: bool
    ) -> None:
        wanted = Held(kind, ino, owner, pid, start, end, exclusive)
        if self.failure == "raise":
            raise KeyError("a bug")
        if self.failure == "deadlock":
            raise OSError(errno.EDEADLK, "deadlock")
        if kind == FLOCK:
            self._carve(wanted)
        if self.failure == "cross":  # the grant and the interrupt cross
            self._waiting.append(wanted)
            try:
                await trio.sleep_forever()
            except trio.Cancelled:
                pass
            finally:
                self._waiting.remove(wanted)
            self._put(wanted)
            return
        if self._in_the_way(wanted) and not wait:
            raise OSError(errno.EAGAIN, "held")
        self._waiting.append(wanted)
        try:
            while self._in_the_way(wanted):
                await self._changed.wait()
        finally:
            self._waiting.remove(wanted)
        self._put(wanted)

    def _put(self, wanted: Held) -> None:
        self._carve(wanted)
        self._held.append(wanted)
        self._notify()

    def _carve(self, hole: Held) -> None:
        left: list[Held] = []
        for held in self._held:
            if held.owner != hole.owner or not held.hits(hole):
                left.append(held)
                continue
            at = (held.kind, held.ino, held.owner, held.pid)
            if held.start < hole.start:
                left.append(Held(*at, held.start, hole.start - 1, held.exclusive))
            if held.end > hole.end:
                left.append(Held(*at, hole.end + 1, held.end, held.exclusive))
        self._held = left

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def unset(self, kind: Any, ino: int, owner: Any, start: int, end: int) -> None:
        await trio.lowlevel.checkpoint()
        self._carve(Held(kind, ino, owner, 0, start, end, True))
        self._notify()

    async def test(self, kind: Any, ino: int, owner: Any, start: int, end: int, exclusive: bool) -> Held | None:
        await trio.lowlevel.checkpoint()
        return self._in_the_way(Held(kind, ino, owner, 0, start, end, exclusive))

    async def drop(self, kind: Any, ino: int, owner: Any) -> None:
        await self.unset(kind, ino, owner, 0, END_MAX)

    def holds(self, kind: Any, ino: int, owner: Any) -> bool:
        found = [*self._held, *self._waiting]
        return any((held.kind, held.ino, held.owner) == (kind, ino, owner) for held in found)

    def dump(self) -> list[list[Any]]:
        return sorted([held.kind, held.start, held.end, held.exclusive] for held in self._held)

    def waiting(self) -> int:
        return len(self._waiting)
