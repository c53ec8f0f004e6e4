"""A range of another device: the data area of a cluster disk, as the filesystem sees it (architecture.md 4)."""

from __future__ import annotations

import errno

from matrixfs.blockstore.device.api import InFlight, buffer_bytes, check_range
from membership.errors import DeviceError
from membership.seams import Buffer, SectorDevice


class Window:
    """``length`` bytes of ``device`` from ``offset`` on, as a SectorDevice of its own.

    It does not own ``device``: closing a window leaves the device open.

    Args:
        device: what lies below.
        offset: bytes, a multiple of its sector.
        length: bytes, a multiple of its sector.

    Raises:
        DeviceError: the range reaches beyond the device.
    """

    def __init__(self, device: SectorDevice, offset: int, length: int) -> None:
        check_range(device, "window", offset, length)
        self._device = device
        self._offset = offset
        self._length = length
        self._in_flight = InFlight()
        self._closed = False

    @property
    def name(self) -> str:
        """The device's name and where the window begins."""
        return f"{self._device.name}+{self._offset}"

    @property
    def sector_bytes(self) -> int:
        """As the device's."""
        return self._device.sector_bytes

    @property
    def size_bytes(self) -> int:
        """Length of the window."""
        return self._length

    def extend(self, length: int) -> None:
        """The device was enlarged, and the window reaches ``length`` bytes now.  Raises DeviceError if it is not so."""
        check_range(self._device, "window", self._offset, length)
        self._length = max(self._length, length)

    async def read(self, offset: int, length: int) -> bytes:
        """``SectorDevice.read``."""
        self._check("read", offset, length)
        with self._in_flight:
            return await self._device.read(self._offset + offset, length)

    async def write(self, offset: int, data: Buffer, *, durable: bool = False) -> None:
        """``SectorDevice.write``."""
        self._check("write", offset, buffer_bytes(data))
        with self._in_flight:
            await self._device.write(self._offset + offset, data, durable=durable)

    async def flush(self) -> None:
        """``SectorDevice.flush``, of the whole device."""
        self._check("flush", 0, 0)
        with self._in_flight:
            await self._device.flush()

    async def aclose(self) -> None:
        """Wait for what is in flight through this window; the device stays open."""
        self._closed = True
        await self._in_flight.wait_idle()

    def _check(self, operation: str, offset: int, length: int) -> None:
        if self._closed:
            raise DeviceError(f"{self.name}: is closed", errno.EBADF)
        check_range(self, operation, offset, length)
