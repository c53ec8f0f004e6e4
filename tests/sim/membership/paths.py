"""The way of one machine to one shared disk, with its faults, and one process's port to it (a GuardedDevice).

What it models:
    D1  A read shows the disk as it was at some moment between request and answer: a slow one may be stale.
    D2  A write lands at some moment between request and answer, in one or two pieces of whole sectors, but never later
        than ``io_bound`` after it was handed over: the promise of the store that R4's formula counts on.
    D3  A write that failed, or whose process was killed, has happened, happened in part, or happens later (D2).
    D4  The answer to an operation under way when the path was lost, or began to hang, is an error, or comes late.
What it does not model: power loss of the disk (tests/sim/disk.py does), landing later than ``io_bound`` (the time
fence does not survive it: docs/faults.md), bytes that rot.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from matrixfs.blockstore.device.api import Guard, InFlight, buffer_bytes, check_range
from membership.errors import DeviceError
from membership.label import BLOCK_BYTES
from tests.sim.disk import Write

if TYPE_CHECKING:
    from membership.seams import Buffer
    from tests.sim.disk import SimDisk
    from tests.sim.membership.freezer import Freezer

SECTOR = 512
LATENCY = (0.0002, 0.002)  # seconds of a healthy path


@dataclass(eq=False)
class Path:
    """What one machine's way to one disk does now; shared by its processes."""

    area: int = 0  # which disk
    gone: str = ""  # why nothing passes
    slow: tuple[float, float] = (0.0, 0.0)  # seconds more
    errors: float = 0.0  # probability that an operation fails
    hanging: trio.Event | None = None  # answers wait for it
    trip: Callable[[int], None] | None = None  # told the block of each write that was handed over

    @property
    def is_healthy(self) -> bool:
        return not (self.gone or self.slow[1] or self.errors or self.hanging is not None)

    def cut(self, reason: str = "path cut") -> None:
        """Nothing passes any more."""
        self.gone = reason
        self._let_go()

    def hang(self) -> None:
        """No answer comes until ``mend``."""
        if self.hanging is None:
            self.hanging = trio.Event()

    def mend(self) -> None:
        """End of every fault."""
        self.gone, self.slow, self.errors = "", (0.0, 0.0), 0.0
        self._let_go()

    def _let_go(self) -> None:
        if self.hanging is not None:
            self.hanging.set()
            self.hanging = None


@dataclass(eq=False)
class Flight:
    """A write on its way."""

    offset: int
    data: bytes
    handed_at: float
    is_lost: bool = False  # what has not landed yet never will


