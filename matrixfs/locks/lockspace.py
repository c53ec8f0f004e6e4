"""A mount's peer in its filesystem's lockspace, joined to the cache that is its only client (002-05)."""

from __future__ import annotations

from collections.abc import Callable

from dlm.service import LockService
from matrixfs.locks.cache import LockCache
from membership.seams import Transport

__all__ = ["LockService", "join"]


def join(
    cache: LockCache,
    node: int,
    incarnation: int,
    transport: Transport,
    placement_shift: int,
    link_lost: Callable[[int, bool], None],
    link_up: Callable[[int], None],
) -> LockService:
    """Make the peer and attach it to ``cache``; run it before locks are used.

    Args:
        cache: gets the callbacks.
        node: this node's id.
        incarnation: of this mount.
        transport: to the other members; read by the peer alone.
        placement_shift: objects that agree above this bit share a master.
        link_lost: told the node at the other end of a broken link, and whether its host says that nobody listens.
        link_up: told the node at the other end of a link that stands.
    """
    manager = LockService(node, incarnation, transport, placement_shift, cache, link_lost, link_up)
    cache.attach(manager)
    return manager
