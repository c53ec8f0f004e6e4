"""Requests of the kernel that pyfuse3 lacks: the C extension parks each under a number, a task here answers it.

pyfuse3 plays no part in that, and no worker of its is occupied by a request that waits (coherence.md 11).

Invariants:
    PK1 Every number gets one reply: by its task, also when that is interrupted or the mount ends (ENOTCONN).
    PK2 An interrupt ends the wait of work that may wait long with EINTR, unless the work was done already
        (coherence.md 8).
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import trio

from matrixfs.fuse import libfuse
from matrixfs.fuse.errnos import judge

if TYPE_CHECKING:
    from matrixfs.fuse.edge import Edge

log = logging.getLogger(__name__)


class ParkedRequests:
    """See the module.

    Args:
        edge: translates errors.
    """

    def __init__(self, edge: Edge) -> None:
        self._edge = edge
        self._scopes: dict[int, trio.CancelScope] = {}
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Answer requests until cancelled; then each that waits gets ENOTCONN."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None

    def answer(
        self, number: int, name: str, work: Callable[[], Awaitable[None]], *, interruptible: bool = False
    ) -> None:
        """Have a request answered; called within pyfuse3's loop.

        Args:
            number: the request's.
            name: the operation's, for the log.
            work: replies itself, or returns for success; raises for an errno.
            interruptible: it may wait long, and a signal may end that.
        """
        if self._nursery is None:
            libfuse.reply_err(number, errno.ENOTCONN)
            return
        scope = trio.CancelScope()
        if interruptible:
            self._scopes[number] = scope
        self._nursery.start_soon(self._answer, number, name, scope, work)

    def interrupted(self, number: int) -> None:
        """The application got a signal: end the wait.  Never answers itself."""
        scope = self._scopes.get(number)
        if scope is not None:
            scope.cancel()

    async def _answer(
        self, number: int, name: str, scope: trio.CancelScope, work: Callable[[], Awaitable[None]]
    ) -> None:
        """Do the work and reply (PK1, PK2)."""
        code = errno.ENOTCONN  # should the mount end
        try:
            code = await self._outcome(name, scope, work)
        finally:
            self._scopes.pop(number, None)
            refused = libfuse.reply_err(number, code)
            if refused not in (0, errno.ESRCH, errno.ENOENT):  # answered already by the work; the caller is gone
                log.debug("%s: reply %d not taken (errno %d)", name, code, refused)

    async def _outcome(self, name: str, scope: trio.CancelScope, work: Callable[[], Awaitable[None]]) -> int:
        done = False
        try:
            with scope:
                try:
                    await work()
                except OSError as error:
                    if not await self._edge.deserves_another_try(error):
                        raise
                    await work()
                done = True
        except libfuse.pyfuse3.FUSEError as error:
            return int(error.errno)
        except Exception as error:
            if not judge(error).log:
                return judge(error).code
            translated: Any = self._edge.translate(name, (), error)
            return int(translated.errno)
        return 0 if done else errno.EINTR
