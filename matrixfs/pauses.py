"""Points at which a mount process stops, for tests of what happens meanwhile; in production there are none.

With MATRIXFS_PAUSES=DIR in its environment a mount waits before it carries out an order for as long as there is a file
DIR/ORDER.NODE (for example ``Replay.0``), or DIR/ORDER for all nodes; it makes DIR/ORDER.NODE.reached when it stops.
So a test on real mounts holds a recovery in any phase, does what it likes, and lets it go on by deleting the file.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, TypeAlias

import trio

from membership.seams import Clock

VARIABLE: Final = "MATRIXFS_PAUSES"
LOOK_SECONDS: Final = 0.005

Pause: TypeAlias = Callable[[str], Awaitable[None]]


async def never(point: str) -> None:
    """Production: no pause, and no checkpoint."""


def pauses_of(directory: str | None, node: int, clock: Clock) -> Pause:
    """The pauses of this mount; ``directory``: value of ``VARIABLE``, if it is set."""
    if not directory:
        return never
    top = Path(directory)

    async def pause(point: str) -> None:
        while _is_held(top, point, node):
            await clock.sleep(LOOK_SECONDS)
        await trio.lowlevel.checkpoint()

    return pause


def _is_held(top: Path, point: str, node: int) -> bool:
    if not (top / point).exists() and not (top / f"{point}.{node}").exists():
        return False
    (top / f"{point}.{node}.reached").touch()
    return True