@dataclass(eq=False)
class Port:
    """One process's device.  ``landed`` is told of every piece that reaches the disk; ``start`` runs a task."""

    disk: SimDisk
    path: Path
    freezer: Freezer
    owner: str
    rng: random.Random
    io_bound: float
    start: Callable[..., None]
    landed: Callable[[Port, Flight, int, bytes], None]
    who: object = None  # Machine or SimMount
    is_killed: bool = False
    flights: list[Flight] = field(default_factory=list)
    in_flight: InFlight = field(default_factory=InFlight)
    _scopes: list[trio.CancelScope] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"disk {self.path.area} of {self.owner}"

    @property
    def sector_bytes(self) -> int:
        return SECTOR

    @property
    def size_bytes(self) -> int:
        return self.disk.capacity

    def cut(self, reason: str = "path cut") -> None:
        """The machine's path is lost."""
        self.path.cut(reason)

    def mend(self) -> None:
        """End of every fault of the path."""
        self.path.mend()

    def kill(self) -> None:
        """SIGKILL of the process: nobody waits for answers, and each write in flight lands or does not (D3)."""
        self.is_killed = True
        for flight in self.flights:
            flight.is_lost |= self.rng.random() < 0.3
        for scope in self._scopes:
            scope.cancel()

    async def read(self, offset: int, length: int, *, guard: Guard | None = None) -> bytes:
        check_range(self, "read", offset, length)
        await self._hand_over(guard)
        seconds = self._seconds()
        early = self.rng.uniform(0, seconds) if not self.path.is_healthy else seconds
        data = b""
        with trio.CancelScope(shield=True) as scope:
            self._scopes.append(scope)
            try:
                await trio.sleep(early)
                data = self.disk.media.read(offset, length)  # D1
                await self._answer(seconds - early)
            finally:
                self._scopes.remove(scope)
        await self._over(scope, "read", offset)
        return data

    async def write(self, offset: int, data: Buffer, *, durable: bool = False, guard: Guard | None = None) -> None:
        check_range(self, "write", offset, buffer_bytes(data))
        await self._hand_over(guard)
        seconds = self._seconds()
        flight = Flight(offset, bytes(data), trio.current_time())
        self.flights.append(flight)
        landed = trio.Event()
        self.start(self._land, flight, min(seconds, self.io_bound), landed)
        if self.path.trip is not None:
            self.path.trip(offset // BLOCK_BYTES)
        with trio.CancelScope(shield=True) as scope:
            self._scopes.append(scope)
            try:
                await self._answer(seconds)
                await landed.wait()
            finally:
                self._scopes.remove(scope)
        await self._over(scope, "write", offset)

    async def discard(self, offset: int, length: int, *, guard: Guard | None = None) -> None:
        await self.write(offset, bytes(length), guard=guard)

    async def flush(self, *, guard: Guard | None = None) -> None:
        await self._hand_over(guard)
        await self._answer(self._seconds())
        await self._over(None, "flush", 0)

    async def aclose(self) -> None:
        await self.in_flight.wait_idle()

    # -- internals ---------------------------------------------------------------------------------------------

    async def _hand_over(self, guard: Guard | None) -> None:
        """To the kernel: the last moment at which a stopped process has not begun yet."""
        await trio.lowlevel.checkpoint_if_cancelled()
        await self.freezer.passed()
        if self.path.gone or self.is_killed:
            await trio.sleep(self.rng.uniform(*LATENCY))
            await self.freezer.passed()
            raise DeviceError(f"{self.name}: {self.path.gone or 'killed'}", errno.EIO)
        if guard is not None:
            guard()

    def _seconds(self) -> float:
        return self.rng.uniform(*LATENCY) + self.rng.uniform(*self.path.slow)

    async def _answer(self, seconds: float) -> None:
        await trio.sleep(seconds)
        while self.path.hanging is not None:
            await self.path.hanging.wait()

    async def _over(self, scope: trio.CancelScope | None, operation: str, offset: int) -> None:
        """Back in the process, unless it is stopped or dead."""
        if scope is not None and scope.cancel_called:
            await trio.sleep_forever()  # killed: whoever waits is cancelled, too
        await self.freezer.passed()
        if self.path.gone or self.rng.random() < self.path.errors:
            raise DeviceError(f"{self.name}: {operation} at {offset} failed: {self.path.gone or 'EIO'}", errno.EIO)

    async def _land(self, flight: Flight, within: float, landed: trio.Event) -> None:
        """D2."""
        sectors = len(flight.data) // SECTOR
        is_odd = not self.path.is_healthy
        first = self.rng.randint(1, sectors) if sectors > 1 and is_odd and self.rng.random() < 0.3 else sectors
        pieces = [(0, first), (first, sectors)] if first < sectors else [(0, sectors)]
        with self.in_flight, trio.CancelScope(shield=True):
            for begin, end in pieces:
                spent = trio.current_time() - flight.handed_at
                wait = self.rng.uniform(0, within - spent) if is_odd or len(pieces) > 1 else within - spent
                await trio.sleep(max(0.0, wait))
                if flight.is_lost or (self.path.gone and self.rng.random() < 0.3):
                    break
                piece = flight.data[begin * SECTOR : end * SECTOR]
                self.disk.media.write(Write(flight.offset + begin * SECTOR, piece, durable=True))
                self.landed(self, flight, flight.offset + begin * SECTOR, piece)
        self.flights.remove(flight)
        landed.set()
