"""Reservations of an NVMe namespace through the kernel: IOC_PR_* ioctls, and the reservation report for the keys.

**Never run on real hardware**, as ``kernel`` says; NVMe has no LUN RESET, and needs none: it has preempt-and-abort.

Sources: linux/pr.h (requests, structures, status), linux/nvme_ioctl.h (struct nvme_passthru_cmd), NVMe base
specification, Reservation Report (little-endian).
"""

from __future__ import annotations

import ctypes
import struct
from typing import TYPE_CHECKING, Final

import trio

from membership.errors import BadMessage, DeviceError
from membership.fence.reservations import (
    ALL_REGISTRANTS,
    REGISTRANTS_ONLY,
    Conflict,
    Refused,
    Reservation,
    Unsupported,
    refusal,
)

if TYPE_CHECKING:
    from matrixfs.blockstore.scsi.kernel import Kernel

PR_REGISTER: Final = 0x401870C8
PR_RESERVE: Final = 0x401070C9
PR_RELEASE: Final = 0x401070CA
PR_PREEMPT: Final = 0x401870CB
PR_PREEMPT_ABORT: Final = 0x401870CC
PR_CLEAR: Final = 0x401070CD
_IGNORE_KEY: Final = 1
_CONFLICTS: Final = (0x18, 0x83)  # PR_STS_RESERVATION_CONFLICT since Linux 6.4; before, NVMe's own status code
_UNSUPPORTED_ERRNOS: Final = (25, 95)  # ENOTTY, EOPNOTSUPP
NVME_ID: Final = 0x4E40
NVME_IO_CMD: Final = 0xC0484E43
_RESERVATION_REPORT: Final = 0x0E
_EXTENDED: Final = 1
_HOST_ID_INCONSISTENT: Final = 0x18
_REPORT_BYTES: Final = 4096
_TIMEOUT_MS: Final = 10_000
# Kind of reservation as SCSI numbers it: as linux/pr.h does, which is as NVMe does.
_TYPES: Final = {REGISTRANTS_ONLY: 3, ALL_REGISTRANTS: 5}
_KINDS: Final = {1: 1, 2: 3, 3: REGISTRANTS_ONLY, 4: 6, 5: ALL_REGISTRANTS, 6: 8}


