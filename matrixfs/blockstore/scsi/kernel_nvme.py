"""Reservations of an NVMe namespace through the kernel, by NVME_IOCTL_IO_CMD.

Why not the kernel's IOC_PR_* ioctls: they can't read the keys, make "unregister" a "replace by key 0", and in some
kernels PREEMPT always aborts (drivers/nvme, ``nvme_pr_register``, ``nvme_pr_preempt``).  NVMe has no LUN RESET, and
needs none: it has preempt-and-abort.  **Never run on real hardware**, as ``kernel`` says.

Sources: linux/nvme_ioctl.h (struct nvme_passthru_cmd), NVMe base specification: Reservation Register, Acquire, Release,
Report (little-endian).
"""

from __future__ import annotations

import ctypes
import struct
from typing import TYPE_CHECKING, Final

import trio

from membership.errors import BadMessage, DeviceError
from membership.fence.reservations import ALL_REGISTRANTS, REGISTRANTS_ONLY, Reservation, Unsupported, refusal

if TYPE_CHECKING:
    from matrixfs.blockstore.scsi.kernel import Kernel

NVME_ID: Final = 0x4E40
NVME_IO_CMD: Final = 0xC0484E43
REGISTER, REPORT, ACQUIRE, RELEASE = 0x0D, 0x0E, 0x11, 0x15  # commands
_DO_REGISTER, _DO_UNREGISTER, _DO_REPLACE = 0, 1, 2  # actions of REGISTER
_DO_ACQUIRE, _DO_PREEMPT, _DO_PREEMPT_AND_ABORT = 0, 1, 2  # of ACQUIRE
_DO_RELEASE, _DO_CLEAR = 0, 1  # of RELEASE
_IGNORE_KEY: Final = 1 << 3
_PERSIST: Final = 3 << 30  # through power loss
_TYPE_AT: Final = 8
_EXTENDED: Final = 1
_STATUS: Final = 0x7FF  # type and code, without "do not retry" and the like
_INVALID_OPCODE, _INVALID_FIELD, _HOST_ID_INCONSISTENT, _CONFLICT = 0x01, 0x02, 0x18, 0x83
_REPORT_BYTES: Final = 4096
_TIMEOUT_MS: Final = 10_000
# Kind of reservation: as SCSI numbers it, as NVMe does.
_TYPES: Final = {REGISTRANTS_ONLY: 3, ALL_REGISTRANTS: 5}
_KINDS: Final = {1: 1, 2: 3, 3: REGISTRANTS_ONLY, 4: 6, 5: ALL_REGISTRANTS, 6: 8}


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


class _Conflicted(Exception):
    """The status RESERVATION CONFLICT."""


class NvmeReservations:
    """``Reservations`` of one namespace; the kernel's own multipath makes all its paths one node."""

    def __init__(self, name: str, node: str, kernel: Kernel, *, power_loss: bool) -> None:
        self._name = name
        self._node = node
        self._kernel = kernel
        self._persist = _PERSIST if power_loss else 0

    @property
    def name(self) -> str:
        """The device."""
        return self._name

    async def register(self, key: int) -> None:
        """See ``Reservations``.  "Register" is for hosts that are not registered yet, "replace" for all others."""
        flags = _IGNORE_KEY | self._persist
        try:
            await self._send("register", REGISTER, _DO_REGISTER | flags, 0, key)
        except _Conflicted:
            await self._do("register", REGISTER, _DO_REPLACE | flags, 0, key, own=key)

    async def unregister(self, key: int) -> None:
        """See ``Reservations``."""
        try:
            await self._send("unregister", REGISTER, _DO_UNREGISTER | _IGNORE_KEY, key)
        except _Conflicted:
            return  # it is not registered

    async def reserve(self, key: int, kind: int) -> None:
        """See ``Reservations``."""
        await self._do("reserve", ACQUIRE, _DO_ACQUIRE | _TYPES[kind] << _TYPE_AT, key, own=key)

    async def release(self, key: int, kind: int) -> None:
        """See ``Reservations``."""
        await self._do("release", RELEASE, _DO_RELEASE | _TYPES[kind] << _TYPE_AT, key, own=key)

    async def preempt(self, own: int, victim: int, kind: int, *, abort: bool) -> None:
        """See ``Reservations``."""
        action = _DO_PREEMPT_AND_ABORT if abort else _DO_PREEMPT
        await self._do("preempt", ACQUIRE, action | _TYPES[kind] << _TYPE_AT, own, victim, own=own)

    async def clear(self, key: int) -> None:
        """See ``Reservations``."""
        await self._do("clear", RELEASE, _DO_CLEAR, key, own=key)

    async def reset_lun(self) -> None:
        """NVMe has none."""
        await trio.lowlevel.checkpoint()
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

    # -- commands

    async def _report(self) -> tuple[int, list[tuple[int, bool]]]:
        """(kind, (key, whether it holds the reservation) of each registered controller)."""
        for extended in (True, False):  # the latter for hosts with an identifier of 64 bits
            data = ctypes.create_string_buffer(_REPORT_BYTES)
            flags = _EXTENDED if extended else 0
            status = await self._execute("reservation report", REPORT, _REPORT_BYTES // 4 - 1, flags, data)
            if status == 0:
                try:
                    return report_untrusted(data.raw, extended=extended)
                except BadMessage as error:
                    raise DeviceError(f"{self._name}: {error}") from None
            if status != _HOST_ID_INCONSISTENT:
                break
        raise self._failed("reservation report", status)

    async def _do(self, what: str, opcode: int, action: int, *keys: int, own: int) -> None:
        try:
            await self._send(what, opcode, action, *keys)
        except _Conflicted:
            raise await refusal(self, own, what) from None

    async def _send(self, what: str, opcode: int, action: int, *keys: int) -> None:
        data = ctypes.create_string_buffer(struct.pack(f"<{len(keys)}Q", *keys), 8 * len(keys))
        status = await self._execute(what, opcode, action, 0, data)
        if status == _CONFLICT:
            raise _Conflicted
        if status:
            raise self._failed(what, status)

    def _failed(self, what: str, status: int) -> DeviceError:
        kind = Unsupported if status in {_INVALID_OPCODE, _INVALID_FIELD} else DeviceError
        return kind(f"{self._name}: {what} failed (NVMe status {status:#05x})")

    async def _execute(self, what: str, opcode: int, cdw10: int, cdw11: int, data: ctypes.Array[ctypes.c_char]) -> int:
        """Status type and code of an I/O command; 0 is success."""
        nsid = await self._ioctl(what, NVME_ID, ctypes.c_int())
        command = PassthruCmd(
            opcode=opcode,
            nsid=nsid,
            addr=ctypes.addressof(data),
            data_len=len(data),
            cdw10=cdw10,
            cdw11=cdw11,
            timeout_ms=_TIMEOUT_MS,
        )
        return await self._ioctl(what, NVME_IO_CMD, command) & _STATUS

    async def _ioctl(self, what: str, request: int, argument: ctypes.Structure | ctypes.c_int) -> int:
        try:
            return await trio.to_thread.run_sync(self._kernel.ioctl, self._node, request, argument)
        except OSError as error:
            raise DeviceError(f"{self._name}: {what} failed: {error.strerror}", error.errno or 0) from None


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
