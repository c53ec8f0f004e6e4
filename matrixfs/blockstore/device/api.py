"""What all sector devices share: the guard, the range check, the counters.

A *guard* is called in the very moment an operation is handed to the kernel, not when it was asked for:
an operation may wait in a full queue, and a right to write that was there at the call can be gone by then
(R3: past the deadline the gate refuses, it never queues).  A guard returns, or raises ``Fenced``.
"""

from __future__ import annotations

import dataclasses
import errno
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import trio

from membership.errors import DeviceError
from membership.seams import Buffer, SectorDevice

Guard: TypeAlias = Callable[[], None]
DISCARD_BYTES_MAX = 16 << 20  # as long as a store may work on one while the right to it ends (R4)


class GuardedDevice(SectorDevice, Protocol):
    """A SectorDevice that asks a guard before each operation leaves this process."""

    async def read(self, offset: int, length: int, *, guard: Guard | None = None) -> bytes:
        """As ``SectorDevice.read``; raises what ``guard`` raises, and then nothing was read."""
        ...

    async def write(self, offset: int, data: Buffer, *, durable: bool = False, guard: Guard | None = None) -> None:
        """As ``SectorDevice.write``; raises what ``guard`` raises.

        Then nothing was written, except parts of a transfer longer than the device takes at once.
        """
        ...

    async def flush(self, *, guard: Guard | None = None) -> None:
        """As ``SectorDevice.flush``; raises what ``guard`` raises."""
        ...

    async def discard(self, offset: int, length: int, *, guard: Guard | None = None) -> None:
        """Tell the store that nobody needs these bytes: what is read there afterwards may be anything.

        At most ``DISCARD_BYTES_MAX``.  Raises as ``write``, and DeviceError EOPNOTSUPP where the store has none.
        """
        ...


class Store(GuardedDevice, Protocol):
    """A whole store, as its owner opened it by name (``store.open_store``), whatever is behind the name."""

    @property
    def counters(self) -> Counters:
        """What it did since it was opened."""
        ...

    @property
    def closed(self) -> bool:
        """Whether it was let go of."""
        ...

    async def open(self) -> None:
        """Learn what the store is; ``sector_bytes``, ``size_bytes`` and I/O are for after this.  Idempotent.

        Raises:
            OperatorError: a store far away can't be reached, refuses us, or is none.  Let go of then.
        """
        ...

    async def measure(self) -> int:
        """Learn anew how large the store is; return ``size_bytes``, which never shrinks.  Raises DeviceError."""
        ...

    async def refuse_if_used(self, *, force: bool) -> bool:
        """Whether it bears traces of users, who may be dead; for mkfs.

        Args:
            force: traces alone are no reason to refuse.

        Raises:
            OperatorError: somebody uses it, or (not forced) seems to.
            DeviceError: it can't be asked.
        """
        ...

    def statistics(self) -> dict[str, int | str]:
        """Counters of the device and of what carries its I/O."""
        ...

    def close_unused(self) -> None:
        """Let go of a store that has done no I/O; allowed outside trio."""
        ...


@dataclass(slots=True)
class Counters:
    """What a device did since it was opened; bytes and calls, not kernel operations."""

    reads: int = 0
    writes: int = 0
    durable_writes: int = 0  # of ``writes``
    flushes: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    discards: int = 0
    bytes_discarded: int = 0
    errors: int = 0

    @property
    def calls(self) -> int:
        """All that have ended, well or not: whether the store gets on."""
        return self.reads + self.writes + self.flushes + self.discards + self.errors

    def as_dict(self) -> dict[str, int]:
        """For ``statistics()`` and ``matrixctl status --json``."""
        return dataclasses.asdict(self)


class InFlight:
    """Counts requests under way, and lets others wait for the last one: ``with in_flight: await ...``."""

    __slots__ = ("_idle", "count")

    def __init__(self) -> None:
        self.count = 0
        self._idle: trio.Event | None = None

    def __enter__(self) -> None:
        self.count += 1

    def __exit__(self, *_: object) -> None:
        self.count -= 1
        if self.count == 0 and self._idle is not None:
            self._idle.set()
            self._idle = None

    async def wait_idle(self) -> None:
        """Return when nothing is under way; at once if so now."""
        while self.count:
            if self._idle is None:
                self._idle = trio.Event()
            await self._idle.wait()


def buffer_bytes(data: Buffer) -> int:
    """Length of ``data`` in bytes, whatever the items of a memoryview are."""
    return data.nbytes if isinstance(data, memoryview) else len(data)


def check_range(device: SectorDevice, operation: str, offset: int, length: int) -> None:
    """Refuse what lies outside ``device``.

    A misaligned request is a bug of the caller (assertion); one outside the device may come from a
    pointer read from disk, so it is an error.

    Raises:
        DeviceError: EINVAL, nothing was read or written.
    """
    sector = device.sector_bytes
    assert offset % sector == 0, f"{operation} at {offset}: not a multiple of {sector}"
    assert length % sector == 0, f"{operation} of {length} bytes: not a multiple of {sector}"
    if offset < 0 or length < 0 or offset + length > device.size_bytes:
        raise DeviceError(
            f"{device.name}: {operation} of {length} bytes at {offset} is outside its {device.size_bytes} bytes",
            errno.EINVAL,
        )
