"""The cluster disks as one node has them: found by label, opened, watched (trio; 002-12, 002-16, 002-21, 002-25).

A disk is known by the uuid of its label.  Where it is, each node finds out for itself: the path it was added with, the
paths given to this matrixd, then whatever else there is to look at.  So a disk may have another path on each node.

Invariants:

D1. A device is used for a disk only after its label said that it is that disk, and no longer when it says otherwise.
D2. Nothing here waits for a disk that hangs: a look at it goes on beside, and no second one begins.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import trio

from membership.disk_watch import SLOW_SECONDS, TRANSITIONS, WATCH_SECONDS, DiskEvent, DiskState, is_usable
from membership.errors import MatrixError, OperatorError
from membership.label import read_label
from membership.naming import Disk, Naming

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping

    from membership.label import Label
    from membership.seams import Clock, SectorDevice


class Opener(Protocol):
    """How this host opens stores."""

    async def open(self, path: str) -> SectorDevice:
        """Open a store by its name.  Raises OperatorError, DeviceError."""
        ...

    async def measure(self, device: SectorDevice) -> None:
        """Let ``device`` learn how large its store is now: people enlarge LUNs.  Raises DeviceError."""
        ...

    def candidates(self) -> Collection[str]:
        """Names of stores on which a disk may be found whose recorded path does not lead to it."""
        ...

    def show(self, paths: Mapping[str, str], areas: Collection[str]) -> None:
        """Where each usable disk is on this node, by name, and which have membership areas (002-25, 002-44)."""
        ...

    async def filesystem_of(self, device: SectorDevice, label: Label) -> FoundFilesystem:
        """What is on the data area.  Raises DeviceError."""
        ...


@dataclass(frozen=True, slots=True)
class FoundFilesystem:
    """What is on the data area of a disk."""

    uuid: bytes = b""  # empty: none
    name: str = ""
    problem: MatrixError | None = None  # why that, which is there, can't be used


@dataclass(slots=True, eq=False)
class OpenDisk:
    """One disk that this node has found."""

    label: Label
    device: SectorDevice
    path: str
    filesystem: FoundFilesystem
    state: DiskState = DiskState.PRESENT
    failure: str = ""  # what is wrong with it
    is_looked_at: bool = False  # D2

    def row(self) -> Disk:
        """As the naming describes it."""
        label = self.label
        traits = (label.pr_kind, label.pr_flags, label.pr_leaks)
        found = self.filesystem
        return Disk(label.disk_uuid, label.name, self.path, self.device.size_bytes, found.uuid, found.name, traits)


@dataclass(slots=True)
class ClusterDisks:
    """All of them.

    Args:
        cluster: uuid of the cluster.
        opener: seam to the host.
        clock: for the intervals.
        log: (kind, text) for people.
    """

    cluster: bytes
    opener: Opener
    clock: Clock
    log: Callable[[str, str], None]
    opened: dict[bytes, OpenDisk] = field(default_factory=dict)
    register: Callable[[OpenDisk], Awaitable[None]] | None = None  # before a disk is used for anything (storage.py)
    changed: Callable[[], None] = lambda: None  # the set of usable devices is another now
    _naming: Naming = field(default_factory=Naming)
    _absent: set[bytes] = field(default_factory=set)  # told to people once

    async def add(self, path: str) -> OpenDisk:
        """Open the store at ``path``, which must be a disk of this cluster; keep it.

        Raises:
            OperatorError: no such store, no cluster disk, or one of another cluster.
            MatrixError: I/O failed, or the label is damaged.
        """
        device = await self.opener.open(path)
        try:
            label = await read_label(device)
            if label.owner != self.cluster:
                raise OperatorError(f"{path}: is a disk of another cluster ({label.cluster_name!r})")
            known = self.opened.get(label.disk_uuid)
            if known is not None and known.state is DiskState.PRESENT:
                await device.aclose()
                return known
            found = OpenDisk(label, device, path, await self.opener.filesystem_of(device, label))
            if self.register is not None:
                await self.register(found)
        except BaseException:
            with trio.CancelScope(shield=True):
                await device.aclose()
            raise
        if known is not None:
            await known.device.aclose()
        self.opened[label.disk_uuid] = found
        return found

    async def find(self, disk: bytes, hint: str) -> OpenDisk | None:
        """The disk of this uuid, wherever it is on this node; None when it is nowhere."""
        for path in dict.fromkeys([hint, *self.opener.candidates()]):
            if not path:
                continue
            try:
                found = await self.add(path)
            except MatrixError:
                continue  # another disk, or none: people hear of those that are missing
            if found.label.disk_uuid == disk:
                return found
        return None

    def device(self, disk: bytes) -> SectorDevice | None:
        """What to use for a disk, None when this node does not have it (D1)."""
        found = self.opened.get(disk)
        return found.device if found is not None and is_usable(found.state) else None

    def known(self) -> Naming:
        """The naming without the database: what we hold, else the disks that we have open (K3)."""
        if self._naming.version:
            return self._naming
        return Naming(1, tuple(disk.row() for disk in self.opened.values()), ())

    # -- following the naming ----------------------------------------------------------------------------------

    async def take_over(self, naming: Naming) -> None:
        """Open what the cluster has, let go of what it has not."""
        self._naming = naming
        wanted = {disk.uuid: disk for disk in naming.disks}
        for uuid in [uuid for uuid in self.opened if uuid not in wanted]:
            gone = self.opened.pop(uuid)
            self.log("disk", f"{gone.label.name} ({gone.path}) is no disk of the cluster any more")
            await gone.device.aclose()
        for uuid, disk in wanted.items():
            if uuid not in self.opened:
                await self._look_for(disk)
        self._tell()

    async def _look_for(self, disk: Disk) -> None:
        found = await self.find(disk.uuid, disk.path)
        if found is not None:
            self._absent.discard(disk.uuid)
            self.log("disk", f"{disk.name} is {found.path} here")
        elif disk.uuid not in self._absent:
            self._absent.add(disk.uuid)
            self.log("alert", f"disk {disk.name} is not found on this node (not at {disk.path}, nor anywhere we look)")

    def _tell(self) -> None:
        """The set of usable devices is another now."""
        self.changed()
        usable = [disk for disk in self.opened.values() if is_usable(disk.state)]
        areas = {*self._naming.areas, *self._naming.areas_before}
        with_area = [disk.label.name for disk in usable if disk.label.disk_uuid in areas]
        self.opener.show({disk.label.name: disk.path for disk in usable}, with_area)

    async def watch(self) -> None:
        """Look at every disk, for ever."""
        async with trio.open_nursery() as nursery:
            while True:
                await self.clock.sleep(WATCH_SECONDS)
                for disk in list(self.opened.values()):
                    if not disk.is_looked_at:
                        nursery.start_soon(self._look_at, disk)
                for row in self._naming.disks:
                    if self.device(row.uuid) is None or self.opened[row.uuid].state is DiskState.LOST:
                        await self._look_for(row)
                        self._tell()

    async def _look_at(self, disk: OpenDisk) -> None:
        disk.is_looked_at = True
        event = DiskEvent.GOOD
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._tell_late, disk)
                await self.opener.measure(disk.device)
                label = await read_label(disk.device)
                nursery.cancel_scope.cancel()
            if label.disk_uuid != disk.label.disk_uuid:
                event, disk.failure = DiskEvent.OTHER, f"{disk.path} is the disk {label.name} now"
            else:
                disk.label = label  # its data area may have grown
        except* MatrixError as group:
            error = _first(group)
            other = isinstance(error, OperatorError)  # another size, no label any more
            event, disk.failure = DiskEvent.OTHER if other else DiskEvent.FAILED, str(error)
        finally:
            disk.is_looked_at = False
        self._step(disk, event)

    async def _tell_late(self, disk: OpenDisk) -> None:
        await self.clock.sleep(SLOW_SECONDS)
        disk.failure = f"no answer within {SLOW_SECONDS:g} s"
        self._step(disk, DiskEvent.LATE)

    def _step(self, disk: OpenDisk, event: DiskEvent) -> None:
        before, disk.state = disk.state, TRANSITIONS[disk.state, event]
        if disk.state is before:
            return
        if disk.state is DiskState.PRESENT:
            disk.failure = ""
        kind = "disk" if disk.state is DiskState.PRESENT else "alert"
        reason = f": {disk.failure}" if disk.failure else ""
        self.log(kind, f"disk {disk.label.name} was {before.value}, is {disk.state.value}{reason}")
        if is_usable(before) != is_usable(disk.state):
            self._tell()

    async def aclose(self) -> None:
        """Close all."""
        for disk in self.opened.values():
            await disk.device.aclose()
        self.opened.clear()


def _first(group: BaseExceptionGroup[MatrixError]) -> MatrixError:
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    assert isinstance(found, MatrixError)
    return found
