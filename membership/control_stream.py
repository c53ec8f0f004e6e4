"""Messages over a connected unix socket, inside trio; both ends of the control socket use it.

Invariants:
- T1. A frame is sent whole or the connection is closed: a cancelled sender never leaves half a frame
  in front of the next one.
- T2. The end of the stream, a reset and a frame cut short are the same event, ``None``: the other
  process is gone, and how far it got does not matter.

An edge module (R1): trio sockets, peer credentials and pidfds live here.  Source: architecture 2.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import struct
from dataclasses import dataclass
from typing import Final

import trio

from membership.control_wire import FrameBuffer, Message, encode_frame
from membership.processes import process_start

_RECEIVE_BYTES: Final = 1 << 16
_UCRED: Final = struct.Struct("3i")
_SO_PEERPIDFD: Final = 77  # Linux 6.5; Python has no name for it yet


class FrameStream:
    """Both directions of one connection."""

    def __init__(self, connection: trio.socket.SocketType) -> None:
        self._socket = connection
        self._frames = FrameBuffer()
        self._sending = trio.Lock()

    async def receive(self) -> Message | None:
        """The next message, None at the end (T2).  Safe to cancel.  Raises BadMessage."""
        while True:
            message = self._frames.next_untrusted()
            if message is not None:
                return message
            try:
                data = await self._socket.recv(_RECEIVE_BYTES)
            except (OSError, trio.ClosedResourceError):
                return None
            if not data:
                return None
            self._frames.feed(data)

    async def send(self, message: Message) -> None:
        """Send ``message`` whole (T1).

        Raises:
            trio.BrokenResourceError: the other end is gone.
            BadMessage: ``message`` is over the cap; nothing was sent.
        """
        frame = memoryview(encode_frame(message))
        sent = 0
        async with self._sending:
            try:
                while sent < len(frame):
                    sent += await self._socket.send(frame[sent:])
            except (OSError, trio.ClosedResourceError) as error:
                raise trio.BrokenResourceError(f"control socket: {error}") from None
            except trio.Cancelled:
                if sent:
                    self._socket.close()
                raise

    def close(self) -> None:
        """Hang up.  Idempotent."""
        self._socket.close()


async def cancel_at_end(stream: FrameStream, scope: trio.CancelScope) -> None:
    """A task beside a request that lasts as long as its connection: whatever comes next, or the end, ends it."""
    try:
        await stream.receive()
    finally:
        scope.cancel()


async def connect(path: str) -> FrameStream:
    """Connect to a matrixd.  Raises OSError."""
    connection = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        await connection.connect(path)
    except BaseException:
        connection.close()
        raise
    return FrameStream(connection)


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end of a connection, as the kernel says."""

    pid: int
    uid: int


def peer_of(connection: trio.socket.SocketType) -> Peer:
    """Credentials the other process had when it connected."""
    pid, uid, _gid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return Peer(pid, uid)


class PeerProcess:
    """A hold on the process that connected: its pid can't be reused for another one under us.

    ``started`` tells apart a process that took the pid over between its predecessor's connect and our
    ``pidfd_open`` (kernels before 6.5 only): the caller compares it with what the process says of itself.
    """

    def __init__(self, connection: trio.socket.SocketType) -> None:
        """Take hold.  Raises OSError when it is gone already."""
        self.pid = peer_of(connection).pid
        self._pidfd = _peer_pidfd(connection, self.pid)
        started = process_start(self.pid)
        if started is None:
            self.close()
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        self.started = started

    async def wait_exit(self) -> None:
        """Return when the process and all its threads are gone."""
        await trio.lowlevel.wait_readable(self._pidfd)

    def kill(self) -> None:
        """SIGKILL, if it still lives."""
        try:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        except ProcessLookupError:
            return

    def close(self) -> None:
        """Let go.  Idempotent."""
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1


def _peer_pidfd(connection: trio.socket.SocketType, pid: int) -> int:
    try:
        return int(connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD))
    except OSError:
        return os.pidfd_open(pid)
