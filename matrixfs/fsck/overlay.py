"""A device whose writes stay in memory: ``fsck -n`` replays journals and changes nothing (F2)."""

from __future__ import annotations

from membership.label import BLOCK_BYTES
from membership.seams import Buffer, SectorDevice


class Overlay:
    """``device`` as it would be after the writes, which must be of whole blocks.

    It does not own ``device``: closing an overlay leaves the device open.
    """

    def __init__(self, device: SectorDevice) -> None:
        self._device = device
        self._blocks: dict[int, bytes] = {}

    @property
    def name(self) -> str:
        """The device's."""
        return self._device.name

    @property
    def sector_bytes(self) -> int:
        """Smallest unit of I/O here: a filesystem block."""
        return BLOCK_BYTES

    @property
    def size_bytes(self) -> int:
        """The device's."""
        return self._device.size_bytes

    async def read(self, offset: int, length: int) -> bytes:
        """``SectorDevice.read``."""
        data = await self._device.read(offset, length)
        first = offset // BLOCK_BYTES
        touched = [block for block in range(first, (offset + length) // BLOCK_BYTES) if block in self._blocks]
        if not touched:
            return data
        merged = bytearray(data)
        for block in touched:
            at = (block - first) * BLOCK_BYTES
            merged[at : at + BLOCK_BYTES] = self._blocks[block]
        return bytes(merged)

    async def write(self, offset: int, data: Buffer, *, durable: bool = False) -> None:
        """``SectorDevice.write``, to memory."""
        assert offset % BLOCK_BYTES == 0
        assert len(data) % BLOCK_BYTES == 0
        for at in range(0, len(data), BLOCK_BYTES):
            self._blocks[(offset + at) // BLOCK_BYTES] = bytes(data[at : at + BLOCK_BYTES])

    async def flush(self) -> None:
        """``SectorDevice.flush``: there is nothing to flush."""

    async def aclose(self) -> None:
        """``SectorDevice.aclose``: the device stays open."""
