"""Commands and the fence by reservations: what a dead process may still have in flight, and the probe of a new LUN.

Source: decision 0016.
"""

from __future__ import annotations

import contextlib
import logging
import os
from typing import TYPE_CHECKING

import click

from matrixfs.blockstore.device.block import BlockDevice
from matrixfs.blockstore.device.iscsi import IscsiDevice
from matrixfs.blockstore.fencing.luns import VOUCHED_FOR, lun_of
from matrixfs.blockstore.scsi import nexus
from matrixfs.blockstore.scsi.credentials import environment
from matrixfs.blockstore.scsi.probe_nexus import probe_iscsi
from matrixfs.store_names import is_iscsi
from membership.errors import DeviceError, Fenced, OperatorError
from membership.fence.reservations import KIND_NAMES, LunTraits
from membership.fence.storage_access import clear_lun
from membership.presence import Landing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matrixfs.blockstore.device.api import Store
    from membership.disks import ClusterDisks
    from membership.label import Label
    from membership.seams import Clock, Rng


class HostLanding:
    """``presence.Lands`` for all disks of a node.  What was sent to a LUN can't be seen from here."""

    def __init__(self, disks: ClusterDisks, clock: Clock) -> None:
        self._disks = disks
        self._clock = clock

    async def wait(self, pid: int) -> None:
        """See ``presence.Lands``."""
        paths = [disk.path for disk in self._disks.opened.values()]
        for path in paths:
            if not is_iscsi(path):
                await Landing(path, self._clock).wait(pid)
        for path in paths:
            if is_iscsi(path):
                raise DeviceError(f"process {pid} is gone, but what it sent to {path} may still be written")


async def clear_reservations(device: Store, rng: Rng) -> None:
    """For mkfs --force, when no node is alive: take away what a dead cluster left.  Raises DeviceError."""
    reservations = lun_of(device, LunTraits()).reservations
    if reservations is not None:
        try:
            await clear_lun(reservations, int.from_bytes(rng.randbytes(5), "little"))
        except Fenced as error:
            raise DeviceError(f"{device.name}: somebody uses it: {error}") from None


async def vouch_for(device: Store, rng: Rng, *, force: bool) -> None:
    """For --trust-reservations of mkfs: whether there is anything to trust, and nobody uses it.

    Raises:
        OperatorError: no kernel device with reservations, or a cluster's.
        DeviceError: it can't be asked.
    """
    reservations = lun_of(device, VOUCHED_FOR).usable if isinstance(device, BlockDevice) else None
    if reservations is None:
        raise OperatorError(f"{device.name}: --trust-reservations is for SCSI, multipath and NVMe disks of the kernel")
    keys = await reservations.read_keys()
    if keys and not force:
        raise OperatorError(f"{device.name}: {len(keys)} reservation keys are registered on it: --force clears them")
    if keys:
        await clear_reservations(device, rng)


async def probe_into(label: Label, device: Store, rng: Rng, clock: Clock, *, vouched: bool) -> None:
    """Find out what fences a node from a new disk, for its label; without reservations nothing.

    Args:
        label: filled in.
        device: open, its membership area empty; its scratch blocks are overwritten.
        rng: for the names of nexuses.
        clock: for the time of the probe.
        vouched: see ``vouch_for``.

    Raises:
        OperatorError: somebody is registered with it.
    """
    traits = VOUCHED_FOR
    if not vouched:
        if not isinstance(device, IscsiDevice):
            return
        host = os.uname().nodename.split(".")[0]
        try:
            with _quiet():
                traits = await probe_iscsi(device.address, host, environment(), rng.randbytes(8).hex())
        except DeviceError as error:
            click.echo(f"mkfs.matrixfs: its reservations can't be tried, so they are not used: {error}", err=True)
            traits = LunTraits()
    label.pr_kind, label.pr_flags, label.pr_leaks = traits.to_words()
    label.probed_ns = clock.wall_ns()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """That our own session is lost is no news: some targets drop all of an initiator at the probe's LUN RESET."""
    logger = logging.getLogger(nexus.__name__)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def describe_fencing(label: Label) -> str:
    """How nodes are fenced from a new disk, in a line for people."""
    traits = LunTraits.from_words_untrusted(label.pr_kind, label.pr_flags, label.pr_leaks)
    if traits.fence != "none":
        form = {"preempt-and-abort": "preempt and abort", "preempt+reset": "preempt and LUN reset"}[traits.fence]
        return f"by reservations ({KIND_NAMES[traits.kind]}, {form})"
    if not label.probed_ns:
        return "by lease time (only a LUN has reservations)"
    return f"by lease time: its reservations stop nobody for certain ({traits.complaints[0]})"