class Registration(ctypes.Structure):
    """``struct pr_registration``."""

    _fields_ = (
        ("old_key", ctypes.c_uint64),
        ("new_key", ctypes.c_uint64),
        ("flags", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
    )


class Reserved(ctypes.Structure):
    """``struct pr_reservation``."""

    _fields_ = (("key", ctypes.c_uint64), ("type", ctypes.c_uint32), ("flags", ctypes.c_uint32))


class Preemption(ctypes.Structure):
    """``struct pr_preempt``."""

    _fields_ = (
        ("old_key", ctypes.c_uint64),
        ("new_key", ctypes.c_uint64),
        ("type", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
    )


class Clearing(ctypes.Structure):
    """``struct pr_clear``."""

    _fields_ = (("key", ctypes.c_uint64), ("flags", ctypes.c_uint32), ("pad", ctypes.c_uint32))


class PassthruCmd(ctypes.Structure):
    """``struct nvme_passthru_cmd``."""

    _fields_ = (
        ("opcode", ctypes.c_uint8),
        ("flags", ctypes.c_uint8),
        ("rsvd1", ctypes.c_uint16),
        ("nsid", ctypes.c_uint32),
        ("cdw2", ctypes.c_uint32),
        ("cdw3", ctypes.c_uint32),
        ("metadata", ctypes.c_uint64),
        ("addr", ctypes.c_uint64),
        ("metadata_len", ctypes.c_uint32),
        ("data_len", ctypes.c_uint32),
        ("cdw10", ctypes.c_uint32),
        ("cdw11", ctypes.c_uint32),
        ("cdw12", ctypes.c_uint32),
        ("cdw13", ctypes.c_uint32),
        ("cdw14", ctypes.c_uint32),
        ("cdw15", ctypes.c_uint32),
        ("timeout_ms", ctypes.c_uint32),
        ("result", ctypes.c_uint32),
    )


assert ctypes.sizeof(PassthruCmd) == 72
assert ctypes.sizeof(Registration) == ctypes.sizeof(Preemption) == 24
assert ctypes.sizeof(Reserved) == ctypes.sizeof(Clearing) == 16


class NvmeReservations:
    """``Reservations`` of one namespace; the kernel's own multipath makes all its paths one node."""

    def __init__(self, name: str, node: str, kernel: Kernel, *, power_loss: bool) -> None:
        self._name = name
        self._node = node
        self._kernel = kernel
        # The kernel asks for persistence through power loss with every registration by itself (nvme/host/pr.c).
        self._power_loss = power_loss

    @property
    def name(self) -> str:
        """The device."""
        return self._name

    async def register(self, key: int) -> None:
        """See ``Reservations``."""
        await self._do("register", PR_REGISTER, Registration(new_key=key, flags=_IGNORE_KEY), key)

    async def unregister(self, key: int) -> None:
        """See ``Reservations``."""
        try:
            await self._do("unregister", PR_REGISTER, Registration(old_key=key), key)
        except (Conflict, Refused):
            return  # it is not registered

    async def reserve(self, key: int, kind: int) -> None:
        """See ``Reservations``."""
        await self._do("reserve", PR_RESERVE, Reserved(key=key, type=_TYPES[kind]), key)

    async def release(self, key: int, kind: int) -> None:
        """See ``Reservations``."""
        await self._do("release", PR_RELEASE, Reserved(key=key, type=_TYPES[kind]), key)

    async def preempt(self, own: int, victim: int, kind: int, *, abort: bool) -> None:
        """See ``Reservations``.  In pr.h ``old_key`` is the victim's, ``new_key`` ours."""
        request = PR_PREEMPT_ABORT if abort else PR_PREEMPT
        await self._do("preempt", request, Preemption(old_key=victim, new_key=own, type=_TYPES[kind]), own)

    async def clear(self, key: int) -> None:
        """See ``Reservations``."""
        await self._do("clear", PR_CLEAR, Clearing(key=key), key)

    async def reset_lun(self) -> None:
        """NVMe has none."""
        raise Unsupported(f"{self._name}: an NVMe namespace has no LUN RESET")

    async def read_keys(self) -> list[int]:
        """See ``Reservations``."""
        return [key for key, _ in (await self._report())[1]]

    async def read_reservation(self) -> Reservation | None:
        """See ``Reservations``."""
        kind, registrants = await self._report()
        if not kind:
            return None
        held = [key for key, holds in registrants if holds]
        return Reservation(held[0] if held and kind != ALL_REGISTRANTS else 0, kind)

    async def _report(self) -> tuple[int, list[tuple[int, bool]]]:
        """(kind, (key, whether it holds the reservation) of each registered controller)."""
        nsid = await self._call("namespace id", NVME_ID, ctypes.c_int())
        extended = True
        while True:
            data = ctypes.create_string_buffer(_REPORT_BYTES)
            command = PassthruCmd(
                opcode=_RESERVATION_REPORT,
                nsid=nsid,
                addr=ctypes.addressof(data),
                data_len=_REPORT_BYTES,
                cdw10=_REPORT_BYTES // 4 - 1,
                cdw11=_EXTENDED if extended else 0,
                timeout_ms=_TIMEOUT_MS,
            )
            status = await self._call("reservation report", NVME_IO_CMD, command)
            if status == 0:
                break
            if status & 0x7FF != _HOST_ID_INCONSISTENT or not extended:
                raise DeviceError(f"{self._name}: reservation report failed (status {status:#x})")
            extended = False  # the host has a 64-bit identifier
        try:
            return report_untrusted(data.raw, extended=extended)
        except BadMessage as error:
            raise DeviceError(f"{self._name}: {error}") from None

    async def _do(self, what: str, request: int, argument: ctypes.Structure, own: int) -> None:
        status = await self._call(what, request, argument)
        if status and status & 0x7FF in _CONFLICTS:
            raise await refusal(self, own, what)
        if status:
            raise DeviceError(f"{self._name}: {what} failed (status {status:#x})")

    async def _call(self, what: str, request: int, argument: ctypes.Structure | ctypes.c_int) -> int:
        try:
            return await trio.to_thread.run_sync(self._kernel.ioctl, self._node, request, argument)
        except OSError as error:
            text = f"{self._name}: {what} failed: {error.strerror}"
            if error.errno in _UNSUPPORTED_ERRNOS:
                raise Unsupported(text) from None
            raise DeviceError(text, error.errno or 0) from None


def report_untrusted(data: bytes, *, extended: bool) -> tuple[int, list[tuple[int, bool]]]:
    """Parse a Reservation Report: (kind as SCSI numbers it, 0 for none; key and "holds it" of each controller).

    Raises:
        BadMessage: it contradicts itself, or has more controllers than were asked for.
    """
    head, size, key_at = (64, 64, 8) if extended else (24, 24, 16)
    if len(data) < head:
        raise BadMessage(f"reservation report of {len(data)} bytes")
    kind, count = struct.unpack_from("<BH", data, 4)
    if kind and kind not in _KINDS:
        raise BadMessage(f"reservation report: type {kind}")
    if head + count * size > len(data):
        raise BadMessage(f"reservation report: {count} controllers are more than a cluster disk has")
    rows = []
    for at in range(head, head + count * size, size):
        (key,) = struct.unpack_from("<Q", data, at + key_at)
        rows.append((key, bool(data[at + 2] & 1)))
    return (_KINDS[kind] if kind else 0), rows
