"""Membership areas: every operation on all of them, done when a majority has done it (trio; 002-12, 002-42; R3, R4).

With one area this is that area, no more.  With three, one may be lost, hang, or come back with what it had: nothing
waits for it, and the administrator brings it up to date (``repair``).

Invariants:

M1. An operation has ended when a majority of each group of areas has ended it (``poll.py``).  What the others still do
    goes on beside; what waits for an earlier one of its kind on a slow area is dropped when nobody needs it any more.
M2. On one area, operations of one kind (slot, ballot, header, image) never overtake each other.
M3. A header that is newest but not on a majority is *unsettled*: it may be what is left of a write that never came to
    its end, or the trace of one that did.  Nobody's lease is extended on it, nor on the one before it.
M4. Who is refused by a reservation on any area has lost its right: the whole operation raises Fenced.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, Self, TypeVar

import trio

from membership.areas.poll import Group, Poll, is_enough
from membership.database.image import DatabaseImage, read_image, write_image
from membership.errors import CorruptRecord, DeviceError, Fenced
from membership.label import BALLOT_BLOCK, BLOCK_BYTES, NODE_SLOTS
from membership.lease.area import read_slot, read_slots, write_slot
from membership.pauses import never
from membership.san.header import read_header, write_header
from membership.san.records import Ballot, ballot_block, ballot_image, ballot_untrusted

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

    from membership.label import Label
    from membership.lease.records import HeartbeatSlot
    from membership.pauses import Pause
    from membership.san.header import SanHeader
    from membership.seams import Clock, SectorDevice

T = TypeVar("T")
Work = Callable[["Area"], Awaitable[T]]

GRACE_SECONDS = 0.25  # for areas beyond the majority, where what the majority says is not clear


@dataclass(slots=True, eq=False)
class Area:
    """One disk's membership area."""

    disk: bytes  # uuid
    device: SectorDevice | None  # None: not found on this node
    failure: str = "not tried yet"  # of the last operation; empty: it went well
    locks: dict[str, trio.Lock] = field(default_factory=dict)

    def lock(self, kind: str) -> trio.Lock:
        """M2."""
        return self.locks.setdefault(kind, trio.Lock())

    def opened(self) -> SectorDevice:
        """Raises DeviceError when this node does not have it."""
        if self.device is None:
            raise DeviceError(f"the disk {self.disk.hex()} is not found on this node")
        return self.device


@dataclass(frozen=True, slots=True)
class HeaderReading:
    """The newest header that was found, and whether it is on a majority (M3)."""

    header: SanHeader
    settled: bool
    stale: tuple[bytes, ...]  # disks whose header is older or damaged: to be repaired


def one_area(label: Label, device: SectorDevice, clock: Clock) -> Areas:
    """A cluster whose only membership area is on this disk, as far as its label tells."""
    return Areas(label.owner, [Area(label.disk_uuid, device)], clock)


