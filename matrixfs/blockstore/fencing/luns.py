"""Cluster disks as the fence by reservations sees them: which implementation a store has, and how it comes back.

Source: membership/fence/reservations.py (the seam), decision 0016.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from matrixfs.blockstore.device.api import check_range
from matrixfs.blockstore.device.block import BlockDevice
from matrixfs.blockstore.device.iscsi import IscsiDevice
from matrixfs.blockstore.scsi.kernel import kernel_reservations
from matrixfs.blockstore.scsi.reservations import ScsiReservations
from membership.errors import DeviceError
from membership.fence.expel import expel
from membership.fence.keys import CLAIMANT, key_of
from membership.fence.reservations import REGISTRANTS_ONLY, Leak, Lun, LunTraits
from membership.fence.storage_access import StorageAccess
from membership.storage import Reach

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from matrixfs.blockstore.device.window import Window
    from matrixfs.blockstore.fencing.patience import PatientDevice
    from matrixfs.blockstore.scsi.session import Session
    from membership.label import Label
    from membership.seams import Clock, SectorDevice
    from membership.storage import Returning


# Of a LUN behind a kernel device, which one host can't probe: what an operator vouches for who says that the array does
# what the standard says.  Nothing else makes a fence of it.
VOUCHED_FOR = LunTraits(
    kind=REGISTRANTS_ONLY,
    preempt_and_abort=True,
    outlives_holder=True,
    keys_are_true=True,
    abort_stops=True,
    leaks=~Leak(0) & ~Leak.WRITE_10,
)


def lun_of(device: SectorDevice, traits: LunTraits) -> Lun:
    """The LUN behind an open store.

    Args:
        device: an open store.  A file has no reservations.
        traits: what its probe found (label of the disk).
    """
    if isinstance(device, IscsiDevice):
        reservations = ScsiReservations(
            device.name,
            device.sector_bytes,
            device.size_bytes,
            device.nexus.session,
            power_loss=traits.keeps_over_power_loss,
        )
        return Lun(device.name, reservations, traits)
    if isinstance(device, BlockDevice):
        kernel = kernel_reservations(device.name, power_loss=traits.keeps_over_power_loss)
        return Lun(device.name, kernel, traits, nexus_per_process=False)
    return Lun(device.name, None, LunTraits())


def looks_through(device: SectorDevice, lun: Lun) -> SectorDevice:
    """Through this ``allowed`` of ``StorageAccess`` reads header and slots, also while the disk comes back (A3)."""
    return lun.reservations if isinstance(lun.reservations, ScsiReservations) else device


def comes_back(device: IscsiDevice, lun: Lun, access: Returning) -> None:
    """Let a lost session carry nothing again before ``access.reconnected`` has agreed (A3).

    What ``access`` looks at (``allowed``) must be read through ``looks_through``: nobody else gets a session of this
    LUN meanwhile.
    """
    reservations = lun.reservations
    assert isinstance(reservations, ScsiReservations)

    async def reconnected(session: Session) -> None:
        with reservations.returning(session):
            await access.reconnected(lun.name)

    device.nexus.on_reconnected = reconnected


def reach_of(device: SectorDevice, traits: LunTraits, returning: Returning) -> Reach:
    """``membership.storage.Reaches`` of this host."""
    lun = lun_of(device, traits)
    if isinstance(device, IscsiDevice) and lun.usable is not None:
        comes_back(device, lun, returning)
    return Reach(lun, looks_through(device, lun), is_local=not isinstance(device, IscsiDevice))


def mount_access(
    device: SectorDevice,
    traits: LunTraits,
    clock: Clock,
    *,
    allowed: Callable[[], Awaitable[bool]],
    lost: Callable[[str], None],
) -> StorageAccess:
    """The right of a mount process to write to its store.  Through a kernel device its matrixd registers for it.

    Arguments as of ``StorageAccess``.
    """
    lun = lun_of(device, traits)
    if not lun.nexus_per_process:
        lun = Lun(lun.name, None, LunTraits())
    access = StorageAccess(lambda: [lun], clock, allowed=allowed, lost=lost)
    if isinstance(device, IscsiDevice) and lun.usable is not None:
        comes_back(device, lun, access)
    return access


def discard_of(
    gated: PatientDevice, area: Window, traits: LunTraits, start: int
) -> Callable[[int, int], Awaitable[None]]:
    """How a mount tells its store that nobody needs (offset, length) of an area that begins at ``start``.

    A reservation has to hold back a discard as it does a write: where the probe saw an unregistered UNMAP or WRITE SAME
    get through, or nobody looked, there is none (C2 in scsi/commands.py).
    """

    async def discard(offset: int, length: int) -> None:
        check_range(area, "discard", offset, length)
        if traits.kind and traits.leaks & (Leak.UNMAP | Leak.WRITE_SAME):
            raise DeviceError(
                f"{area.name}: its reservations are not known to hold a discard back", errno.EOPNOTSUPP
            )
        await gated.discard(start + offset, length)

    return discard


async def seize(device: SectorDevice, label: Label, incarnation: int) -> None:
    """For who repairs a disk that no node uses: nobody else may write to it from now on.

    Our key stays behind and keeps the disk locked until a node takes over (A4 of storage_access.py).

    Raises:
        DeviceError: it can't be made certain.
        Fenced: somebody does the same to us.
    """
    traits = LunTraits.from_words_untrusted(label.pr_kind, label.pr_flags, label.pr_leaks)
    lun = lun_of(device, traits)
    if lun.usable is None:
        return
    own = key_of(CLAIMANT, incarnation)
    await lun.usable.register(own)

    async def others(keys: list[int]) -> list[int]:
        return [key for key in dict.fromkeys(keys) if key != own]

    await expel(lun, own, others)
