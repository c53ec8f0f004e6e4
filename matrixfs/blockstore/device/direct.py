"""Direct I/O on one file descriptor: what a shared file and a block device have in common (R13).

A host's page cache over a shared disk is a stale cache, so the descriptor is O_DIRECT; memory is page-aligned,
requests are split at 1 MiB and their parts run side by side.

Invariants:
    D1  The descriptor is closed only when nothing is in flight: its number may be another file's a moment later.
    D2  A request is done whole, or raises.  After a failed write its range holds old bytes, new bytes, or both.
    D3  A cancelled request has either not begun, or is over when ``Cancelled`` is raised.
"""

from __future__ import annotations

import errno
import os
from abc import abstractmethod
from typing import Final

import trio

from matrixfs.blockstore.device.api import DISCARD_BYTES_MAX, Counters, Guard, buffer_bytes, check_range
from matrixfs.blockstore.device.buffers import TRANSFER_BYTES_MAX, AlignedBuffer
from matrixfs.blockstore.device.choice import attach_engine
from matrixfs.blockstore.device.engine import NOTHING, Engine, Kind, Operation
from membership import presence
from membership.errors import DeviceError, Fenced, OperatorError
from membership.seams import Buffer

_RETRIES_MAX: Final = 16  # rounds in which the kernel answers EAGAIN or EINTR to all that is left


