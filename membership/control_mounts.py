"""One mounted tree as its matrixd sees it: the mount process at the other end, and its place in the node.

Invariants:
- L1. Dead means dead: ``MountChannel.left(clean=False)`` is called only when the kernel has said that the
  process and all its threads are gone, and its last write has landed (presence.py).  When the
  connection ends without ``left``, or carries nonsense, the process has ``EXIT_SECONDS_MAX`` to fence itself
  and exit, then it is killed; one that can't die (stuck in the kernel) keeps its mount unrecovered, for it
  might still write.
- L2. The node never waits for a mount process: orders are taken off the channel until ``left`` has
  returned, whether anybody still reads them or not.
- L3. It is looked after four times a second (mount_watch.py): one that hangs is complained of to the administrator,
  and killed when that evicts it.  Nobody waits for it in the meantime: pings and orders are never awaited.
- L4. The pid and start time in the node's request are the kernel's, not the process's.

Source: architecture 2 ("a dead mount process is reported by its own matrixd, it holds its pidfd, and needs
no fencing"), R5, R9; 002-10.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import trio

from membership.control_wire import Message, take, take_natural
from membership.errors import BadMessage, DeviceError
from membership.messages import ANSWER_BYTES_MAX
from membership.mount_watch import LOOK_SECONDS, MountWatch, Pulse
from membership.orders import Lease, order_to_dict, reply_from_dict_untrusted
from membership.processes import activity, is_dying

if TYPE_CHECKING:
    from membership.control_stream import FrameStream, PeerProcess
    from membership.label import Timing
    from membership.mounts import MountChannel
    from membership.presence import Lands
    from membership.seams import Clock

log = logging.getLogger(__name__)

CutOff: TypeAlias = Callable[[int, int], None]  # (pid, start time): abort what it still serves as a file server

ANSWER_SECONDS_MAX: Final = 1.0  # how long matrixctl waits for a mount process that hangs
EXIT_SECONDS_MAX: Final = 2.0  # from the end of the connection to SIGKILL: time to detach the mount point


class LocalMount:
    """An admitted mount of this node."""

    def __init__(
        self,
        stream: FrameStream,
        process: PeerProcess,
        channel: MountChannel,
        landing: Lands,
        clock: Clock,
        timing: Timing,
        cut_off: CutOff,
    ) -> None:
        self._watch = MountWatch(timing, clock.monotonic(), channel.deadline)
        self._stream = stream
        self._process = process
        self._channel = channel
        self._landing = landing
        self._cut_off = cut_off
        self._clock = clock
        self._ending = False
        self._serial = 0
        self._asked: dict[int, trio.MemorySendChannel[bytes]] = {}
        self.ended = trio.Event()  # no question is answered any more
        self.filesystem = channel.request.fs_name
        self.mountpoint = channel.request.mountpoint
        self.pid = process.pid

    def __str__(self) -> str:
        return f"{self.filesystem} on {self.mountpoint} (pid {self.pid})"

    async def run(self) -> None:
        """Carry orders and replies until the mount has left or its process is dead, and tell the node (L1, L2)."""
        clean = False
        try:
            clean = await self._carry()
        except Exception:
            log.exception("%s: serving it failed", self)  # our own bug, but the node must still learn of its end
        self._ending = True
        self.ended.set()
        if clean:
            self._channel.left(clean=True)
            await self._send({"kind": "goodbye"})
            log.info("%s: left", self)
            return
        self._stream.close()
        self._cut_off(self._process.pid, self._process.started)  # it serves nothing any more, and may hang in that
        await self._wait_dead()
        try:
            await self._landing.wait(self._process.pid)
        except DeviceError as error:  # it may still write: its mount stays unrecovered rather than overwritten
            log.error("%s: %s", self, error)
            return
        self._channel.left(clean=False)
        log.warning("%s: ended without leaving; its process is gone, its journal needs replay", self)

    async def _carry(self) -> bool:
        """True when the mount said that it has left; False when it, its connection or its orders ended."""
        clean = False
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._pump_orders, nursery.cancel_scope)
            nursery.start_soon(self._cancel_at_exit, nursery.cancel_scope)
            nursery.start_soon(self._kill_when_evicted, nursery.cancel_scope)
            nursery.start_soon(self._look_after)
            clean = await self._read()
            nursery.cancel_scope.cancel()
        return clean

    async def _pump_orders(self, scope: trio.CancelScope) -> None:
        async for order in self._channel.orders:
            if isinstance(order, Lease):
                self._watch.leased(order.deadline)
            else:
                self._watch.ordered(order)
            await self._send({"kind": "order", "order": order_to_dict(order)})
        scope.cancel()

    async def _cancel_at_exit(self, scope: trio.CancelScope) -> None:
        """A child of the process may hold its socket open: the end of the stream alone would miss the death."""
        await self._process.wait_exit()
        scope.cancel()

    async def _kill_when_evicted(self, scope: trio.CancelScope) -> None:
        await self._channel.eviction.wait()
        log.error("%s: evicted: %s: killing it", self, self._channel.evicted)
        self._process.kill()
        scope.cancel()

    async def _look_after(self) -> None:
        """L3; and notice one that was killed and hangs in the kernel: it keeps its descriptors, nothing else tells."""
        while not is_dying(self._process.pid, self._process.started):
            seen = activity(self._process.pid)
            complaint = self._watch.look(seen, self._clock.monotonic()) if seen is not None else None
            if complaint is not None:
                self._channel.reply(complaint)  # until the administrator has heard it, or it moves again
            if self._watch.may_ping():
                await self._send({"kind": "ping", "serial": self._watch.ping()})
            await self._clock.sleep(LOOK_SECONDS)
        self._cut_off(self._process.pid, self._process.started)

    async def _wait_dead(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._kill_late)
            await self._process.wait_exit()
            nursery.cancel_scope.cancel()

    async def _kill_late(self) -> None:
        await self._clock.sleep(EXIT_SECONDS_MAX)
        log.warning("%s: still alive %g s after its connection ended: killing it", self, EXIT_SECONDS_MAX)
        self._process.kill()

    async def _send(self, message: Message) -> None:
        """Send, or don't: that the other end is gone is noticed where we read."""
        try:
            await self._stream.send(message)
        except trio.BrokenResourceError:
            return

    async def _read(self) -> bool:
        try:
            while (message := await self._stream.receive()) is not None:
                if message["kind"] == "left":
                    return True
                self._take_in(message)
        except BadMessage as error:
            log.error("%s: %s", self, error)
        return False

    def _take_in(self, message: Message) -> None:
        if message["kind"] == "reply":
            reply = reply_from_dict_untrusted(message.get("reply"))
            self._watch.replied(reply)
            self._channel.reply(reply)
        elif message["kind"] == "pong":
            self._watch.answered(take_natural(message, "serial"), Pulse.from_map_untrusted(message.get("pulse")))
        elif message["kind"] == "answer":
            serial, value = take_natural(message, "serial"), take(message, "value", bytes)
            if len(value) > ANSWER_BYTES_MAX:
                raise BadMessage(f"a mount process answered with {len(value)} bytes")
            asker = self._asked.pop(serial, None)
            if asker is not None:
                asker.send_nowait(value)
        else:
            raise BadMessage(f"a mount process sent {message['kind']!r}")

    def status(self, counters: object) -> Message:
        """What ``matrixctl status`` shows of it: who it is, and its own counters (None: it does not answer)."""
        known: dict[str, Any] = {"filesystem": self.filesystem, "mountpoint": self.mountpoint, "pid": self.pid}
        return known | {"ending": self._ending, "counters": counters}

    async def ask_for_a_second(self, what: str, arguments: bytes) -> bytes | None:
        """As ``ask``; None when it does not answer within ``ANSWER_SECONDS_MAX``, or has ended."""
        if self._ending:
            return None
        answer: bytes | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._cancel_late, nursery.cancel_scope)
            answer = await self.ask(what, arguments)
            nursery.cancel_scope.cancel()
        return answer

    async def _cancel_late(self, scope: trio.CancelScope) -> None:
        await self._clock.sleep(ANSWER_SECONDS_MAX)
        scope.cancel()

    async def ask(self, what: str, arguments: bytes) -> bytes:
        """Ask the mount process, and wait for as long as it takes.

        Args:
            what: the question's name (matrixfs/answers.py).
            arguments: a CBOR map.

        Returns:
            A CBOR map, ``value`` or ``error``: see ``control_wire.value_of_untrusted``.
        """
        self._serial += 1
        serial = self._serial
        answer, receive_answer = trio.open_memory_channel[bytes](1)
        self._asked[serial] = answer
        try:
            await self._send({"kind": "query", "serial": serial, "what": what, "arguments": arguments})
            return await receive_answer.receive()
        finally:
            self._asked.pop(serial, None)
