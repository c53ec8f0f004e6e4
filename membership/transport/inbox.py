"""The events of a transport on their way to its one reader, with the wake-ups that trio does not have ready-made.

``trio.Event`` is used up by one ``set`` and a memory channel costs a lock and two checkpoints per item; this is the
path of every lock message.  It has two forms:

- ``serve``: events are given to a plain function, as a rule by the very task that read them from the socket: no queue,
  no second task to wake (measured: 15-20 us of a lock message, at either end);
- ``get``: events are queued for a task that takes one at a time.

Invariants:

- I1. Events reach the reader in the order of ``hand`` and ``put``: while one is queued, all go through the queue.
- I2. The function is never called from within a call of the reader's own: what such a call causes is ``put``.
- I3. At most ``AT_ONCE`` events are given without a checkpoint, however many one packet brought.
- I4. Who fills it beyond ``ROOM_EVENTS`` waits in ``wait_room``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import NoReturn

import trio

from membership.seams import TransportEvent

ROOM_EVENTS = 8192  # beyond this, connections stop reading: their peers' queues fill, and they are reported stuck
AT_ONCE = 64

Handler = Callable[[TransportEvent], None]


class Signal:
    """A flag that one task waits for, again and again."""

    __slots__ = ("_set", "_waiter")

    def __init__(self) -> None:
        self._set = False
        self._waiter: trio.lowlevel.Task | None = None

    def set(self) -> None:
        """Wake the waiter, now or when it comes."""
        self._set = True
        if self._waiter is not None:
            trio.lowlevel.reschedule(self._waiter)
            self._waiter = None

    async def wait(self) -> None:
        """Return once set, and clear; a checkpoint."""
        if self._set:
            await trio.lowlevel.checkpoint()
        else:
            assert self._waiter is None, "a second task waits for this signal"
            self._waiter = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(self._abort)
        self._set = False

    def _abort(self, _raise_cancel: object) -> trio.lowlevel.Abort:
        self._waiter = None
        return trio.lowlevel.Abort.SUCCEEDED


class Inbox:
    """See the module."""

    __slots__ = ("_events", "_filled", "_handler", "_room", "_since_yield")

    def __init__(self) -> None:
        self._events: deque[TransportEvent] = deque()
        self._filled = Signal()
        self._handler: Handler | None = None
        self._room = trio.lowlevel.ParkingLot()
        self._since_yield = 0

    def __len__(self) -> int:
        return len(self._events)

    def put(self, events: Iterable[TransportEvent]) -> None:
        """Queue events; never blocks."""
        self._events.extend(events)
        if self._events:
            self._filled.set()

    def hand(self, events: Iterable[TransportEvent]) -> None:
        """Give events to the reader: at once if it serves and has nothing queued; from the transport's tasks only."""
        if self._handler is None or self._events:
            self.put(events)
            return
        # Through the queue all the same: the function may call ``forget`` and, by way of a call of its own, ``put``.
        self._events.extend(events)
        for _ in range(AT_ONCE):
            if not self._events:
                return
            self._handler(self._events.popleft())
        if self._events:
            self._filled.set()

    async def serve(self, handler: Handler) -> NoReturn:
        """Call ``handler`` with every event from now on, until cancelled."""
        assert self._handler is None, "somebody serves already"
        self._handler = handler
        try:
            while True:
                event = await self.get()
                handler(event)  # no checkpoint since it left the queue: I1
        finally:
            self._handler = None

    async def get(self) -> TransportEvent:
        """The next event.  Yields to other tasks when it must wait, and every ``AT_ONCE`` events."""
        self._since_yield += 1
        if self._since_yield >= AT_ONCE:
            self._since_yield = 0
            await trio.lowlevel.checkpoint()
        while not self._events:
            await self._filled.wait()
        event = self._events.popleft()
        if self._room and len(self._events) <= ROOM_EVENTS // 2:
            self._room.unpark_all()
        return event

    @property
    def crowded(self) -> bool:
        """Whether ``wait_room`` would wait."""
        return len(self._events) > ROOM_EVENTS

    async def wait_room(self) -> None:
        """Return when there is room again; a checkpoint only when there is none."""
        while self.crowded:
            await self._room.park()

    def forget(self, node: int) -> None:
        """Drop what came from a peer that is none any more: its successor has the same node id."""
        self._events = deque(event for event in self._events if event.node != node)
        if self._room and len(self._events) <= ROOM_EVENTS // 2:
            self._room.unpark_all()
