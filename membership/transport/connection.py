"""One TCP connection between two proven peers: the socket under a session (trio).

Works on the plain socket, not on ``trio.SocketStream``: a lock message's round trip is one scheduler pass at the end
that answers, and every checkpoint and system call saved there counts.  At rest a message costs its sender ``send`` and
its receiver ``recv``, and trio's ``epoll_ctl`` and ``epoll_wait`` there (``tests/membership/test_transport_costs.py``).

``flush`` writes what the session has, without waiting; what the kernel does not take at once is finished by a task of
its own, during which the session gathers (003-33).
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any

import trio

from membership.errors import BadMessage
from membership.seams import Clock
from membership.transport.frames import FrameReader, FrameWriter
from membership.transport.handshake import Agreement
from membership.transport.inbox import Signal
from membership.transport.pulse import Pulse
from membership.transport.session import DEAF, MESSAGES, PING, PONG, Packet, Session

RECEIVE_BYTES = 16 << 10  # at first; when they came at once, there is more, and it is read in larger pieces
RECEIVE_BYTES_MAX = 256 << 10
_SOURCE_UNFIT = (errno.EINVAL, errno.EADDRNOTAVAIL)  # the own address can't reach that of the peer
SILENT_MS_MAX = 3000  # the kernel gives a connection up when nothing sent was acknowledged for so long
TCP_THIN_LINEAR_TIMEOUTS = 16  # linux/tcp.h; not in the socket module


@dataclass(slots=True)
class Traffic:
    """What went to and came from one peer since it was named; frames with no message but a PING count too."""

    messages_sent: int = 0
    messages_received: int = 0
    frames_sent: int = 0
    frames_received: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0

    def add(self, other: Traffic) -> None:
        """Add up."""
        for name, count in asdict(other).items():
            setattr(self, name, getattr(self, name) + count)


Deliver = Callable[[list[bytes]], Awaitable[None]]


class Connection:
    """The life of one connection, from the end of its handshake."""

    def __init__(
        self, sock: socket.socket, session: Session, agreement: Agreement, traffic: Traffic, pulse: Pulse, clock: Clock
    ) -> None:
        """Args: sock: non-blocking and connected; owned and closed by ``run``."""
        self._sock = sock
        self._pulse = pulse
        self._clock = clock
        self._ping = 0  # tokens to send, 0: none; the newest only, so they are no queue
        self._pong = 0
        self._deaf = False  # to be said
        self._session = session
        self._writer = FrameWriter(agreement.send_key, encrypt=agreement.encrypt)
        self._reader = FrameReader(agreement.receive_key, encrypt=agreement.encrypt)
        self._traffic = traffic
        self._rest = memoryview(b"")  # encoded, not yet taken by the kernel
        self._blocked = Signal()
        self._scope = trio.CancelScope()
        self._reason = ""  # why it ended or is about to
        self._token = trio.lowlevel.current_trio_token()

    def flush(self) -> None:
        """Hand the session's unsent messages to the kernel as far as it takes them; never blocks (``gather.Link``)."""
        if self._rest or self._reason:
            return
        traffic = self._traffic
        while (packet := self._next()) is not None:
            frame = self._writer.encode(packet)
            traffic.frames_sent += 1
            traffic.messages_sent += len(packet.messages)
            traffic.bytes_sent += len(frame)
            try:
                taken = self._sock.send(frame)
            except BlockingIOError:
                taken = 0
            except OSError as error:
                self._reason = f"send: {error.strerror}"
                self._token.run_sync_soon(self._scope.cancel)
                return
            if taken < len(frame):
                self._rest = memoryview(frame)[taken:]
                self._token.run_sync_soon(self._blocked.set)
                return

    def _next(self) -> Packet | None:
        """What to send next."""
        if self._pong:
            token, self._pong = self._pong, 0
            return self._session.control(PONG, token)
        if self._ping:
            token, self._ping = self._ping, 0
            return self._session.control(PING, token)
        if self._deaf:
            self._deaf = False
            return self._session.control(DEAF, 0)
        return self._session.take()

    def ping(self, token: int) -> None:
        """Ask the peer for a sign of life; and see that no key is used for too long."""
        if self._writer.is_worn:
            self.close("time for new keys")  # the session goes on over the next connection
            return
        self._ping = token
        self.flush()

    def say_deaf(self) -> None:
        """Tell the peer, which connects, that we hear nothing of it: it should take another path."""
        self._deaf = True
        self.flush()

    def close(self, reason: str) -> None:
        """End ``run`` with this reason; idempotent, the first reason stands."""
        if not self._reason:
            self._reason = reason
            self._scope.cancel()

    async def run(self, deliver: Deliver) -> str:
        """Serve until the connection ends; return why.

        Args:
            deliver: takes each batch of messages, in order; waiting in it stops reading (back-pressure).
        """
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._finish_writes)
                    self.flush()
                    await self._read(deliver)
        finally:
            trio.lowlevel.notify_closing(self._sock)
            self._sock.close()
        return self._reason

    async def _finish_writes(self) -> None:
        while True:
            await self._blocked.wait()
            while self._rest:
                await trio.lowlevel.wait_writable(self._sock)
                try:
                    taken = self._sock.send(self._rest)
                except BlockingIOError:
                    continue
                except OSError as error:
                    self.close(f"send: {error.strerror}")
                    return
                self._rest = self._rest[taken:]
            self.flush()

    async def _read(self, deliver: Deliver) -> None:
        size = RECEIVE_BYTES
        more = False
        while True:
            if more:
                await trio.lowlevel.checkpoint()
            else:
                await trio.lowlevel.wait_readable(self._sock)
            if self._reason:  # closed by another task in the pass that also woke us: nothing may be delivered now
                return
            try:
                data = self._sock.recv(size)
            except BlockingIOError:
                more = False
                continue
            except OSError as error:
                self.close(f"receive: {error.strerror}")
                return
            if not data:
                self.close("the peer closed the connection")
                return
            more = len(data) == size
            size = RECEIVE_BYTES_MAX if more else RECEIVE_BYTES
            ready: list[bytes] = []
            try:
                self._take_in_untrusted(data, ready)
            except BadMessage as error:
                self.close(str(error))  # but what came before it, and counts as received, is delivered
            if ready:
                await deliver(ready)
            if self._session.ack_due or self._pong:
                self.flush()

    def _take_in_untrusted(self, data: bytes, ready: list[bytes]) -> None:
        """Add the messages that ``data`` completes to ``ready``.  Raises BadMessage."""
        traffic = self._traffic
        traffic.bytes_received += len(data)
        for packet in self._reader.feed_untrusted(data):
            traffic.frames_received += 1
            self._pulse.heard()
            if packet.kind == MESSAGES:
                messages = self._session.receive_untrusted(packet)
                traffic.messages_received += len(messages)
                ready += messages
            else:
                self._receive_pulse_untrusted(packet)

    def _receive_pulse_untrusted(self, packet: Packet) -> None:
        """A PING, PONG or DEAF.  Raises BadMessage."""
        self._session.acknowledge_untrusted(packet.ack)
        if packet.kind == PING:
            self._pong = packet.first
        elif packet.kind == DEAF:
            self._pulse.is_deaf = True
        else:
            self._pulse.answered(packet.first, self._clock.monotonic())


