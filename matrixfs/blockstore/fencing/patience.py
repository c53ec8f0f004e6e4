"""Waiting out a lapsed lease: a hiccup of the store or of this machine pauses a mount instead of ending it.

Stands above the fencing gate, which itself never queues (R3).  An operation that the gate refused, or whose right
ended while it was in flight, is issued again after the lease was renewed.  That is safe because a renewal finds this
node still listed under the same admission: nobody evicted it, so nobody replayed its journal or took its locks, and
the same bytes go to the same place.  A fence ends every wait at once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from matrixfs.blockstore.fencing.gate import FencingGate, Lapsed
from membership.seams import Buffer

_T = TypeVar("_T")


class PatientDevice:
    """A SectorDevice over a gate.  Closing it closes the gate."""

    def __init__(self, gate: FencingGate) -> None:
        self._gate = gate
        self.pauses = 0  # operations that had to wait for a renewal

    @property
    def name(self) -> str:
        """The device's."""
        return self._gate.name

    @property
    def sector_bytes(self) -> int:
        """The device's."""
        return self._gate.sector_bytes

    @property
    def size_bytes(self) -> int:
        """The device's."""
        return self._gate.size_bytes

    async def read(self, offset: int, length: int) -> bytes:
        """``SectorDevice.read``."""
        return await self._insist(lambda: self._gate.read(offset, length))

    async def write(self, offset: int, data: Buffer, *, durable: bool = False) -> None:
        """``SectorDevice.write``."""
        await self._insist(lambda: self._gate.write(offset, data, durable=durable))

    async def flush(self) -> None:
        """``SectorDevice.flush``."""
        await self._insist(self._gate.flush)

    async def discard(self, offset: int, length: int) -> None:
        """``GuardedDevice.discard``."""
        await self._insist(lambda: self._gate.discard(offset, length))

    async def aclose(self) -> None:
        """``SectorDevice.aclose``."""
        await self._gate.aclose()

    async def _insist(self, operation: Callable[[], Awaitable[_T]]) -> _T:
        while True:
            try:
                return await operation()
            except Lapsed:
                self.pauses += 1
                await self._gate.admitted()
