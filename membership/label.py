"""The label: first block of every cluster disk, and the map of what lies behind it (002-21).

Layout of a cluster disk, in 4 KiB blocks (``BLOCK_BYTES``)::

    0                     label (this record; a copy in the last block of the disk)
    1                     SAN header: generation, administrator, members   (san/header.py)
    2 .. 65               SAN lock: one ballot block per node slot         (san/records.py)
    66 .. 129             heartbeat and lease: one block per node slot     (lease/records.py)
    130 .. 130+2*256-1    membership database: two image slots of 1 MiB    (database/image.py)
    1024 ..               data: one filesystem

The timing of R4 is stored here, once for the cluster, never per node.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from membership.errors import CorruptRecord, OperatorError
from membership.records import Record, i64, raw, record, text, u32, u64

if TYPE_CHECKING:
    from membership.seams import SectorDevice

BLOCK_BYTES = 4096
NODE_SLOTS = 64
HEADER_BLOCK = 1
BALLOT_BLOCK = 2
HEARTBEAT_BLOCK = BALLOT_BLOCK + NODE_SLOTS
DATABASE_BLOCK = HEARTBEAT_BLOCK + NODE_SLOTS
DATABASE_SLOT_BLOCKS = 256
DATABASE_SLOTS = 2
DATA_BLOCK = 1024
NAME_BYTES_MAX = 64

assert DATABASE_BLOCK + DATABASE_SLOTS * DATABASE_SLOT_BLOCKS <= DATA_BLOCK


PLAIN_LINKS = 1


@record(magic=b"MXFSLABL", size=BLOCK_BYTES, version=2)
class Label(Record):
    """Identity of a cluster disk.  ``owner`` is the cluster's uuid, ``address`` 0 (or the copy's block).

    Version 2 added what follows ``margin_ms``; a label of version 1 reads as zeros there.
    """

    disk_uuid: bytes = raw(48, 16, "uuid of this disk")
    cluster_name: str = text(64, NAME_BYTES_MAX, "name people give the cluster")
    cluster_key: bytes = raw(128, 32, "secret of the nodes (R11): who reads it is one; 0: they get it by token")
    data_block: int = u64(160, "first block of the data area")
    data_blocks: int = u64(168, "blocks of the data area")
    created_ns: int = i64(176, "wall clock at mkfs, ns since the epoch")
    heartbeat_ms: int = u32(184, "interval of link heartbeats")
    link_dead_ms: int = u32(188, "a peer silent on its link for this long is suspected")
    renew_ms: int = u32(192, "interval of disk heartbeats, which renew the lease")
    lease_ms: int = u32(196, "a node may write for this long after it began its last renewal")
    io_bound_ms: int = u32(200, "worst time of a write in flight at the store")
    margin_ms: int = u32(204, "clock-rate error and scheduling, between lease end and peers acting")
    disk_name: str = text(208, NAME_BYTES_MAX, "name of this disk in the cluster; empty: the cluster's name")
    pr_kind: int = u32(272, "reservation that the probe proved to hold; 0: none")
    pr_flags: int = u32(276, "what else the probe proved (membership/fence/reservations.py)")
    pr_leaks: int = u32(280, "commands that slip past a reservation, a bit each")
    links: int = u32(284, "1: links between nodes are authenticated only; 0: encrypted too")
    probed_ns: int = i64(288, "wall clock of the probe, ns since the epoch; 0: never probed")

    @property
    def name(self) -> str:
        """What the disk is called."""
        return self.disk_name or self.cluster_name


@dataclass(frozen=True, slots=True)
class Timing:
    """The one configuration of R4, in seconds; see ``Label`` for each field."""

    heartbeat: float
    link_dead: float
    renew: float
    lease: float
    io_bound: float
    margin: float

    def __post_init__(self) -> None:
        if not (0 < self.heartbeat * 2 < self.link_dead and 0 < self.renew * 3 <= self.lease):
            values = ", ".join(f"{name} {value:g}" for name, value in dataclasses.asdict(self).items())
            raise OperatorError(
                "timing contradicts itself: link_dead must be over 2 heartbeats, lease 3 times renew or more "
                f"({values})"
            )

    @property
    def dead(self) -> float:
        """R4: peers of a silent node act this long after evicting it, when no fence could confirm it earlier.

        T(self-stop) = lease, worst in-flight I/O = io_bound, and margin for what clocks and schedulers add.
        """
        return self.lease + self.io_bound + self.margin

    @property
    def stuck(self) -> float:
        """Without any sign of progress for this long a mount that owes something is at a dead end."""
        return 12 * self.link_dead


# A silent node is suspected after 2.5 s; where only time can fence it, its files are free 6.5 s later: 9 s in all.
DEFAULT_TIMING = Timing(heartbeat=0.25, link_dead=2.5, renew=0.5, lease=3.5, io_bound=2.0, margin=1.0)


def timing_of(label: Label) -> Timing:
    """The label's timing in seconds.  Raises OperatorError when it contradicts itself."""
    return Timing(
        heartbeat=label.heartbeat_ms / 1000,
        link_dead=label.link_dead_ms / 1000,
        renew=label.renew_ms / 1000,
        lease=label.lease_ms / 1000,
        io_bound=label.io_bound_ms / 1000,
        margin=label.margin_ms / 1000,
    )


async def read_label(device: SectorDevice) -> Label:
    """Read and check the label; falls back to the copy in the last block.

    Raises:
        OperatorError: the device is too small or was cut short, holds nothing of MatrixFS, or that of a newer version.
        CorruptRecord: it once was a cluster disk, and both copies are damaged.
        DeviceError: I/O failed.
    """
    if device.size_bytes < (DATA_BLOCK + 2) * BLOCK_BYTES:
        raise OperatorError(f"{device.name}: too small for a cluster disk ({device.size_bytes} bytes)")
    last = device.size_bytes // BLOCK_BYTES - 1
    first_error: CorruptRecord | None = None
    for block in (0, last):
        data = await device.read(block * BLOCK_BYTES, BLOCK_BYTES)
        try:
            label = Label.decode_untrusted(data, f"{device.name}: label in block {block}", address=block)
            _check_size(label, device)
            return label
        except CorruptRecord as error:
            if first_error is None:
                first_error = error
    assert first_error is not None
    if first_error.check == "magic":
        raise OperatorError(f"{device.name}: no MatrixFS cluster disk (make one with mkfs.matrixfs)") from None
    if first_error.check == "version":
        raise OperatorError(f"{device.name}: made by a newer MatrixFS: upgrade this node to use it") from None
    raise first_error


def _check_size(label: Label, device: SectorDevice) -> None:
    wanted = (label.data_block + label.data_blocks + 1) * BLOCK_BYTES  # and the label's copy
    if device.size_bytes < wanted:
        raise OperatorError(
            f"{device.name}: has {device.size_bytes} bytes, the cluster disk that was made had {wanted}: "
            "it was cut short, or is another device"
        )
