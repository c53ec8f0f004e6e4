"""Freezing a mounted filesystem: one mount holds it still for the whole cluster (``matrixctl fs freeze`` and ``thaw``).

It takes the SHAPE lock (one freezes or grows at a time), then the CHANGE lock alone: every mount brings home what it
changed, empties its journal and changes nothing more (fs/changes.py).  Reading goes on.

Invariants:

Z1. A freeze ends by itself after the time that was asked for: whoever forgot it costs the others no more than that.
Z2. Who joins or dies meanwhile thaws nothing: the lock is as good after a recovery as before.  Only if the mount dies
    that froze it the freeze is over, once its journal is replayed; ``thaw`` then says that it was not frozen any more,
    so nobody takes a copy for good that was made afterwards.
Z3. Who froze it can unmount: it thaws first.

Source: issue 5 ("freeze and thaw of the whole cluster"); R14; decision 0021.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import trio

from matrixfs.locks.modes import EX
from matrixfs.locks.resources import SHAPE, Resource
from membership.control_wire import Message, take
from membership.errors import BadMessage, OperatorError
from membership.orders import Told

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matrixfs.answers import Handler
    from matrixfs.fs.volume import Volume
    from matrixfs.locks.lock import Lock
    from matrixfs.member import Member

FROZEN_SECONDS_MAX: Final = 86_400.0
SHAPE_SECONDS: Final = 2.0  # to wait for who grows or freezes it
QUIET_SECONDS: Final = 60.0  # for all mounts to bring home what they changed

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Freeze:
    """One, from when it was asked for until it is over."""

    until_thaw: float  # seconds it may last
    asked_at: float  # monotonic
    frozen_at: float | None = None  # monotonic; None: mounts still bring home what they changed
    thaw: trio.Event = field(default_factory=trio.Event)
    over: trio.Event = field(default_factory=trio.Event)
    error: str = ""  # why it came to nothing


class Freezer:
    """See the module.

    Args:
        member: the mount; its volume may not be there yet.
    """

    flushes = False  # callouts of the SHAPE lock: nothing is cached under it
    upgrades = False

    def __init__(self, member: Member) -> None:
        self._member = member
        self._send: trio.MemorySendChannel[Freeze]
        self._send, self._receive = trio.open_memory_channel(0)
        self._freeze: Freeze | None = None  # the last one

    def handlers(self) -> Mapping[str, Handler]:
        """The questions, for ``Answers``."""
        return {"fs.freeze": self.freeze, "fs.frozen": self.frozen, "fs.thaw": self.thaw}

    async def run(self) -> None:
        """Freeze when asked to; until ``close``."""
        async for freeze in self._receive:
            try:
                await self._hold(freeze)
            finally:
                freeze.over.set()

    async def close(self) -> None:
        """Before the mount leaves (Z3)."""
        self._send.close()
        if self._freeze is not None:
            self._freeze.thaw.set()
            await self._freeze.over.wait()

    async def surrender(self, lock: Lock, mode: int) -> None:
        """Callout: a peer wants to grow or to freeze it."""

    # --- questions -----------------------------------------------------------------------------------------

    def freeze(self, arguments: Message) -> None:
        """Begin to freeze ``fs`` for ``seconds``; ``frozen`` tells how far it is.  Raises OperatorError, BadMessage."""
        volume = self._meant(arguments)
        seconds = take(arguments, "seconds", float)
        if not 0 < seconds <= FROZEN_SECONDS_MAX:
            raise BadMessage("control message: seconds is out of range")
        if volume is None:
            return
        freeze = Freeze(seconds, self._member.clock.monotonic())
        try:
            self._send.send_nowait(freeze)
        except (trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError):
            raise OperatorError(f"{volume.superblock.name} is being frozen already, or unmounted here") from None
        self._freeze = freeze

    def frozen(self, arguments: Message) -> Message | None:
        """What this mount does to ``fs``: None when it does not freeze it.  Raises OperatorError, BadMessage."""
        return self.state() if self._meant(arguments) is not None else None

    async def thaw(self, arguments: Message) -> bool:
        """End it; whether this mount held ``fs`` frozen until now.  Raises OperatorError, BadMessage."""
        freeze = self._freeze
        if self._meant(arguments) is None or freeze is None or freeze.over.is_set():
            return False
        freeze.thaw.set()
        if freeze.frozen_at is None:
            return False  # mounts still come to rest: it ends as soon as it begins
        await freeze.over.wait()
        return True

    def state(self) -> dict[str, Any] | None:
        """For people: since when, for how long still; None when this mount does not freeze it."""
        freeze = self._freeze
        if freeze is None or (freeze.over.is_set() and not freeze.error):
            return None
        now = self._member.clock.monotonic()
        since = freeze.frozen_at
        return {
            "frozen": since is not None and not freeze.over.is_set(),
            "seconds": round(now - (freeze.asked_at if since is None else since), 3),
            "left": round(max(0.0, freeze.until_thaw - (0.0 if since is None else now - since)), 3),
            "error": freeze.error,
        }

    def _meant(self, arguments: Message) -> Volume | None:
        """The volume, if the question is for this mount: all mounts of the node get it."""
        volume = self._member.volume
        if volume is None:
            raise OperatorError("the tree is still being mounted: try again")
        return volume if take(arguments, "fs", str) == volume.superblock.name else None

    # --- the work -------------------------------------------------------------------------------------------

    async def _hold(self, freeze: Freeze) -> None:
        volume = self._member.volume
        assert volume is not None
        shape = volume.locks.lock(Resource(SHAPE, 0), self)
        if not await shape.hold(EX, exclusive=True, timeout=SHAPE_SECONDS):
            freeze.error = "another mount freezes or grows it just now (matrixctl locks)"
            return
        try:
            change = volume.changes.lock
            if not await change.hold(EX, exclusive=True, timeout=QUIET_SECONDS):
                freeze.error = f"the mounts did not come to rest within {QUIET_SECONDS:g} s (matrixctl locks says why)"
                return
            try:
                await self._keep(freeze, volume)
            finally:
                change.drop(EX, exclusive=True)
        finally:
            shape.drop(EX, exclusive=True)

    async def _keep(self, freeze: Freeze, volume: Volume) -> None:
        """All others rest; rest too, and wait."""
        await volume.changes.rest()
        freeze.frozen_at = self._member.clock.monotonic()
        log.info("frozen, for %g s at most", freeze.until_thaw)
        await self._member.reply(Told(f"frozen, for {freeze.until_thaw:g} s at most"))
        with trio.move_on_after(freeze.until_thaw) as limit:
            await freeze.thaw.wait()
        seconds = self._member.clock.monotonic() - freeze.frozen_at
        why = "by its time limit, nobody thawed it" if limit.cancelled_caught else "as asked"
        log.info("thawed after %.1f s %s", seconds, why)
        await self._member.reply(Told(f"thawed after {seconds:.1f} s {why}"))
