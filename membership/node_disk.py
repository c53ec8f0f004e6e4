"""A node's work on the shared disk: renewals, scans, ballots, headers and fences (002-12, 002-32, 002-38; R3, R4).

Each method does its I/O, then gives the outcome to the core through ``Shell.apply``; it decides nothing itself.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Protocol

import trio

from membership.administration import BARRED
from membership.areas.bootstrap import STEPS_MAX
from membership.errors import CorruptRecord, DeviceError, Fenced
from membership.label import NODE_SLOTS
from membership.lease.core import LeaseState
from membership.lease.records import FLAG_LEFT
from membership.pauses import never
from membership.san.ballot import Passed
from membership.san.fence import FenceResult, fence_target, is_gone
from membership.san.roles import Role
from membership.san.store import take_generation

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from membership.areas.quorum import Areas, HeaderReading
    from membership.database.keeper import DatabaseKeeper
    from membership.lease.records import HeartbeatSlot, MountProcess
    from membership.node_core import NodeCore
    from membership.node_events import EventBook
    from membership.node_naming import NodeNaming
    from membership.pauses import Pause
    from membership.san.ballot import Decided
    from membership.san.events import FenceOrder
    from membership.san.fence import FenceDriver
    from membership.san.header import SanHeader
    from membership.seams import Clock, Rng


REPAIR_SECONDS = 2.0  # between two attempts to repair areas


class Shell(Protocol):
    """What the disk work needs of the node."""

    def apply(self, step: Callable[[float], None]) -> None:
        """Run a core step and carry out its effects, with no checkpoint."""
        ...

    def lose(self, reason: str) -> None:
        """The right to the store is lost."""
        ...

    def mount_processes(self) -> tuple[MountProcess, ...]:
        """What our slot must show (H2)."""
        ...

    def renewed(self) -> None:
        """The lease moved: mounts want to know."""
        ...


class NodeDisk:
    """One node's tasks on the cluster disk."""

    def __init__(
        self,
        areas: Areas,
        slot: HeartbeatSlot,
        core: NodeCore,
        *,
        clock: Clock,
        rng: Rng,
        fences: Sequence[FenceDriver],
        book: EventBook,
        keeper: DatabaseKeeper,
        naming: NodeNaming,
        shell: Shell,
        pause: Pause = never,
    ) -> None:
        self.slot = slot
        self._areas = areas
        self._core = core
        self._clock = clock
        self._rng = rng
        self._fences = fences
        self._book = book
        self._keeper = keeper
        self._naming = naming
        self._shell = shell
        self._pause = pause
        self._renewing = trio.Lock()
        self._wanted = trio.Event()  # a renewal before its time
        self._reading_header = False
        self._repair_at = float("-inf")
        self.is_pardoned = False  # the operator lets this node be administrator though the database bars it

    # -- heartbeat and lease -----------------------------------------------------------------------------------

    async def renew_always(self) -> None:
        """Renewals, each due ``renew`` after the start of the one before, or when asked for."""
        while True:
            start = self._clock.monotonic()
            self._wanted = trio.Event()
            await self.renew()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._wake_at, self._core.lease.next_renewal(start), nursery.cancel_scope)
                await self._wanted.wait()
                nursery.cancel_scope.cancel()

    def renew_soon(self) -> None:
        """Renew before the time: a new header or another set of mounts."""
        self._wanted.set()

    async def _wake_at(self, time: float, scope: trio.CancelScope) -> None:
        await self._clock.sleep(max(0.0, time - self._clock.monotonic()))
        scope.cancel()

    async def renew(self) -> None:
        """One renewal: slot durable, then header, then everybody's slots.  A failure is logged, the deadline stands."""
        async with self._renewing:
            start = self._clock.monotonic()
            try:
                if not await self._write_own():
                    self._shell.lose("another process claimed its slot")
                    return
                reading = await self._read_header()
            except Fenced as error:
                self._shell.lose(str(error))
                return
            except (DeviceError, CorruptRecord) as error:
                self._book.log("alert", f"lease not renewed: {error}")
                self._shell.apply(self._core.lease.failed)
                if isinstance(error, CorruptRecord):
                    await self._repair(tuple(area.disk for area in self._areas.disks))
                return
            finally:
                self._naming.tell_failures()
            self._shell.apply(
                lambda now: self._core.header_read(reading.header, now, renewal=start, settled=reading.settled)
            )
            self._shell.renewed()
            await self._scan()
            await self._repair(reading.stale)

    async def _read_header(self) -> HeaderReading:
        """The header, read on the areas that it names itself (N1 of node_naming.py)."""
        for _ in range(STEPS_MAX):
            reading = await self._areas.read_header()
            if not self._naming.follow(reading):
                return reading
        raise DeviceError("the membership areas change faster than they can be followed")

    async def _repair(self, stale: tuple[bytes, ...]) -> None:
        """As administrator: bring areas up to date that missed something, or were damaged or replaced."""
        now, core = self._clock.monotonic(), self._core
        rightful = core.admin.role is Role.ADMIN and core.lease.state is LeaseState.MEMBER and now < core.lease.deadline
        if not stale or not rightful or now < self._repair_at:
            return
        self._repair_at = now + REPAIR_SECONDS
        failed = {area.disk for area in self._areas.disks if area.failure}
        for disk in await self._areas.repair(core.admin.header, self._keeper.newest, stale):
            if disk in failed:
                self._book.log("disk", f"the membership area on disk {disk.hex()} was brought up to date")

    async def _write_own(self) -> bool:
        """False when the slot has another owner.  A damaged one is ours: nobody claims it while we live (H1)."""
        slot = self.slot
        try:
            found = await self._areas.read_slot(self._core.me.node)
            if found is None or found.incarnation != slot.incarnation:
                return False
        except CorruptRecord as error:
            self._book.log("alert", f"{error}: written again")
        slot.counter = (slot.counter + 1) % 2**64
        slot.generation = self._core.admin.header.generation
        slot.hears = sum(1 << node for node in self._core.group.hears())
        slot.set_mounts(self._shell.mount_processes())
        await self._areas.write_slot(slot)
        return True

    async def mark_left(self) -> None:
        """The last write of a clean leave: nothing to fence."""
        self.slot.flags |= FLAG_LEFT
        self.slot.counter = (self.slot.counter + 1) % 2**64
        await self._areas.write_slot(self.slot)

    async def _scan(self) -> None:
        try:
            slots, _ = await self._areas.read_slots()
        except DeviceError as error:
            self._book.log("alert", f"slots not read: {error}")
            return
        self._shell.apply(lambda now: self._core.scanned(slots, now))
        gone = [
            (node, slot.incarnation)
            for node, slot in slots.items()
            if self._may_be_gone(node, slot) and is_gone(self._fences, slot)
        ]
        if gone:
            self._shell.apply(lambda now: self._core.processes_gone(gone, now))

    def _may_be_gone(self, node: int, slot: HeartbeatSlot) -> bool:
        """A node nobody hears may be looked up on this host: quicker than waiting for its silence."""
        sight = self._core.watch.sights.get(node)
        return sight is not None and not sight.is_gone and not slot.is_left and node not in self._core.group.hears()

    # -- administration ----------------------------------------------------------------------------------------

    async def take(self, generation: int) -> None:
        """TakeGeneration."""
        why = ""
        outcome: Decided | Passed | None = None
        await self._pause("Ballot")
        try:
            outcome = await self._ballot(generation)
            if outcome is not None and self._core.admin.role is not Role.ADMIN:
                why = await self._read_database()
        except (DeviceError, CorruptRecord) as error:
            why = str(error)
        taken = outcome if not why else None
        await self._pause("Decided")
        self._shell.apply(lambda now: self._core.generation_taken(taken, now, why))

    async def _ballot(self, generation: int) -> Decided | Passed | None:
        """The disk ballot, unless a header of this generation, or a later one, stands there already."""
        newest = (await self._areas.read_header()).header
        if newest.generation >= generation:
            return Passed(newest.generation + 1)
        me = (self._core.me.node, self._core.me.incarnation)
        unused = self._unused()
        return await take_generation(self._areas, me, generation, clock=self._clock, rng=self._rng, unused=unused)

    async def _read_database(self) -> str:
        """1722: a candidate reads the database; why it can't be administrator, "" when it can."""
        database = await self._keeper.open()
        word = database.roster().get(self.slot.name, "")
        return "" if self.is_pardoned else BARRED.get(word, "")

    def _unused(self) -> set[int]:
        """Slots of nobody, or of who left: no header is ever written by a vote in their ballot blocks."""
        header, sights = self._core.admin.header, self._core.watch.sights
        used = {node for node, sight in sights.items() if not sight.slot.is_left}
        return set(range(NODE_SLOTS)) - used - header.members.keys() - header.fencing.keys() - {self._core.me.node}

    async def put(self, header: SanHeader, base: int) -> None:
        """WriteHeader."""
        await self._pause("Header")
        good = await self._areas.put_header(header, base, self._core.timing.lease, self._pause)
        await self._pause("HeaderDone")
        self._shell.apply(lambda now: self._core.header_put(header, now, good=good))

    async def read_header(self) -> None:
        """ReadHeader: no renewal, but the quickest way to learn of a change."""
        if self._reading_header:
            return
        self._reading_header = True
        try:
            reading = await self._read_header()
        except (DeviceError, CorruptRecord) as error:
            self._book.log("alert", f"SAN header not read: {error}")
            return
        finally:
            self._reading_header = False
        self._shell.apply(lambda now: self._core.header_read(reading.header, now, settled=reading.settled))

    async def fence(self, order: FenceOrder) -> None:
        """FenceOrder: fence, and say what came of it; a pause after a refusal, for we shall be asked again."""
        await self._pause("Fence")
        target = await self._target(order)
        result = await self._fence(order, target)
        await self._pause("Fenced")
        self._book.fenced(order, target.name if target is not None else "", result)
        if not result.confirmed:
            await self._clock.sleep(self._core.timing.renew)
        self._shell.apply(lambda now: self._core.fence_done(order, result, now))

    async def _target(self, order: FenceOrder) -> HeartbeatSlot | None:
        """The slot as it is now; else as we saw it last, which names its processes, too."""
        sight = self._core.watch.sights.get(order.node)
        found: HeartbeatSlot | None = None
        with contextlib.suppress(DeviceError, CorruptRecord):
            found = await self._areas.read_slot(order.node)
        return found or (sight.slot if sight is not None else None)

    async def _fence(self, order: FenceOrder, target: HeartbeatSlot | None) -> FenceResult:
        if target is None:
            return FenceResult(confirmed=False, driver="none", detail="its slot can't be read")
        if target.incarnation != order.incarnation:
            detail = "its slot was claimed anew, which is only done after a fence"
            return FenceResult(confirmed=True, driver="claim", detail=detail)
        if target.is_left:
            return FenceResult(confirmed=True, driver="left", detail="it had left cleanly")
        return await fence_target(self._fences, target, order.evicted_at)
