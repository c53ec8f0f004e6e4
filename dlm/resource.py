"""The master's record of one resource (pure): who holds it, who waits, which dead still count, its value.

Order of service (003-12, 003-36): conversions (requests of nodes that already hold a lower mode) before new
requests, each first come first served or by priority; nobody overtakes the queue.  Compatible requests that stand
side by side at the head are granted together.  A holder in the way is told the greatest mode that the head of the
queue can bear, once; again only when it must go lower still.  A grant made while others wait in conflict carries
that mode with it (``finish``, 003-39), which saves the Revoke.

Ghosts (R6) are holders that can neither be asked nor answer: they count like locks until they are removed.

The methods that change the record append to ``out`` what must be sent: (node, message).  None but ``schedule``
grants, so a suspended master can go on taking releases.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from dlm.messages import NEVER, NO_VALUE, Denied, Granted, Order, Revoke, Value
from dlm.modes import COMPATIBLE, TOLERATED, VALUE_WRITE_MASK, covers
from dlm.names import Resource
from membership.views import Instance

Orders: TypeAlias = list[tuple[int, Order]]


class Waiter(NamedTuple):
    """A request in the queue."""

    node: int
    mode: int
    serial: int
    try_: bool
    priority: int = 0


Enqueue: TypeAlias = Callable[[list[Waiter], Waiter], None]  # puts a request where it belongs in its queue (003-12)


def first_come(queue: list[Waiter], waiter: Waiter) -> None:
    """First come, first served: nobody starves."""
    queue.append(waiter)


def by_priority(queue: list[Waiter], waiter: Waiter) -> None:
    """Greater priorities first, first come first served among equals; a low one may wait for ever."""
    place = len(queue)
    while place and queue[place - 1].priority < waiter.priority:
        place -= 1
    queue.insert(place, waiter)


class Record:
    """See the module.  ``granted`` and ``serials`` (of the last grant) have the same keys: node ids."""

    __slots__ = ("converting", "ghosts", "granted", "resource", "revoked", "serials", "value", "waiting")

    def __init__(self, resource: Resource) -> None:
        self.resource = resource
        self.granted: dict[int, int] = {}
        self.serials: dict[int, int] = {}
        self.converting: list[Waiter] = []
        self.waiting: list[Waiter] = []
        self.revoked: dict[int, int] = {}  # holder -> mode it was told to go down to, since its last grant
        self.ghosts: dict[Instance, int] = {}
        self.value: Value = NO_VALUE

    @property
    def idle(self) -> bool:
        """Nothing in it is worth keeping."""
        return not (self.granted or self.converting or self.waiting or self.ghosts)

    def only_held_by(self, node: int, serial: int) -> bool:
        """Whether nothing but this node's grant keeps the record."""
        return (
            not (self.converting or self.waiting or self.ghosts)
            and len(self.granted) == 1
            and self.serials.get(node) == serial
        )

    def request(self, waiter: Waiter, enqueue: Enqueue = first_come) -> None:
        """Queue a request; a node has one at most, a second replaces it."""
        if self.converting or self.waiting:
            self._remove_waiter(waiter.node)
        enqueue(self.converting if waiter.node in self.granted else self.waiting, waiter)

    def grant_at_once(self, node: int, mode: int, serial: int) -> bool:
        """Grant to a node that holds nothing, if nobody stands or waits against it (003-42); else change nothing."""
        if node in self.granted or self.converting or self.waiting or self.conflict(node, mode):
            return False
        self.granted[node] = mode
        self.serials[node] = serial
        return True

    def cancel(self, node: int, serial: int, out: Orders) -> None:
        """Deny a request that is still queued; one that was answered needs no second answer."""
        if self._remove_waiter(node, serial):
            out.append((node, Denied(self.resource, serial)))

    def release(self, node: int, mode: int, serial: int, value: Value | None) -> None:
        """A holder went down to ``mode``.

        ``serial`` older than the holder's last grant: that grant crossed this release, and the holder has it by
        now or soon.  Then only the value counts.
        """
        held = self.granted.get(node)
        if held is None:
            return
        if value is not None and VALUE_WRITE_MASK >> held & 1 and value.stamp > self.value.stamp:
            self.value = value
        if self.serials[node] != serial or not covers(held, mode):
            return
        if mode:
            self.granted[node] = mode
        else:
            del self.granted[node], self.serials[node]
            self.revoked.pop(node, None)

    def schedule(self, out: Orders) -> None:
        """Grant what can be granted, deny the tries that can't, ask for what stands in the head's way."""
        made: list[Waiter] = []
        if not self._serve(self.converting, made, out):
            self._serve(self.waiting, made, out)
        head = (self.converting or self.waiting or (None,))[0]
        for waiter in made:
            finish = NEVER
            if head is not None and not COMPATIBLE[waiter.mode] >> head.mode & 1:
                finish = self.revoked[waiter.node] = TOLERATED[waiter.mode][head.mode]
            out.append((waiter.node, Granted(self.resource, waiter.mode, waiter.serial, self.value, finish)))
        if head is not None:
            self._ask(head, out)

    def conflict(self, node: int, mode: int) -> bool:
        """Whether a holder other than ``node``, or a ghost, stands against ``mode``."""
        allowed = COMPATIBLE[mode]
        for holder, held in self.granted.items():
            if holder != node and not allowed >> held & 1:
                return True
        return any(not allowed >> held & 1 for held in self.ghosts.values())

    def _serve(self, queue: list[Waiter], made: list[Waiter], out: Orders) -> bool:
        """Answer from the head of one queue; return whether someone is left who blocks those behind."""
        while queue:
            waiter = queue[0]
            if not self.conflict(waiter.node, waiter.mode):
                self.granted[waiter.node] = waiter.mode
                self.serials[waiter.node] = waiter.serial
                self.revoked.pop(waiter.node, None)
                made.append(waiter)
            elif not waiter.try_:
                break
            else:
                out.append((waiter.node, Denied(self.resource, waiter.serial)))
            del queue[0]
        self._deny_tries(queue, out)
        if queue:
            self._deny_tries(self.waiting, out)
        return bool(queue)

    def _deny_tries(self, queue: list[Waiter], out: Orders) -> None:
        """A try behind somebody who must wait can't be granted without overtaking."""
        for waiter in [waiter for waiter in queue if waiter.try_]:
            queue.remove(waiter)
            out.append((waiter.node, Denied(self.resource, waiter.serial)))

    def _ask(self, head: Waiter, out: Orders) -> None:
        """Revoke from every holder that stands in the head's way and was not told already."""
        allowed = COMPATIBLE[head.mode]
        for holder, held in self.granted.items():
            if holder == head.node or allowed >> held & 1:
                continue
            tolerated = TOLERATED[held][head.mode]
            told = self.revoked.get(holder)
            if told is None or tolerated < told:
                self.revoked[holder] = tolerated
                out.append((holder, Revoke(self.resource, tolerated)))

    def _remove_waiter(self, node: int, serial: int | None = None) -> bool:
        for queue in (self.converting, self.waiting):
            for i, waiter in enumerate(queue):
                if waiter.node == node and (serial is None or waiter.serial == serial):
                    del queue[i]
                    return True
        return False
