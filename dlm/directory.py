"""Which peer masters a resource (pure): one fixed map over the view's members, no message (003-37, 003-41).

Rendezvous hashing: every (key, node) pair has a weight, the node of greatest weight wins.  So a member that
leaves moves only what it mastered, and every peer computes the same map from the same member list.

The key is ``object >> placement_shift``: all objects of one allocation group share a master, whatever their
domain, so that a node which allocates in groups it masters creates files without a message.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from dlm.names import Resource

_U64_MASK = (1 << 64) - 1
_CACHE_KEYS_MAX = 65536  # a key per allocation group; far above any store we can address today


def _weight(key: int, node: int) -> int:
    """A well mixed 64-bit hash, part of the wire protocol: all peers must agree (the finalizer of splitmix64)."""
    x = (key * 0x9E3779B97F4A7C15 + (node + 1) * 0xD1B54A32D192ED03) & _U64_MASK
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & _U64_MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & _U64_MASK
    return x ^ x >> 31


class Directory:
    """The map for one member list; remembers what it computed."""

    __slots__ = ("_cache", "nodes", "placement_shift")

    def __init__(self, nodes: Collection[int], placement_shift: int) -> None:
        assert nodes, "a map over no members"
        self.nodes = tuple(sorted(nodes))
        self.placement_shift = placement_shift
        self._cache: dict[int, int] = {}

    def master(self, resource: Resource) -> int:
        """Node id of the resource's master."""
        key = resource[1] >> self.placement_shift
        node = self._cache.get(key)
        return self.master_of_key(key) if node is None else node

    def master_of_key(self, key: int) -> int:
        """Node id of the master of all objects with this placement key."""
        node = self._cache.get(key)
        if node is None:
            node = max(self.nodes, key=lambda candidate: (_weight(key, candidate), candidate))
            if len(self._cache) >= _CACHE_KEYS_MAX:
                self._cache.clear()
            self._cache[key] = node
        return node

    def preferred(self, node: int, keys: Iterable[int]) -> list[int]:
        """Those of ``keys`` that ``node`` masters, in the order given: where it had best allocate."""
        return [key for key in keys if self.master_of_key(key) == node]


def master_of(resource: Resource, members: Collection[int], placement_shift: int) -> int:
    """Master of ``resource`` among the node ids ``members``; ``Directory`` is the same with a memory."""
    return Directory(members, placement_shift).master(resource)
