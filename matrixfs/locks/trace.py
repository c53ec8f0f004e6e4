"""The last few thousand things that happened to this mount's locks, kept in memory and looked at after trouble.

- T1. Noting costs no message, no file and no formatting: one tuple into a ring of fixed size; so it is always on.
- T2. What is in the ring is in the order it happened on this node.  Wall times are added when it is dumped, and are
  only as right as the node's clock was then: they put nodes side by side, they decide nothing.

Source: issue 3 ("a bounded trace ring to dump after trouble"), R14.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from dlm.modes import NAMES
from dlm.names import Resource
from matrixfs.locks.resources import describe
from membership.seams import Clock

SIZE = 4096  # events; some 150 bytes each


class _Event(NamedTuple):
    at: float
    event: str
    resource: Resource
    mode: int
    peer: int


class Trace:
    """A ring of events.

    Args:
        clock: times the events.
        size: how many are kept.
    """

    __slots__ = ("_clock", "_next", "_ring", "total")

    def __init__(self, clock: Clock, size: int = SIZE) -> None:
        assert size > 0
        self._clock = clock
        self._ring: list[_Event | None] = [None] * size
        self._next = 0
        self.total = 0  # events ever noted

    def note(self, event: str, resource: Resource, mode: int = 0, peer: int = -1) -> None:
        """Note that something happened.

        Args:
            event: one word, a constant: "request", "granted", "revoke", "demoted" and the like.
            resource: to what.
            mode: the lock mode it is about, as a number of ``dlm.modes``.
            peer: the node at the other end, -1 when there is none or it is not known here.
        """
        ring, at = self._ring, self._next
        ring[at] = _Event(self._clock.monotonic(), event, resource, mode, peer)
        at += 1
        self._next = at if at < len(ring) else 0
        self.total += 1

    def dump(self) -> list[dict[str, Any]]:
        """The events kept, oldest first, as plain data: wall_ns, event, domain, object, mode, peer."""
        offset = self._clock.wall_ns() - round(self._clock.monotonic() * 1e9)
        return [
            {
                "wall_ns": offset + round(each.at * 1e9),
                "event": each.event,
                "domain": each.resource[0],
                "object": each.resource[1],
                "mode": each.mode,
                "peer": each.peer,
            }
            for each in (*self._ring[self._next :], *self._ring[: self._next])
            if each is not None
        ]

    def text(self, count: int) -> str:
        """The newest ``count`` events, a line each, for a log."""
        events = [each for each in (*self._ring[self._next :], *self._ring[: self._next]) if each is not None]
        now = self._clock.monotonic()
        return "\n".join(
            f"  {each.at - now:.4f} s  {each.event} {describe(each.resource)} {NAMES[each.mode]}"
            for each in events[-count:]
        )
