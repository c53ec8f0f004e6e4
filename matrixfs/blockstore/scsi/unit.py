"""What a logical unit is: asked once when a store is opened, and again whenever its target has been away.

A LUN is a number that an administrator maps: after an outage another disk may stand behind it.  So the unit's own name
(VPD 83, else 80), its capacity and its block size are compared before a byte is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from matrixfs.blockstore.scsi import answers, commands
from matrixfs.blockstore.scsi.status import CheckCondition, NoSuchUnit, ReservationConflict
from membership.errors import BadMessage, DeviceError

if TYPE_CHECKING:
    from collections.abc import Callable

    from matrixfs.blockstore.scsi.session import Session

_T = TypeVar("_T")
ONE_AT_A_TIME: Final = {("FreeBSD", "iSCSI DISK")}
"""istgt 0.4 mixes its answers up under load: with 4 commands in flight and all CPUs busy, half the runs of
tests/contract got a broken stream, or the bytes of another read; with one none did."""
CAUTIOUS: Final = answers.Caching(write_cache=True, fua=False, write_protected=False)


@dataclass(frozen=True, slots=True)
class Unit:
    """A disk, as it describes itself."""

    maker: str
    name: str  # the unit's own, the same by all paths; empty when it has none
    capacity: answers.Capacity
    limits: answers.BlockLimits
    caching: answers.Caching | None  # None: we are not registered, and it tells only those who are
    unmaps: bool = False  # it says that it takes UNMAP

    def difference(self, later: Unit) -> str | None:
        """Why ``later`` can't be this disk; None when it can: it may have grown."""
        if self.name != later.name:
            return f"it is another disk now ({later.name or 'without a name'}, was {self.name or 'without a name'})"
        if self.capacity.sector_bytes != later.capacity.sector_bytes:
            return f"its blocks have {later.capacity.sector_bytes} bytes now, had {self.capacity.sector_bytes}"
        if later.capacity.blocks < self.capacity.blocks:
            return f"it has shrunk to {later.capacity.size_bytes} bytes, had {self.capacity.size_bytes}"
        return None


async def examine(session: Session) -> Unit:
    """Ask the unit of ``session`` what it is.

    Raises:
        NoSuchUnit: the target has no such LUN.
        DeviceError: it is no disk, answers nonsense, or the session ended.
    """
    where = session.where
    found = _parsed(where, answers.inquiry_untrusted, await session.command(commands.inquiry()))
    if found is None:
        await session.command(commands.test_unit_ready())  # says it in its own words: NoSuchUnit
        raise DeviceError(f"{where}: no such LUN")
    if not found.is_disk:
        raise DeviceError(f"{where}: is no disk ({found.vendor} {found.product})")
    if (found.vendor, found.product) in ONE_AT_A_TIME:
        session.one_at_a_time()
    await session.command(commands.test_unit_ready())
    capacity = _parsed(where, answers.capacity_untrusted, await session.command(commands.read_capacity()))
    return Unit(
        maker=f"{found.vendor} {found.product} {found.revision}",
        name=await _name(session),
        capacity=capacity,
        limits=await _asked(
            session,
            commands.vital_product_data(commands.VPD_BLOCK_LIMITS),
            answers.block_limits_untrusted,
            answers.BlockLimits(0, 0),
        ),
        caching=await caching_of(session),
        unmaps=await _asked(
            session, commands.vital_product_data(commands.VPD_PROVISIONING), answers.provisioning_untrusted, False
        ),
    )


async def caching_of(session: Session) -> answers.Caching | None:
    """How writes become durable; None when a reservation forbids the question (SPC-4 table 66, MODE SENSE).

    What has no such page is taken to have a cache and no FUA: a durable write then is followed by a flush.
    """
    try:
        return await _asked(session, commands.mode_sense_caching(), answers.caching_untrusted, CAUTIOUS)
    except ReservationConflict:
        return None


async def _name(session: Session) -> str:
    """The unit's own name, else its serial number."""
    page = commands.vital_product_data(commands.VPD_DEVICE_ID)
    name = await _asked(session, page, answers.device_id_untrusted, "")
    return name or await _asked(session, commands.vital_product_data(commands.VPD_SERIAL), answers.serial_untrusted, "")


async def _asked(session: Session, command: commands.Command, parse: Callable[[bytes], _T], otherwise: _T) -> _T:
    """The parsed answer; ``otherwise`` where the target doesn't know the question, or answers with nonsense."""
    try:
        return parse(await session.command(command))
    except NoSuchUnit:
        raise
    except (CheckCondition, BadMessage):
        return otherwise


def _parsed(where: str, parse: Callable[[bytes], _T], answer: bytes) -> _T:
    try:
        return parse(answer)
    except BadMessage as error:
        raise DeviceError(f"{where}: {error}") from None
