"""How a cluster disk does on this node: Figure 5's shared disk monitor as a table (pure; 002-12, 002-16).

Every WATCH_SECONDS the disk's label is read.  What comes of it is an event, a change of state is told to people.
"""

from __future__ import annotations

from enum import Enum

WATCH_SECONDS = 2.0
SLOW_SECONDS = 1.0  # an answer that takes longer is late


class DiskState(Enum):
    """The value is what people read."""

    ABSENT = "not found"  # on no path of this node yet
    PRESENT = "present"
    SLOW = "slow"  # does not answer in time, or not at all
    LOST = "lost"  # answers with errors, or its path is gone
    WRONG = "another disk"  # its path leads to other bytes now


class DiskEvent(Enum):
    """What a look at its label found."""

    GOOD = "its label, in time"
    LATE = "nothing in time"
    FAILED = "an error"
    OTHER = "another label"


TRANSITIONS: dict[tuple[DiskState, DiskEvent], DiskState] = {
    **{(state, DiskEvent.GOOD): DiskState.PRESENT for state in DiskState},
    **{(state, DiskEvent.OTHER): DiskState.WRONG for state in DiskState},
    (DiskState.ABSENT, DiskEvent.LATE): DiskState.ABSENT,
    (DiskState.PRESENT, DiskEvent.LATE): DiskState.SLOW,
    (DiskState.SLOW, DiskEvent.LATE): DiskState.SLOW,
    (DiskState.LOST, DiskEvent.LATE): DiskState.SLOW,
    (DiskState.WRONG, DiskEvent.LATE): DiskState.WRONG,
    (DiskState.ABSENT, DiskEvent.FAILED): DiskState.ABSENT,
    (DiskState.PRESENT, DiskEvent.FAILED): DiskState.LOST,
    (DiskState.SLOW, DiskEvent.FAILED): DiskState.LOST,
    (DiskState.LOST, DiskEvent.FAILED): DiskState.LOST,
    (DiskState.WRONG, DiskEvent.FAILED): DiskState.WRONG,
}


def is_usable(state: DiskState) -> bool:
    """Whether the node may go on using the device it has open: a slow disk is not a wrong one."""
    return state in (DiskState.PRESENT, DiskState.SLOW, DiskState.LOST)