class Areas:
    """All membership areas of a cluster, as one node reaches them.  ``async with`` it while it is used.

    Args:
        cluster: uuid of the cluster.
        areas: the areas that count.
        clock: for GRACE_SECONDS.
    """

    def __init__(self, cluster: bytes, areas: Collection[Area], clock: Clock) -> None:
        self.cluster = cluster
        self._areas = {area.disk: area for area in areas}
        self._groups: tuple[Group, ...] = (frozenset(self._areas),)
        self._clock = clock
        self._nursery: trio.Nursery | None = None
        self._manager: AbstractAsyncContextManager[trio.Nursery] | None = None

    async def __aenter__(self) -> Self:
        self._manager = trio.open_nursery()
        self._nursery = await self._manager.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        assert self._manager is not None
        assert self._nursery is not None
        self._nursery.cancel_scope.cancel()
        return await self._manager.__aexit__(kind, error, trace)

    # -- which areas count -------------------------------------------------------------------------------------

    @property
    def disks(self) -> tuple[Area, ...]:
        """All areas of the present groups."""
        return tuple(self._areas.values())

    @property
    def name(self) -> str:
        """The first of the stores that this node has: how messages and status name the store."""
        return next((area.device.name for area in self._areas.values() if area.device is not None), "no store")

    @property
    def groups(self) -> tuple[Group, ...]:
        """Q1 of poll.py: the areas that count, and while they are being changed, those before."""
        return self._groups

    def regroup(self, groups: tuple[Group, ...], devices: Mapping[bytes, SectorDevice | None]) -> None:
        """Other areas count from now on; operations under way end by the old groups.

        Args:
            groups: uuids of disks, the new set first.
            devices: of every disk in them; None where this node does not have it.
        """
        known = self._areas
        wanted: Group = frozenset().union(*groups)
        self._areas = {}
        for disk in sorted(wanted):
            area = known.get(disk) or Area(disk, devices.get(disk))
            area.device = devices.get(disk) or area.device
            self._areas[disk] = area
        self._groups = groups

    # -- operations --------------------------------------------------------------------------------------------

    async def read_slots(self) -> tuple[dict[int, HeartbeatSlot], set[int]]:
        """All claimed slots, and the numbers of those that decode nowhere.

        Counters only grow, also when a slot is claimed anew, so of two copies the greater counter is the later one.

        Raises:
            DeviceError: no majority answered.
        """
        found = await self._ask("slots", lambda area: read_slots(area.opened(), self.cluster))
        slots: dict[int, HeartbeatSlot] = {}
        for copy, _ in found:
            for node, slot in copy.items():
                if node not in slots or slot.counter > slots[node].counter:
                    slots[node] = slot
        damaged = set.intersection(*(bad for _, bad in found)) if found else set()
        return slots, damaged - slots.keys()

    async def read_slot(self, node: int) -> HeartbeatSlot | None:
        """One slot, the latest copy.  Raises DeviceError; CorruptRecord when it decodes nowhere."""

        async def one(area: Area) -> HeartbeatSlot | CorruptRecord | None:
            try:
                return await read_slot(area.opened(), node, self.cluster)
            except CorruptRecord as error:
                return error

        found = await self._ask("slot read", one)
        good = [slot for slot in found if not isinstance(slot, CorruptRecord)]
        if not good:
            bad = found[0]
            assert isinstance(bad, CorruptRecord)
            raise bad
        return max((slot for slot in good if slot is not None), key=lambda slot: slot.counter, default=None)

    async def write_slot(self, slot: HeartbeatSlot) -> None:
        """Our own slot, durably on a majority.  Raises DeviceError, Fenced."""
        await self._ask("slot", lambda area: write_slot(area.opened(), slot))

    async def read_header(self) -> HeaderReading:
        """The SAN header (M3).  Raises DeviceError: no majority answers with a good one."""

        def clear(answers: Mapping[bytes, SanHeader]) -> bool:
            return self._is_settled(answers)

        answers = await self._ask_all("header read", lambda area: read_header(area.opened(), self.cluster), clear)
        newest = max(answers.values(), key=lambda header: header.generation)
        stale = tuple(disk for disk in self._areas if disk not in answers or answers[disk] != newest)
        return HeaderReading(newest, self._is_settled(answers), stale)

    def _is_settled(self, answers: Mapping[bytes, SanHeader]) -> bool:
        newest = max(header.generation for header in answers.values())
        return is_enough([disk for disk, header in answers.items() if header.generation == newest], self._groups)

    async def put_header(
        self, header: SanHeader, base: int | None = None, within: float = math.inf, pause: Pause = never
    ) -> bool:
        """Write the header and read it back; False when that failed on a majority, or a newer one stands there.

        A header older than ours that appears later was on its way when we won: AdminCore.header_in_doubt.

        Args:
            header: it.
            base: the generation that it was made from, if it is a new one; over a newer one it is not written.
            within: seconds from now; no area is written later (S5 of san/header.py).
            pause: where a test holds it between its two writes.
        """
        is_timely, newest = self._until(within), header.generation if base is None else base
        try:
            await self._ask("header", lambda area: _put_header(area.opened(), header, newest, is_timely, pause))
        except DeviceError:
            return False
        return True

    async def read_ballots(self, unused: Collection[int] = ()) -> list[dict[int, Ballot]]:
        """All ballot blocks, of each area that answered.

        Args:
            unused: slots of nobody: their blocks may be damaged.

        Raises:
            DeviceError: no majority answered with good ones.
        """
        return await self._ask("ballots", lambda area: _read_ballots(area.opened(), self.cluster, unused))

    async def write_ballot(self, node: int, ballot: Ballot) -> None:
        """Our own ballot, durably on a majority.  Raises DeviceError, Fenced."""
        at, image = ballot_block(node) * BLOCK_BYTES, ballot_image(ballot)
        await self._ask("ballot", lambda area: area.opened().write(at, image, durable=True))

    async def read_image(self) -> DatabaseImage | None:
        """The newest good image of the database on a majority; None when there is none.  Raises DeviceError."""
        found = await self._ask("image read", lambda area: read_image(area.opened(), self.cluster))
        return max((image for image in found if image is not None), key=lambda image: image.sequence, default=None)

    async def write_image(self, image: DatabaseImage) -> None:
        """The database, durably on a majority.  Raises OperatorError (too large), DeviceError, Fenced."""
        await self._ask("image", lambda area: write_image(area.opened(), self.cluster, image))

    def _until(self, within: float) -> Callable[[], bool]:
        end = self._clock.monotonic() + within
        return lambda: self._clock.monotonic() < end

    async def repair(
        self, header: SanHeader, image: DatabaseImage | None, disks: Collection[bytes], within: float = math.inf
    ) -> list[bytes]:
        """Bring areas up to date, one after the other; by the administrator, with what is in force.

        Args:
            header: in force.
            image: in force, if there is one.
            disks: whose areas.
            within: as for ``put_header``.

        Returns:
            The disks that are now.
        """
        done: list[bytes] = []
        for disk in disks:
            area = self._areas.get(disk)
            if area is None or area.device is None or area.lock("header").locked() or area.lock("image").locked():
                continue
            try:
                async with area.lock("image"):
                    if image is not None:
                        await _refresh_image(area.device, self.cluster, image)
                async with area.lock("header"):
                    await _put_header(area.device, header, header.generation, self._until(within))
            except (DeviceError, CorruptRecord) as error:
                area.failure = str(error)
                continue
            done.append(disk)
        return done

    # -- majorities --------------------------------------------------------------------------------------------

    async def _ask(self, kind: str, work: Work[T]) -> list[T]:
        return list((await self._ask_all(kind, work)).values())

    async def _ask_all(
        self, kind: str, work: Work[T], clear: Callable[[Mapping[bytes, T]], bool] | None = None
    ) -> dict[bytes, T]:
        """Answers by disk, at least a majority.  ``clear``: they are, so it is not worth waiting for the others."""
        poll: Poll[T] = Poll(self._groups)
        if len(self._areas) == 1:
            (area,) = self._areas.values()
            async with area.lock(kind):
                poll.answered(area.disk, await self._tried(area, work))
            return poll.answers
        assert self._nursery is not None, "areas are used inside `async with`"
        if self._nursery.cancel_scope.cancel_called:
            raise DeviceError("the membership areas are closed: this node has ended")
        call = _Call(poll, clear)
        for area in self._areas.values():
            self._nursery.start_soon(self._one, area, kind, work, call)
        try:
            await call.decided.wait()
            if not call.over.is_set():
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._cancel_late, nursery.cancel_scope)
                    await call.over.wait()
                    nursery.cancel_scope.cancel()
        finally:
            call.closed = True
        if call.fenced is not None:
            raise Fenced(call.fenced)
        if not poll.has_enough:
            reasons = "; ".join(sorted(poll.failures.values()))
            raise DeviceError(f"{len(poll.failures)} of {len(self._areas)} membership areas fail: {reasons}")
        return dict(poll.answers)

    async def _cancel_late(self, scope: trio.CancelScope) -> None:
        await self._clock.sleep(GRACE_SECONDS)
        scope.cancel()

    async def _one(self, area: Area, kind: str, work: Work[T], call: _Call[T]) -> None:
        async with area.lock(kind):
            if call.closed:
                return  # M1
            try:
                call.answered(area.disk, await self._tried(area, work))
            except Fenced as error:
                call.refused(str(error))
            except (DeviceError, CorruptRecord) as error:
                call.failed(area.disk, str(error))

    async def _tried(self, area: Area, work: Work[T]) -> T:
        try:
            value = await work(area)
        except (DeviceError, CorruptRecord, Fenced) as error:
            area.failure = str(error)
            raise
        area.failure = ""
        return value


