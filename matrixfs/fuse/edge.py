"""The one edge between pyfuse3 and our code (coherence.md 10).

An exception other than FUSEError that leaves a pyfuse3 handler ends the whole mount.  So every handler is wrapped by
``upcall``: expected errors become errno, unexpected ones are logged with what is needed to reproduce them and become
EIO, broken invariants and a lost right withdraw the mount on purpose (R9).  The edge also turns node ids into inode
numbers, counts, and marks the inodes concerned as busy, which purges look at (kernel_caches K1).
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from matrixfs.fuse.callers import Caller
from matrixfs.fuse.errnos import judge
from matrixfs.fuse.libfuse import pyfuse3
from membership.errors import NO_ROOM, ToldLate

if TYPE_CHECKING:
    from matrixfs.fuse.handles import HandleTable
    from matrixfs.fuse.kernel_caches import KernelCaches

log = logging.getLogger(__name__)

_ARGUMENT_CHARACTERS_MAX = 200  # a 1 MiB write is not repeated in the log
_Handler = TypeVar("_Handler", bound=Callable[..., Awaitable[Any]])


class Edge:
    """State of the edge: counters and what to do when the mount must stop.

    Args:
        caches: what the kernel knows; operations under way are marked there.
        handles: file handles to inode numbers.
        withdraw: called once, with the reason, when the mount must stop (R9); must not raise.
        make_room: called when an operation has ended for lack of space; whether it may do better a second time.
    """

    def __init__(
        self,
        caches: KernelCaches,
        handles: HandleTable,
        withdraw: Callable[[BaseException], None],
        make_room: Callable[[], Awaitable[bool]],
    ) -> None:
        self.caches = caches
        self.nodes = caches.nodes
        self.pending = caches.pending
        self.handles = handles
        self.calls: dict[str, int] = {}
        self.failures = 0  # unexpected errors: each one is a bug or a broken store
        self._withdraw = withdraw
        self._make_room = make_room
        self._withdrawn = False

    async def deserves_another_try(self, error: OSError) -> bool:
        """Whether an operation that failed so may do better now: there is room after all."""
        return self.lacks_room(error) and await self._make_room()

    @staticmethod
    def lacks_room(error: OSError) -> bool:
        """Whether an operation failed for want of room."""
        return error.errno in NO_ROOM and not isinstance(error, ToldLate)

    def translate(self, operation: str, arguments: tuple[Any, ...], error: Exception) -> BaseException:
        """The FUSEError for an exception; logs and withdraws as ``errnos.judge`` says."""
        verdict = judge(error)
        if verdict.log:
            self.failures += 1
            if verdict.trace:
                shown = ", ".join(repr(argument)[:_ARGUMENT_CHARACTERS_MAX] for argument in arguments)
                log.error("%s(%s) failed unexpectedly", operation, shown, exc_info=error)
            else:
                log.error("%s: %s", operation, error)
        if verdict.withdraw and not self._withdrawn:
            self._withdrawn = True
            self._withdraw(error)
        fuse_error: BaseException = pyfuse3.FUSEError(verdict.code)
        return fuse_error


def upcall(
    *nodes: int, handle: int = 0, caller: bool = False, partly: Callable[..., Awaitable[Any]] | None = None
) -> Callable[[_Handler], _Handler]:
    """Put a handler behind the edge.

    Args:
        nodes: positions of the arguments that are node ids (0 is the first after ``self``); the handler gets inode
            numbers instead.
        handle: so many of the first arguments are file handles; the handler gets their ``Handle`` instead.
        caller: the handler gets a ``Caller`` behind the other arguments, the same when it is called a second time.
        partly: called instead a second time, even where no room was made: it does what there is room for.
    """

    def decorate(method: _Handler) -> _Handler:
        operation = method.__name__

        @functools.wraps(method)
        async def behind_the_edge(self: Any, *arguments: Any) -> Any:
            edge: Edge = self.edge
            edge.calls[operation] = edge.calls.get(operation, 0) + 1
            marked: list[int] = []
            try:
                given = list(arguments)
                for position in range(handle):
                    given[position] = opened = edge.handles[arguments[position]]
                    marked.append(opened.ino)
                for position in nodes:
                    given[position] = edge.nodes.ino(arguments[position])
                    marked.append(given[position])
                if caller:
                    given.append(Caller(edge.caches, arguments[-1]))
                for ino in marked:
                    edge.pending.enter(ino)
                    if ino in edge.caches.unlanded:
                        edge.caches.landed(ino)
                try:
                    return await method(self, *given)
                except OSError as error:
                    if await edge.deserves_another_try(error) or (partly is not None and edge.lacks_room(error)):
                        return await (partly or method)(self, *given)
                    raise
                finally:
                    for ino in marked:
                        edge.pending.leave(ino)
            except pyfuse3.FUSEError:
                raise
            except Exception as error:
                raise edge.translate(operation, arguments, error) from error

        return behind_the_edge  # type: ignore[return-value]

    return decorate
