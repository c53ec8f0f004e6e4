"""What masters say to this node's client (pure): who is believed, and what moves with it (``arbiters``, T1 and T2)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from dlm.client import ClientSide
from dlm.counts import Counts
from dlm.master import MasterSide
from dlm.messages import NEVER, Denied, ExtraAnswer, Granted, Prefetched, Return, Revoke
from dlm.names import Resource

_WITH_EXTRAS = (Granted, Prefetched)  # a tuple: ``A | B`` in an ``isinstance`` is built anew by every call


class Exchange:
    """Passes a master's word to the client, and arbitration from one member to the other.

    Args:
        node: this node.
        client: of this node.
        master: of this node; its ``arbiters`` say whom to believe.
        statistics: counts nonsense.
        counts: per domain.
    """

    def __init__(
        self,
        node: int,
        client: ClientSide,
        master: MasterSide,
        statistics: Counter[str],
        counts: Mapping[int, Counts],
    ) -> None:
        self._node = node
        self._client = client
        self._master = master
        self._statistics = statistics
        self._counts = counts

    def receive(self, sender: int, message: Granted | Denied | Revoke | Prefetched | Return) -> None:
        """A word of ``sender``; if it is not the master, it counts for nothing."""
        if isinstance(message, Return):
            self._take_back(sender, message.resource)
            return
        believed = (self._node, self._master.arbiters.of)
        if isinstance(message, Prefetched):
            pass
        elif sender in (believed[0], believed[1](message.resource)):
            if sender != self._node:
                self._count(message)
            if isinstance(message, Granted) and message.hand_over is not None:
                self._take_over(sender, message)
            else:
                self._client.receive(message)
        if isinstance(message, _WITH_EXTRAS):
            for extra in message.extras:
                if sender in (believed[0], believed[1](extra.resource)):
                    self._extra(sender, message.mode, extra)

    def _count(self, message: Granted | Denied | Revoke) -> None:
        counts = self._counts[message.resource.domain]
        if isinstance(message, Granted):
            counts.remote_grants += 1
            counts.finish_flags += message.finish != NEVER
        elif isinstance(message, Revoke):
            counts.revokes_received += 1

    def _extra(self, sender: int, mode: int, extra: ExtraAnswer) -> None:
        if not extra.granted:
            self._client.receive(Denied(extra.resource, extra.serial))
            return
        granted = Granted(extra.resource, mode, extra.serial, extra.value, hand_over=extra.hand_over)
        if extra.hand_over is None:
            self._client.receive(granted)
        else:
            self._take_over(sender, granted)

    def _take_over(self, sender: int, granted: Granted) -> None:
        """T1, at who gets the lock."""
        resource = granted.resource
        if sender != self._master.arbiters.peer or not self._client.awaits(granted):
            self._statistics["nonsense"] += 1
            return
        granted.value = self._client.newest(resource, granted.value)
        self._master.take_over(sender, granted)
        self._client.receive(granted)
        self._master.settle(resource)

    def _take_back(self, sender: int, resource: Resource) -> None:
        """T2, at whom the map names."""
        if self._master.arbiters.moved.get(resource) != sender:
            self._statistics["nonsense"] += 1
            return
        lock = self._client.locks.get(resource)
        self._master.take_back(resource, lock.held if lock else 0, lock.serial if lock else 0)
        self._client.ask_again(resource)
