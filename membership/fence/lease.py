"""The lease fence: certainty by time alone, the last resort (R4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from membership.san.fence import FenceResult

if TYPE_CHECKING:
    from membership.label import Timing
    from membership.lease.records import HeartbeatSlot
    from membership.seams import Clock


class LeaseFence:
    """Waits Timing.dead since the header without the target was durable: its right ended lease seconds after that."""

    name = "lease"

    def __init__(self, timing: Timing, clock: Clock) -> None:
        self._timing = timing
        self._clock = clock

    def is_gone(self, target: HeartbeatSlot) -> bool | None:
        """Time tells nothing about a process."""
        return None

    async def fence(self, target: HeartbeatSlot, evicted_at: float) -> FenceResult:
        """Confirmed after the wait.  The caller checks that the header still leaves the target out."""
        end = evicted_at + self._timing.dead
        while (left := end - self._clock.monotonic()) > 0:
            await self._clock.sleep(left)
        return FenceResult(
            confirmed=True, driver=self.name, detail=f"its lease ended: {self._timing.dead:g} s since its eviction"
        )
