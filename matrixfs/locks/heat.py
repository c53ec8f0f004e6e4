"""Which locks are hot, and how long grants take: counters that ``matrixctl top`` and ``metrics`` read (pure; R14).

Fed with every note of the trace, so it costs the lock cache no further call.  All counters only grow; who wants a
rate takes the difference of two looks.

- **requests** to the lock manager, **grants** and how long they took (those that this node grants itself too: near 0),
  **revokes** by peers, **hand-overs** (locks given up, wholly or to a lower mode), each by type.
- The same for single locks, for those that were last handed over, asked back, or waited for longer than ``WAIT``.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from typing import Any, Final

from dlm.names import Resource
from matrixfs.locks.resources import DOMAIN_NAMES

BOUNDS: Final = (  # seconds; upper ends of the histogram's buckets, the last one is open
    0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0,
)  # fmt: skip
WAIT: Final = 0.001  # seconds; a grant that took longer makes a lock worth watching
HOT_MAX: Final = 2048  # locks; some 200 bytes each
ASKED_MAX: Final = 65536  # requests under way; cancelled ones stay until their lock is asked for again


class Times:
    """A histogram of seconds."""

    __slots__ = ("buckets", "total")

    def __init__(self) -> None:
        self.buckets = [0] * (len(BOUNDS) + 1)
        self.total = 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        self.buckets[bisect_left(BOUNDS, seconds)] += 1
        self.total += seconds

    def plain(self) -> dict[str, Any]:
        """As plain data."""
        return {"bounds": list(BOUNDS), "buckets": list(self.buckets), "sum": self.total}


class Hot:
    """One lock worth watching."""

    __slots__ = ("handovers", "revokes", "wait_seconds", "waits")

    def __init__(self) -> None:
        self.handovers = self.revokes = self.waits = 0
        self.wait_seconds = 0.0


class Heat:
    """See the module."""

    def __init__(self) -> None:
        self.events: Counter[tuple[int, str]] = Counter()  # by (domain, event)
        self.times: dict[int, Times] = {}  # from request to grant, by domain
        self._asked: dict[Resource, float] = {}
        self._hot: dict[Resource, Hot] = {}  # the one that changed last is last

    def note(self, now: float, event: str, resource: Resource) -> None:
        """Something happened (``trace``)."""
        domain = resource[0]
        self.events[domain, event] += 1
        if event == "request":
            if len(self._asked) >= ASKED_MAX:
                self._asked.clear()
            self._asked[resource] = now
        elif event == "granted":
            seconds = now - self._asked.pop(resource, now)
            times = self.times.get(domain)
            if times is None:
                times = self.times[domain] = Times()
            times.add(seconds)
            if seconds > WAIT:
                hot = self._of(resource)
                hot.waits += 1
                hot.wait_seconds += seconds
        elif event == "demoted":
            self._of(resource).handovers += 1
        elif event == "revoke":
            self._of(resource).revokes += 1

    def _of(self, resource: Resource) -> Hot:
        hot = self._hot.pop(resource, None)
        if hot is None:
            if len(self._hot) >= HOT_MAX:
                del self._hot[next(iter(self._hot))]
            hot = Hot()
        self._hot[resource] = hot
        return hot

    def hottest(self, count: int) -> list[tuple[Resource, Hot]]:
        """The ``count`` locks that were handed over or waited for last, latest first."""
        return [(resource, self._hot[resource]) for resource in list(self._hot)[: -count - 1 : -1]]

    def types(self) -> dict[str, dict[str, Any]]:
        """For each type of lock: how often each event happened, and ``times`` from request to grant."""
        found: dict[str, dict[str, Any]] = {}
        for (domain, event), count in self.events.items():
            if domain in DOMAIN_NAMES:
                found.setdefault(DOMAIN_NAMES[domain], {})[event] = count
        for domain, times in self.times.items():
            if domain in DOMAIN_NAMES:
                found[DOMAIN_NAMES[domain]]["times"] = times.plain()
        return found
