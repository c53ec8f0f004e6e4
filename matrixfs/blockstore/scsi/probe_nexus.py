"""A nexus for the probe: sessions of its own over iSCSI, past every gate (see ``probe``)."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from matrixfs.blockstore.scsi import commands
from matrixfs.blockstore.scsi.address import Address, identity_of
from matrixfs.blockstore.scsi.commands import Command
from matrixfs.blockstore.scsi.probe import SCRATCH_BLOCK, probe
from matrixfs.blockstore.scsi.reservation_commands import Action, reserve_out
from matrixfs.blockstore.scsi.reservations import ScsiReservations
from matrixfs.blockstore.scsi.session import Session
from matrixfs.blockstore.scsi.status import CheckCondition, Miscompare, ReservationConflict
from matrixfs.blockstore.scsi.unit import examine
from membership.fence.reservations import Leak, Unsupported

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from matrixfs.blockstore.scsi.address import Identity
    from membership.fence.reservations import LunTraits
    from membership.seams import Buffer

_WRITE_10 = 0x2A


async def probe_iscsi(
    address: Address,
    host: str,
    environment: Mapping[str, str],
    nonce: str,
    *,
    scratch_block: int = SCRATCH_BLOCK,
    progress: Callable[[str], None] = lambda _: None,
) -> LunTraits:
    """Probe the LUN at ``address``.

    Args:
        address: the LUN.
        host: name of this node, for the initiator's name.
        environment: of the process; see ``identity_of``.
        nonce: makes the initiator ports different from those of any other probe.
        scratch_block: see ``probe``.
        progress: see ``probe``.

    Raises:
        OperatorError, DeviceError: see ``probe``.
    """

    async def open_nexus(name: str) -> IscsiProbeNexus:
        return await IscsiProbeNexus.open(address, identity_of(f"probe:{nonce}:{name}", host, environment))

    return await probe(open_nexus, scratch_block, progress=progress)


class IscsiProbeNexus(ScsiReservations):
    """Implements ``ProbeNexus``."""

    def __init__(self, address: Address, identity: Identity, session: Session, sector_bytes: int, size: int) -> None:
        super().__init__(f"{address} ({identity.isid_random:06x})", sector_bytes, size, self._get)
        self._address = address
        self._identity = identity
        self._now = session

    @classmethod
    async def open(cls, address: Address, identity: Identity) -> IscsiProbeNexus:
        """Log in.  Raises DeviceError."""
        session = await Session.login(address, identity)
        capacity = (await examine(session)).capacity
        return cls(address, identity, session, capacity.sector_bytes, capacity.size_bytes)

    @property
    def is_alive(self) -> bool:
        """Whether its session is."""
        return not self._now.ended.is_set()

    async def _get(self) -> Session:
        return self._now

    async def write(self, offset: int, data: Buffer, *, durable: bool = False) -> None:
        """WRITE(16)."""
        await self._now.command(commands.write_one(offset // self.sector_bytes, bytes(data), self.sector_bytes))

    async def register_persistent(self, key: int) -> None:
        """REGISTER AND IGNORE with APTPL."""
        await self._out("REGISTER", reserve_out(Action.REGISTER_AND_IGNORE, action_key=key, aptpl=True), key)

    async def slips(self, leak: Leak, offset: int) -> bool:
        """See ``ProbeNexus``."""
        try:
            await self._now.command(self._leaking(leak, offset // self.sector_bytes))
        except Miscompare:
            return True  # it was let in as far as the comparison
        except (ReservationConflict, CheckCondition):
            return False
        return True

    def _leaking(self, leak: Leak, lba: int) -> Command:
        size = self.sector_bytes
        sector = b"leak" * (size // 4)
        if leak is Leak.WRITE_SAME:
            return commands.write_same(lba, 1, sector)
        if leak is Leak.ORWRITE:
            return commands.orwrite(lba, sector, size)
        if leak is Leak.WRITE_AND_VERIFY:
            return commands.write_and_verify(lba, sector, size)
        if leak is Leak.UNMAP:
            return commands.unmap(lba, 1)
        if leak is Leak.COMPARE_AND_WRITE:
            return commands.compare_and_write(lba, bytes(size), sector, size)
        return Command("WRITE(10)", struct.pack(">BBIBHB", _WRITE_10, 0, lba, 0, 1, 0), sector)

    async def compare_and_write(self, offset: int, old: bytes, new: bytes) -> bool:
        """See ``ProbeNexus``."""
        command = commands.compare_and_write(offset // self.sector_bytes, old, new, self.sector_bytes)
        try:
            await self._now.command(command)
        except Miscompare:
            return False
        except CheckCondition as error:
            if error.unsupported:
                raise Unsupported(str(error)) from None
            raise
        return True

    async def relogin(self) -> None:
        """See ``ProbeNexus``."""
        self.drop()
        self._now = await Session.login(self._address, self._identity)

    def drop(self) -> None:
        """End the session without a word, as a crash does."""
        self._now.drop("the probe lets it go")

    async def aclose(self) -> None:
        """Log out."""
        await self._now.aclose()
