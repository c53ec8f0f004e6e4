"""The same work on many blocks, some at a time, failing with the plain error that a single one would raise."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

import trio

from membership.errors import MatrixError

_T = TypeVar("_T")


async def for_each(items: Iterable[_T], work: Callable[[_T], Awaitable[object]], *, workers: int) -> None:
    """Await ``work(item)`` for every item, at most ``workers`` at once; items are taken in order.

    Raises:
        MatrixError: the first that ``work`` raised, not wrapped in a group; the rest is cancelled.
    """
    todo = list(items)
    if len(todo) == 1:  # the usual case on the hot paths: no task for it
        await work(todo[0])
        return
    queue = iter(todo)
    failures: list[MatrixError] = []

    async def worker() -> None:
        for item in queue:
            try:
                await work(item)
            except MatrixError as error:
                failures.append(error)
                nursery.cancel_scope.cancel()
                return

    async with trio.open_nursery() as nursery:
        for _ in range(min(workers, len(todo))):
            nursery.start_soon(worker)
    if failures:
        raise failures[0]
