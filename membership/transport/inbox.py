"""The event queue between a transport and its one reader, with the wake-ups that trio does not have ready-made.

``trio.Event`` is used up by one ``set`` and a memory channel costs a lock and two checkpoints per item; this is the
path of every lock message, so it parks its reader directly and hands over whole batches.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import trio

from membership.seams import TransportEvent

ROOM_EVENTS = 8192  # beyond this, connections stop reading: their peers' queues fill, and they are reported stuck
YIELD_EVERY = 64


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
    """Events for ``Transport.receive``, oldest first."""

    __slots__ = ("_events", "_filled", "_room", "_since_yield")

    def __init__(self) -> None:
        self._events: deque[TransportEvent] = deque()
        self._filled = Signal()
        self._room = trio.lowlevel.ParkingLot()
        self._since_yield = 0

    def __len__(self) -> int:
        return len(self._events)

    def put(self, events: Iterable[TransportEvent]) -> None:
        """Add events; never blocks."""
        self._events.extend(events)
        if self._events:
            self._filled.set()

    async def get(self) -> TransportEvent:
        """The next event.  Yields to other tasks when it must wait, and every ``YIELD_EVERY`` events."""
        self._since_yield += 1
        if self._since_yield >= YIELD_EVERY:
            self._since_yield = 0
            await trio.lowlevel.checkpoint()
        while not self._events:
            await self._filled.wait()
        event = self._events.popleft()
        if self._room and len(self._events) <= ROOM_EVENTS // 2:
            self._room.unpark_all()
        return event

    async def wait_room(self) -> None:
        """Return when there is room again; a checkpoint only when there is none."""
        while len(self._events) > ROOM_EVENTS:
            await self._room.park()

    def forget(self, node: int) -> None:
        """Drop what came from a peer that is none any more: its successor has the same node id."""
        self._events = deque(event for event in self._events if event.node != node)
        if self._room and len(self._events) <= ROOM_EVENTS // 2:
            self._room.unpark_all()
