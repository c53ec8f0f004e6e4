"""Telling a mounted filesystem's store what is free: what a mount process does for ``matrixctl fs trim`` (fs/trim.py).

Source: issue 5; 002-26 for the events.
"""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import TYPE_CHECKING

from matrixfs.fs.trim import Totals
from matrixfs.jobs import Job
from membership.control_wire import Message, take_natural
from membership.errors import MatrixError
from membership.label import BLOCK_BYTES
from membership.orders import Told

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matrixfs.answers import Handler
    from matrixfs.member import Member

WHOLE = "all groups were looked at"

log = logging.getLogger(__name__)


class Trimmer(Job[int]):
    """See the module.

    Args:
        member: the mount; its volume may not be there yet.
    """

    def __init__(self, member: Member) -> None:
        super().__init__(member, "trimmed")
        self.reset()

    def reset(self) -> None:
        """``Job``."""
        self._totals = Totals()

    def handlers(self) -> Mapping[str, Handler]:
        """The questions, for ``Answers``."""
        return {"fs.trim": self.begin, "fs.trimmed": self.state, "fs.trim.stop": self.stop}

    def begin(self, arguments: Message) -> int:
        """Begin to trim ``fs``: runs of at least ``least`` bytes; its number.  Raises OperatorError, BadMessage."""
        return self.start(arguments, take_natural(arguments, "least"))

    def state(self, arguments: Message) -> Message | None:
        """How far the last trim of ``fs`` is.  Raises OperatorError, BadMessage."""
        volume = self.meant(arguments)
        if volume is None:
            return None
        totals = {**asdict(self._totals), "groups_all": volume.superblock.groups}
        return {**self.progress(), "whole": self._end == WHOLE, "totals": totals}

    async def work(self, what: int) -> str:
        """Trim runs of at least so many bytes."""
        volume = self.member.volume
        assert volume is not None
        try:
            await volume.trims.all(max(1, -(-what // BLOCK_BYTES)), self._totals)
        except MatrixError as error:
            log.warning("the trim failed: %s", error)
            return str(error)
        text = f"trimmed: the store was told of {self._totals.blocks * BLOCK_BYTES} free bytes"
        log.info("%s", text)
        await self.member.reply(Told(text))
        return WHOLE
