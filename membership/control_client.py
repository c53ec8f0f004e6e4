"""The mount process's line to its matrixd: admission, orders, replies, counters, leaving.

How a mount process uses it::

    session = await MountSession.connect(state_dir, filesystem)     # after daemonizing: the kernel vouches for this pid
    ... open session.cluster.store_path, read the superblock and the journals ...
    admission = await session.join(request)
    async for order in session:                         # raises Fenced when matrixd is gone
        ...                                             # an Order, or a Query: await session.answer(query, value)
    await session.left()                                # from another task: ends the loop above

Invariants:
- M1. The loop is the only reader.  It must come back for the next order at once (start a task for what
  takes time): while it does not, lease orders wait, and the loss of matrixd goes unnoticed.
- M2. Losing matrixd without having left is ``Fenced``, at once and for good: a session never reconnects.
- M3. After ``left`` was sent nothing may be written to the store; ``left`` returns when matrixd knows.

Source: architecture 2 (processes), R3, R9; BRIEF "losing the matrixd socket = fence self at once".
"""

from __future__ import annotations

import contextlib
import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

import trio

from membership import control_stream
from membership.control_ask import explain_connect_error, socket_path
from membership.control_wire import (
    PROTOCOL_VERSION,
    Admission,
    ClusterInfo,
    Message,
    admission_of_untrusted,
    cluster_of_untrusted,
    encode_map,
    error_message,
    error_of_untrusted,
    take,
    take_natural,
)
from membership.errors import BadMessage, Fenced, OperatorError, PeerError
from membership.messages import ANSWER_BYTES_MAX
from membership.mount_watch import Pulse
from membership.orders import order_from_dict_untrusted, reply_to_dict, request_to_dict
from membership.processes import process_start

if TYPE_CHECKING:
    from collections.abc import Callable

    from membership.orders import MountRequest, Order, Reply

log = logging.getLogger(__name__)

_LOST: Final = "lost matrixd, so lost the right to write"


@dataclass(frozen=True, slots=True)
class Query:
    """A question of ``matrixctl``, here or on another node: to be answered in a task of its own, by ``answer``."""

    serial: int
    what: str
    arguments: bytes  # a CBOR map, as somebody wrote it: hostile


