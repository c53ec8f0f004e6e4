"""Scrubbing a mounted filesystem: what one mount process does when ``matrixctl fs scrub`` asks it to (fs/scrub.py).

One scrub at a time in a mount.  It goes on when whoever asked is gone; what it found is kept until the next one, and
stands in the event log and in the mount's log.  A filesystem may be scrubbed by several mounts at once, for nothing.

Source: issue 5 ("Online scrub"); 002-26 for the events.
"""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import trio

from matrixfs.fs.scrub import Damage, Scrub, Totals
from membership.control_wire import Message, take
from membership.errors import MatrixError, OperatorError
from membership.orders import Told

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matrixfs.answers import Handler
    from matrixfs.fs.volume import Volume
    from matrixfs.member import Member

DAMAGES_MAX: Final = 100  # kept for who asks; more are counted, and stand in the log

log = logging.getLogger(__name__)


class Scrubber:
    """See the module.

    Args:
        member: the mount; its volume may not be there yet.
    """

    def __init__(self, member: Member) -> None:
        self._member = member
        self._send: trio.MemorySendChannel[bool]
        self._send, self._receive = trio.open_memory_channel(0)
        self._scope: trio.CancelScope | None = None  # of the one that runs
        self._totals = Totals()
        self._damages: list[Damage] = []
        self._end = ""  # how the last one ended
        self._serial = 0

    def handlers(self) -> Mapping[str, Handler]:
        """The questions, for ``Answers``."""
        return {"fs.scrub": self.begin, "fs.scrubbed": self.state, "fs.scrub.stop": self.stop}

    async def run(self) -> None:
        """Scrub when asked to; until ``close``."""
        async for read_data in self._receive:
            with trio.CancelScope() as self._scope:
                await self._scrub(read_data=read_data)
            if self._scope.cancelled_caught:
                self._end = "it was stopped"
            self._scope = None

    def close(self) -> None:
        """Before the mount leaves: look no further."""
        self._send.close()
        if self._scope is not None:
            self._scope.cancel()

    # --- questions -----------------------------------------------------------------------------------------

    def begin(self, arguments: Message) -> int:
        """Begin to scrub ``fs``, if ``data`` with its files' bytes; its number.  Raises OperatorError, BadMessage."""
        read_data = take(arguments, "data", bool)
        volume = self._meant(arguments)
        if volume is None:
            return 0
        try:
            self._send.send_nowait(read_data)
        except (trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError):
            raise OperatorError(
                f"{volume.superblock.name} is being scrubbed by this mount already, or unmounted"
            ) from None
        self._serial += 1
        self._totals, self._damages, self._end = Totals(), [], ""
        return self._serial

    def state(self, arguments: Message) -> Message | None:
        """How far the last scrub of ``fs`` is.  Raises OperatorError, BadMessage."""
        if self._meant(arguments) is None:
            return None
        return {
            "serial": self._serial,
            "running": self._scope is not None or (self._serial > 0 and not self._end),
            "end": self._end,
            "totals": asdict(self._totals),
            "damages": [_shown(damage) for damage in self._damages],
        }

    def stop(self, arguments: Message) -> bool:
        """End it; whether one was under way.  Raises OperatorError, BadMessage."""
        if self._meant(arguments) is None or self._scope is None:
            return False
        self._scope.cancel()
        return True

    def _meant(self, arguments: Message) -> Volume | None:
        """The volume, if the question is for this mount: all mounts of the node get it."""
        volume = self._member.volume
        if volume is None:
            raise OperatorError("the tree is still being mounted: try again")
        return volume if take(arguments, "fs", str) == volume.superblock.name else None

    # --- the work -------------------------------------------------------------------------------------------

    async def _scrub(self, *, read_data: bool) -> None:
        volume = self._member.volume
        assert volume is not None
        scrub = Scrub(volume, self._note, read_data=read_data)
        self._totals = scrub.totals
        log.info("a scrub begins")
        end = "it saw everything"
        try:
            await scrub.run()
        except MatrixError as error:
            end = f"it failed: {error}"
        totals = scrub.totals
        text = (
            f"scrubbed {totals.directories} directories, {totals.others} other objects: {totals.damaged} damaged; {end}"
        )
        log.info("%s", text)
        await self._member.reply(Told(text))
        self._end = end

    def _note(self, damage: Damage) -> None:
        log.error(
            "scrub: inode %d (%s): %s%s",
            damage.ino, damage.path.decode(errors="backslashreplace"), damage.text,
            "; it is in quarantine now" if damage.is_quarantined else "",
        )  # fmt: skip
        if len(self._damages) < DAMAGES_MAX:
            self._damages.append(damage)


def _shown(damage: Damage) -> dict[str, Any]:
    return {"inode": damage.ino, "path": damage.path, "text": damage.text, "quarantined": damage.is_quarantined}
