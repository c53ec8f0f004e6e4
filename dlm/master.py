"""The master side of a lockspace (pure): the records of the resources that this node masters under the view."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from dlm.messages import NO_VALUE, Cancel, Extra, ExtraAnswer, Granted, Order, Prefetched, Release, Request
from dlm.names import Resource
from dlm.recovery import Doubts, add_doubts
from dlm.resource import Enqueue, Orders, Record, Waiter
from membership.views import Instance


class MasterSide:
    """Master copies, and who may not be granted yet.

    Args:
        post: sends a message to a node, this one included.
        enqueue: the order of the queues.
        statistics: counts what was granted and left out of extras.
    """

    def __init__(self, post: Callable[[int, Order], None], enqueue: Enqueue, statistics: Counter[str]) -> None:
        self._post = post
        self._enqueue = enqueue
        self._statistics = statistics
        self.records: dict[Resource, Record] = {}
        self.doubts: Doubts | None = None  # None: everything that the dead held is released

    def receive(self, sender: int, message: Request | Release | Cancel, *, grants: bool) -> None:
        """A client's message; without ``grants`` only what it gave up counts, and nobody gets it yet."""
        out: Orders = []
        if isinstance(message, Request):
            self._request(sender, message)
            return
        record = self.records.get(message.resource)
        if record is None:
            return
        if isinstance(message, Release):
            record.release(sender, message.mode, message.serial, message.value)
        else:
            record.cancel(sender, message.serial, out)
        if grants:
            self._schedule(record, out)
            self._send(out)

    def _request(self, sender: int, message: Request) -> None:
        extras = [self._prefetch(sender, message.mode, extra) for extra in message.extras]
        record = self.records.get(message.resource) or self._new_record(message.resource)
        record.request(Waiter(sender, message.mode, message.serial, message.try_, message.priority), self._enqueue)
        out: Orders = []
        self._schedule(record, out)
        if extras:
            self._answer_with(extras, sender, message, out)
        self._send(out)

    def _prefetch(self, sender: int, mode: int, extra: Extra) -> ExtraAnswer:
        """Grant an extra if nobody stands against it; never wait, never revoke (003-42)."""
        record = self.records.get(extra.resource) or self._new_record(extra.resource)
        granted = record.grant_at_once(sender, mode, extra.serial)
        self._statistics["prefetch_granted" if granted else "prefetch_left_out"] += 1
        self._drop_if_idle(record)
        return ExtraAnswer(extra.resource, extra.serial, granted, record.value if granted else NO_VALUE)

    @staticmethod
    def _answer_with(extras: list[ExtraAnswer], sender: int, message: Request, out: Orders) -> None:
        """Put the answers into the Granted of this request, or before it into a message of their own."""
        for node, answer in out:
            if node == sender and isinstance(answer, Granted) and answer.serial == message.serial:
                answer.extras = extras
                return
        out.insert(0, (sender, Prefetched(message.mode, extras)))

    def replace(self, records: Mapping[Resource, Record], doubts: Doubts) -> None:
        """A rebuild is complete: its records are the truth from now on."""
        self.records = dict(records)
        self.doubts = doubts or None

    def resume(self) -> None:
        """Grant all that can be granted; drop what is of no use."""
        for record in list(self.records.values()):
            out: Orders = []
            self._schedule(record, out)
            self._send(out)

    def release_ghosts(self, instance: Instance, *, grants: bool) -> None:
        """The journal of a dead instance is replayed: what it held is free."""
        if self.doubts is None:
            return
        self.doubts.release(instance)
        last = not self.doubts
        if last:
            self.doubts = None
        for record in list(self.records.values()):
            freed = record.ghosts.pop(instance, None) is not None
            if grants and (freed or last):
                out: Orders = []
                self._schedule(record, out)
                self._send(out)

    def _new_record(self, resource: Resource) -> Record:
        record = self.records[resource] = Record(resource)
        if self.doubts is not None:
            # No member held it when the view was rebuilt, or it would be here: records stay while doubts last.
            add_doubts(record, self.doubts)
        return record

    def _schedule(self, record: Record, out: Orders) -> None:
        if record.converting or record.waiting:
            record.schedule(out)
        else:
            self._drop_if_idle(record)

    def _drop_if_idle(self, record: Record) -> None:
        if record.idle and self.doubts is None:
            del self.records[record.resource]

    def _send(self, out: Orders) -> None:
        for node, message in out:
            self._post(node, message)