class MountSession:
    """One mount's connection to the local matrixd; made by ``connect``."""

    def __init__(self, stream: control_stream.FrameStream, cluster: ClusterInfo) -> None:
        self.cluster = cluster
        self._stream = stream
        self._reading = trio.Lock()  # M1, except that ``left`` may have to read what the loop no longer does
        self.pulse: Callable[[], Pulse] = Pulse  # how this mount stands, with every answer to a ping; must not block
        self._leaving = False
        self._gone = False

    @classmethod
    async def connect(cls, state_dir: str, filesystem: str) -> MountSession:
        """Connect to the matrixd of ``state_dir`` and learn where the store of ``filesystem`` is.

        Raises:
            OperatorError: matrixd is not running there, or not yet a member, or this is not root, or there is no such
                filesystem.
            PeerError: it broke the protocol or ended.
        """
        stream = await _connect(state_dir)
        try:
            pid = os.getpid()
            hello: Message = {"version": PROTOCOL_VERSION, "pid": pid, "start_ticks": process_start(pid)}
            hello["filesystem"] = filesystem
            welcome = await _request(stream, {"kind": "hello"} | hello, "welcome")
            return cls(stream, cluster_of_untrusted(take(welcome, "cluster", dict)))
        except BaseException:
            stream.close()
            raise

    async def join(self, request: MountRequest) -> Admission:
        """Ask for the mount; orders may come as soon as this returns.

        Args:
            request: what to mount.  Its ``pid`` and ``start_time`` are replaced by what the kernel tells matrixd.

        Raises:
            MatrixError: refused (for example OperatorError: already mounted on this node), or matrixd ended or
                broke the protocol (PeerError).  Nothing was mounted, and the session is closed.
        """
        fields = {"kind": "join", "request": request_to_dict(request)}
        try:
            admitted = await _request(self._stream, fields, "admitted")
            return admission_of_untrusted(self.cluster, take(admitted, "admission", dict))
        except BaseException:
            self.close()
            raise

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Order | Query:
        """The next order or question; ends after ``left``.  Raises Fenced: matrixd is gone or talks nonsense (M2)."""
        async with self._reading:
            while not self._gone:
                message = await self._receive()
                if message is not None and message["kind"] in ("order", "query"):
                    return self._decode(message)
        if self._leaving:
            raise StopAsyncIteration
        raise Fenced(f"{_LOST}: the session had ended before")

    async def reply(self, reply: Reply) -> None:
        """Answer an order.  Raises Fenced."""
        await self._send({"kind": "reply", "reply": reply_to_dict(reply)})

    async def answer(self, query: Query, answer: bytes) -> None:
        """Answer a question with a CBOR map of kind ``value`` or ``error``.  Raises Fenced."""
        if len(answer) > ANSWER_BYTES_MAX:
            error = OperatorError(f"an answer of {len(answer)} bytes, at most {ANSWER_BYTES_MAX}: ask for less")
            answer = encode_map(error_message(error))
        await self._send({"kind": "answer", "serial": query.serial, "value": answer})

    async def left(self) -> None:
        """Tell that this mount is cleanly out: journal clean, locks released, nothing will be written (M3).

        Returns when matrixd has taken it over, or is gone: either way nothing is left to do.  Idempotent.
        """
        self._leaving = True
        with contextlib.suppress(Fenced):
            await self._send({"kind": "left"})
            while not self._gone:
                async with self._reading:  # whoever has the lock sees the goodbye
                    if not self._gone:
                        await self._receive()
        self.close()

    def close(self) -> None:
        """Hang up.  Without ``left`` before, matrixd kills this process and has its journal replayed.  Idempotent."""
        self._stream.close()

    async def _receive(self) -> Message | None:
        """Take in one message; None when there is nothing for the caller in it.  Raises Fenced."""
        try:
            message = await self._stream.receive()
        except BadMessage as error:
            raise self._fenced(str(error)) from None
        if message is None or message["kind"] == "goodbye":
            self._gone = True
            if self._leaving:
                return None
            raise self._fenced("matrixd closed the control socket")
        if message["kind"] == "ping":
            pong = {"kind": "pong", "serial": take_natural(message, "serial"), "pulse": self.pulse().to_map()}
            with contextlib.suppress(trio.BrokenResourceError):  # why it hung up may stand behind the ping: read on
                await self._stream.send(pong)
            return None
        return message

    async def _send(self, message: Message) -> None:
        try:
            await self._stream.send(message)
        except trio.BrokenResourceError:
            raise self._fenced("matrixd closed the control socket") from None

    def _decode(self, message: Message) -> Order | Query:
        try:
            if message["kind"] == "query":
                what, arguments = take(message, "what", str), take(message, "arguments", bytes)
                return Query(take_natural(message, "serial"), what, arguments)
            return order_from_dict_untrusted(message.get("order"))
        except BadMessage as error:
            raise self._fenced(str(error)) from None

    def _fenced(self, reason: str) -> Fenced:
        """M2: from here on every call fails, and matrixd sees the end of the stream too."""
        self._gone = True
        self._stream.close()
        return Fenced(f"{_LOST}: {reason}")


async def is_listed(state_dir: str, incarnation: int) -> bool:
    """Ask matrixd to look at the disks now: whether header and slot list its node, and this mount.

    On a connection of its own: orders may be waiting on the mount's.

    Raises:
        OperatorError: matrixd is not there.
        MatrixError: it can't tell.
    """
    stream = await _connect(state_dir)
    try:
        return take(await _request(stream, {"kind": "listed", "incarnation": incarnation}, "result"), "value", bool)
    finally:
        stream.close()


async def _request(stream: control_stream.FrameStream, message: Message, wanted: str) -> Message:
    """Send ``message`` and return its answer of kind ``wanted``.  Raises what matrixd refused it with, or PeerError."""
    try:
        await stream.send(message)
    except trio.BrokenResourceError:
        raise PeerError("matrixd hung up; see its log") from None
    answer = await stream.receive()
    if answer is None:
        raise PeerError("matrixd hung up; see its log")
    if answer["kind"] == "error":
        raise error_of_untrusted(answer)
    if answer["kind"] != wanted:
        raise BadMessage(f"matrixd answered {answer['kind']!r}, not {wanted!r}")
    return answer


async def _connect(state_dir: str) -> control_stream.FrameStream:
    """A connection to matrixd.  Raises OperatorError, PeerError."""
    path = socket_path(state_dir)
    try:
        return await control_stream.connect(path)
    except OSError as error:
        raise explain_connect_error(path, error) from None
