"""What is counted of a mount's locks, by kind (rename, inode, open, group), for ``matrixctl`` and Prometheus.

Hits cost nothing where they happen: a lock counts its local holds anyway (``Lock.uses``), and those are gathered when
the count begins anew; what waited is taken off.  Everything else is counted where a message or a wait is paid for.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable

from dlm.modes import EX, PR
from dlm.names import Resource
from matrixfs.locks.lock import Lock
from matrixfs.locks.resources import DOMAIN_NAMES

BOUNDS = (  # seconds; a last bucket has no bound
    0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0,
)  # fmt: skip
_COUNTED = (
    "requests",  # sent to the lock manager,
    "granted_at_once",  # and granted by this node's own share of it, with no message
    "prefetched",  # granted before anybody here asked,
    "prefetch_denied",  # or left out, since somebody stood against it
    "waits",  # local users who had to sleep
    "hand_overs_given",  # demotions for a peer
    "hand_overs_taken",  # grants that came later, of locks that are contended
    "revokes",  # from peers,
    "deferred",  # of them put off: the holder had its turn first
    "flushes",  # demotions from EX
    "purges",  # demotions below PR
    "reclaimed",  # given up on our own account,
    "shared_ahead",  # of them from EX, since a peer reads much of what lies around
)


class Histogram:
    """Seconds, by bucket."""

    __slots__ = ("_counts", "seconds")

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS) + 1)
        self.seconds = 0.0  # in all

    def note(self, seconds: float) -> None:
        """Count one."""
        self._counts[bisect_left(BOUNDS, seconds)] += 1
        self.seconds += seconds

    def dump(self) -> dict[str, int | float]:
        """By upper bound in seconds, each with all below it (as Prometheus wants it); ``sum``: seconds in all."""
        dumped: dict[str, int | float] = {}
        total = 0
        for bound, count in zip((*map(str, BOUNDS), "+Inf"), self._counts, strict=True):
            total += count
            dumped[bound] = total
        return {**dumped, "sum": round(self.seconds, 6)}


class TypeCounters:
    """Of one kind of lock; plain integers that the cache counts up."""

    __slots__ = (*_COUNTED, "granting", "releasing", "uses", "waiting")

    def __init__(self) -> None:
        for name in _COUNTED:
            setattr(self, name, 0)
        self.uses = 0  # local holds, of locks whose count began anew since
        self.granting = Histogram()  # from a request to the lock manager until its grant
        self.waiting = Histogram()  # of local users
        self.releasing = Histogram()  # from a peer's revoke until the lock manager was told

    requests: int
    granted_at_once: int
    prefetched: int
    prefetch_denied: int
    waits: int
    hand_overs_given: int
    hand_overs_taken: int
    revokes: int
    deferred: int
    flushes: int
    purges: int
    reclaimed: int
    shared_ahead: int

    def dump(self, locks: Iterable[Lock]) -> dict[str, object]:
        """Everything, as plain data; ``locks``: the cached ones of this kind."""
        uses, cached, exclusive, blocks = self.uses, 0, 0, 0
        for lock in locks:
            uses += lock.uses
            cached += lock.mode >= PR
            exclusive += lock.mode == EX
            blocks += len(lock.blocks)
        return {
            "cached": cached,
            "cached_exclusive": exclusive,
            "blocks": blocks,
            "hits": uses - self.waits,
            **{name: getattr(self, name) for name in _COUNTED},
            "granting": self.granting.dump(),
            "waiting": self.waiting.dump(),
            "releasing": self.releasing.dump(),
        }


class Counters:
    """Of all kinds."""

    def __init__(self) -> None:
        self._types = {domain: TypeCounters() for domain in DOMAIN_NAMES}

    def of(self, resource: Resource) -> TypeCounters:
        """The counters of a resource's kind."""
        counters = self._types.get(resource[0])
        if counters is None:
            counters = self._types[resource[0]] = TypeCounters()
        return counters

    def total(self, name: str) -> int:
        """One counter over all kinds."""
        return sum(getattr(counters, name) for counters in self._types.values())

    def dump(self, locks: Iterable[Lock]) -> dict[str, dict[str, object]]:
        """By the name of the kind; ``locks``: all that are cached."""
        sorted_out: dict[int, list[Lock]] = {domain: [] for domain in self._types}
        for lock in locks:
            sorted_out.setdefault(lock.resource[0], []).append(lock)
        return {
            DOMAIN_NAMES.get(domain, str(domain)): self._types[domain].dump(mine)
            for domain, mine in sorted_out.items()
            if domain in self._types
        }
