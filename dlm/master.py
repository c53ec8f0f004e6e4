"""The master side of a lockspace (pure): the records of the resources that this node arbitrates under the view.

``arbiters`` says which these are, and has the rules (T1 to T5) by which records move between two members.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

from dlm.arbiters import Arbiters
from dlm.counts import Ages, Counts
from dlm.messages import (
    NEVER,
    Cancel,
    Extra,
    ExtraAnswer,
    Granted,
    HandOver,
    Order,
    Prefetched,
    Release,
    Request,
    Return,
    Revoke,
)
from dlm.modes import EX, NL, VALUE_WRITE_MASK, compatible
from dlm.names import Resource
from dlm.recovery import Doubts, add_doubts
from dlm.resource import Enqueue, Orders, Record, Waiter
from membership.views import Instance


class MasterSide:
    """Master copies, and who may not be granted yet.

    Args:
        post: sends a message to a node, this one included.
        arbiters: who arbitrates what; of no view yet.
        enqueue: the order of the queues.
        counts: per domain.
    """

    def __init__(
        self, post: Callable[[int, Order], None], arbiters: Arbiters, enqueue: Enqueue, counts: Mapping[int, Counts]
    ) -> None:
        self._post = post
        self.arbiters = arbiters
        self._enqueue = enqueue
        self._counts = counts
        self.statistics: Counter[str] = Counter()
        self.ages = Ages()
        self.records: dict[Resource, Record] = {}
        self.doubts: Doubts | None = None  # None: everything that the dead held is released
        self._unsettled: set[Resource] = set()  # what RESUME must look at
        self._haunted: set[Resource] = set()  # records with ghosts, and those that only doubts keep

    def receive(self, sender: int, message: Request | Release | Cancel, *, grants: bool) -> None:
        """A client's message; without ``grants`` only what it gave up counts, and nobody gets it yet."""
        if isinstance(message, Request):
            self._request(sender, message)
            return
        out: Orders = []
        record = self.records.get(message.resource)
        if record is None:
            return
        freed = isinstance(message, Release)
        if isinstance(message, Release):
            record.release(sender, message.mode, message.serial, message.value)
        else:
            record.cancel(sender, message.serial, out)
        if grants:
            self._schedule(record, out)
            if freed:
                granted = sum(isinstance(order, Granted) for _, order in out)
                self._counts[message.resource.domain].hand_overs += granted
            self._send(out)

    def take_over(self, sender: int, granted: Granted) -> None:
        """A grant to us that makes us the arbiter (T1); ``settle`` must follow when the client knows of it."""
        hand_over = granted.hand_over
        assert hand_over is not None
        record = self.records[granted.resource] = Record(granted.resource)
        me = self.arbiters.node
        record.granted[me], record.serials[me] = granted.mode, granted.serial
        record.value = granted.value
        if granted.finish != NEVER:
            record.revoked[me] = granted.finish
        if hand_over.held and compatible(hand_over.held, granted.mode):
            record.granted[sender], record.serials[sender] = hand_over.held, hand_over.serial
        if hand_over.wanted > NL:
            waiter = Waiter(sender, hand_over.wanted, hand_over.wanted_serial, False, hand_over.priority)
            record.request(waiter, self._enqueue)
        self.arbiters.move(granted.resource, me)
        self.statistics["arbitration_taken"] += 1

    def take_back(self, resource: Resource, held: int, serial: int) -> None:
        """The other of two members has no use for a resource that the map gives to us (T2)."""
        self.arbiters.move(resource, self.arbiters.node)
        if held:  # then it was wrong, and we know better
            record = self._new_record(resource)
            record.granted[self.arbiters.node], record.serials[self.arbiters.node] = held, serial

    def settle(self, resource: Resource) -> None:
        """Grant and ask for what a record calls for."""
        record = self.records.get(resource)
        if record is not None:
            out: Orders = []
            self._schedule(record, out)
            self._send(out)

    def begin_with_writers(self) -> list[Resource]:
        """In a view of two members and no dead, EX is arbitrated by its holder (T5).

        Returns:
            What the other member arbitrates therefore.
        """
        arbiters = self.arbiters
        if arbiters.peer is None:
            return []
        given = []
        for resource, record in list(self.records.items()):
            if list(record.granted.values()) != [EX]:
                continue
            (holder,) = record.granted
            arbiters.move(resource, holder)
            if holder != arbiters.node:
                del self.records[resource]
                given.append(resource)
        return given

    def _request(self, sender: int, message: Request) -> None:
        arbiters = self.arbiters
        extras = [
            self._prefetch(sender, message.mode, extra)
            for extra in message.extras
            if arbiters.of(extra.resource) == arbiters.node
        ]
        out: Orders = []
        if arbiters.of(message.resource) == arbiters.node:
            record = self.records.get(message.resource) or self._new_record(message.resource)
            if record.grant_at_once(sender, message.mode, message.serial):  # the usual case needs no queue
                hand_over = self._hand_over(record, sender, message.mode)
                out.append((sender, Granted(
                    message.resource, message.mode, message.serial, record.value, hand_over=hand_over
                )))  # fmt: skip
            else:
                waiter = Waiter(sender, message.mode, message.serial, message.try_, message.priority)
                record.request(waiter, self._enqueue)
                self._schedule(record, out)
        else:
            self.statistics["crossed"] += 1  # T3
        if extras:
            self._answer_with(extras, sender, message, out)
        self._send(out)

    def _prefetch(self, sender: int, mode: int, extra: Extra) -> ExtraAnswer:
        """Grant an extra if nobody stands against it; never wait, never revoke (003-42)."""
        record = self.records.get(extra.resource) or self._new_record(extra.resource)
        granted = record.grant_at_once(sender, mode, extra.serial)
        counts = self._counts[extra.resource.domain]
        counts.prefetch_granted += granted
        counts.prefetch_left_out += not granted
        if not granted:
            self._drop_if_idle(record)
            return ExtraAnswer(extra.resource, extra.serial, False)
        return ExtraAnswer(extra.resource, extra.serial, True, record.value, self._hand_over(record, sender, mode))

    @staticmethod
    def _answer_with(extras: list[ExtraAnswer], sender: int, message: Request, out: Orders) -> None:
        """Put the answers into the Granted of this request, or before it into a message of their own."""
        for node, answer in out:
            if node == sender and isinstance(answer, Granted) and answer.serial == message.serial:
                answer.extras = extras
                return
        out.insert(0, (sender, Prefetched(message.mode, extras)))

    def purge(self) -> None:
        """A rebuild begins.  What was known is the caller's."""
        self.records = {}
        self.doubts = None
        self._unsettled = set()
        self._haunted = set()
        self.ages.clear()

    def replace(self, records: Iterable[Record], doubts: Doubts) -> Iterator[None]:
        """A rebuild has all reports: take its records, one with each step."""
        self.doubts = doubts or None
        for record in records:
            if not record.idle:
                resource = record.resource
                self.records[resource] = record
                if record.converting or record.waiting:
                    self._unsettled.add(resource)
                if record.ghosts:
                    self._haunted.add(resource)
            yield

    def resume(self) -> None:
        """Grant all that can be granted; drop what is of no use."""
        unsettled, self._unsettled = self._unsettled, set()
        for resource in unsettled:
            self.settle(resource)

    def release_ghosts(self, instance: Instance, *, grants: bool) -> None:
        """The journal of a dead instance is replayed: what it held is free."""
        if self.doubts is None:
            return
        self.doubts.release(instance)
        if not self.doubts:
            self.doubts = None
        for resource in list(self._haunted):
            record = self.records.get(resource)
            if record is not None and record.ghosts.pop(instance, None) is None and self.doubts is not None:
                continue
            if record is None or (not record.ghosts and self.doubts is None):
                self._haunted.discard(resource)
            if grants:
                self.settle(resource)
            else:
                self._unsettled.add(resource)

    def _new_record(self, resource: Resource) -> Record:
        record = self.records[resource] = Record(resource)
        if self.doubts is not None:
            # No member held it when the view was rebuilt, or it would be here: records stay while doubts last.
            add_doubts(record, self.doubts)
            self._haunted.add(resource)
        return record

    def _schedule(self, record: Record, out: Orders) -> None:
        if record.converting or record.waiting:
            record.schedule(out)
            waiting = [waiter.node for waiter in (*record.converting, *record.waiting)]
            self.ages.see(record.resource, waiting, record.revoked)
            for node, message in out:
                if node == self.arbiters.peer and isinstance(message, Granted):
                    message.hand_over = self._hand_over(record, node, message.mode)
        else:
            self.ages.see(record.resource, (), record.revoked)
            self._drop_if_idle(record)

    def _hand_over(self, record: Record, node: int, mode: int) -> HandOver | None:
        """What goes with a grant that makes ``node`` the arbiter (T1, T4); None if it does not."""
        if node != self.arbiters.peer or not VALUE_WRITE_MASK >> mode & 1 or self.doubts is not None:
            return None
        del self.records[record.resource]
        self.ages.see(record.resource, (), ())
        self.arbiters.move(record.resource, node)
        self.statistics["arbitration_given"] += 1
        me = self.arbiters.node
        held, serial = record.granted.get(me, NL), record.serials.get(me, 0)
        for waiter in (*record.converting, *record.waiting):  # ours: the other one has what it wanted
            return HandOver(held, serial, waiter.mode, waiter.serial, waiter.priority)
        return HandOver(held, serial)

    def _drop_if_idle(self, record: Record) -> None:
        if not record.idle:
            return
        if self.doubts is not None:
            self._haunted.add(record.resource)
            return
        resource = record.resource
        del self.records[resource]
        if resource in self.arbiters.moved:  # T2
            home = self.arbiters.directory.master(resource)
            self.arbiters.move(resource, home)
            self.statistics["arbitration_returned"] += 1
            self._post(home, Return(resource))

    def _send(self, out: Orders) -> None:
        for node, message in out:
            if isinstance(message, Revoke) and node != self.arbiters.node:
                self._counts[message.resource.domain].revokes_sent += 1
            self._post(node, message)
