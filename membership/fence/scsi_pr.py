"""The fence by persistent reservations: take a node's keys away on every cluster disk (002-31, 002-38; R4, R5).

Confirmed means: on every LUN the commands of the node have ended, none of its keys is left, and the reservation that
refuses the unregistered is in place (``expel``).  No clock is part of the argument.

Why nothing of the node lands after a confirmed fence (decision 0016 has the long form):
    P1. The header without the node is durable before the fence begins (S4), so before its first READ KEYS.
    P2. A process registers, *then* looks at header and slot, *then* writes (``StorageAccess``).  If it registered
        before our last READ KEYS, that saw the key and we went on; if after, its look came after P1 and it gives up.
    P3. A node's successor takes a key of the node only when its claim of the slot is durable (K2).  We read the keys
        first and the slot after it: when the slot still shows the incarnation to be fenced, every key of the node that
        was read belongs to that incarnation or to one before it.  A slot claimed anew ends the fence: H1 says that
        the claimant made sure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from membership.errors import CorruptRecord, MatrixError
from membership.fence.expel import expel, within
from membership.fence.keys import node_of
from membership.label import HEARTBEAT_BLOCK
from membership.san.fence import FenceResult

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from membership.fence.reservations import Lun
    from membership.lease.records import HeartbeatSlot
    from membership.seams import Clock

LUN_SECONDS = 10.0  # for one LUN; the caller asks again after a refusal


class _ClaimedAnew(MatrixError):
    """The slot of the target has another incarnation."""


class ScsiPrFence:
    """Fences by preempting.  Not for whom has no registration of its own: ``own_key`` returns 0 then.

    Args:
        luns: all cluster disks, as they are now.
        own_key: the key that this process has registered.
        read_slot: the heartbeat slot of a node as it is on the disk now, None when free.
        clock: for the bound.
    """

    name = "scsi-pr"

    def __init__(
        self,
        luns: Callable[[], Sequence[Lun]],
        own_key: Callable[[], int],
        read_slot: Callable[[int], Awaitable[HeartbeatSlot | None]],
        clock: Clock,
    ) -> None:
        self._luns = luns
        self._own_key = own_key
        self._read_slot = read_slot
        self._clock = clock

    def is_gone(self, target: HeartbeatSlot) -> bool | None:
        """Keys tell nothing about processes."""
        return None

    async def fence(self, target: HeartbeatSlot, evicted_at: float) -> FenceResult:
        """Take its keys away on all LUNs at once; confirmed when every LUN confirms."""
        luns = list(self._luns())
        refusal = self._refusal(luns)
        if refusal:
            return FenceResult(confirmed=False, driver=self.name, detail=refusal)
        outcomes: dict[str, list[int] | MatrixError] = {}

        async def one(lun: Lun) -> None:
            try:
                outcomes[lun.name] = await self._fence_on(lun, target)
            except MatrixError as error:
                outcomes[lun.name] = error

        async with trio.open_nursery() as nursery:
            for lun in luns:
                nursery.start_soon(one, lun)
        return self._result(outcomes)

    def _refusal(self, luns: list[Lun]) -> str:
        """Why it can't be tried."""
        if not luns:
            return "no cluster disk is known"
        if not self._own_key():
            return "this process has no registration"
        unfit = [lun.name for lun in luns if lun.usable is None]
        return f"no reservations that fence, or not reachable: {', '.join(unfit)}" if unfit else ""

    def _result(self, outcomes: dict[str, list[int] | MatrixError]) -> FenceResult:
        errors = [error for error in outcomes.values() if isinstance(error, MatrixError)]
        for error in errors:
            if isinstance(error, _ClaimedAnew):
                return FenceResult(confirmed=True, driver=self.name, detail=str(error))
        if errors:
            return FenceResult(confirmed=False, driver=self.name, detail="; ".join(sorted(map(str, errors))))
        keys = {key for taken in outcomes.values() if isinstance(taken, list) for key in taken}
        what = f"{len(keys)} keys taken away" if keys else "it had no keys"
        return FenceResult(confirmed=True, driver=self.name, detail=f"{what} on {len(outcomes)} LUN(s)")

    async def _fence_on(self, lun: Lun, target: HeartbeatSlot) -> list[int]:
        node = target.address - HEARTBEAT_BLOCK
        taken: list[int] = []

        async def victims(keys: list[int]) -> list[int]:
            found = sorted({key for key in keys if node_of(key) == node})
            if found:
                await self._check_slot(node, target)  # after the keys were read (P3)
            return found

        async def work() -> None:
            taken.extend(await expel(lun, self._own_key(), victims))

        await within(self._clock, LUN_SECONDS, lun.name, work)
        return taken

    async def _check_slot(self, node: int, target: HeartbeatSlot) -> None:
        """Raises _ClaimedAnew, DeviceError."""
        try:
            slot = await self._read_slot(node)
        except CorruptRecord:
            return  # a slot that can't be read is claimed by nobody
        if slot is not None and slot.incarnation != target.incarnation:
            raise _ClaimedAnew("its slot was claimed anew, which is only done after a fence")
