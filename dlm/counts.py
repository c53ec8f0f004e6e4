"""What a lockspace did and who waits since when, for administrators (pure): counters per domain, ages (R14)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from dlm.names import Resource


@dataclass(slots=True)
class Counts:
    """Of one domain, since the lockspace began."""

    requests: int = 0  # of this node, extras not counted
    local_grants: int = 0  # that cost no message
    remote_grants: int = 0  # extras not counted
    revokes_sent: int = 0  # to other nodes
    revokes_received: int = 0
    finish_flags: int = 0  # grants of others that said "others wait already": each saved a revoke
    hand_overs: int = 0  # grants made here because a holder let go
    prefetch_granted: int = 0  # extras granted here
    prefetch_left_out: int = 0

    def as_dict(self) -> dict[str, int]:
        """Plain data."""
        return asdict(self)


class Ages:
    """Since when who waits, and since when a holder has known that it is in the way; only of what waits at all.

    The core has no clock: what is new is stamped when ``now`` is told next.
    """

    def __init__(self) -> None:
        self._since: dict[Resource, dict[tuple[str, int], float | None]] = {}
        self._new: list[tuple[Resource, tuple[str, int]]] = []

    @property
    def unstamped(self) -> bool:
        """Whether ``stamp`` has something to do."""
        return bool(self._new)

    def see(self, resource: Resource, waiting: Iterable[int], asked: Iterable[int]) -> None:
        """Who waits for ``resource`` now, and which holders were asked to go down."""
        keys = [("waits", node) for node in waiting] + [("asked", node) for node in asked]
        if not keys:
            self._since.pop(resource, None)
            return
        old = self._since.get(resource, {})
        self._since[resource] = {key: old.get(key) for key in keys}
        self._new += [(resource, key) for key in keys if key not in old]

    def stamp(self, now: float) -> None:
        """``now`` in monotonic seconds: what was seen since the last time begins here."""
        for resource, key in self._new:
            since = self._since.get(resource, {})
            if key in since and since[key] is None:
                since[key] = now
        self._new.clear()

    def seconds(self, resource: Resource, kind: str, node: int, now: float) -> float:
        """How long it has lasted."""
        since = self._since.get(resource, {}).get((kind, node))
        return 0.0 if since is None else round(now - since, 3)

    def clear(self) -> None:
        """A rebuild begins: everybody waits anew."""
        self._since = {}
        self._new = []
