"""Making a cluster disk: an empty membership area and, last of all, the label (``membership/label.py``, 002-21).

Invariants:
    I1  Nothing is written before every check has passed.
    I2  The label is written last, durably: a torn mkfs leaves no cluster disk, and whatever stood there before is
        no cluster disk either from the first write on.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

from matrixfs.blockstore.device.window import Window
from matrixfs.blockstore.in_use import refuse_if_holding_data
from membership.errors import OperatorError
from membership.label import BLOCK_BYTES, DATA_BLOCK, NAME_BYTES_MAX, Label, Timing
from membership.san.header import make_header, write_header

if TYPE_CHECKING:
    from membership.seams import Clock, Rng, SectorDevice

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_CHUNK_BLOCKS = 256  # the membership area is cleared 1 MiB at a time


@dataclass(frozen=True, slots=True)
class DiskIdentity:
    """Which disk of which cluster a store becomes."""

    cluster: bytes  # uuid
    cluster_name: str
    timing: Timing
    disk: bytes  # uuid
    disk_name: str = ""  # "": as the cluster
    key: bytes = bytes(32)  # zeros: nodes get it by token
    links: int = 0  # ``membership.label.PLAIN_LINKS``, or 0
    areas: tuple[bytes, ...] = ()  # disks with the first membership areas; (): it alone, or none here


def new_identity(cluster_name: str, timing: Timing, rng: Rng) -> DiskIdentity:
    """Of the only disk of a new cluster, whose key is on it.  Raises OperatorError for a bad name."""
    check_cluster_name(cluster_name)
    return DiskIdentity(new_uuid(rng), cluster_name, timing, new_uuid(rng), key=rng.randbytes(32))


async def initialize_disk(
    device: SectorDevice, cluster_name: str, timing: Timing, rng: Rng, clock: Clock, *, force: bool = False
) -> Label:
    """Make ``device`` a cluster disk without a filesystem; ``prepare_disk`` and ``write_label`` in one.

    Args:
        device: the store.
        cluster_name: 1..64 of ``A-Z a-z 0-9 . _ -``; also the name that is mounted.
        timing: the cluster's one configuration of R4.
        rng: source of uuids and of the cluster's key.
        clock: for the creation time, and to watch for live nodes.
        force: overwrite an idle cluster disk or foreign data; never a disk in use.

    Raises:
        OperatorError: bad name, too small, or in use.  Nothing was written.
        DeviceError: I/O failed.
    """
    label = await prepare_disk(device, new_identity(cluster_name, timing, rng), clock, force=force)
    await write_label(device, label)
    return label


async def prepare_disk(device: SectorDevice, identity: DiskIdentity, clock: Clock, *, force: bool = False) -> Label:
    """Check and clear ``device``; return the label that ``write_label`` shall write when all else is done.

    Arguments and errors as ``initialize_disk``.
    """
    blocks = data_blocks(device)
    await refuse_if_holding_data(device, clock, force=force)
    zeros = bytes(BLOCK_BYTES * _CHUNK_BLOCKS)
    await wipe_labels(device)
    for block in range(0, DATA_BLOCK, _CHUNK_BLOCKS):
        await device.write(block * BLOCK_BYTES, zeros)
    if identity.areas:
        header = make_header(identity.cluster, 0, members={}, fencing={}, areas=identity.areas)
        await write_header(device, header)
    await device.flush()
    timing = identity.timing
    return Label(
        owner=identity.cluster,
        disk_uuid=identity.disk,
        cluster_name=identity.cluster_name,
        cluster_key=identity.key,
        disk_name=identity.disk_name,
        links=identity.links,
        data_block=DATA_BLOCK,
        data_blocks=blocks,
        created_ns=clock.wall_ns(),
        heartbeat_ms=round(timing.heartbeat * 1000),
        link_dead_ms=round(timing.link_dead * 1000),
        renew_ms=round(timing.renew * 1000),
        lease_ms=round(timing.lease * 1000),
        io_bound_ms=round(timing.io_bound * 1000),
        margin_ms=round(timing.margin * 1000),
    )


async def wipe_labels(device: SectorDevice) -> None:
    """From now on this is no cluster disk.

    The copy goes first, so that nobody falls back to it when the label is gone.

    Raises:
        DeviceError: I/O failed; it may still be one.
    """
    for block in (device.size_bytes // BLOCK_BYTES - 1, 0):
        await device.write(block * BLOCK_BYTES, bytes(BLOCK_BYTES), durable=True)


async def write_label(device: SectorDevice, label: Label) -> None:
    """Write ``label`` to the last block and then to block 0: from now on this is a cluster disk.

    Raises:
        DeviceError: I/O failed; a node may or may not find the label.
    """
    await device.flush()  # all that the label vouches for
    for block in (device.size_bytes // BLOCK_BYTES - 1, 0):
        label.address = block
        await device.write(block * BLOCK_BYTES, label.encode(), durable=True)


def data_blocks(device: SectorDevice) -> int:
    """Blocks of the data area that a cluster disk on ``device`` has.  Raises OperatorError when it is too small."""
    blocks = device.size_bytes // BLOCK_BYTES - 1 - DATA_BLOCK
    if blocks < 1:
        raise OperatorError(
            f"{device.name}: too small for a cluster disk "
            f"({device.size_bytes} bytes, the least is {(DATA_BLOCK + 2) * BLOCK_BYTES})"
        )
    return blocks


def data_window(device: SectorDevice, label: Label) -> Window:
    """The data area of a cluster disk.

    Raises:
        DeviceError: the label promises more than the device has.
    """
    return Window(device, label.data_block * BLOCK_BYTES, label.data_blocks * BLOCK_BYTES)


def check_cluster_name(name: str) -> None:
    """Names go on command lines, into /etc/fstab and file names.  Raises OperatorError."""
    if len(name.encode()) > NAME_BYTES_MAX or not _NAME.fullmatch(name):
        raise OperatorError(
            f"{name!r} is no cluster name: 1 to {NAME_BYTES_MAX} letters, digits, '.', '_', '-', "
            "beginning with a letter or digit"
        )


def new_uuid(rng: Rng) -> bytes:
    """A random uuid (RFC 9562, version 4), 16 bytes."""
    return uuid.UUID(bytes=rng.randbytes(16), version=4).bytes
