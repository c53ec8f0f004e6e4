"""The administrator evicts mounts that others would wait for in vain (pure; issue 3; R5, R9).

Nobody else does: so two mounts never shoot each other, and every death has one reason in one log.

============================================ ======================= =============================================
who notices                                  after                   what happens
============================================ ======================= =============================================
its matrixd: frozen, silent, dead end...     mount_watch.py          Evict to that matrixd, which kills the process
two mounts: the link between them is lost     san/lost_links.py      Evict to the matrixd of the one that must go
the administrator: Evict without ``left``    Timing.dead             its node is evicted, and fenced like any other
============================================ ======================= =============================================

Invariants:

V1. Evict alone changes nothing here: the mount is dead when its matrixd says that its process is gone and its last
    write has landed, or when its node is fenced.
V2. An eviction is not taken back: who was told once is told until it is gone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from membership.orders import Evict
from membership.san.events import Log

if TYPE_CHECKING:
    from collections.abc import Callable

    from membership.effects import Outbox
    from membership.label import Timing
    from membership.orders import Order
    from membership.san.recovery import FilesystemRecovery


@dataclass(frozen=True, slots=True)
class Expel:
    """Event on the administrator: this node does not end a mount that it must end; evict the node."""

    node: int
    reason: str


@dataclass(slots=True)
class _Eviction:
    incarnation: int
    reason: str
    since: float
    is_escalated: bool = False


class Evictions:
    """Those of one administrator.

    Args:
        timing: of the cluster.
        outbox: for events.
        send: passes an order for a mount to its matrixd: (filesystem uuid, node, incarnation, order).
    """

    def __init__(self, timing: Timing, outbox: Outbox, send: Callable[[bytes, int, int, Order], None]) -> None:
        self._timing = timing
        self._out = outbox
        self._send = send
        self._going: dict[tuple[bytes, int], _Eviction] = {}

    def evict(self, fs: FilesystemRecovery, node: int, reason: str, noticed: float, now: float) -> None:
        """Begin the eviction of a member, once for each life of it.  ``noticed``: seconds until it was clear."""
        member = fs.members.get(node)
        if member is None:
            return
        incarnation = member.address.incarnation
        going = self._going.get((fs.uuid, node))
        if going is not None and going.incarnation == incarnation:
            return
        self._going[fs.uuid, node] = _Eviction(incarnation, reason, now)
        fs.evicting(node, noticed, now)
        self._out.tell(Log("evicted", f"{fs.name} on node {self._out.called(node)} ({member.mountpoint}): {reason}"))
        self._send(fs.uuid, node, incarnation, Evict(reason))

    def tick(self, filesystems: dict[bytes, FilesystemRecovery], now: float) -> None:
        """Tell again; forget who is gone; give up the node that does not obey."""
        for (uuid, node), going in list(self._going.items()):
            fs = filesystems.get(uuid)
            member = fs.members.get(node) if fs is not None else None
            if member is None or member.address.incarnation != going.incarnation:
                del self._going[uuid, node]
                continue
            self._send(uuid, node, going.incarnation, Evict(going.reason))
            if now - going.since >= self._timing.dead and not going.is_escalated:
                going.is_escalated = True
                text = f"its mount was evicted {self._timing.dead:g} s ago ({going.reason}) and is not gone"
                self._out.tell(Expel(node, text))
