"""One node's part in the owned locks of a lockspace (pure): client, arbiter and deadlock detection, joined.

``dlm.lockspace`` hands over messages that passed its rules L1 to L4 and tells of views::

    suspended  calls are taken and kept; nothing is posted
    rebuild    ``reports``: what this node's owners hold, for the new arbiters, in the lockspace's Rebuild messages
    rebuilt    ``replace``: all members' reports are the new tables (same barrier as for all other locks)
    resume     what was kept is posted

The arbiter of an object is its master by the fixed map over the view's members, as for every resource.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from dlm.owned.arbiter import Arbiter
from dlm.owned.client import OwnedAnswer, OwnedClient
from dlm.owned.deadlock import Chaser
from dlm.owned.messages import (
    REPORTS_MAX,
    AboutOwned,
    Acquire,
    Chase,
    Follow,
    Found,
    Free,
    Inquire,
    OwnedReport,
    ToArbiter,
    Withdraw,
)
from dlm.owned.stamps import Stamps


class OwnedCore:
    """See the module.

    Args:
        node: this node's id.
        post: sends a message to a node, this one included; messages to ourselves come back through ``receive``.
        master: node id of the arbiter of an object, under the present view.
        statistics: counters to add to.
    """

    def __init__(
        self,
        node: int,
        post: Callable[[int, AboutOwned], None],
        master: Callable[[int], int],
        statistics: Counter[str],
    ) -> None:
        stamps = Stamps()
        self._post = post
        self._master = master
        self._statistics = statistics
        self.client = OwnedClient(node, self._ask, stamps, statistics)
        self.arbiter = Arbiter(post, stamps, statistics)
        self.chaser = Chaser(node, self.client, self.arbiter, post, master, statistics)

    def receive(self, sender: int, message: AboutOwned) -> None:
        """A message of the present view; what makes no sense is counted and changes nothing."""
        if isinstance(message, Acquire | Free | Inquire | Withdraw):
            self.arbiter.receive(sender, message)
        elif isinstance(message, Chase | Follow | Found):
            self.chaser.receive(sender, message)
        else:
            object_ = self.client.object_of(message.serial)
            if object_ is not None and self._master(object_) == sender:
                self.client.receive(message)
            else:
                self._statistics["owned_unasked"] += 1

    def batches(self) -> dict[int, list[list[OwnedReport]]]:
        """What each new arbiter must know, in lists that fit a message.  Only while suspended."""
        batches: dict[int, list[list[OwnedReport]]] = {}
        for report in self.client.reports():
            lists = batches.setdefault(self._master(report.object), [[]])
            if len(lists[-1]) >= REPORTS_MAX:
                lists.append([])
            lists[-1].append(report)
        return batches

    def replace(self, reports: Iterable[tuple[int, OwnedReport]]) -> None:
        """All members' reports of what this node masters are here: (node, report)."""
        self.arbiter.replace(reports)

    def take_events(self) -> list[OwnedAnswer]:
        """The answers since the last time."""
        events, self.client.events = self.client.events, []
        return events

    def dump(self, now: float) -> dict[str, list[dict[str, Any]]]:
        """Plain data: ``mine`` of this node's owners, ``mastered`` of the objects it is the arbiter of."""
        mastered: Iterator[dict[str, Any]] = self.arbiter.dump()
        return {"mine": list(self.client.dump(now)), "mastered": list(mastered)}

    def _ask(self, object_: int, message: ToArbiter) -> None:
        self._post(self._master(object_), message)
