"""Reading and writing the heartbeat area of the shared disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

from membership.errors import CorruptRecord
from membership.label import BLOCK_BYTES, HEARTBEAT_BLOCK, NODE_SLOTS
from membership.lease.records import slot_block, slot_untrusted

if TYPE_CHECKING:
    from membership.lease.records import HeartbeatSlot
    from membership.seams import SectorDevice


async def read_slots(device: SectorDevice, cluster: bytes) -> tuple[dict[int, HeartbeatSlot], set[int]]:
    """All claimed slots, in one read, and the numbers of those that don't decode.  Raises DeviceError."""
    data = await device.read(HEARTBEAT_BLOCK * BLOCK_BYTES, NODE_SLOTS * BLOCK_BYTES)
    slots: dict[int, HeartbeatSlot] = {}
    damaged: set[int] = set()
    for node in range(NODE_SLOTS):
        try:
            slot = slot_untrusted(data[node * BLOCK_BYTES : (node + 1) * BLOCK_BYTES], node, cluster)
        except CorruptRecord:
            damaged.add(node)  # torn while we read, or for good: its owner writes it again, else it counts as silent
            continue
        if slot is not None:
            slots[node] = slot
    return slots, damaged


async def read_slot(device: SectorDevice, node: int, cluster: bytes) -> HeartbeatSlot | None:
    """One slot.  Raises CorruptRecord, DeviceError."""
    return slot_untrusted(await device.read(slot_block(node) * BLOCK_BYTES, BLOCK_BYTES), node, cluster)


async def write_slot(device: SectorDevice, slot: HeartbeatSlot) -> None:
    """Write a slot durably.  Raises DeviceError."""
    await device.write(slot.address * BLOCK_BYTES, slot.encode(), durable=True)
