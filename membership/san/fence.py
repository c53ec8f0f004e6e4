"""Fencing: make certain that an evicted node writes no more (002-31, 002-38; R4, R5).

Drivers are tried in order; the first that *confirms* ends it.  A driver that cannot confirm says why, and nothing
of the target is recovered: the administrator asks again and tells people.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from membership.lease.records import HeartbeatSlot


@dataclass(frozen=True, slots=True)
class FenceResult:
    """Outcome of one attempt."""

    confirmed: bool
    driver: str
    detail: str


class FenceDriver(Protocol):
    """A way to stop a node."""

    name: str

    def is_gone(self, target: HeartbeatSlot) -> bool | None:
        """Is the matrixd of this slot certainly gone (True), certainly running (False), or unknown?  Never blocks."""
        ...

    async def fence(self, target: HeartbeatSlot, evicted_at: float) -> FenceResult:
        """Stop it and wait until that is certain.

        Args:
            target: its heartbeat slot as last read.
            evicted_at: monotonic seconds at which the header without it was durable.
        """
        ...


def is_gone(drivers: Sequence[FenceDriver], target: HeartbeatSlot) -> bool | None:
    """The first driver that knows."""
    for driver in drivers:
        known = driver.is_gone(target)
        if known is not None:
            return known
    return None


async def fence_target(drivers: Sequence[FenceDriver], target: HeartbeatSlot, evicted_at: float) -> FenceResult:
    """Try the drivers in order until one confirms; else the last refusal, with all reasons."""
    reasons: list[str] = []
    for driver in drivers:
        result = await driver.fence(target, evicted_at)
        if result.confirmed:
            return result
        reasons.append(f"{driver.name}: {result.detail}")
    return FenceResult(confirmed=False, driver="none", detail="; ".join(reasons) or "no fence driver is configured")
