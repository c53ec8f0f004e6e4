"""The engine: one per process (per trio run), shared by all devices; carries operations to the kernel and back.

Sources: ecosystem.md 0.5 and 4 (``trio.to_thread`` per operation is the slow road), R3, R13.

Invariants:
    E1  One hand-over per scheduler tick: operations queued by all tasks of a tick go to the kernel together, in
        ``before_io_wait``, which trio calls between the last task of a tick and its sleep.
    E2  One wake per batch: completions signal one eventfd; one task collects all that are there.
    E3  What was handed over can't be taken back.  A cancelled task waits for its operations (``Abort.FAILED``), so
        their buffers stay its own until the kernel is done; only operations still queued here are withdrawn.
    E4  Guards are asked at hand-over, in the trio thread (``api.Guard``).
    E5  At most ``capacity`` operations are with the kernel; the others wait here, in order.
"""

from __future__ import annotations

import math
import os
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum
from typing import ClassVar, Final

import trio

from matrixfs.blockstore.device.api import Guard
from matrixfs.blockstore.device.buffers import BufferPool
from membership.errors import MatrixError

_STALL_SECONDS: Final = 0.001  # kernel short of memory for requests: try again after this
NOTHING = memoryview(b"")


class Kind(IntEnum):
    """What an operation does."""

    READ = 0
    WRITE = 1
    FLUSH = 2


class Operation:
    """One transfer between memory and a file descriptor.

    ``view`` is the memory (it keeps it alive), ``address`` where it begins.  Afterwards ``result`` is the number of
    bytes moved or a negative errno, unless ``refused`` holds what the guard raised.
    """

    __slots__ = ("address", "batch", "durable", "fd", "guard", "kind", "offset", "refused", "result", "view")

    def __init__(
        self,
        kind: Kind,
        fd: int,
        offset: int = 0,
        view: memoryview = NOTHING,
        address: int = 0,
        *,
        durable: bool = False,
        guard: Guard | None = None,
    ) -> None:
        self.kind = kind
        self.fd = fd
        self.offset = offset
        self.view = view
        self.address = address
        self.durable = durable
        self.guard = guard
        self.result = 0
        self.refused: MatrixError | None = None
        self.batch: _Batch | None = None


class _Batch:
    """The operations one task waits for."""

    __slots__ = ("left", "started", "task")

    def __init__(self, task: trio.lowlevel.Task, left: int) -> None:
        self.task = task
        self.left = left
        self.started = False


class Engine(trio.abc.Instrument):
    """Queue, hand-over and waking; the two ways into the kernel are its subclasses.

    Args:
        capacity: operations that may be with the kernel at once.
    """

    kind: ClassVar[str]

    def __init__(self, capacity: int) -> None:
        self.buffers = BufferPool()
        self._capacity = capacity
        self._queue: deque[Operation] = deque()
        self._in_flight = 0
        self._stalled = False
        self._broken: BaseException | None = None
        self._users = 0
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.closed = False
        self._operations = 0
        self._submits = 0
        self._wakeups = 0

    # -- what a way into the kernel provides

    @abstractmethod
    def _start(self, operations: Sequence[Operation]) -> int:
        """Hand over; return how many were accepted, from the first (fewer: the kernel can't just now)."""

    @abstractmethod
    def _collect(self) -> Iterable[Operation]:
        """The operations that are over, ``result`` set."""

    @abstractmethod
    def _shut(self) -> None:
        """Release what the subclass holds; nothing is in flight."""

    # -- for devices

    async def run(self, operations: Sequence[Operation]) -> None:
        """Do ``operations`` together; return when all are over.  See E3 for cancellation."""
        await trio.lowlevel.checkpoint_if_cancelled()
        assert not self.closed
        batch = _Batch(trio.lowlevel.current_task(), len(operations))
        for operation in operations:
            operation.batch = batch
        self._queue.extend(operations)

        def abort(_raise_cancel: Callable[[], None]) -> trio.lowlevel.Abort:
            if batch.started:
                return trio.lowlevel.Abort.FAILED
            self._queue = deque(queued for queued in self._queue if queued.batch is not batch)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    def statistics(self) -> dict[str, int | str]:
        """Which way is used, and how well it batches: operations per submit and per wake-up."""
        return {
            "engine": self.kind,
            "operations": self._operations,
            "submits": self._submits,
            "wakeups": self._wakeups,
            "in_flight": self._in_flight,
            "queued": len(self._queue),
            "buffer_bytes_idle": self.buffers.retained_bytes,
        }

    def attach(self) -> None:
        """One more device uses this engine; the first starts it.  Call inside trio."""
        self._users += 1
        if self._users == 1:
            trio.lowlevel.add_instrument(self)
            trio.lowlevel.spawn_system_task(self._serve, name=f"block I/O by {self.kind}")

    def detach(self) -> None:
        """One device less; the last stops the engine."""
        self._users -= 1
        if self._users == 0:
            self.close()

    def close(self) -> None:
        """Stop; idempotent.  Nothing may be in flight."""
        if self.closed:
            return
        self.closed = True
        assert self._in_flight + len(self._queue) == 0, "engine closed under running operations"
        trio.lowlevel.remove_instrument(self)
        trio.lowlevel.notify_closing(self._wake_fd)
        self._shut()
        os.close(self._wake_fd)
        self.buffers.drain()

    # -- trio's side

    def before_io_wait(self, timeout: float) -> None:
        """Instrument hook: hand over what this tick queued (E1)."""
        if not self._queue or self._stalled or self._broken:
            return
        try:
            self._hand_over()
        except BaseException as error:  # trio would log it, drop the hook, and every task would wait for ever
            self._broken = error
            self._wake()

    def _hand_over(self) -> None:
        ready: list[Operation] = []
        while self._queue and self._in_flight + len(ready) < self._capacity:
            operation = self._queue.popleft()
            if operation.guard is not None:
                try:
                    operation.guard()
                except MatrixError as error:
                    operation.refused = error
                    self._finish(operation)
                    self._wake()  # trio fixed how long it sleeps before it called us
                    continue
            ready.append(operation)
        if not ready:
            return
        accepted = self._start(ready)
        self._submits += 1
        self._operations += accepted
        self._in_flight += accepted
        for operation in ready[:accepted]:
            assert operation.batch is not None
            operation.batch.started = True
        if accepted < len(ready):
            self._queue.extendleft(reversed(ready[accepted:]))
            self._stalled = True
            self._wake()

    def _wake(self) -> None:
        os.eventfd_write(self._wake_fd, 1)

    async def _serve(self) -> None:
        """System task: collect completions until the engine or the trio run ends."""
        try:
            while not self.closed:  # it may close while this task is already due to run
                rests = self._stalled
                with trio.move_on_after(_STALL_SECONDS if rests else math.inf):
                    await trio.lowlevel.wait_readable(self._wake_fd)
                if rests:
                    self._stalled = False  # time has passed, or an operation ended and gave memory back
                if self._broken is not None:
                    raise self._broken
                if not self.closed:
                    self._reap()
        except trio.ClosedResourceError:
            pass  # close() was called
        finally:
            if not self._in_flight and not self._queue:
                self.close()

    def _reap(self) -> None:
        try:
            os.eventfd_read(self._wake_fd)
        except BlockingIOError:
            return  # the stall timer
        self._wakeups += 1
        for operation in self._collect():
            self._in_flight -= 1
            self._finish(operation)

    @staticmethod
    def _finish(operation: Operation) -> None:
        batch = operation.batch
        assert batch is not None
        batch.left -= 1
        if batch.left == 0:
            trio.lowlevel.reschedule(batch.task)
