"""Quotas as an administrator sees them: what a mount process does when ``matrixctl fs quota`` asks it to.

One piece of work at a time in a mount, in a task of its own: it waits for other nodes' locks, and goes on when whoever
asked is gone.  The answer is fetched in parts.

Source: issue 5 ("Quotas"); decision 0023; fs/quota_admin.py.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias

import trio

from matrixfs.fs import quota_admin
from matrixfs.ondisk.quota import AMOUNT_MAX, TYPES, Limits
from membership.control_wire import Message, take, take_natural
from membership.errors import BadMessage, MatrixError, OperatorError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matrixfs.answers import Handler
    from matrixfs.fs.quota_admin import Row
    from matrixfs.fs.volume import Volume
    from matrixfs.member import Member

ROWS_MAX: Final = 200  # of one answer
LIMIT_FIELDS: Final = ("blocks_hard", "blocks_soft", "inodes_hard", "inodes_soft")
GRACE_FIELDS: Final = ("blocks_ns", "inodes_ns")

Work: TypeAlias = Callable[[], Awaitable["list[Row] | Row | None"]]

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Result:
    """What came of one piece of work."""

    serial: int = 0
    done: bool = True
    error: str = ""
    exit_code: int = 0
    rows: list[Row] = field(default_factory=list)


class Limiter:
    """See the module.

    Args:
        member: the mount; its volume may not be there yet.
    """

    def __init__(self, member: Member) -> None:
        self._member = member
        self._send: trio.MemorySendChannel[Work]
        self._send, self._receive = trio.open_memory_channel(0)
        self._working = trio.Lock()
        self._result = Result()

    def handlers(self) -> Mapping[str, Handler]:
        """The questions, for ``Answers``."""
        return {
            "fs.quota": self.report,
            "fs.quota.set": self.set_limits,
            "fs.quota.grace": self.set_grace,
            "fs.quota.result": self.result,
        }

    async def run(self) -> None:
        """Do what is asked for; until ``close``."""
        async for work in self._receive:
            async with self._working:
                await self._do(work, self._result)

    async def close(self) -> None:
        """Before the mount leaves: wait for what is under way, begin nothing more."""
        self._send.close()
        await self._working.acquire()

    # --- questions -----------------------------------------------------------------------------------------

    def report(self, arguments: Message) -> int:
        """Begin to look who uses how much of ``fs``; the number of that work.  Raises OperatorError, BadMessage."""
        volume = self._meant(arguments)
        return 0 if volume is None else self._begin(volume, functools.partial(quota_admin.report, volume))

    def set_limits(self, arguments: Message) -> int:
        """Begin to set those limits of ``type`` and ``id`` that are not -1.  Raises as ``report``."""
        volume = self._meant(arguments)
        kind, number = _type(arguments), take_natural(arguments, "id", 32)
        wanted = {name: _amount(arguments, name, AMOUNT_MAX) for name in LIMIT_FIELDS}
        if volume is None:
            return 0

        def change(limits: Limits) -> Limits:
            return limits._replace(**{name: value for name, value in wanted.items() if value is not None})

        return self._begin(volume, functools.partial(quota_admin.set_limits, volume, kind, number, change))

    def set_grace(self, arguments: Message) -> int:
        """Begin to set those grace periods of ``type`` that are not -1.  Raises as ``report``."""
        volume = self._meant(arguments)
        kind = _type(arguments)
        blocks, inodes = (_amount(arguments, name, (1 << 62) - 1) for name in GRACE_FIELDS)
        if volume is None:
            return 0
        return self._begin(volume, functools.partial(quota_admin.set_grace, volume, kind, blocks, inodes))

    def result(self, arguments: Message) -> Message | None:
        """What came of the last work on ``fs``, its rows from number ``from`` on.  Raises as ``report``."""
        at = take_natural(arguments, "from", 31)
        if self._meant(arguments) is None:
            return None
        found = self._result
        rows = found.rows[at : at + ROWS_MAX]
        return {
            "serial": found.serial, "done": found.done, "error": found.error, "exit_code": found.exit_code,
            "now_ns": self._member.clock.wall_ns(), "count": len(found.rows),
            "rows": [[row.kind, row.number, row.blocks, row.inodes, *row.limits] for row in rows],
        }  # fmt: skip

    def _meant(self, arguments: Message) -> Volume | None:
        """The volume, if the question is for this mount: all mounts of the node get it."""
        volume = self._member.volume
        if volume is None:
            raise OperatorError("the tree is still being mounted: try again")
        return volume if take(arguments, "fs", str) == volume.superblock.name else None

    # --- the work -------------------------------------------------------------------------------------------

    def _begin(self, volume: Volume, work: Work) -> int:
        quota_admin.quotas_of(volume)
        try:
            self._send.send_nowait(work)
        except (trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError):
            raise OperatorError("this mount works on quotas already, or is unmounted: try again in a moment") from None
        self._result = Result(self._result.serial + 1, done=False)
        return self._result.serial

    @staticmethod
    async def _do(work: Work, result: Result) -> None:
        try:
            found = await work()
            result.rows = found if isinstance(found, list) else [found] if found is not None else []
        except MatrixError as error:
            result.error, result.exit_code = str(error), error.exit_code
        except OSError as error:
            failure = MatrixError(f"limits can't be stored: {error.strerror}")
            result.error, result.exit_code = str(failure), failure.exit_code
        finally:
            if result.error:
                log.error("quotas: %s", result.error)
            result.done = True


def _type(arguments: Message) -> int:
    kind = take_natural(arguments, "type", 8)
    if kind not in TYPES:
        raise BadMessage("control message: type is out of range")
    return kind


def _amount(arguments: Message, name: str, most: int) -> int | None:
    """A limit or a time; None where it stays as it is."""
    value = take(arguments, name, int)
    if not -1 <= value <= most:
        raise BadMessage(f"control message: {name} is out of range")
    return None if value < 0 else value
