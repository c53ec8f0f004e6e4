"""The seam ``Reservations`` over iSCSI sessions (membership/fence/reservations.py; SPC-4 5.13).

Invariants:
    B1  While a nexus comes back (``Nexus.on_reconnected``) everything here goes over the session that is being
        examined, reads of header and slots included, for nobody else gets one yet (N2).  ``returning`` says so.
    B2  A command whose session ended is sent again over the next: all may be done twice.  At a LUN RESET a target may
        end the session of who asked for it when that has other commands under way.
    B3  A conflict fences nothing here; the caller decides what it means (V2).
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, TypeVar

from matrixfs.blockstore.scsi import commands
from matrixfs.blockstore.scsi.reservation_commands import (
    Action,
    keys_untrusted,
    read_keys,
    read_reservation,
    reservation_untrusted,
    reserve_out,
)
from matrixfs.blockstore.scsi.status import CheckCondition, ReservationConflict, SessionLost
from membership.errors import BadMessage, DeviceError, Fenced
from membership.fence.reservations import Conflict, Refused, Reservation, Unsupported, refusal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from matrixfs.blockstore.scsi.commands import Command
    from matrixfs.blockstore.scsi.session import Session
    from membership.seams import Buffer

T = TypeVar("T")

log = logging.getLogger(__name__)

_TRIES = 3
_TRANSFER_BYTES = 64 * 1024  # of ``read``: what every target takes at once


class ScsiReservations:
    """One LUN's reservations as one process sees them; and a device for reading only (B1).

    Args:
        name: of the LUN, for messages.
        sector_bytes: its logical block size.
        size_bytes: its capacity.
        session: a live session, waited for (``Nexus.session``).
        power_loss: register so that it survives a loss of the target's power (LunTraits.keeps_over_power_loss).
    """

    def __init__(
        self,
        name: str,
        sector_bytes: int,
        size_bytes: int,
        session: Callable[[], Awaitable[Session]],
        *,
        power_loss: bool = False,
    ) -> None:
        self._name = name
        self._sector_bytes = sector_bytes
        self._size_bytes = size_bytes
        self._live = session
        self._power_loss = power_loss
        self._returning: Session | None = None

    @property
    def name(self) -> str:
        """The LUN."""
        return self._name

    @property
    def sector_bytes(self) -> int:
        """Logical block size."""
        return self._sector_bytes

    @property
    def size_bytes(self) -> int:
        """Capacity."""
        return self._size_bytes

    @contextlib.contextmanager
    def returning(self, session: Session) -> Iterator[None]:
        """Within, ``session`` is used (B1)."""
        self._returning = session
        try:
            yield
        finally:
            self._returning = None

    async def register(self, key: int) -> None:
        """See ``Reservations``."""
        command = reserve_out(Action.REGISTER_AND_IGNORE, action_key=key, aptpl=self._power_loss)
        await self._out("REGISTER", command, key)

    async def unregister(self, key: int) -> None:
        """See ``Reservations``."""
        with contextlib.suppress(Conflict, Refused):  # not registered: there is nothing to take back
            await self._out("REGISTER", reserve_out(Action.REGISTER_AND_IGNORE), key)

    async def reserve(self, key: int, kind: int) -> None:
        """See ``Reservations``."""
        await self._out("RESERVE", reserve_out(Action.RESERVE, key, type_=kind), key)

    async def release(self, key: int, kind: int) -> None:
        """See ``Reservations``."""
        await self._out("RELEASE", reserve_out(Action.RELEASE, key, type_=kind), key)

    async def read_keys(self) -> list[int]:
        """See ``Reservations``."""
        answer = await self._command(read_keys())
        try:
            return list(keys_untrusted(answer).keys)
        except BadMessage as error:
            raise DeviceError(f"{self._name}: {error}") from None

    async def read_reservation(self) -> Reservation | None:
        """See ``Reservations``."""
        answer = await self._command(read_reservation())
        try:
            found = reservation_untrusted(answer)
        except BadMessage as error:
            raise DeviceError(f"{self._name}: {error}") from None
        return Reservation(found.key, found.type) if found is not None else None

    async def preempt(self, own: int, victim: int, kind: int, *, abort: bool) -> None:
        """See ``Reservations``."""
        action = Action.PREEMPT_AND_ABORT if abort else Action.PREEMPT
        await self._out(action.name.replace("_", " "), reserve_out(action, own, victim, kind), own)

    async def reset_lun(self) -> None:
        """See ``Reservations``."""
        try:
            await self._insist(lambda session: session.lun_reset())
        except SessionLost:
            raise
        except DeviceError as error:
            raise Unsupported(str(error)) from None

    async def clear(self, key: int) -> None:
        """See ``Reservations``."""
        await self._out("CLEAR", reserve_out(Action.CLEAR, key), key)

    async def read(self, offset: int, length: int) -> bytes:
        """``SectorDevice.read``, also while the nexus comes back."""
        parts = []
        while length:
            size = min(length, _TRANSFER_BYTES)
            sector = self._sector_bytes
            parts.append(await self._command(commands.read_one(offset // sector, size // sector, sector)))
            offset, length = offset + size, length - size
        return b"".join(parts)

    async def write(self, offset: int, data: Buffer, *, durable: bool = False) -> None:
        """Not here: data goes through the device, its gate and its guard."""
        raise AssertionError(f"{self._name}: a write past the gate")

    async def flush(self) -> None:
        """Nothing was written here."""

    async def aclose(self) -> None:
        """The sessions are somebody else's."""

    # -- commands

    async def _insist(self, work: Callable[[Session], Awaitable[T]]) -> T:
        """B2.  Raises what ``work`` raises; SessionLost of a session that is being examined, or again and again."""
        for _ in range(_TRIES):
            if self._returning is not None:
                break
            try:
                return await work(await self._live())
            except SessionLost as error:
                log.info("%s: sent again", error)
        return await work(self._returning if self._returning is not None else await self._live())

    async def _command(self, command: Command) -> bytes:
        try:
            return await self._insist(lambda session: session.command(command))
        except CheckCondition as error:
            if error.unsupported:
                raise Unsupported(str(error)) from None
            raise

    async def _out(self, what: str, command: Command, own: int) -> None:
        try:
            await self._command(command)
        except ReservationConflict as error:
            try:
                found = await refusal(self, own, what)
            except Fenced:  # the session has been told so as well
                found = Conflict(str(error))
            raise found from None
