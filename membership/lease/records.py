"""HeartbeatSlot: one 4 KiB block per node in the membership area (002-12; layout in membership/label.py).

Invariants:

H1. A slot is overwritten by a new incarnation only after the one before was confirmed fenced, or had left
    (``lease/slots.py``).  So an instance whose slot carries another incarnation is dead and writes no more.
H2. A mount stands in its node's slot, durably, before it is admitted: the process fence knows whom to kill.
H3. ``counter`` moves with every renewal; peers compare it with what they saw, never with a clock of the writer.
"""

from __future__ import annotations

from dataclasses import dataclass

from membership.errors import CorruptRecord
from membership.label import BLOCK_BYTES, HEARTBEAT_BLOCK, NAME_BYTES_MAX, NODE_SLOTS
from membership.records import Record, raw, record, text, u16, u32, u64, u64_array
from membership.seams import PeerAddress
from membership.transport.paths import OTHERS_BYTES_MAX, others_problem

MOUNTS_MAX = 8
HOST_BYTES_MAX = 255

FLAG_LEFT = 1  # a clean leave: nothing to fence


@dataclass(frozen=True, slots=True)
class MountProcess:
    """A mount process of the node, as the process fence needs it."""

    pid: int
    start_time: int  # clock ticks since boot
    incarnation: int


@record(magic=b"MXFSBEAT", size=BLOCK_BYTES, version=2)
class HeartbeatSlot(Record):
    """``owner`` is the cluster, ``address`` the block, ``generation`` the SAN generation the node last saw."""

    incarnation: int = u64(48, "of the matrixd that owns the slot; 0: the slot is free")
    counter: int = u64(56, "moves with every renewal (H3)")
    hears: int = u64(64, "bit n: this node has a live link to node n")
    boot_id: bytes = raw(72, 16, "kernel boot id: another one with the same machine id means it rebooted")
    machine_id: bytes = raw(88, 16, "machine id of the host")
    flags: int = u32(104, "1: left cleanly")
    pid: int = u32(108, "process id of matrixd on its host")
    start_time: int = u64(112, "start of that process, clock ticks since boot")
    port: int = u16(120, "where matrixd listens; 0: not yet")
    name: str = text(128, NAME_BYTES_MAX, "node name, unique in the cluster")
    host: str = text(192, HOST_BYTES_MAX, "address peers connect to")
    mount_pids: tuple[int, ...] = u64_array(512, MOUNTS_MAX, "process ids of mounts; 0: none (H2)")
    mount_starts: tuple[int, ...] = u64_array(576, MOUNTS_MAX, "their start times, clock ticks since boot")
    mount_incarnations: tuple[int, ...] = u64_array(640, MOUNTS_MAX, "their incarnations")
    others: str = text(704, OTHERS_BYTES_MAX, "further addresses, with commas between; none before version 2")

    @property
    def is_left(self) -> bool:
        """The owner left cleanly."""
        return bool(self.flags & FLAG_LEFT)

    @property
    def mounts(self) -> tuple[MountProcess, ...]:
        """The mount processes."""
        rows = zip(self.mount_pids, self.mount_starts, self.mount_incarnations, strict=True)
        return tuple(MountProcess(*row) for row in rows if row[0])

    def set_mounts(self, mounts: tuple[MountProcess, ...]) -> None:
        """Replace the mount processes.  At most MOUNTS_MAX."""
        assert len(mounts) <= MOUNTS_MAX
        self.mount_pids = tuple(m.pid for m in mounts)
        self.mount_starts = tuple(m.start_time for m in mounts)
        self.mount_incarnations = tuple(m.incarnation for m in mounts)

    def peer(self, node: int) -> PeerAddress:
        """Where the owner listens."""
        return PeerAddress(node, self.incarnation, self.host, self.port, self.other_hosts)

    @property
    def other_hosts(self) -> tuple[str, ...]:
        """Its addresses after ``host``."""
        return tuple(self.others.split(",")) if self.others else ()


def slot_block(node: int) -> int:
    """Block number of a node's slot."""
    assert 0 <= node < NODE_SLOTS
    return HEARTBEAT_BLOCK + node


def slot_untrusted(data: bytes, node: int, cluster: bytes) -> HeartbeatSlot | None:
    """The slot in one block; None when free or never written.  Raises CorruptRecord."""
    if not any(data[:8]):
        return None
    block = slot_block(node)
    slot = HeartbeatSlot.decode_untrusted(data, f"heartbeat slot {node} (block {block})", owner=cluster, address=block)
    if slot.incarnation == 0:
        return None
    if any(not 0 <= pid < 2**31 for pid in (slot.pid, *slot.mount_pids)):
        raise CorruptRecord(f"heartbeat slot {node}", "process id", "below 2^31", max(slot.pid, *slot.mount_pids))
    if problem := others_problem(slot.other_hosts):
        raise CorruptRecord(f"heartbeat slot {node}", "further addresses", "at most 3, none empty", problem)
    return slot
