"""Which mounts must go when some can't reach each other though their matrixds can (pure; issue 3).

A broken link costs messages, and only a new attempt makes them good.  When the link does not come back, the attempt
can't be completed: the rebuild waits for a report that never comes, and all wait with it.

The rule: a link counts as lost in an attempt when one of its ends says so (LinkLost, not refused) **while that attempt
rebuilds**: by then both ends have answered SUSPEND, so both live.  A refusal is a death, which the matrixd of the
dead tells.  All members have ``COLLECT_SECONDS`` to say what they miss, then the next attempt begins.  Links that were
lost in ``ATTEMPTS_MAX`` attempts, none of which was completed, are taken as lost for good: the mount with most of them
goes, of two equal ones the one with the greater address; then the next, until none is left.  So the larger part
stays, and of two the one that would stay if the whole nodes were cut apart.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from membership.group.connectivity import address_key

if TYPE_CHECKING:
    from collections.abc import Mapping

    from membership.seams import PeerAddress

ATTEMPTS_MAX = 3
COLLECT_SECONDS = 1.5  # a mount says every second which links it misses

Pair = tuple[int, int]


class LostLinks:
    """Of one filesystem."""

    def __init__(self) -> None:
        self.missed_at: float | None = None  # since when somebody misses a link in this attempt
        self._now: set[Pair] = set()  # those that count, in this attempt
        self._attempts: Counter[Pair] = Counter()  # in how many attempts before it

    def lost(self, node: int, other: int, now: float, *, counts: bool) -> None:
        """``node`` can't reach ``other`` in this attempt; ``counts``: both live, and so it can't be completed."""
        if self.missed_at is None:
            self.missed_at = now
        if counts:
            self._now.add((min(node, other), max(node, other)))

    def begin(self) -> None:
        """An attempt begins, because of the lost links or of something else."""
        self._attempts.update(self._now)
        self.missed_at = None
        self._now.clear()

    def completed(self) -> None:
        """All members have rebuilt: no link is missed."""
        self.missed_at = None
        self._now.clear()
        self._attempts.clear()

    def verdict(self, addresses: Mapping[int, PeerAddress]) -> list[int]:
        """Who must go, of these members; each with all its links."""
        lost = {pair for pair, count in self._attempts.items() if count >= ATTEMPTS_MAX and set(pair) <= set(addresses)}
        going: list[int] = []
        while lost:
            links = Counter(node for pair in lost for node in pair)
            worst = max(links, key=lambda node: (links[node], address_key(addresses[node])))
            going.append(worst)
            lost = {pair for pair in lost if worst not in pair}
        return going
