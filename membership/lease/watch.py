"""Who is alive on disk: slots compared with what we saw before (pure; 002-12).

A node is alive while its counter moves; one that we have not watched for ``link_dead`` yet counts as alive, unless
its process is known to be gone.  Known gone means: refused by its host, or its process looked up on this host; the
next move of its counter takes that back.

Invariant: silence counts only while we looked.  A scan adds at most twice the interval of renewals, so that after an
outage of the store nobody is called dead before he had the time to be seen again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from membership.label import Timing
    from membership.lease.records import HeartbeatSlot


@dataclass(slots=True)
class Sight:
    """A slot as last seen."""

    slot: HeartbeatSlot
    moved_at: float  # when its counter last moved, or when we first saw it
    silent: float = 0.0  # seconds in which we looked and it did not move
    is_gone: bool = False


class DiskWatch:
    """All slots as one node sees them."""

    def __init__(self, timing: Timing) -> None:
        self.sights: dict[int, Sight] = {}
        self._timing = timing
        self._looked_at = float("-inf")

    def observe(self, slots: Mapping[int, HeartbeatSlot], now: float) -> list[int]:
        """Take a scan; a slot that could not be decoded is left out and keeps its last sight.

        Returns the nodes that we held for gone and whose counter moved.
        """
        back: list[int] = []
        looked = self._looked(now)
        self._looked_at = now
        for known in self.sights.values():
            known.silent += looked
        for node, slot in slots.items():
            sight = self.sights.get(node)
            if sight is None or sight.slot.incarnation != slot.incarnation:
                self.sights[node] = Sight(slot, now)
                continue
            if slot.counter != sight.slot.counter:
                sight.moved_at, sight.silent = now, 0.0
                if sight.is_gone:
                    back.append(node)
                sight.is_gone = False
            sight.slot = slot
        return back

    def mark_gone(self, node: int, incarnation: int) -> None:
        """The process is gone; the disk needn't be waited for."""
        sight = self.sights.get(node)
        if sight is not None and sight.slot.incarnation == incarnation:
            sight.is_gone = True

    def alive(self, now: float) -> frozenset[int]:
        """Nodes that must be counted as alive."""
        looked = self._looked(now)
        return frozenset(
            node
            for node, sight in self.sights.items()
            if not sight.slot.is_left and not sight.is_gone and sight.silent + looked < self._timing.link_dead
        )

    def standing(self, now: float) -> frozenset[int]:
        """Nodes whose disk heartbeat has stood still for ``Timing.dead`` while ours went on."""
        looked = self._looked(now)
        return frozenset(n for n, s in self.sights.items() if s.silent + looked >= self._timing.dead)

    def _looked(self, now: float) -> float:
        """Seconds since the last scan, as far as they count."""
        return min(now - self._looked_at, 2 * self._timing.renew) if self.sights else 0.0
