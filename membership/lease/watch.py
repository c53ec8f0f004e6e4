"""Who is alive on disk: slots compared with what we saw before (pure; 002-12).

A node is alive while its counter moves; one that we have not watched for ``link_dead`` yet counts as alive, unless
its process is known to be gone.  Known gone means: refused by its host, or its process looked up on this host; the
next move of its counter takes that back.
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
    is_gone: bool = False


class DiskWatch:
    """All slots as one node sees them."""

    def __init__(self, timing: Timing) -> None:
        self.sights: dict[int, Sight] = {}
        self._timing = timing

    def observe(self, slots: Mapping[int, HeartbeatSlot], now: float) -> list[int]:
        """Take a scan; a slot that could not be decoded is left out and keeps its last sight.

        Returns the nodes that we held for gone and whose counter moved.
        """
        back: list[int] = []
        for node, slot in slots.items():
            sight = self.sights.get(node)
            if sight is None or sight.slot.incarnation != slot.incarnation:
                self.sights[node] = Sight(slot, now)
                continue
            if slot.counter != sight.slot.counter:
                sight.moved_at = now
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
        return frozenset(
            node
            for node, sight in self.sights.items()
            if not sight.slot.is_left and not sight.is_gone and now - sight.moved_at < self._timing.link_dead
        )
