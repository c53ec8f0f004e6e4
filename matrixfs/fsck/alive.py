"""Is anybody working on the store?  Nothing is checked or written while a node may be writing (F1, R4).

A node shows on the disk that it is alive: its heartbeat slot changes with every renewal.  One that went silent
without leaving may still have writes in flight until its lease and ``io_bound`` are over; whoever wants to write
waits for that, unless the SAN header says that it was evicted and its fence confirmed (S4 in ``san/header.py``).
"""

from __future__ import annotations

from collections.abc import Callable

from membership.errors import CorruptRecord, OperatorError
from membership.label import BLOCK_BYTES, HEARTBEAT_BLOCK, NODE_SLOTS, Label, timing_of
from membership.lease.records import HeartbeatSlot, slot_untrusted
from membership.san.header import read_header
from membership.seams import Clock, SectorDevice

RENEWALS_WATCHED = 2  # a live node's slot changes within one; two leave room for a late one


class NodeWatch:
    """Watches the heartbeat slots of a disk.

    Args:
        device: the whole disk.
        label: its label.
        clock: to wait with.
    """

    def __init__(self, device: SectorDevice, label: Label, clock: Clock) -> None:
        self._device = device
        self._cluster = label.owner
        self._timing = timing_of(label)
        self._clock = clock
        self._seen = b""

    async def refuse_if_alive(self, *, will_write: bool, say: Callable[[str], None]) -> None:
        """Return when nobody is, or can be, at work.

        Args:
            will_write: also wait until the lease of silent nodes must have ended.
            say: told why it takes long.

        Raises:
            OperatorError: a node is alive.
            DeviceError: I/O failed.
        """
        self._seen = await self._read()
        silent = self._silent_nodes(self._seen)
        if not silent:
            return
        watched = RENEWALS_WATCHED * self._timing.renew
        await self._clock.sleep(watched)
        await self.recheck()
        if not will_write:
            return
        holders = await self._right_holders(silent)
        if holders and self._timing.dead > watched:
            left = self._timing.dead - watched
            say(f"{', '.join(holders)} did not leave the cluster cleanly; waiting {left:.0f} s for the lease to end")
            await self._clock.sleep(left)
            await self.recheck()

    async def not_left(self) -> list[str]:
        """Names of the nodes that did not say that they left: they may be writing.  Waits for nobody.

        Raises DeviceError.
        """
        self._seen = await self._read()
        return [self._name(self._seen, node) for node in self._silent_nodes(self._seen)]

    async def recheck(self) -> None:
        """Raise OperatorError when a slot changed since ``refuse_if_alive``; DeviceError when I/O failed."""
        now = await self._read()
        for node in range(NODE_SLOTS):
            if _slot_bytes(now, node) != _slot_bytes(self._seen, node):
                raise OperatorError(
                    f"{self._device.name}: {self._name(now, node)} is working on it; stop matrixd on all nodes first"
                )

    async def _read(self) -> bytes:
        return await self._device.read(HEARTBEAT_BLOCK * BLOCK_BYTES, NODE_SLOTS * BLOCK_BYTES)

    def _slot(self, data: bytes, node: int) -> HeartbeatSlot | CorruptRecord | None:
        try:
            return slot_untrusted(_slot_bytes(data, node), node, self._cluster)
        except CorruptRecord as error:
            return error

    def _name(self, data: bytes, node: int) -> str:
        slot = self._slot(data, node)
        return f"node {slot.name!r}" if isinstance(slot, HeartbeatSlot) else f"node {node}"

    def _silent_nodes(self, data: bytes) -> list[int]:
        """Nodes whose slot is in use and doesn't say that they left."""
        slots = {node: self._slot(data, node) for node in range(NODE_SLOTS)}
        return [
            node
            for node, slot in slots.items()
            if slot is not None and not (isinstance(slot, HeartbeatSlot) and slot.is_left)
        ]

    async def _right_holders(self, silent: list[int]) -> list[str]:
        """Names of silent nodes that may have the right to write, or whose fence nobody confirmed."""
        try:
            header = await read_header(self._device, self._cluster)
        except CorruptRecord:
            return [self._name(self._seen, node) for node in silent]
        holders: list[str] = []
        for node in silent:
            slot = self._slot(self._seen, node)
            dangerous = {header.members.get(node), header.fencing.get(node)}
            if not isinstance(slot, HeartbeatSlot) or slot.incarnation in dangerous:
                holders.append(self._name(self._seen, node))
        return holders


def _slot_bytes(data: bytes, node: int) -> bytes:
    return data[node * BLOCK_BYTES : (node + 1) * BLOCK_BYTES]
