"""A LUN as the shared store, by iSCSI from user space: no kernel driver, no root (ecosystem.md 1; R13).

Durability.  A durable write must survive a loss of the target's power when it returns:

========================================  =======================================================================
what the caching mode page says           what a durable write is
========================================  =======================================================================
no write cache (WCE 0)                    a plain WRITE(16)
write cache, FUA honoured (DPOFUA 1)      WRITE(16) with FUA
write cache, no FUA; or there is no page  WRITE(16), then SYNCHRONIZE CACHE(16), which costs the others too
========================================  =======================================================================

While somebody else's reservation forbids us the question, the last row holds.  A target that comes back is trusted to
have kept what it answered (arrays mirror their cache, or give it a battery), as Linux's own disk driver does.

Invariants:
    I1  The guard is asked each time a command is handed to libiscsi: also when a command is issued again (E4).
    I2  A write whose answer did not come is never given up while its old session may still carry it to the disk: it
        waits for the next session, which ends the old one, and is issued again; its caller can't be cancelled before.
        When the outage lasts too long, or the guard refuses, it fails, and is of unknown outcome (gate G2).
    I3  A RESERVATION CONFLICT fences the device for good: everything after it raises Fenced at once.
    I4  Memory is libiscsi's from the hand-over until the answer, or the end of the session (session S2).
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final

import trio

from matrixfs.blockstore.device.api import (
    DISCARD_BYTES_MAX,
    Counters,
    Guard,
    InFlight,
    buffer_bytes,
    check_range,
)
from matrixfs.blockstore.device.buffers import TRANSFER_BYTES_MAX, AlignedBuffer, BufferPool
from matrixfs.blockstore.scsi import answers, commands
from matrixfs.blockstore.scsi import reservation_commands as reservations
from matrixfs.blockstore.scsi.address import Address, Identity
from matrixfs.blockstore.scsi.answers import Caching
from matrixfs.blockstore.scsi.commands import Command
from matrixfs.blockstore.scsi.libiscsi import Direction
from matrixfs.blockstore.scsi.nexus import OUTAGE_SECONDS_MAX, Nexus, State
from matrixfs.blockstore.scsi.session import COMMAND_SECONDS_MAX
from matrixfs.blockstore.scsi.status import CheckCondition, ReservationConflict, SessionLost
from matrixfs.blockstore.scsi.unit import CAUTIOUS, caching_of
from membership.errors import BadMessage, DeviceError, Fenced, MatrixError, OperatorError
from membership.seams import Buffer

_SECTORS: Final = (512, 4096)
_LOOK_SECONDS: Final = 0.25


class IscsiDevice:
    """A SectorDevice on a LUN.  Made outside trio or inside; ``open`` before anything else.

    Args:
        address: the LUN.
        identity: who we are to its target.
        size_min: bytes it must have.
        read_only: refuse to write.
        timeout: see ``Nexus``.
        outage: see ``Nexus``.
    """

    def __init__(
        self,
        address: Address,
        identity: Identity,
        *,
        size_min: int = 0,
        read_only: bool = False,
        timeout: float = COMMAND_SECONDS_MAX,
        outage: float = OUTAGE_SECONDS_MAX,
    ) -> None:
        self._address = address
        self._name = str(address)
        self._size_min = size_min
        self._read_only = read_only
        self._buffers = BufferPool()
        self._in_flight = InFlight()
        self._closed = False
        self._sector_bytes = self._size_bytes = self._part_bytes = 0
        self._reissued = 0
        self._caching: Caching | None = None
        self._caching_of = 0  # reconnects of the nexus when it was asked
        self._outage = outage
        self.nexus = Nexus(address, identity, timeout=timeout, outage=outage)
        self.counters = Counters()

    @property
    def closed(self) -> bool:
        """``Store.closed``."""
        return self._closed

    async def open(self) -> None:
        """``Store.open``: log in, and learn what it is.  Raises OperatorError, Fenced."""
        self._check_open()
        if self._size_bytes:
            return
        try:
            await self.nexus.open()
            unit = self.nexus.unit
            self._sector_bytes, self._size_bytes = unit.capacity.sector_bytes, unit.capacity.size_bytes
            self._check_unit()
        except BaseException:
            self._closed, self._size_bytes = True, 0
            with trio.CancelScope(shield=True):
                await self.nexus.aclose()
            raise
        self._caching = unit.caching
        limit = unit.limits.transfer_blocks_max * self._sector_bytes
        self._part_bytes = min(TRANSFER_BYTES_MAX, limit) if limit else TRANSFER_BYTES_MAX

    def _check_unit(self) -> None:
        if self._sector_bytes not in _SECTORS:
            raise OperatorError(
                f"{self._name}: logical blocks of {self._sector_bytes} bytes; only 512 and 4096 are supported"
            )
        if self._size_bytes < self._size_min:
            raise OperatorError(
                f"{self._name}: too small for a cluster disk ({self._size_bytes} bytes, the least is {self._size_min})"
            )
        caching = self.nexus.unit.caching
        if caching is not None and caching.write_protected and not self._read_only:
            raise OperatorError(f"{self._name}: is write-protected")

    @property
    def name(self) -> str:
        """Its URL, without user and password."""
        return self._name

    @property
    def address(self) -> Address:
        """How to log in to it."""
        return self._address

    @property
    def sector_bytes(self) -> int:
        """Logical block size."""
        assert self._sector_bytes, "not open"
        return self._sector_bytes

    @property
    def size_bytes(self) -> int:
        """Capacity when it was opened, or measured last."""
        assert self._size_bytes, "not open"
        return self._size_bytes

    async def measure(self) -> int:
        """``Store.measure``."""
        try:
            found = answers.capacity_untrusted(await self.command(commands.read_capacity()))
        except BadMessage as error:
            raise DeviceError(f"{self._name}: {error}") from None
        if found.sector_bytes == self._sector_bytes:
            self._size_bytes = max(self._size_bytes, found.size_bytes)
        return self._size_bytes

    def statistics(self) -> dict[str, int | str]:
        """Counters of this device and its nexus."""
        found: dict[str, int | str] = {**self.counters.as_dict(), "engine": "iscsi", "state": self.nexus.state.value}
        return found | {
            "in_flight": self._in_flight.count,
            "reconnects": self.nexus.reconnects,
            "reissued": self._reissued,
            "buffer_bytes_idle": self._buffers.retained_bytes,
        }

    async def refuse_if_used(self, *, force: bool) -> bool:
        """``Store.refuse_if_used``: reservation keys say that a cluster has this disk, or died with it."""
        keys = await self._keys()
        if keys and not force:
            raise OperatorError(
                f"{self._name}: {len(keys)} reservation keys are registered on it: a cluster uses it, or did; "
                "--force overwrites it when no node is alive"
            )
        return bool(keys)

    async def _keys(self) -> tuple[int, ...]:
        try:
            return reservations.keys_untrusted(await self.command(reservations.read_keys())).keys
        except CheckCondition:  # it has no reservations
            return ()
        except BadMessage as error:
            raise DeviceError(f"{self._name}: {error}") from None

    async def command(self, command: Command) -> bytes:
        """Send any command once over the present session, for probes and reservations; see ``Session.command``.

        Not for data: it counts as none, asks no guard, and a conflict does not fence the device.
        """
        session = await self.nexus.session()
        return await session.command(command)

    # -- SectorDevice

    async def read(self, offset: int, length: int, *, guard: Guard | None = None) -> bytes:
        """``SectorDevice.read``."""
        check_range(self, "read", offset, length)
        self._check_open()
        if not length:
            await trio.lowlevel.checkpoint()
            return b""
        with self._in_flight:
            parts = self._parts(offset, length)
            buffers = [self._buffers.take(size) for _, size in parts]
            try:
                await _together(
                    [
                        partial(self._read_part, where, size, buffer, guard)
                        for (where, size), buffer in zip(parts, buffers, strict=True)
                    ]
                )
                self.counters.reads += 1
                self.counters.bytes_read += length
                views = [buffer.view[:size] for (_, size), buffer in zip(parts, buffers, strict=True)]
                return views[0].tobytes() if len(views) == 1 else b"".join(views)
            finally:
                self._give(buffers)

    async def write(self, offset: int, data: Buffer, *, durable: bool = False, guard: Guard | None = None) -> None:
        """``SectorDevice.write``.  ``data`` is copied before the first checkpoint: the caller may change it then."""
        length = buffer_bytes(data)
        check_range(self, "write", offset, length)
        self._check_open()
        if self._read_only:
            raise DeviceError(f"{self._name}: is open for reading only", errno.EBADF)
        if not length:
            await trio.lowlevel.checkpoint()
            return
        with self._in_flight:
            parts = self._parts(offset, length)
            buffers = [self._buffers.take(size) for _, size in parts]
            try:
                _copy(memoryview(data).cast("B"), buffers, [size for _, size in parts])
                caching = await self._cache() if durable else CAUTIOUS
                fua = durable and caching.write_cache and caching.fua
                await _together(
                    [
                        partial(self._write_part, where, size, buffer, guard, fua=fua)
                        for (where, size), buffer in zip(parts, buffers, strict=True)
                    ]
                )
                if durable and caching.write_cache and not fua:
                    await self._synchronize(guard, offset, length)
                self.counters.writes += 1
                self.counters.durable_writes += durable
                self.counters.bytes_written += length
            finally:
                self._give(buffers)

    async def flush(self, *, guard: Guard | None = None) -> None:
        """``SectorDevice.flush``: SYNCHRONIZE CACHE, where there is one."""
        self._check_open()
        with self._in_flight:
            if (await self._cache()).write_cache:
                await self._synchronize(guard)
            else:
                if guard is not None:
                    guard()
                await trio.lowlevel.checkpoint()
            self.counters.flushes += 1

    async def discard(self, offset: int, length: int, *, guard: Guard | None = None) -> None:
        """``GuardedDevice.discard``: UNMAP, where the unit says that it takes that (VPD page B2)."""
        check_range(self, "discard", offset, length)
        assert length <= DISCARD_BYTES_MAX, length
        self._check_open()
        unit = self.nexus.unit
        step = unit.limits.unmap_blocks_max * self._sector_bytes
        if not (unit.unmaps and step):
            raise DeviceError(f"{self._name}: the unit takes no UNMAP (VPD pages B0, B2)", errno.EOPNOTSUPP)
        if self._read_only:
            raise DeviceError(f"{self._name}: is open for reading only", errno.EBADF)
        with self._in_flight:
            for at in range(offset, offset + length, step):
                await self._unmap(at, min(step, offset + length - at), guard)
            self.counters.discards += 1
            self.counters.bytes_discarded += length

    async def _unmap(self, offset: int, length: int, guard: Guard | None) -> None:
        command = commands.unmap(offset // self._sector_bytes, length // self._sector_bytes)
        size = len(command.data)
        buffer = self._buffers.take(size)
        try:
            buffer.view[:size] = command.data
            what = f"discard of {length} bytes at {offset}"
            # Not whole: targets say that they took none of it.
            await self._issue(what, command.cdb, Direction.WRITE, buffer.address, size, guard, whole=False)
        finally:
            self._buffers.give(buffer)

    async def aclose(self) -> None:
        """``SectorDevice.aclose``.  In an outage what waits for the disk fails now."""
        self._closed = True
        while self._in_flight.count and self.nexus.state is State.UP:
            with trio.move_on_after(_LOOK_SECONDS):
                await self._in_flight.wait_idle()
        await self.nexus.aclose()
        await self._in_flight.wait_idle()
        self._buffers.drain()

    def close_unused(self) -> None:
        """``Store.close_unused``."""
        assert not self._size_bytes, "was opened: aclose it"
        self._closed = True

    async def _cache(self) -> Caching:
        """How the unit's writes become durable, asked anew of each session: a target may come back otherwise."""
        if self._caching is None or self._caching_of != self.nexus.reconnects:
            asked, session = self.nexus.reconnects, await self.nexus.session()
            try:
                self._caching, self._caching_of = await caching_of(session), asked
            except DeviceError:  # the session ended; the command that follows sees to that
                self._caching = None
        return self._caching or CAUTIOUS

    # -- parts

    def _check_open(self) -> None:
        if self._closed:
            raise DeviceError(f"{self._name}: is closed", errno.EBADF)

    def _give(self, buffers: list[AlignedBuffer]) -> None:
        for buffer in buffers:
            self._buffers.give(buffer)

    def _parts(self, offset: int, length: int) -> list[tuple[int, int]]:
        """(offset, length) of what one command takes each."""
        step = self._part_bytes
        return [(offset + at, min(step, length - at)) for at in range(0, length, step)]

    async def _read_part(self, offset: int, length: int, buffer: AlignedBuffer, guard: Guard | None) -> None:
        cdb = commands.read_16(offset // self._sector_bytes, length // self._sector_bytes)
        what = f"read of {length} bytes at {offset}"
        await self._issue(what, cdb, Direction.READ, buffer.address, length, guard)

    async def _write_part(
        self, offset: int, length: int, buffer: AlignedBuffer, guard: Guard | None, *, fua: bool
    ) -> None:
        cdb = commands.write_16(offset // self._sector_bytes, length // self._sector_bytes, fua=fua)
        what = f"write of {length} bytes at {offset}"
        await self._issue(what, cdb, Direction.WRITE, buffer.address, length, guard)

    async def _synchronize(self, guard: Guard | None, offset: int = 0, length: int = 0) -> None:
        """SYNCHRONIZE CACHE of a range; of all when ``length`` is 0."""
        cdb = commands.synchronize_cache(offset // self._sector_bytes, length // self._sector_bytes)
        await self._issue("flush", cdb, Direction.NONE, 0, 0, guard)

    async def _issue(
        self, what: str, cdb: bytes, direction: Direction, address: int, length: int, guard: Guard | None,
        *, whole: bool = True,
    ) -> None:  # fmt: skip
        """Send a command until it is answered (I1, I2)."""
        first_lost: float | None = None
        check = partial(self._check_right, guard)
        try:
            while True:
                uncertain = first_lost is not None and direction is Direction.WRITE
                with trio.CancelScope(shield=uncertain):
                    session = await self.nexus.session(check=guard)
                try:
                    await session.transfer(what, cdb, direction, address, length, guard=check, whole=whole)
                    return
                except SessionLost as error:
                    now = trio.current_time()
                    first_lost = now if first_lost is None else first_lost
                    if now - first_lost > self._outage:
                        raise DeviceError(f"{error} (again and again for {self._outage:g} s)") from None
                    self._reissued += 1
        except ReservationConflict as error:
            self.nexus.fence(f"{what}: the store refuses this node (RESERVATION CONFLICT)")
            self.counters.errors += 1
            raise Fenced(str(error)) from None
        except DeviceError:
            self.counters.errors += 1
            raise

    def _check_right(self, guard: Guard | None) -> None:
        """The guard of a command: the caller's, and this device's own fence (I3)."""
        if self.nexus.state is State.FENCED:
            raise Fenced(f"{self._name}: {self.nexus.reason}")
        if guard is not None:
            guard()


async def _together(parts: Sequence[Callable[[], Awaitable[None]]]) -> None:
    """Do ``parts`` side by side; when one fails, those not begun are not begun, and the others are waited for."""
    if len(parts) == 1:
        await parts[0]()
        return
    failures: list[MatrixError] = []

    async def do(part: Callable[[], Awaitable[None]], scope: trio.CancelScope) -> None:
        try:
            await part()
        except MatrixError as error:
            failures.append(error)
            scope.cancel()

    async with trio.open_nursery() as nursery:
        for part in parts:
            nursery.start_soon(do, part, nursery.cancel_scope)
    if failures:
        raise next((error for error in failures if isinstance(error, Fenced)), failures[0])


def _copy(source: memoryview, buffers: list[AlignedBuffer], sizes: list[int]) -> None:
    """Copy ``source`` into ``buffers``, so many bytes into each."""
    at = 0
    for buffer, size in zip(buffers, sizes, strict=True):
        buffer.view[:size] = source[at : at + size]
        at += size
