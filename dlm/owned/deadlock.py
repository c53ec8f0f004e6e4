"""Deadlocks over several arbiters: edge chasing (pure; Chandy, Misra and Haas 1983, for waits for all of several).

An owner waits *for* another when its blocked request conflicts with what the other holds.  A wait that is old enough
sends a probe along these edges; a probe that comes back has found a cycle::

    at                  gets              does
    home of a waiter    its timer         sends Chase [its wait] to the arbiter of the wait
    arbiter             Chase [.. wait]   wait not blocked: nothing.  In its way is the initiator: Found to its home;
                                          others: Follow to the homes of the owners in the way
    home of an owner    Follow            for each wait of the owner that is OLDER than the initiator's:
                                          Chase [.. wait, that wait] to its arbiter
    initiator's home    Found             search: the same cycle once more, to confirm.  Confirmed: the victim

- **One victim.**  Stamps and owners order waits strictly, and a probe passes only older ones, so in each cycle
  only the youngest wait's probe returns.
- **No phantoms.**  Waits are named by serial.  Those of the second round are those of the first, so each lasted from
  its first look to its second, and all of them together between the rounds: the cycle was there (for owners that
  do one thing at a time; a threaded process that unlocks while it waits may be told of a deadlock that it was about
  to break, as on Linux).
- **Bounded.**  A home passes a probe along each wait once; ``HOPS_MAX`` owners; at most two messages for each edge and
  round, so a cycle of n owners is found with 4 n and broken with 2.  The first probe goes after ``FIRST_PROBE``
  seconds, later ones for what the first could not see (a view changed, a probe met a wait not yet blocked),
  every ``NEXT_PROBE``.
- FLOCK is not looked at, as on Linux; POSIX and NAMED are.  Cycles within one arbiter it sees itself, at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from dlm.owned.arbiter import Arbiter
from dlm.owned.client import Call, OwnedClient
from dlm.owned.messages import (
    FOLLOWED_MAX,
    HOPS_MAX,
    AboutOwned,
    Acquire,
    Chase,
    Follow,
    Found,
    Hop,
    Kind,
    Probe,
)
from dlm.owned.ranges import Owner

FIRST_PROBE = 0.1  # seconds of waiting
NEXT_PROBE = 1.0  # seconds between probes of one wait
_SEEN_MAX = 8192  # waits remembered as passed


class Chaser:
    """See the module.

    Args:
        node: this node's id.
        client: its waits.
        arbiter: what is blocked here.
        post: sends a message to a node, this one included.
        master: node id of the arbiter of an object.
        statistics: counters to add to.
    """

    def __init__(
        self,
        node: int,
        client: OwnedClient,
        arbiter: Arbiter,
        post: Callable[[int, AboutOwned], None],
        master: Callable[[int], int],
        statistics: Counter[str],
    ) -> None:
        self._node = node
        self._client = client
        self._arbiter = arbiter
        self._post = post
        self._master = master
        self._statistics = statistics
        self._turn = 0
        self._due: dict[int, float] = {}  # serial of a wait -> when its next probe goes
        self._searching: dict[int, int] = {}  # serial of a wait -> turn of its newest probe
        self._seen: dict[tuple[int, int, int], None] = {}  # (initiator's node, turn, serial of a wait here)

    def tick(self, now: float) -> None:
        """Send the probes that are due.  ``now``: seconds, the clock of the calls."""
        waiting = self._client.calls
        self._due = {serial: when for serial, when in self._due.items() if serial in waiting}
        self._searching = {serial: turn for serial, turn in self._searching.items() if serial in waiting}
        for serial, call in waiting.items():
            if not call.told or call.withdrawn or call.span.kind == Kind.FLOCK or not isinstance(call.message, Acquire):
                continue
            if now >= self._due.get(serial, call.since + FIRST_PROBE):
                self._due[serial] = now + NEXT_PROBE
                self._start(serial, call, [])

    def receive(self, sender: int, message: Probe) -> None:
        """A probe.  What does not fit to what is known here is forgotten: the next one will."""
        kind, hops = message.kind, message.hops
        if isinstance(message, Found | Follow):
            if self._master(hops[-1].object) != sender:
                return
            if isinstance(message, Found):
                self._found(message)
                return
            for owner in message.owners:
                self._follow(message, owner)
        else:
            wait = hops[-1]
            table = self._arbiter.blocked(kind, Owner(wait.node, wait.owner), wait.object, wait.serial)
            if table is not None and wait.node == sender:
                self._pass_on(message, list(table.in_the_way((wait.node, wait.serial))))

    def _start(self, serial: int, call: Call, plan: list[Hop]) -> None:
        assert isinstance(call.message, Acquire)
        self._turn += 1
        self._searching[serial] = self._turn
        self._statistics["owned_probes"] += 1
        hop = Hop(self._node, call.span.owner, serial, call.span.object)
        self._post(self._master(hop.object), Chase(call.span.kind, call.message.stamp, self._turn, [hop], plan))

    def _pass_on(self, message: Chase, in_the_way: list[Owner]) -> None:
        """At the arbiter: on to the homes of those in the way, or back to the initiator."""
        first, count = message.hops[0], len(message.hops)
        fields = (message.kind, message.stamp, message.turn, message.hops, message.plan)
        if count == (len(message.plan) or count) and Owner(first.node, first.owner) in in_the_way:
            self._post(first.node, Found(*fields))
            return
        if message.plan:
            planned = message.plan[count : count + 1]
            in_the_way = [owner for owner in in_the_way if planned and owner == planned[0][:2]]
        if count >= HOPS_MAX:
            self._statistics["owned_probes_too_long"] += 1
            return
        homes: dict[int, list[int]] = {}
        for owner in in_the_way:
            homes.setdefault(owner.node, []).append(owner.id)
        for node, owners in homes.items():
            for i in range(0, len(owners), FOLLOWED_MAX):
                self._post(node, Follow(*fields, owners[i : i + FOLLOWED_MAX]))

    def _follow(self, message: Follow, owner: int) -> None:
        """At the home of an owner in the way: along its waits."""
        first, count = message.hops[0], len(message.hops)
        youngest = (message.stamp, first.node, first.owner, first.serial)
        for call in list(self._client.waits(message.kind, owner)):
            request = call.message
            assert isinstance(request, Acquire)
            hop = Hop(self._node, owner, request.serial, call.span.object)
            planned = not message.plan or message.plan[count : count + 1] == [hop]
            older = (request.stamp, self._node, owner, request.serial) < youngest
            if planned and older and call.told and self._fresh(first.node, message.turn, request.serial):
                hops = [*message.hops, hop]
                chase = Chase(message.kind, message.stamp, message.turn, hops, message.plan)
                self._post(self._master(hop.object), chase)

    def _found(self, message: Found) -> None:
        """At the initiator's home: search done, or cycle confirmed."""
        first = message.hops[0]
        call = self._client.calls.get(first.serial)
        if call is None or call.withdrawn or first.node != self._node:
            return
        if self._searching.get(first.serial) != message.turn:
            return
        if not message.plan:
            self._start(first.serial, call, message.hops)
        elif message.hops == message.plan:
            self._statistics["owned_deadlocks"] += 1
            self._client.doom(first.serial)

    def _fresh(self, node: int, turn: int, serial: int) -> bool:
        """Whether this probe was not here before."""
        key = (node, turn, serial)
        if key in self._seen:
            return False
        self._seen[key] = None
        if len(self._seen) > _SEEN_MAX:
            del self._seen[next(iter(self._seen))]
        return True