class DirectDevice:
    """A SectorDevice over an O_DIRECT descriptor, which it owns from now on.

    Args:
        fd: open with O_DIRECT and O_CLOEXEC.
        name: for messages.
        sector_bytes: 512 or 4096.
        size_bytes: capacity; a trailing part of a sector is left out.

    Raises:
        OperatorError: the store can't be marked (``presence``).
    """

    def __init__(self, fd: int, name: str, sector_bytes: int, size_bytes: int) -> None:
        assert sector_bytes in {512, 4096}, sector_bytes
        try:
            presence.mark(fd)
        except OSError:
            os.close(fd)
            raise OperatorError(f"{name}: its filesystem has no file locks, so nobody could be fenced safely") from None
        self._fd = fd
        self._name = name
        self._sector_bytes = sector_bytes
        self._size_bytes = size_bytes - size_bytes % sector_bytes
        self._engine: Engine | None = None
        self._active = 0
        self._discarding = trio.Lock()
        self._closing = False
        self._closed = trio.Event()  # trio lets events be made outside it
        self.counters = Counters()

    @property
    def name(self) -> str:
        """The path it was opened by."""
        return self._name

    @property
    def sector_bytes(self) -> int:
        """Logical block size of the store."""
        return self._sector_bytes

    @property
    def size_bytes(self) -> int:
        """Capacity when it was opened, or measured last."""
        return self._size_bytes

    async def measure(self) -> int:
        """``Store.measure``."""
        await trio.lowlevel.checkpoint()
        size = os.lseek(self._fd, 0, os.SEEK_END)  # of a block device too
        self._size_bytes = max(self._size_bytes, size - size % self._sector_bytes)
        return self._size_bytes

    def statistics(self) -> dict[str, int | str]:
        """Counters of this device and of the engine it shares."""
        return {**self.counters.as_dict(), **(self._engine.statistics() if self._engine else {})}

    def fileno(self) -> int:
        """The descriptor, for locks and ioctls; I/O on it would pass by the engine."""
        return self._fd

    def is_held_by(self, pid: int) -> bool:
        """Whether process ``pid`` of this host can still change the store: it has it open, or has I/O in flight.

        The process fence must ask this after the exit of the process, until it is False (``presence``).
        """
        return presence.is_marked(self._fd, pid)

    def find_holder(self) -> int | None:
        """Pid of another process of this host (or of this one, by another descriptor) that has the store open."""
        return presence.find_holder(self._fd)

    @property
    def closed(self) -> bool:
        """``Store.closed``."""
        return self._closed.is_set()

    async def open(self) -> None:
        """``Store.open``: all is known since the descriptor was opened."""
        await trio.lowlevel.checkpoint()

    async def refuse_if_used(self, *, force: bool) -> bool:
        """``Store.refuse_if_used``: a process of this host is alive, so nothing forces it."""
        await trio.lowlevel.checkpoint()
        holder = self.find_holder()
        if holder is not None:
            raise OperatorError(f"{self._name}: process {holder} has it open (ps {holder}); stop it first")
        return False

    async def read(self, offset: int, length: int, *, guard: Guard | None = None) -> bytes:
        """``SectorDevice.read``."""
        check_range(self, "read", offset, length)
        if not length:
            await trio.lowlevel.checkpoint()
            return b""
        engine = self._enter()
        parts = _parts(length)
        buffers = [engine.buffers.take(size) for size in parts]
        try:
            views = [buffer.view[:size] for buffer, size in zip(buffers, parts, strict=True)]
            await self._transfer(engine, Kind.READ, offset, views, buffers, guard=guard)
            self.counters.reads += 1
            self.counters.bytes_read += length
            return views[0].tobytes() if len(views) == 1 else b"".join(views)
        finally:
            self._leave(engine, buffers)

    async def write(self, offset: int, data: Buffer, *, durable: bool = False, guard: Guard | None = None) -> None:
        """``SectorDevice.write``.  ``data`` is copied before the first checkpoint: the caller may change it then."""
        length = buffer_bytes(data)
        check_range(self, "write", offset, length)
        if not length:
            await trio.lowlevel.checkpoint()
            return
        engine = self._enter()
        buffers = [engine.buffers.take(size) for size in _parts(length)]
        try:
            views = _copied(memoryview(data).cast("B"), buffers)
            await self._transfer(engine, Kind.WRITE, offset, views, buffers, durable=durable, guard=guard)
            self.counters.writes += 1
            self.counters.durable_writes += durable
            self.counters.bytes_written += length
        finally:
            self._leave(engine, buffers)

    async def flush(self, *, guard: Guard | None = None) -> None:
        """``SectorDevice.flush``: fdatasync."""
        engine = self._enter()
        try:
            await self._perform(engine, [Operation(Kind.FLUSH, self._fd, guard=guard)])
            self.counters.flushes += 1
        finally:
            self._leave(engine, [])

    async def discard(self, offset: int, length: int, *, guard: Guard | None = None) -> None:
        """``GuardedDevice.discard``, in a thread, one at a time: not every kernel's ring takes it (D3, E4)."""
        check_range(self, "discard", offset, length)
        assert length <= DISCARD_BYTES_MAX, length
        engine = self._enter()
        try:
            async with self._discarding:
                if guard is not None:
                    guard()
                await trio.to_thread.run_sync(self._discard_now, offset, length, limiter=trio.CapacityLimiter(1))
            self.counters.discards += 1
            self.counters.bytes_discarded += length
        except OSError as error:
            code = error.errno or errno.EIO
            if code == errno.EBADE:
                raise Fenced(f"{self._name}: the store refuses this node (reservation conflict)") from None
            code = errno.EOPNOTSUPP if code == errno.ENOTTY else code
            self.counters.errors += code != errno.EOPNOTSUPP
            what = f"discard of {length} bytes at {offset}"
            raise DeviceError(f"{self._name}: {what} failed: {os.strerror(code)}", code) from None
        finally:
            self._leave(engine, [])

    @abstractmethod
    def _discard_now(self, offset: int, length: int) -> None:
        """In a thread.  Raises OSError."""

    async def aclose(self) -> None:
        """``SectorDevice.aclose``.  If cancelled, the descriptor goes when the last request in flight is over."""
        if not self._closing:
            self._closing = True
            self._close_when_idle()
        await self._closed.wait()

    def close_unused(self) -> None:
        """Close a device that has done no I/O; allowed outside trio."""
        assert self._engine is None
        self._closing = True
        self._close_when_idle()

    # -- requests in flight

    def _enter(self) -> Engine:
        if self._closing:
            raise DeviceError(f"{self._name}: is closed", errno.EBADF)
        if self._engine is None:
            self._engine = attach_engine()
        self._active += 1
        return self._engine

    def _leave(self, engine: Engine, buffers: list[AlignedBuffer]) -> None:
        for buffer in buffers:
            engine.buffers.give(buffer)
        self._active -= 1
        self._close_when_idle()

    def _close_when_idle(self) -> None:
        if self._closing and self._active == 0 and not self._closed.is_set():
            os.close(self._fd)  # D1
            if self._engine is not None:
                self._engine.detach()
            self._closed.set()

    async def _transfer(
        self,
        engine: Engine,
        kind: Kind,
        offset: int,
        views: list[memoryview],
        buffers: list[AlignedBuffer],
        *,
        durable: bool = False,
        guard: Guard | None = None,
    ) -> None:
        """Move ``views``, which begin each its buffer, from or to ``offset`` on."""
        operations = []
        for i, (view, buffer) in enumerate(zip(views, buffers, strict=True)):
            where = offset + i * TRANSFER_BYTES_MAX
            operations.append(Operation(kind, self._fd, where, view, buffer.address, durable=durable, guard=guard))
        await self._perform(engine, operations)

    @trio.lowlevel.enable_ki_protection  # Ctrl-C may not part us from operations in flight
    async def _perform(self, engine: Engine, operations: list[Operation]) -> None:
        """Run ``operations`` to their last byte.  Raises DeviceError, or what a guard raised."""
        idle_rounds = 0
        while operations:
            await engine.run(operations)
            moved = any(operation.result > 0 for operation in operations)
            try:
                operations = [operation for operation in operations if self._is_unfinished(operation)]
                idle_rounds = 0 if moved else idle_rounds + 1
                if operations and idle_rounds == _RETRIES_MAX:
                    raise self._error(operations[0], errno.EAGAIN)
            except DeviceError:
                self.counters.errors += 1
                raise

    def _is_unfinished(self, operation: Operation) -> bool:
        """Look at a result: False = done; True = to be run again, for the rest.  Raises DeviceError, Fenced."""
        if operation.refused is not None:
            raise operation.refused
        if operation.result < 0:
            code = -operation.result
            if code in {errno.EAGAIN, errno.EINTR}:
                return True
            if code == errno.EBADE:  # how the kernel passes a reservation conflict on
                raise Fenced(f"{self._name}: the store refuses this node (reservation conflict)")
            raise self._error(operation, code)
        moved = operation.result
        if operation.kind is Kind.FLUSH or moved == operation.view.nbytes:
            operation.view = NOTHING  # a thread may still hold the operation; the memory is the caller's again
            return False
        moved -= moved % self._sector_bytes
        if moved == 0:
            what = f"{operation.kind.name.lower()} at {operation.offset}"
            raise DeviceError(f"{self._name}: {what} moved nothing: did the store shrink?")
        operation.offset += moved
        operation.address += moved
        operation.view = operation.view[moved:]
        return True

    def _error(self, operation: Operation, code: int) -> DeviceError:
        what = operation.kind.name.lower()
        if operation.kind is not Kind.FLUSH:
            what += f" of {operation.view.nbytes} bytes at {operation.offset}"
        return DeviceError(f"{self._name}: {what} failed: {os.strerror(code)}", code)


def _parts(length: int) -> list[int]:
    """``length`` split at TRANSFER_BYTES_MAX."""
    if length <= TRANSFER_BYTES_MAX:
        return [length]
    whole, rest = divmod(length, TRANSFER_BYTES_MAX)
    return [TRANSFER_BYTES_MAX] * whole + ([rest] if rest else [])


def _copied(source: memoryview, buffers: list[AlignedBuffer]) -> list[memoryview]:
    """Copy ``source`` into ``buffers``; the parts of them that hold it."""
    views = []
    for i, buffer in enumerate(buffers):
        part = source[i * TRANSFER_BYTES_MAX : (i + 1) * TRANSFER_BYTES_MAX]
        view = buffer.view[: part.nbytes]
        view[:] = part
        views.append(view)
    return views
