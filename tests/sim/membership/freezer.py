"""SIGSTOP and SIGCONT of all processes of one simulated machine.

A trio task can't be stopped from outside.  But each of a node's tasks is woken by its clock, its links, its disk or
its own siblings, so a gate behind those three stops the node: whatever comes due while it is closed is seen after it
opened, all at once, as by a process that was stopped.  The clock goes on meanwhile.

What it does not model: a process stopped between two instructions that no wait separates.
"""

from __future__ import annotations

import trio

from tests.sim.network import SimClock


class Freezer:
    """The gate of one machine."""

    def __init__(self) -> None:
        self.is_frozen = False
        self._thawed = trio.Event()

    def freeze(self) -> None:
        """SIGSTOP."""
        self.is_frozen = True

    def thaw(self) -> None:
        """SIGCONT."""
        self.is_frozen = False
        self._thawed.set()
        self._thawed = trio.Event()

    async def passed(self) -> None:
        """Return when the machine runs."""
        while self.is_frozen:
            await self._thawed.wait()


class FreezableClock(SimClock):
    """The Clock seam of a process on that machine."""

    def __init__(self, freezer: Freezer) -> None:
        self._freezer = freezer

    async def sleep(self, seconds: float) -> None:
        """As long as asked for, and until the machine runs."""
        await trio.sleep(seconds)
        await self._freezer.passed()
