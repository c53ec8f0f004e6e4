"""The master side of a lockspace (pure): the records of the resources that this node masters under the view."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from dlm.messages import AboutResource, Cancel, Release, Request
from dlm.names import Resource
from dlm.recovery import Doubts, add_doubts
from dlm.resource import Orders, Record, Waiter
from membership.views import Instance


class MasterSide:
    """Master copies, and who may not be granted yet.

    Args:
        post: sends a message to a node, this one included.
    """

    def __init__(self, post: Callable[[int, AboutResource], None]) -> None:
        self._post = post
        self.records: dict[Resource, Record] = {}
        self.doubts: Doubts | None = None  # None: everything that the dead held is released

    def receive(self, sender: int, message: Request | Release | Cancel, *, grants: bool) -> None:
        """A client's message; without ``grants`` only what it gave up counts, and nobody gets it yet."""
        resource = message.resource
        record = self.records.get(resource)
        out: Orders = []
        if isinstance(message, Request):
            if record is None:
                record = self._new_record(resource)
            record.request(Waiter(sender, message.mode, message.serial, message.try_))
        elif record is None:
            return
        elif isinstance(message, Release):
            record.release(sender, message.mode, message.serial, message.value)
        else:
            record.cancel(sender, message.serial, out)
        if grants:
            self._schedule(record, out)

    def replace(self, records: Mapping[Resource, Record], doubts: Doubts) -> None:
        """A rebuild is complete: its records are the truth from now on."""
        self.records = dict(records)
        self.doubts = doubts or None

    def resume(self) -> None:
        """Grant all that can be granted; drop what is of no use."""
        for record in list(self.records.values()):
            self._schedule(record, [])

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
                self._schedule(record, [])

    def _new_record(self, resource: Resource) -> Record:
        record = self.records[resource] = Record(resource)
        if self.doubts is not None:
            # No member held it when the view was rebuilt, or it would be here: records stay while doubts last.
            add_doubts(record, self.doubts)
        return record

    def _schedule(self, record: Record, out: Orders) -> None:
        if record.converting or record.waiting:
            record.schedule(out)
        elif record.idle and self.doubts is None:
            del self.records[record.resource]
        for node, message in out:
            self._post(node, message)