class _Call(Generic[T]):
    """One operation under way: who waits for it, and until when."""

    def __init__(self, poll: Poll[T], clear: Callable[[Mapping[bytes, T]], bool] | None) -> None:
        self.decided = trio.Event()  # enough answered, or can't any more
        self.over = trio.Event()  # and it is clear, or nobody else will answer
        self.closed = False
        self.fenced: str | None = None
        self._poll = poll
        self._clear = clear

    def answered(self, disk: bytes, value: T) -> None:
        """An area did it."""
        if not self.closed:
            self._poll.answered(disk, value)
            self._look()

    def failed(self, disk: bytes, reason: str) -> None:
        """An area did not."""
        if not self.closed:
            self._poll.failed(disk, reason)
            self._look()

    def refused(self, reason: str) -> None:
        """M4."""
        self.fenced = self.fenced or reason
        self.decided.set()
        self.over.set()

    def _look(self) -> None:
        poll = self._poll
        if poll.has_enough or poll.is_hopeless:
            self.decided.set()
        clear = poll.has_enough and (self._clear is None or self._clear(poll.answers))
        if clear or poll.is_hopeless or poll.is_complete:
            self.over.set()


async def _put_header(
    device: SectorDevice, header: SanHeader, newest: int, is_timely: Callable[[], bool], pause: Pause = never
) -> None:
    """Write a header over one not newer than ``newest``, or damaged, and read it back.

    Raises:
        DeviceError: a newer one stands there, it is too late, or I/O failed.
        CorruptRecord: as it was read back.
    """
    try:
        before = await read_header(device, header.owner)
    except CorruptRecord:
        before = None
    if before is not None and before != header and before.generation > newest:
        raise DeviceError(f"{device.name}: a newer SAN header stands there")
    if before != header:
        await write_header(device, header, is_timely, pause)
    if await read_header(device, header.owner) != header:
        raise DeviceError(f"{device.name}: the SAN header was overwritten at once")


async def _read_ballots(device: SectorDevice, cluster: bytes, unused: Collection[int]) -> dict[int, Ballot]:
    data = await device.read(BALLOT_BLOCK * BLOCK_BYTES, NODE_SLOTS * BLOCK_BYTES)
    ballots: dict[int, Ballot] = {}
    for node in range(NODE_SLOTS):
        try:
            ballots[node] = ballot_untrusted(data[node * BLOCK_BYTES : (node + 1) * BLOCK_BYTES], node, cluster)
        except CorruptRecord:
            if node not in unused:
                raise
    return ballots


async def _refresh_image(device: SectorDevice, cluster: bytes, image: DatabaseImage) -> None:
    found = await read_image(device, cluster)
    if found is None or found.sequence < image.sequence:
        await write_image(device, cluster, image)
