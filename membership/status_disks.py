"""The disks of the cluster in the status of a node (002-16, 002-21, 002-25, 002-43)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from membership.disk_watch import DiskState
from membership.status import DiskStatus, NamingStatus

if TYPE_CHECKING:
    from membership.areas.quorum import Areas
    from membership.disks import ClusterDisks
    from membership.naming import Disk, Naming
    from membership.node_core import NodeCore


def disks_status(naming: Naming, disks: ClusterDisks, areas: Areas) -> list[DiskStatus]:
    """One row for each disk of the naming, by name; before there is one, for what is open."""
    rows = naming.disks or tuple(disk.row() for disk in disks.opened.values())
    failures = {area.disk: area.failure for area in areas.disks}
    return [_disk(row, naming, disks, failures) for row in sorted(rows, key=lambda row: row.name)]


def _disk(row: Disk, naming: Naming, disks: ClusterDisks, failures: dict[bytes, str]) -> DiskStatus:
    found = disks.opened.get(row.uuid)
    return DiskStatus(
        uuid=row.uuid.hex(),
        name=row.name,
        path=row.path,
        path_here=found.path if found is not None else "",
        state=(found.state if found is not None else DiskState.ABSENT).value,
        failure=found.failure if found is not None else "",
        size_bytes=found.device.size_bytes if found is not None else row.size_bytes,  # it may have been enlarged
        filesystem=row.fs_name if row.fs_uuid else "",
        area=_area(row.uuid, naming, failures),
        area_failure=failures.get(row.uuid, ""),
        traits=list(row.traits),
    )


def _area(disk: bytes, naming: Naming, failures: dict[bytes, str]) -> str:
    now = naming.areas or tuple(failures)
    if disk in now:
        return "coming" if naming.areas_before and disk not in naming.areas_before else "yes"
    return "leaving" if disk in naming.areas_before else ""


def naming_status(core: NodeCore | None) -> NamingStatus:
    """How far a change of the naming is."""
    if core is None:
        return NamingStatus(version=0, step="idle", waiting_for=[])
    change = core.admin.change
    waiting = change.waits_for(core.admin.header, core.group.held())
    return NamingStatus(version=core.naming.version, step=change.step.value, waiting_for=waiting)
