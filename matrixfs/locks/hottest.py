"""The resources that nodes get in each other's way at: a bounded table, paid for only where somebody waits.

Each entry holds hand-overs, waits and waited seconds that fade: after ``FADE`` seconds e-fold, so divided by it they
are rates.  Full, the table forgets what was touched longest ago; what is hot is touched many times a second, so it
stays however many other resources pass by once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dlm.names import Resource

FADE = 5.0  # seconds
SHOWN_MIN = 0.25  # of hand-overs or waits left; less has cooled down
ENTRIES_MAX = 1024
WAIT_MIN = 0.001  # seconds; shorter waits are a message's way to the master, not another node's use


class _Heat:
    __slots__ = ("at", "hand_overs", "seconds", "waits")

    def __init__(self, now: float) -> None:
        self.at = now
        self.hand_overs = self.waits = self.seconds = 0.0

    def fade(self, now: float) -> None:
        left = math.exp((self.at - now) / FADE)
        self.hand_overs *= left
        self.waits *= left
        self.seconds *= left
        self.at = now


class Hottest:
    """See the module."""

    def __init__(self) -> None:
        self._heat: dict[Resource, _Heat] = {}  # touched longest ago first

    def __len__(self) -> int:
        return len(self._heat)

    def handed_over(self, resource: Resource, now: float) -> None:
        """A hand-over: this node gave the resource to a peer."""
        self._touch(resource, now).hand_overs += 1

    def waited(self, resource: Resource, seconds: float, now: float) -> None:
        """A local user waited."""
        if seconds >= WAIT_MIN:
            heat = self._touch(resource, now)
            heat.waits += 1
            heat.seconds += seconds

    def _touch(self, resource: Resource, now: float) -> _Heat:
        heat = self._heat.pop(resource, None)
        if heat is None:
            heat = _Heat(now)
            if len(self._heat) >= ENTRIES_MAX:
                del self._heat[next(iter(self._heat))]
        self._heat[resource] = heat
        heat.fade(now)
        return heat

    def dump(self, count: int, now: float, waiters: Mapping[Resource, int]) -> list[dict[str, Any]]:
        """The hottest, at most ``count``: what is waited for now, then most waited for, then most handed over.

        Args:
            count: how many.
            now: monotonic seconds.
            waiters: who waits now; this table knows only of waits that ended.

        Returns:
            Maps with domain, object, ``waiters`` (now) and per second: ``hand_overs``, ``waits``, and ``waiting``,
            which is how many waited at a time on average.
        """
        for heat in self._heat.values():
            heat.fade(now)
        warm = {key: heat for key, heat in self._heat.items() if max(heat.hand_overs, heat.waits) >= SHOWN_MIN}
        for resource in waiters:
            warm.setdefault(resource, _Heat(now))
        ranked = sorted(
            warm.items(), key=lambda item: (item[0] in waiters, item[1].seconds, item[1].hand_overs), reverse=True
        )
        return [
            {
                "domain": resource[0],
                "object": resource[1],
                "waiters": waiters.get(resource, 0),
                "hand_overs": round(heat.hand_overs / FADE, 3),
                "waits": round(heat.waits / FADE, 3),
                "waiting": round(heat.seconds / FADE, 4),
            }
            for resource, heat in ranked[:count]
        ]
