"""Reservations through the kernel: /dev/sdX, dm-multipath over such, and NVMe namespaces (decision 0016).

Which one is told by sysfs: a partition stands for its disk, a device-mapper device for what is below it.  SCSI goes by
SG_IO with the same bytes as over iSCSI (``reservation_commands``), to every path; NVMe by ``kernel_nvme``.

**Never run on real hardware:** the machines it was written on have no kernel SCSI and no NVMe.  What is tested is the
bytes, against a scripted kernel.

Invariants:
    D1  ``register`` and ``unregister`` go to every path (each is a nexus of its own); one at least must answer.
        Everything else goes to the first path that does it; a path that was away then is not registered, so one
        that refuses is passed over, too.
    D2  The nexus is the host's: all its processes share the registration (``Lun.nexus_per_process`` is False).
Sources: scsi/sg.h (struct sg_io_hdr, SG_SCSI_RESET), SPC-4 4.5 (sense data), Documentation/ABI/stable/sysfs-block.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

import trio

from matrixfs.blockstore.scsi.kernel_nvme import NvmeReservations
from matrixfs.blockstore.scsi.reservation_commands import (
    Action,
    keys_untrusted,
    read_keys,
    read_reservation,
    reservation_untrusted,
    reserve_out,
)
from matrixfs.blockstore.scsi.status import (
    CHECK_CONDITION,
    GOOD,
    Busy,
    CheckCondition,
    ReservationConflict,
    Sense,
    UnitAttention,
    error_of,
)
from membership.errors import BadMessage, DeviceError
from membership.fence.reservations import Reservation, Reservations, Unsupported, refusal

if TYPE_CHECKING:
    from matrixfs.blockstore.scsi.commands import Command

SG_IO: Final = 0x2285
SG_SCSI_RESET: Final = 0x2284
_RESET_UNIT: Final = 0x101  # SG_SCSI_RESET_DEVICE, and no stronger one if that fails
_NO_DATA, _TO_DEVICE, _FROM_DEVICE = -1, -2, -3
_SENSE_BYTES: Final = 64
_TIMEOUT_MS: Final = 10_000
_TRIES: Final = 8  # unit attentions queue up
_BUSY_SECONDS: Final = 0.1
_DEPTH_MAX: Final = 8  # of device-mapper devices on top of each other

_T = TypeVar("_T")


class SgIoHdr(ctypes.Structure):
    """``struct sg_io_hdr`` (scsi/sg.h), version 3."""

    _fields_ = (
        ("interface_id", ctypes.c_int),
        ("dxfer_direction", ctypes.c_int),
        ("cmd_len", ctypes.c_ubyte),
        ("mx_sb_len", ctypes.c_ubyte),
        ("iovec_count", ctypes.c_ushort),
        ("dxfer_len", ctypes.c_uint),
        ("dxferp", ctypes.c_void_p),
        ("cmdp", ctypes.c_void_p),
        ("sbp", ctypes.c_void_p),
        ("timeout", ctypes.c_uint),
        ("flags", ctypes.c_uint),
        ("pack_id", ctypes.c_int),
        ("usr_ptr", ctypes.c_void_p),
        ("status", ctypes.c_ubyte),
        ("masked_status", ctypes.c_ubyte),
        ("msg_status", ctypes.c_ubyte),
        ("sb_len_wr", ctypes.c_ubyte),
        ("host_status", ctypes.c_ushort),
        ("driver_status", ctypes.c_ushort),
        ("resid", ctypes.c_int),
        ("duration", ctypes.c_uint),
        ("info", ctypes.c_uint),
    )


assert ctypes.sizeof(SgIoHdr) == 88 or ctypes.sizeof(ctypes.c_void_p) != 8


class Kernel(Protocol):
    """The system calls; another one in tests."""

    def ioctl(self, device: str, request: int, argument: ctypes.Structure | ctypes.c_int) -> int:
        """Control a device node; ``argument`` is changed in place.  Raises OSError."""
        ...


class SystemKernel:
    """The real one: opens the node for each call, so that it holds no path that is about to be removed."""

    def ioctl(self, device: str, request: int, argument: ctypes.Structure | ctypes.c_int) -> int:
        """See ``Kernel``."""
        fd = os.open(device, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status: int = fcntl.ioctl(fd, request, argument)  # any writable buffer will do
            return status
        finally:
            os.close(fd)


def kernel_reservations(
    path: str, *, power_loss: bool = False, sysfs: str = "/sys", kernel: Kernel | None = None
) -> Reservations | None:
    """The reservations of a block device; None when it has none that we can reach (a loop device, a RAID).

    Args:
        path: of the device node.
        power_loss: see ``LunTraits.keeps_over_power_loss``.
        sysfs: where that is mounted.
        kernel: another one in tests.
    """
    kernel = kernel or SystemKernel()
    disks = _disks_below(os.path.basename(os.path.realpath(path)), sysfs)
    nodes = [f"/dev/{disk}" for disk in disks]
    if disks and all(disk.startswith("sd") for disk in disks):
        return ScsiKernelReservations(path, nodes, kernel, power_loss=power_loss)
    if len(disks) == 1 and disks[0].startswith("nvme"):
        return NvmeReservations(path, nodes[0], kernel, power_loss=power_loss)
    return None


def _disks_below(name: str, sysfs: str, depth: int = 0) -> list[str]:
    """The disks that a block device is made of: several only as paths of a multipath map; empty: not to be fenced."""
    place = os.path.realpath(os.path.join(sysfs, "class/block", name))
    if os.path.exists(os.path.join(place, "partition")):
        return _disks_below(os.path.basename(os.path.dirname(place)), sysfs, depth + 1)
    if not name.startswith("dm-"):
        return [name] if os.path.isdir(place) else []
    try:
        below = sorted(os.listdir(os.path.join(place, "slaves")))
        with open(os.path.join(place, "dm/uuid"), encoding="ascii") as file:
            is_multipath = file.read().startswith("mpath-")
    except OSError:
        return []
    if depth > _DEPTH_MAX or (len(below) != 1 and not is_multipath):
        return []
    return below if is_multipath else _disks_below(below[0], sysfs, depth + 1)


class ScsiKernelReservations:
    """``Reservations`` by SG_IO on all paths of one logical unit."""

    def __init__(self, name: str, paths: list[str], kernel: Kernel, *, power_loss: bool) -> None:
        assert paths
        self._name = name
        self._paths = paths
        self._kernel = kernel
        self._power_loss = power_loss

    @property
    def name(self) -> str:
        """The device."""
        return self._name

    async def register(self, key: int) -> None:
        """See ``Reservations``; on every path (D1)."""
        await self._everywhere(reserve_out(Action.REGISTER_AND_IGNORE, action_key=key, aptpl=self._power_loss))

    async def unregister(self, key: int) -> None:
        """See ``Reservations``; on every path (D1)."""
        await self._everywhere(reserve_out(Action.REGISTER_AND_IGNORE))

    async def reserve(self, key: int, kind: int) -> None:
        """See ``Reservations``."""
        await self._out("RESERVE", reserve_out(Action.RESERVE, key, type_=kind), key)

    async def release(self, key: int, kind: int) -> None:
        """See ``Reservations``; on every path, for one of them holds it, and the others' release does nothing."""
        try:
            await self._everywhere(reserve_out(Action.RELEASE, key, type_=kind))
        except ReservationConflict:
            raise await refusal(self, key, "RELEASE") from None

    async def read_keys(self) -> list[int]:
        """See ``Reservations``."""
        return list((await self._ask(read_keys(), keys_untrusted)).keys)

    async def read_reservation(self) -> Reservation | None:
        """See ``Reservations``."""
        found = await self._ask(read_reservation(), reservation_untrusted)
        return Reservation(found.key, found.type) if found is not None else None

    async def preempt(self, own: int, victim: int, kind: int, *, abort: bool) -> None:
        """See ``Reservations``."""
        action = Action.PREEMPT_AND_ABORT if abort else Action.PREEMPT
        await self._out(action.name.replace("_", " "), reserve_out(action, own, victim, kind), own)

    async def reset_lun(self) -> None:
        """See ``Reservations``."""

        async def reset(path: str) -> None:
            try:
                await self._call(path, SG_SCSI_RESET, ctypes.c_int(_RESET_UNIT))
            except OSError as error:
                raise Unsupported(f"{path}: LUN RESET failed: {error.strerror}") from None

        await self._on_first(reset)

    async def clear(self, key: int) -> None:
        """See ``Reservations``."""
        await self._out("CLEAR", reserve_out(Action.CLEAR, key), key)

    # -- commands

    async def _everywhere(self, command: Command) -> None:
        failures: list[DeviceError | ReservationConflict] = []
        for path in self._paths:
            try:
                await self._command(path, command)
            except (DeviceError, ReservationConflict) as error:
                failures.append(error)
        if len(failures) == len(self._paths):
            raise failures[0]

    async def _out(self, what: str, command: Command, own: int) -> None:
        try:
            await self._on_first(partial(self._command, command=command))
        except ReservationConflict:
            raise await refusal(self, own, what) from None

    async def _ask(self, command: Command, parse: Callable[[bytes], _T]) -> _T:
        answer = await self._on_first(partial(self._command, command=command))
        try:
            return parse(answer)
        except BadMessage as error:
            raise DeviceError(f"{self._name}: {error}") from None

    async def _on_first(self, work: Callable[[str], Awaitable[_T]]) -> _T:
        """On the first path that does it (D1)."""
        refused: ReservationConflict | None = None
        failed: DeviceError | None = None
        for path in self._paths:
            try:
                return await work(path)
            except (CheckCondition, Unsupported):
                raise
            except ReservationConflict as error:
                refused = refused or error
            except DeviceError as error:
                failed = failed or error
        reason = refused or failed
        assert reason is not None
        raise reason

    async def _command(self, path: str, command: Command) -> bytes:
        """Raises ReservationConflict, Unsupported, DeviceError."""
        for left in reversed(range(_TRIES)):
            try:
                return await self._once(path, command)
            except UnitAttention:
                if not left:
                    raise
            except Busy:
                if not left:
                    raise
                await trio.sleep(_BUSY_SECONDS)
            except CheckCondition as error:
                if error.unsupported:
                    raise Unsupported(str(error)) from None
                raise
        raise AssertionError("unreachable")

    async def _once(self, path: str, command: Command) -> bytes:
        data = ctypes.create_string_buffer(
            command.data or bytes(command.receives), command.receives or len(command.data)
        )
        cdb = ctypes.create_string_buffer(command.cdb, len(command.cdb))
        sense = ctypes.create_string_buffer(_SENSE_BYTES)
        header = SgIoHdr(
            interface_id=ord("S"),
            dxfer_direction=_FROM_DEVICE if command.receives else _TO_DEVICE if command.data else _NO_DATA,
            cmd_len=len(command.cdb),
            mx_sb_len=_SENSE_BYTES,
            dxfer_len=len(data),
            dxferp=ctypes.addressof(data),
            cmdp=ctypes.addressof(cdb),
            sbp=ctypes.addressof(sense),
            timeout=_TIMEOUT_MS,
        )
        where = f"{path}: {command.name}"
        try:
            await self._call(path, SG_IO, header)
        except OSError as error:
            raise DeviceError(f"{where}: {error.strerror}", error.errno or 0) from None
        if header.status != GOOD:
            found = sense_untrusted(sense.raw[: header.sb_len_wr]) if header.status == CHECK_CONDITION else Sense()
            raise error_of(where, header.status, found)
        if header.host_status or header.driver_status & 0x0F:
            raise DeviceError(f"{where}: the path failed (host {header.host_status:#x}, {header.driver_status:#x})")
        return data.raw if command.receives else b""

    async def _call(self, path: str, request: int, argument: ctypes.Structure | ctypes.c_int) -> None:
        await trio.to_thread.run_sync(self._kernel.ioctl, path, request, argument)


def sense_untrusted(data: bytes) -> Sense:
    """Sense data of either format (SPC-4 4.5); nothing when it says nothing.  Never raises."""
    padded = data + bytes(_SENSE_BYTES)
    kind = padded[0] & 0x7F
    if kind in {0x70, 0x71}:
        return Sense(padded[2] & 0x0F, padded[12] << 8 | padded[13])
    if kind in {0x72, 0x73}:
        return Sense(padded[1] & 0x0F, padded[2] << 8 | padded[3])
    return Sense()
