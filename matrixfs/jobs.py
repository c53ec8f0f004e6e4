"""Work on a whole mounted filesystem that an operator asks one mount process for: one at a time, watched and stopped.

It goes on when whoever asked is gone; its state is kept until the next one.  See ``scrubbing`` and ``trimming``.

Source: issue 5.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Generic, TypeVar

import trio

from membership.control_wire import Message, take
from membership.errors import OperatorError

if TYPE_CHECKING:
    from matrixfs.fs.volume import Volume
    from matrixfs.member import Member

_T = TypeVar("_T")


class Job(Generic[_T]):
    """See the module.  Subclasses have ``work``, which is given what ``start`` was.

    Args:
        member: the mount; its volume may not be there yet.
        done: what is being done to the filesystem, for messages: "scrubbed".
    """

    def __init__(self, member: Member, done: str) -> None:
        self.member = member
        self._done = done
        self._send: trio.MemorySendChannel[_T]
        self._send, self._receive = trio.open_memory_channel(0)
        self._scope: trio.CancelScope | None = None  # of the one that runs
        self._end = ""  # how the last one ended
        self._serial = 0

    async def run(self) -> None:
        """Work when asked to; until ``close``."""
        async for what in self._receive:
            with trio.CancelScope() as self._scope:
                self._end = await self.work(what)
            if self._scope.cancelled_caught:
                self._end = "it was stopped"
            self._scope = None

    def close(self) -> None:
        """Before the mount leaves: work no further."""
        self._send.close()
        if self._scope is not None:
            self._scope.cancel()

    @abstractmethod
    async def work(self, what: _T) -> str:
        """Do it; how it ended."""

    @abstractmethod
    def reset(self) -> None:
        """Forget the last one."""

    def start(self, arguments: Message, what: _T) -> int:
        """Begin; its number, 0 if the question is for another mount.  Raises OperatorError, BadMessage."""
        volume = self.meant(arguments)
        if volume is None:
            return 0
        try:
            self._send.send_nowait(what)
        except (trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError):
            raise OperatorError(
                f"{volume.superblock.name} is being {self._done} by this mount already, or unmounted"
            ) from None
        self._serial += 1
        self._end = ""
        self.reset()
        return self._serial

    def progress(self) -> Message:
        """How far the last one is."""
        running = self._scope is not None or (self._serial > 0 and not self._end)
        return {"serial": self._serial, "running": running, "end": self._end}

    def stop(self, arguments: Message) -> bool:
        """End it; whether one was under way.  Raises OperatorError, BadMessage."""
        if self.meant(arguments) is None or self._scope is None:
            return False
        self._scope.cancel()
        return True

    def meant(self, arguments: Message) -> Volume | None:
        """The volume, if the question is for this mount: all mounts of the node get it."""
        volume = self.member.volume
        if volume is None:
            raise OperatorError("the tree is still being mounted: try again")
        return volume if take(arguments, "fs", str) == volume.superblock.name else None
