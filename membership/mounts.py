"""A mount as its matrixd sees it: the channel of orders and replies (002-10).

The channel is the seam between the node's event loop and whoever serves the mount process (the control
socket, or a test).  Everything a mount says enters the node through ``tell`` with no checkpoint, so the order
of replies is the order they are acted on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from membership.orders import Left, MountRequest, Order, Reply, Said

ORDERS_QUEUED_MAX = math.inf  # orders are few (a handful per recovery) and leases collapse in the mount


@dataclass(slots=True, eq=False)
class MountChannel:
    """One admitted mount.

    Whoever gets it from ``Node.admit_mount`` reads ``orders`` until it ends (``trio.EndOfChannel``: the mount is
    out, by leaving or because the node lost its right), passes replies in with ``reply``, and says ``left`` exactly
    when the process left or died; further calls are ignored.  When ``eviction`` is set it kills the process.
    """

    request: MountRequest
    node_id: int
    generation: int  # SAN generation of the admission
    deadline: float  # lease deadline at the admission, monotonic seconds; Lease orders follow
    journal: int  # at the admission, -1: none yet; Resume brings the final one
    tell: Callable[[MountChannel, Said], None] = field(repr=False)
    is_left: bool = False
    evicted: str = ""  # why, once the administrator has evicted it
    eviction: trio.Event = field(default_factory=trio.Event, repr=False)
    orders: trio.MemoryReceiveChannel[Order] = field(init=False, repr=False)
    _orders_in: trio.MemorySendChannel[Order] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._orders_in, self.orders = trio.open_memory_channel[Order](ORDERS_QUEUED_MAX)

    def reply(self, reply: Reply) -> None:
        """An answer of the mount to an order; never blocks."""
        if not self.is_left:
            self.tell(self, reply)

    def left(self, *, clean: bool) -> None:
        """The mount left (``clean``) or died; never blocks, idempotent."""
        if not self.is_left:
            self.is_left = True
            self.tell(self, Left(clean))
        self.close()

    def push(self, order: Order) -> None:
        """Node's side: queue an order."""
        try:
            self._orders_in.send_nowait(order)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return  # the reader is gone; ``left`` follows, or the mount is isolated already

    def evict(self, reason: str) -> None:
        """Node's side: the process must be killed, whatever it is doing.  Idempotent."""
        self.evicted = self.evicted or reason
        self.eviction.set()

    def close(self) -> None:
        """Node's side: no more orders; the reader sees the end after what is queued."""
        self._orders_in.close()
