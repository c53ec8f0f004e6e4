"""Two fences at once: an agent that hangs must not keep time from passing (002-38)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from membership.san.fence import FenceResult

if TYPE_CHECKING:
    from membership.lease.records import HeartbeatSlot
    from membership.san.fence import FenceDriver


class EitherFence:
    """The first of two drivers that confirms; their refusals, when none does."""

    def __init__(self, one: FenceDriver, other: FenceDriver) -> None:
        self.name = f"{one.name} or {other.name}"
        self._both = (one, other)

    def is_gone(self, target: HeartbeatSlot) -> bool | None:
        """The first that knows."""
        return next((known for driver in self._both if (known := driver.is_gone(target)) is not None), None)

    async def fence(self, target: HeartbeatSlot, evicted_at: float) -> FenceResult:
        """Try both."""
        confirmed: list[FenceResult] = []
        refused: list[FenceResult] = []

        async def run(driver: FenceDriver) -> None:
            result = await driver.fence(target, evicted_at)
            if result.confirmed:
                confirmed.append(result)
                nursery.cancel_scope.cancel()
            else:
                refused.append(result)

        async with trio.open_nursery() as nursery:
            for driver in self._both:
                nursery.start_soon(run, driver)
        if confirmed:
            return confirmed[0]
        detail = "; ".join(f"{result.driver}: {result.detail}" for result in refused)
        return FenceResult(confirmed=False, driver=self.name, detail=detail)
