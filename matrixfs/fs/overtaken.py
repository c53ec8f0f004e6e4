"""A device for work that a newer attempt of recovery may stop between any two operations (contract O2, R5).

A replay is long, and no grant is made anywhere until the replaying mount has answered SUSPEND: so it stops, and the
next attempt orders it again.  It can be stopped anywhere, as by a crash (P5 in ``replay.py``); but unlike after a
crash nothing fences this mount, so what was begun must have ended before anybody is told.

    D1  Once ``is_over()`` no operation begins: each raises ``Overtaken``.
    D2  What has begun is waited for, also when the task is cancelled: afterwards nothing of it can land.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from membership.errors import MatrixError
from membership.seams import Buffer, SectorDevice


class Overtaken(MatrixError):
    """A newer attempt has begun: stop."""


class OvertakenDevice:
    """``device`` while ``is_over()`` is false."""

    def __init__(self, device: SectorDevice, is_over: Callable[[], bool]) -> None:
        self._device = device
        self._is_over = is_over
        self.name = device.name
        self.sector_bytes = device.sector_bytes
        self.size_bytes = device.size_bytes

    def _check(self) -> None:
        if self._is_over():
            raise Overtaken

    async def read(self, offset: int, length: int) -> bytes:
        """``SectorDevice.read``.  Raises Overtaken."""
        self._check()
        return await self._device.read(offset, length)

    async def write(self, offset: int, data: Buffer, *, durable: bool = False) -> None:
        """``SectorDevice.write``.  Raises Overtaken."""
        self._check()
        with trio.CancelScope(shield=True):
            await self._device.write(offset, data, durable=durable)

    async def flush(self) -> None:
        """``SectorDevice.flush``.  Raises Overtaken."""
        self._check()
        with trio.CancelScope(shield=True):
            await self._device.flush()

    async def aclose(self) -> None:
        """Nothing: the device belongs to somebody else."""
        await trio.lowlevel.checkpoint()
