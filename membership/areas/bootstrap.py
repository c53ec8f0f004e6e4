"""From the stores named on a command line to the membership areas that count (trio; 002-36, 002-42, 002-44).

Any one of the disks that has, or had, a membership area leads to all: its SAN header names those that count, and the
database beside it says where they are.

Invariant B1: areas are used only in the sets that a header names which was read on majorities of these very sets.  So a
disk that was taken out of the set long ago, and still shows the old one, starts no cluster of its own: the last header
that was written on a majority of the old set names the new one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from membership.areas.poll import is_enough
from membership.areas.quorum import Area, Areas
from membership.database.image import read_image
from membership.database.store import MembershipDatabase
from membership.errors import CorruptRecord, DeviceError, MatrixError, OperatorError
from membership.naming import Naming

if TYPE_CHECKING:
    from membership.areas.poll import Group
    from membership.disks import ClusterDisks
    from membership.san.header import SanHeader
    from membership.seams import Clock, SectorDevice

STEPS_MAX = 8  # from set to set; more means that headers name each other in a circle


def groups_of(header: SanHeader, disk: bytes) -> tuple[Group, ...]:
    """The sets of areas that a header names; ``disk``: where it was read, for headers that name none."""
    groups = [frozenset(header.areas or (disk,))]
    if header.areas_before:
        groups.append(frozenset(header.areas_before))
    return tuple(groups)


async def find_areas(disks: ClusterDisks, clock: Clock) -> Areas:
    """The areas that count, as far as this node has them.

    Args:
        disks: with at least one disk opened.
        clock: for the areas.

    Raises:
        OperatorError: too few of them are found.
        CorruptRecord: the SAN header is damaged on all of them.
        DeviceError: I/O failed.
    """
    first = next(iter(disks.opened))
    groups: tuple[Group, ...] = (frozenset({first}),)
    for _ in range(STEPS_MAX):
        areas = await _areas_of(disks, groups, clock)
        async with areas:
            header = (await areas.read_header()).header
        wanted = groups_of(header, first)
        if set(wanted) == set(groups):
            return await _areas_of(disks, groups, clock)
        groups = wanted
    raise OperatorError("the disks name each other's membership areas in a circle: are they copies of other disks?")


async def _areas_of(disks: ClusterDisks, groups: tuple[Group, ...], clock: Clock) -> Areas:
    wanted = sorted(frozenset().union(*groups))
    naming = await stored_naming(disks)
    for disk in wanted:
        if disks.device(disk) is None:
            row = naming.by_uuid(disk)
            await disks.find(disk, row.path if row is not None else "")
    found = [disk for disk in wanted if disks.device(disk) is not None]
    if not is_enough(found, groups):
        names = {disk: row.name if (row := naming.by_uuid(disk)) is not None else disk.hex() for disk in wanted}
        missing = ", ".join(names[disk] for disk in wanted if disk not in found)
        raise OperatorError(
            f"only {len(found)} of {len(wanted)} membership areas are found on this node, {missing} is missing: "
            "attach it, or name where it is with --store"
        )
    areas = Areas(disks.cluster, [Area(disk, disks.device(disk)) for disk in wanted], clock)
    areas.regroup(groups, {})
    return areas


async def stored_naming(disks: ClusterDisks) -> Naming:
    """The newest naming on any disk that is open: only to find the others, nothing is decided by it."""
    best = Naming()
    for disk in list(disks.opened.values()):
        found = await _naming_on(disk.device, disks.cluster)
        if found.version > best.version:
            best = found
    return best


async def _naming_on(device: SectorDevice, cluster: bytes) -> Naming:
    try:
        image = await read_image(device, cluster)
        if image is None:
            return Naming()
        database = MembershipDatabase.from_image_untrusted(image.content, f"{device.name}: membership database")
    except (DeviceError, CorruptRecord):
        return Naming()
    try:
        return database.naming()
    except MatrixError:
        return Naming()
    finally:
        database.close()
