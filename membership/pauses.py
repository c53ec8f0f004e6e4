"""Points at which a process stops, for tests of what happens meanwhile; in production there are none.

With MATRIXFS_PAUSES=DIR in its environment a process waits at a point for as long as there is a file DIR/POINT.NODE
(for example ``Replay.0``), or DIR/POINT for all nodes; it makes DIR/POINT.NODE.reached when it stops.  So a test on
real processes holds a recovery or an election in any step, does what it likes, and lets it go on by deleting the file.

A mount process stops before it carries out an order, under the order's name (``membership/orders.py``).  matrixd stops
at the steps of Figure 11, where the rest of it goes on, heartbeats included:

- ``Ballot``: about to ballot for a generation: a candidate that was nominated (1706), or an administrator;
- ``Decided``: the ballot is over, and the result durable; nobody has been told (1720);
- ``Header``: about to write the header, as a candidate that was committed (1754) or as administrator (1710, 1728);
- ``HeaderHalf``: one copy of it is written, the other is the old one;
- ``HeaderDone``: it is durable, and nobody has been told;
- ``Fence``: about to fence somebody that the header leaves out (1708);
- ``Fenced``: it is fenced, and nothing of it recovered (1712).

And at those of Figure 12: ``Change.1602``, ``Change.1604``, ``Change.1606``, ``Change.1608`` (``administration.py``).
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
    """The pauses of a process of this node; ``directory``: value of ``VARIABLE``, if it is set."""
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
