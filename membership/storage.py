"""matrixd's part in the fence by reservations: registered on every cluster disk that has them (trio; 002-31, 002-38).

Invariants (beside those of ``fence/storage_access.py``):

R1. Nothing is written to a disk before this process is registered there: ``claim`` comes before the slot claim,
    ``register`` before a disk that is opened later is used for anything.
R2. ``is_listed`` reads header and slot from the disks when it is asked, over sessions that are coming back, too: areas
    of its own, never what the core knows.
R3. Before its slot claim was admitted, a process whose session was lost does not register again: it ends, and another
    start makes a new one.  Nothing would tell it whether its successor has fenced it.
R4. Fencing asks every disk of the naming: one that this node does not reach can't be said to refuse anybody.

Source: decision 0016; R3, R4.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

import trio

from membership.areas.quorum import Area, Areas
from membership.errors import CorruptRecord, DeviceError, Fenced, MatrixError
from membership.fence.keys import key_of
from membership.fence.reservations import Lun, LunTraits
from membership.fence.scsi_pr import ScsiPrFence
from membership.fence.storage_access import StorageAccess
from membership.lease.core import LeaseState
from membership.presence import Landing
from membership.san.roles import Role

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from membership.disks import ClusterDisks, OpenDisk
    from membership.label import Timing
    from membership.lease.records import HeartbeatSlot
    from membership.node_core import NodeCore
    from membership.node_events import EventBook
    from membership.presence import Lands
    from membership.san.fence import FenceResult
    from membership.seams import Clock, SectorDevice

KEEP_SECONDS = 3.0  # between two rounds of the administrator


@dataclass(frozen=True, slots=True)
class Reach:
    """How this process reaches a cluster disk.

    Args:
        lun: its reservations.
        reader: reads it also while its session is coming back.
        is_local: what a dead process of this host has in flight there can be seen (``presence.py``).
    """

    lun: Lun
    reader: SectorDevice
    is_local: bool


class Returning(Protocol):
    """Who decides whether a session may be used."""

    async def reconnected(self, name: str) -> None:
        """See ``StorageAccess.reconnected``."""
        ...


# Seam to the host: how a disk is reached.  The third argument is asked before a new session carries a write.
Reaches: TypeAlias = "Callable[[SectorDevice, LunTraits, Returning], Reach]"


def without_reservations(device: SectorDevice, _traits: LunTraits, _returning: Returning) -> Reach:
    """The reach of a disk that has none."""
    return Reach(Lun(device.name, None, LunTraits()), device, is_local=True)


class Stored(Protocol):
    """What this needs of the node."""

    disks: ClusterDisks
    areas: Areas
    book: EventBook
    core: NodeCore | None
    timing: Timing
    incarnation: int
    clock: Clock

    def lose(self, reason: str) -> None:
        """The right to the store is lost."""
        ...

    def may_write(self) -> bool:
        """Whether this node is administrator and its lease holds."""
        ...


class NodeStorage:
    """Of one node.

    Args:
        node: the node.
        reaches: seam to the host.
    """

    def __init__(self, node: Stored, reaches: Reaches) -> None:
        self._node = node
        self._reaches = reaches
        self._reached: list[tuple[SectorDevice, Reach]] = []
        self._coming: list[OpenDisk] = []  # opened, and not of use yet (R1)
        self._number: int | None = None  # our node id, once our slot claim is durable
        self._alerts: list[str] = []
        self.access = StorageAccess(self._luns, node.clock, allowed=self.is_listed, lost=node.lose)
        self.fence = _ToldFence(node.book, self._all_luns, lambda: self.access.key, self._read_slot, node.clock)
        node.disks.register = self.register

    # -- the right of this process -----------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def claiming(self) -> AsyncIterator[None]:
        """Within, this process is registered as claimant of a slot.

        Raises:
            Fenced: somebody took the registration away.
            DeviceError: a LUN failed.
            CorruptRecord: a label tells of its reservations what this version does not know.
        """
        if self.access.is_needed:
            await self.access.claim(self._node.incarnation)
        try:
            yield
        except BaseException:
            with trio.CancelScope(shield=True):
                await self.withdraw()
            raise

    async def admit(self, node: int) -> None:
        """Register as this node: its slot claim is durable.  Raises Fenced, DeviceError."""
        self._number = node
        if not self.access.is_needed:
            return
        await self.access.admit(node, self._node.incarnation, heir=True)
        names = ", ".join(lun.name for lun in self._luns() if lun.usable is not None)
        self._node.book.log("storage", f"registered as node {node} with {names}")

    async def register(self, disk: OpenDisk) -> None:
        """A disk was opened: see R1.  Raises Fenced, DeviceError, CorruptRecord."""
        self._coming.append(disk)
        try:
            lun = self._reach(disk).lun
            if lun.usable is not None and self._number is not None:
                if self.access.key:
                    await self.access.extend(lun)
                else:  # the first that has any
                    await self.access.admit(self._number, self._node.incarnation, heir=False)
        finally:
            self._coming.remove(disk)

    async def reconnected(self, name: str) -> None:
        """A session to that disk was lost and is back (A3 of storage_access.py, R3).  Raises Fenced, DeviceError."""
        core = self._node.core
        is_out = core is None or core.lease.state is LeaseState.OUT
        if self.access.key and is_out:
            self.access.conflict(f"{name} was gone before this node was a member: start it again")
        await self.access.reconnected(name)

    async def withdraw(self) -> None:
        """Leave all disks, with nothing in flight any more."""
        for line in await self.access.withdraw():
            self._node.book.log("storage", line)

    async def is_listed(self, mount: int = 0) -> bool:
        """Whether header and slot, read now, list this process, and its mount of that incarnation (R2).

        Raises:
            DeviceError, CorruptRecord: they can't be read.
        """
        number = self._number
        if number is None:
            return False
        failure: MatrixError
        async with self._fresh_areas() as areas:
            try:
                slot, header = await areas.read_slot(number), (await areas.read_header()).header
            except (DeviceError, CorruptRecord) as error:
                failure = error  # not from within the nursery, which would wrap it
            else:
                return self._lists(slot, header.members.get(number), header.fencing.get(number), mount)
        raise failure

    def _lists(self, slot: HeartbeatSlot | None, member: int | None, fencing: int | None, mount: int) -> bool:
        ours = self._node.incarnation
        if slot is None or slot.incarnation != ours or (mount and mount not in slot.mount_incarnations):
            return False
        core = self._node.core
        if core is None or core.lease.state is LeaseState.OUT:
            return not mount and fencing != ours  # to be let in yet: it may write its slot
        return member == ours

    # -- as administrator --------------------------------------------------------------------------------------------

    async def keep_always(self) -> None:
        """As administrator: keep reservations in place and strangers out."""
        while True:
            await self._node.clock.sleep(KEEP_SECONDS)
            core = self._node.core
            if core is None or core.admin.role is not Role.ADMIN or not self._node.may_write() or not self.access.key:
                continue
            claiming = core.watch.alive(self._node.clock.monotonic())
            try:
                alerts = await self.access.keep(core.admin.header.members, claiming)
            except Fenced:
                return  # ``lost`` was told
            for alert in alerts:
                if alert not in self._alerts:
                    self._node.book.log("alert", alert)
            self._alerts = alerts

    # -- mounts of this node -----------------------------------------------------------------------------------------

    def landing(self, disk: OpenDisk, mount: int) -> Lands:
        """Knows when what a dead mount process of this node has in flight on its disk has landed.

        Args:
            disk: its disk.
            mount: its incarnation.
        """
        reach = self._reach(disk)
        if reach.is_local:
            return Landing(disk.path, self._node.clock)
        return _FarLanding(self, reach.lun, mount)

    async def disown(self, lun: Lun, mount: int) -> None:
        """Return when nothing of a dead mount process of this node can land on its disk.  Raises DeviceError."""
        node, told = self._node, ""
        if self._number is not None:
            while True:
                try:
                    if await self.access.disown(key_of(self._number, mount), [lun]):
                        node.book.log("mount", f"the key of mount {mount:016x} was taken away on {lun.name}")
                        return
                    break
                except Fenced as error:
                    raise DeviceError(str(error)) from None
                except DeviceError as error:
                    if str(error) != told:
                        told = str(error)
                        node.book.log("alert", f"a dead mount is not recovered yet: {told}")
                    await node.clock.sleep(node.timing.renew)
        await node.clock.sleep(node.timing.io_bound + node.timing.margin)

    # -- pieces ------------------------------------------------------------------------------------------------------

    def _reach(self, disk: OpenDisk) -> Reach:
        """Raises CorruptRecord the first time."""
        for device, reach in self._reached:
            if device is disk.device:
                return reach
        label = disk.label
        traits = LunTraits.from_words_untrusted(label.pr_kind, label.pr_flags, label.pr_leaks)
        reach = self._reaches(disk.device, traits, self)
        used = [disk.device, *(each.device for each in (*self._node.disks.opened.values(), *self._coming))]
        self._reached = [known for known in self._reached if any(known[0] is device for device in used)]
        self._reached.append((disk.device, reach))
        return reach

    def _luns(self) -> list[Lun]:
        """What this process has open; of a disk that comes anew only the new way to it."""
        disks = self._node.disks.opened | {disk.label.disk_uuid: disk for disk in self._coming}
        return [self._reach(disk).lun for disk in disks.values()]

    def _all_luns(self) -> list[Lun]:
        """R4."""
        opened = self._node.disks.opened
        rows = self._node.disks.known().disks
        return [
            self._reach(opened[row.uuid]).lun if row.uuid in opened else Lun(row.name, None, LunTraits())
            for row in rows
        ]

    async def _read_slot(self, node: int) -> HeartbeatSlot | None:
        return await self._node.areas.read_slot(node)

    @contextlib.asynccontextmanager
    async def _fresh_areas(self) -> AsyncIterator[Areas]:
        present, opened = self._node.areas, self._node.disks.opened
        readers: dict[bytes, SectorDevice | None] = {
            area.disk: self._reach(opened[area.disk]).reader if area.disk in opened else None for area in present.disks
        }
        areas = Areas(present.cluster, [Area(disk, reader) for disk, reader in readers.items()], self._node.clock)
        areas.regroup(present.groups, readers)
        async with areas:
            yield areas


class _ToldFence(ScsiPrFence):
    """People hear when reservations are there and did not fence: the next driver may hide it by taking longer."""

    def __init__(
        self,
        book: EventBook,
        luns: Callable[[], Sequence[Lun]],
        own_key: Callable[[], int],
        read_slot: Callable[[int], Awaitable[HeartbeatSlot | None]],
        clock: Clock,
    ) -> None:
        super().__init__(luns, own_key, read_slot, clock)
        self._book = book
        self._is_registered = own_key

    async def fence(self, target: HeartbeatSlot, evicted_at: float) -> FenceResult:
        """See ``ScsiPrFence.fence``."""
        result = await super().fence(target, evicted_at)
        if not result.confirmed and self._is_registered():
            self._book.log("alert", f"the reservations did not fence {target.name}: {result.detail}")
        return result


class _FarLanding:
    """Of a mount process on a LUN: taking its key away, or time."""

    def __init__(self, storage: NodeStorage, lun: Lun, mount: int) -> None:
        self._storage = storage
        self._lun = lun
        self._mount = mount

    async def wait(self, _pid: int) -> None:
        """See ``presence.Lands``."""
        await self._storage.disown(self._lun, self._mount)