def tune(sock: socket.socket) -> None:
    """Set a connection's options: no delay for small frames, and a dead host is noticed without traffic."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENT_MS_MAX)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
    # Retransmit every 0.2 s or so instead of backing off: five losses in a row would silence a peer for 3 s.
    sock.setsockopt(socket.IPPROTO_TCP, TCP_THIN_LINEAR_TIMEOUTS, 1)


async def open_socket(host: str, port: int, source: str = "") -> socket.socket:
    """Connect, without blocking the loop.

    Args:
        host: of the peer.
        port: of the peer.
        source: our address to use, if it can be used for that; "": any.

    Raises:
        ConnectionRefusedError: the host answered that nobody listens there.
        OSError: no path.
    """
    found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)  # no thread for a numeric host
    family, _, _, _, address = found[0]
    if source:
        try:
            return await _open(family, address, source)
        except OSError as error:
            if error.errno not in _SOURCE_UNFIT:
                raise
    return await _open(family, address, "")


async def _open(family: int, address: Any, source: str) -> socket.socket:
    """Connect from one source.  Raises OSError, also when that address can't be used for it."""
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if source:
            _bind(sock, source)
        code = sock.connect_ex(address)
        if code == errno.EINPROGRESS:
            await trio.lowlevel.wait_writable(sock)
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os_error_text(code))
        tune(sock)
    except BaseException:
        trio.lowlevel.notify_closing(sock)
        sock.close()
        raise
    return sock


def _bind(sock: socket.socket, source: str) -> None:
    """Raises OSError with a code of ``_SOURCE_UNFIT``."""
    try:
        sock.bind((source, 0))
    except OSError:  # also that of the resolver, for an address of another family
        raise OSError(errno.EADDRNOTAVAIL, "not ours, or of another family") from None


def os_error_text(code: int) -> str:
    """Text of an errno."""
    return errno.errorcode.get(code, str(code))


async def receive_exactly(sock: socket.socket, count: int) -> bytes:
    """Read ``count`` bytes and not one more.  Raises OSError, also when the stream ends before."""
    data = b""
    while len(data) < count:
        data += await receive_some(sock, count - len(data))
    return data


async def receive_some(sock: socket.socket, count: int) -> bytes:
    """Read at most ``count`` bytes, and at least one.  Raises OSError, also when the stream ends."""
    while True:
        await trio.lowlevel.wait_readable(sock)
        try:
            data = sock.recv(count)
        except BlockingIOError:
            continue
        if not data:
            raise ConnectionResetError(errno.ECONNRESET, "the stream ended")
        return data


async def send_all(sock: socket.socket, data: bytes) -> None:
    """Write all of ``data``.  Raises OSError."""
    while data:
        try:
            data = data[sock.send(data) :]
        except BlockingIOError:
            await trio.lowlevel.wait_writable(sock)
