"""The naming: which disks the cluster has, and what they are called (pure; 002-21, 002-25, 002-43, 002-44).

It lies in the membership database and has a version; the SAN header says which version is in force.  Every node holds
it in memory, so the cluster goes on naming its disks when the database can't be read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from membership.errors import OperatorError

if TYPE_CHECKING:
    from collections.abc import Collection

DISKS_MAX = 256
PATH_BYTES_MAX = 512


@dataclass(frozen=True, slots=True)
class Disk:
    """One cluster disk.  Its label is the truth about uuid and name; the rest is what it was added with."""

    uuid: bytes  # 16 bytes
    name: str  # unique in the cluster
    path: str  # where the node that added it found it: a path or URL, a hint to the others
    size_bytes: int = 0
    fs_uuid: bytes = b""  # of the filesystem on it; empty: none
    fs_name: str = ""
    traits: tuple[int, int, int] = (0, 0, 0)  # what the probe proved: kind, flags, leaks (label.py)


@dataclass(frozen=True, slots=True)
class Naming:
    """One version of it."""

    version: int = 0
    disks: tuple[Disk, ...] = ()
    areas: tuple[bytes, ...] = ()  # uuids of the disks with the membership areas
    areas_before: tuple[bytes, ...] = ()  # while the set is being changed
    tokens: tuple[tuple[bytes, bytes], ...] = field(default=(), repr=False)  # join tokens: id, key of the conversation

    def by_name(self, name: str) -> Disk:
        """Raises OperatorError when there is none of that name."""
        for disk in self.disks:
            if disk.name == name:
                return disk
        raise OperatorError(f"no disk of the cluster is called {name!r}: see matrixctl disk list")

    def by_uuid(self, uuid: bytes) -> Disk | None:
        """The disk, or None."""
        return next((disk for disk in self.disks if disk.uuid == uuid), None)

    def by_filesystem(self, name: str) -> Disk:
        """The disk that holds a filesystem.  Raises OperatorError."""
        for disk in self.disks:
            if disk.fs_name == name and disk.fs_uuid:
                return disk
        known = ", ".join(sorted(disk.fs_name for disk in self.disks if disk.fs_uuid)) or "none"
        raise OperatorError(f"no filesystem {name!r} in this cluster (it has: {known})")


def check_new_disk(naming: Naming, disk: Disk) -> None:
    """Whether a disk may be added.  Raises OperatorError."""
    if len(naming.disks) >= DISKS_MAX:
        raise OperatorError(f"the cluster has {DISKS_MAX} disks, the most it can have")
    if len(disk.path.encode()) > PATH_BYTES_MAX:
        raise OperatorError(f"the path of the disk is longer than {PATH_BYTES_MAX} bytes")
    for known in naming.disks:
        if known.name == disk.name:
            raise OperatorError(f"a disk of the cluster is called {disk.name!r} already: give it another name")
        if disk.fs_name and known.fs_name == disk.fs_name:
            raise OperatorError(f"the cluster has a filesystem {disk.fs_name!r} already, on disk {known.name}")


def check_areas(naming: Naming, names: Collection[str]) -> tuple[bytes, ...]:
    """The uuids of a new set of membership areas.  Raises OperatorError."""
    disks = [naming.by_name(name) for name in names]
    if len(disks) not in (1, 3) or len({disk.uuid for disk in disks}) != len(disks):
        raise OperatorError("give one disk, or three different ones: of two membership areas none may be lost")
    if naming.areas_before:
        raise OperatorError("the set of membership areas is being changed just now: see matrixctl disk list")
    return tuple(disk.uuid for disk in disks)
