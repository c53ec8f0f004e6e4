"""Scrubbing a mounted filesystem: what one mount process does when ``matrixctl fs scrub`` asks it to (fs/scrub.py).

One scrub at a time in a mount.  It goes on when whoever asked is gone; what it found is kept until the next one, and
stands in the event log and in the mount's log.  A filesystem may be scrubbed by several mounts at once, for nothing.

Source: issue 5 ("Online scrub"); 002-26 for the events.
"""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from matrixfs.fs.scrub import Damage, Scrub, Totals
from matrixfs.jobs import Job
from membership.control_wire import Message, take
from membership.errors import MatrixError
from membership.orders import Told

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matrixfs.answers import Handler
    from matrixfs.member import Member

DAMAGES_MAX: Final = 100  # kept for who asks; more are counted, and stand in the log

log = logging.getLogger(__name__)


class Scrubber(Job[bool]):
    """See the module.

    Args:
        member: the mount; its volume may not be there yet.
    """

    def __init__(self, member: Member) -> None:
        super().__init__(member, "scrubbed")
        self.reset()

    def reset(self) -> None:
        """``Job``."""
        self._totals = Totals()
        self._damages: list[Damage] = []

    def handlers(self) -> Mapping[str, Handler]:
        """The questions, for ``Answers``."""
        return {"fs.scrub": self.begin, "fs.scrubbed": self.state, "fs.scrub.stop": self.stop}

    def begin(self, arguments: Message) -> int:
        """Begin to scrub ``fs``, if ``data`` with its files' bytes; its number.  Raises OperatorError, BadMessage."""
        return self.start(arguments, take(arguments, "data", bool))

    def state(self, arguments: Message) -> Message | None:
        """How far the last scrub of ``fs`` is.  Raises OperatorError, BadMessage."""
        if self.meant(arguments) is None:
            return None
        damages = [_shown(damage) for damage in self._damages]
        return {**self.progress(), "totals": asdict(self._totals), "damages": damages}

    # --- the work -------------------------------------------------------------------------------------------

    async def work(self, what: bool) -> str:
        """Scrub, with the files' bytes if asked so."""
        volume = self.member.volume
        assert volume is not None
        scrub = Scrub(volume, self._note, read_data=what)
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
        await self.member.reply(Told(text))
        return end

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
