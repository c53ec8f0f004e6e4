"""The fencing gate: no I/O without a right (R3; the seed's pseudo storage driver PSD, 002-22 and 002-23).

It stands between the device and everything above it, knows until when this node's lease runs and the SAN
generation it was admitted under, and refuses at once what it may not do.

====================  ======================  =====================  ==========================
state                 ``extend``              ``fence``              ``unfence``
====================  ======================  =====================  ==========================
not admitted, lapsed  -> admitted             -> fenced              -> admitted
admitted              later deadline          -> fenced              as ``extend``
fenced                refused: raises Fenced  first reason is kept   greater generation: admitted
====================  ======================  =====================  ==========================

A lease that lapsed is no fence: when a late renewal still finds this node among the members, nobody has evicted it,
since peers count ``Timing.dead`` from a header without it.  ``fence`` is final until a new admission.

Invariants:
    G1  The right is checked three times: when an operation is asked for (refuse at once, never queue), when it is
        handed to the kernel (it may have waited behind others), and when it is over.
    G2  *When it is over* means: an operation whose right ended while it was in flight raises Fenced even though the
        device said that it succeeded (an error of the device stays that error).  A write then is of **unknown
        outcome**: it may be on the disk, wholly or in part, or may still land within ``Timing.io_bound``, before
        peers act (R4).  The caller must neither acknowledge it nor retry it; what it belongs to is decided by replay.
        A read then returns nothing: a fenced node serves no data.
    G3  The generation never goes back.
"""

from __future__ import annotations

import math

import trio

from matrixfs.blockstore.device.api import GuardedDevice, InFlight
from membership.errors import Fenced, PeerError
from membership.seams import Buffer, Clock


class Lapsed(Fenced):
    """The lease ended and was not renewed yet; nobody is known to have evicted this node (``patience`` waits)."""


class FencingGate:
    """A SectorDevice that works only while this node has the right to.  Closing it closes the device.

    Args:
        device: the store; it must ask guards at hand-over.
        clock: the one the lease is measured by.
    """

    def __init__(self, device: GuardedDevice, clock: Clock) -> None:
        self._device = device
        self._clock = clock
        self._deadline = -math.inf
        self._generation = 0
        self._reason: str | None = None
        self._in_flight = InFlight()
        self._changed = trio.Event()  # replaced when the lease was extended; set for good when fenced
        self._refused = 0
        self._unknown = 0

    @property
    def name(self) -> str:
        """The device's."""
        return self._device.name

    @property
    def sector_bytes(self) -> int:
        """The device's."""
        return self._device.sector_bytes

    @property
    def size_bytes(self) -> int:
        """The device's."""
        return self._device.size_bytes

    @property
    def deadline(self) -> float:
        """End of the lease on the monotonic clock; -inf before admission."""
        return self._deadline

    @property
    def generation(self) -> int:
        """SAN generation of the latest right."""
        return self._generation

    @property
    def fenced(self) -> str | None:
        """Why it is fenced; None when it is not (the lease may have lapsed all the same)."""
        return self._reason

    @property
    def in_flight(self) -> int:
        """Operations asked for and not over."""
        return self._in_flight.count

    def extend(self, deadline: float, generation: int) -> None:
        """The lease was renewed.

        Args:
            deadline: seconds on the monotonic clock; an earlier one than known changes nothing.
            generation: SAN generation under which the renewal found this node a member.

        Raises:
            Fenced: it is fenced; only ``unfence`` gives the right back.
            PeerError: the generation went backwards: news from the past.  Nothing is changed.
        """
        if self._reason is not None:
            raise Fenced(f"{self.name}: fenced ({self._reason}); the lease can't be extended")
        self._admit(deadline, generation)

    def fence(self, reason: str) -> None:
        """Refuse everything from now on; what is in flight ends with Fenced (G2).  Idempotent."""
        if self._reason is None:
            self._reason = reason
            self._changed.set()

    def unfence(self, deadline: float, generation: int) -> None:
        """The node was admitted anew.

        Args:
            deadline: of the new lease.
            generation: of the new admission, greater than the one it was fenced under.

        Raises:
            PeerError: the generation isn't greater.  It stays fenced.
        """
        if self._reason is not None and generation <= self._generation:
            raise PeerError(f"{self.name}: admission of generation {generation} is not newer than {self._generation}")
        if self._reason is not None:
            self._deadline = -math.inf  # the old lease belonged to the old admission
        self._admit(deadline, generation)
        self._reason = None

    def _admit(self, deadline: float, generation: int) -> None:
        if generation < self._generation:
            raise PeerError(f"{self.name}: SAN generation went back from {self._generation} to {generation}")
        self._generation = generation
        self._deadline = max(self._deadline, deadline)
        self._changed.set()
        self._changed = trio.Event()

    async def admitted(self) -> None:
        """Return when this node has the right to do I/O.  Raises Fenced when it is fenced."""
        while (refusal := self._refusal()) is not None:
            if self._reason is not None:
                raise Fenced(f"{self.name}: {refusal}")
            await self._changed.wait()

    async def drained(self) -> None:
        """Return when nothing is in flight.  After ``fence`` nothing new starts, so then this is final."""
        await self._in_flight.wait_idle()

    def statistics(self) -> dict[str, int | float | str | None]:
        """For ``matrixctl status``: the right, and what was refused for want of it."""
        return {
            "generation": self._generation,
            "deadline": self._deadline,
            "fenced": self._reason,
            "in_flight": self._in_flight.count,
            "refused": self._refused,
            "unknown_outcome": self._unknown,
        }

    async def read(self, offset: int, length: int) -> bytes:
        """``SectorDevice.read``.  Raises Fenced also when the right ended meanwhile."""
        self._check()
        with self._in_flight:
            data = await self._device.read(offset, length, guard=self._check)
        self._check()
        return data

    async def write(self, offset: int, data: Buffer, *, durable: bool = False) -> None:
        """``SectorDevice.write``.  Raises Fenced also when the right ended meanwhile: outcome unknown (G2)."""
        self._check()
        with self._in_flight:
            await self._device.write(offset, data, durable=durable, guard=self._check)
        self._check_after("write")

    async def flush(self) -> None:
        """``SectorDevice.flush``.  Raises Fenced also when the right ended meanwhile: outcome unknown (G2)."""
        self._check()
        with self._in_flight:
            await self._device.flush(guard=self._check)
        self._check_after("flush")

    async def discard(self, offset: int, length: int) -> None:
        """``GuardedDevice.discard``: a write, to the gate.  Raises Fenced as that."""
        self._check()
        with self._in_flight:
            await self._device.discard(offset, length, guard=self._check)
        self._check_after("discard")

    async def aclose(self) -> None:
        """Refuse what comes, wait for what is in flight, close the device."""
        self.fence("closed")
        await self.drained()
        await self._device.aclose()

    def _refusal(self) -> str | None:
        if self._reason is not None:
            return f"fenced: {self._reason}"
        late = self._clock.monotonic() - self._deadline
        if late < 0:
            return None
        return f"this node's lease ended {late:.3f} s ago" if math.isfinite(late) else "this node holds no lease yet"

    def _check(self) -> None:
        refusal = self._refusal()
        if refusal is not None:
            self._refused += 1
            raise self._error(f"{self.name}: {refusal}")

    def _error(self, text: str) -> Fenced:
        return Fenced(text) if self._reason is not None else Lapsed(text)

    def _check_after(self, operation: str) -> None:
        refusal = self._refusal()
        if refusal is not None:
            self._unknown += 1
            raise self._error(f"{self.name}: {refusal}; the {operation} in flight may or may not be on the disk")
