"""A clock that orders waits by age without time (pure): Lamport's, saturating.

Requests carry it up and grants carry it down.  A peer that sends the greatest stamp at once only makes all later
waits equally old: (stamp, owner) still orders them, and nothing but the choice of a deadlock's victim depends on it.
"""

from __future__ import annotations

from dlm.owned.ranges import END_MAX


class Stamps:
    """One node's."""

    def __init__(self) -> None:
        self.last = 0

    def next(self) -> int:
        """For a new wait."""
        self.last = min(self.last + 1, END_MAX)
        return self.last

    def see(self, stamp: int) -> None:
        """A peer's: ours are greater from now on."""
        self.last = max(self.last, stamp)
