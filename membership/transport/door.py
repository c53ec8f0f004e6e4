"""The door: connections before anybody trusts them (trio; R11).

``dial`` and ``Door`` run the handshake over a fresh socket, from either side, and yield an ``Offer``: a socket with a
proven peer at its other end.  A caller gets at most ``HANDSHAKE_SECONDS_MAX``; ``HANDSHAKES_MAX`` are served at once.

Why callers were refused is counted, and each reason logged when it first comes up: whoever knocks again and again
fills no log.
"""

from __future__ import annotations

import errno
import logging
import socket
from typing import NamedTuple, Protocol

import trio

from membership.errors import BadMessage, OperatorError
from membership.seams import Clock, Rng
from membership.transport.connection import open_socket, receive_exactly, send_all, tune
from membership.transport.handshake import (
    CHALLENGE_BYTES,
    ENTROPY_BYTES,
    HELLO_BYTES,
    NOTHING,
    PREFIX_BYTES,
    PROOF_BYTES,
    Acceptor,
    Agreement,
    Connector,
    Credentials,
    Instance,
    ResumePoint,
    check_prefix_untrusted,
    purpose_untrusted,
)
from membership.transport.reception import Guest, Guests, Reception

log = logging.getLogger(__name__)

HANDSHAKE_SECONDS_MAX = 2.0  # also for a connection attempt
HANDSHAKES_MAX = 128  # at once, from whoever connects
LISTEN_BACKLOG = 128
EXHAUSTED_PAUSE_SECONDS = 0.2
PORT_TRIES_MAX = 32
REASONS_MAX = 64  # different reasons that are logged
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Offer(NamedTuple):
    """A connection whose other end is proven."""

    sock: socket.socket
    agreement: Agreement
    host: str  # address of the peer on this path

    def close(self) -> None:
        """Let go of the socket."""
        self.sock.close()


class Host(Protocol):
    """Who lives behind the door."""

    def resume_point_of(self, instance: Instance) -> ResumePoint:
        """What we have of a session with this caller."""
        ...

    def hand_over(self, offer: Offer) -> None:
        """Take a proven caller in; the socket is the host's from now on."""
        ...


async def dial(host: str, port: int, connector: Connector, source: str = "") -> Offer | Instance:
    """Connect, and prove who we are to the instance that ``connector`` wants.

    Args:
        host: of the peer.
        port: of the peer.
        connector: our side of the handshake.
        source: our address to use, if it can be used for that.

    Returns:
        The connection; or the proven instance that answered in place of the wanted one, which is then gone.  That one
        gets no proof: it must not take this connection for ours.

    Raises:
        ConnectionRefusedError: the host answered that nobody listens there.
        OSError: no path.
        BadMessage: the other end does not hold our cluster key, or hung up on us, as it does on strangers.
    """
    sock = await open_socket(host, port, source)
    try:
        await send_all(sock, connector.hello)
        try:
            challenge = await receive_exactly(sock, CHALLENGE_BYTES)
        except ConnectionResetError:
            raise BadMessage("it hung up on us: another cluster, key, purpose or version of MatrixFS") from None
        proof, agreement = connector.receive_challenge_untrusted(challenge)
        if agreement.peer != connector.wanted:
            sock.close()
            return agreement.peer
        await send_all(sock, proof)
    except BaseException:
        sock.close()
        raise
    return Offer(sock, agreement, host)


async def _listener(host: str, port: int) -> socket.socket:
    """A listening socket.  Raises OSError."""
    found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    family, kind, protocol, _, address = found[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(LISTEN_BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


class Door:
    """The listening side."""

    def __init__(
        self,
        credentials: Credentials,
        me: Instance,
        clock: Clock,
        rng: Rng,
        host: Host,
        guests: Guests | None = None,
    ) -> None:
        """Args: host: takes proven peers in; guests: answers holders of join tokens; None: they are strangers."""
        self._credentials = credentials
        self._me = me
        self._clock = clock
        self._rng = rng
        self.rejected = 0  # callers that were not who they should be
        self._host = host
        self._reception = Reception(guests) if guests is not None else None
        self._listeners: list[socket.socket] = []
        self._handshakes = 0
        self._reasons: set[str] = set()

    async def listen(self, hosts: tuple[str, ...], port: int) -> int:
        """Bind one port of every host and listen; return the port.

        Raises:
            OperatorError: an address is not ours, or the port taken.
        """
        for _ in range(PORT_TRIES_MAX):
            opened: list[socket.socket] = []
            try:
                for host in hosts:
                    chosen = opened[0].getsockname()[1] if opened else port
                    opened.append(await _listener(host, chosen))
            except OSError as error:
                for sock in opened:
                    sock.close()
                if error.errno == errno.EADDRINUSE and port == 0 and opened:
                    continue  # free on the first address, taken on another
                text = f"cannot listen on {host}, port {port}: {error.strerror}; check --address"
                raise OperatorError(text) from None
            self._listeners = opened
            bound: int = opened[0].getsockname()[1]
            return bound
        raise OperatorError(f"no port is free on all of {', '.join(hosts)}: give one with --address")

    async def run(self) -> None:
        """Welcome callers until cancelled, then close."""
        assert self._listeners, "listen first"
        try:
            async with trio.open_nursery() as nursery:
                for listener in self._listeners:
                    nursery.start_soon(self._attend, listener, nursery)
        finally:
            for listener in self._listeners:
                trio.lowlevel.notify_closing(listener)
                listener.close()

    async def _attend(self, listener: socket.socket, nursery: trio.Nursery) -> None:
        while True:
            await trio.lowlevel.wait_readable(listener)
            await self._accept(listener, nursery)

    async def _accept(self, listener: socket.socket, nursery: trio.Nursery) -> None:
        try:
            sock, _ = listener.accept()
        except OSError as error:
            if error.errno in _EXHAUSTED:
                await self._clock.sleep(EXHAUSTED_PAUSE_SECONDS)
            return  # else: that caller hung up in the queue
        if self._handshakes >= HANDSHAKES_MAX:
            sock.close()
            return
        self._handshakes += 1
        nursery.start_soon(self._welcome, sock)

    async def _welcome(self, sock: socket.socket) -> None:
        """Let a caller prove who it is, then hand its connection over, or receive it as a guest."""
        proven: Offer | Guest | None = None
        try:
            sock.setblocking(False)
            tune(sock)
            with trio.move_on_after(HANDSHAKE_SECONDS_MAX):
                proven = await self._prove(sock)
        except OSError:
            pass  # a probe, or a caller that hung up
        except BadMessage as error:
            self._reject(str(error))
        finally:
            self._handshakes -= 1
            if proven is None:
                sock.close()
        if isinstance(proven, Offer):
            self._host.hand_over(proven)
        elif proven is not None:
            await self._receive(sock, proven)

    async def _receive(self, sock: socket.socket, guest: Guest) -> None:
        assert self._reception is not None
        try:
            await self._reception.serve(sock, guest)
        except OSError:
            pass  # it hung up
        except BadMessage as error:
            self._reject(str(error))
        finally:
            sock.close()

    @property
    def guests(self) -> int:
        """Guests that got an answer."""
        return self._reception.received if self._reception is not None else 0

    def _reject(self, reason: str) -> None:
        self.rejected += 1
        if reason not in self._reasons and len(self._reasons) < REASONS_MAX:
            self._reasons.add(reason)
            log.warning("a caller was refused, and will be again without this line: %s", reason)

    async def _prove(self, sock: socket.socket) -> Offer | Guest:
        prefix = await receive_exactly(sock, PREFIX_BYTES)
        check_prefix_untrusted(prefix)
        hello = prefix + await receive_exactly(sock, HELLO_BYTES - PREFIX_BYTES)
        entropy = self._rng.randbytes(ENTROPY_BYTES)
        if self._reception is not None and purpose_untrusted(hello) != self._credentials.purpose:
            found = self._reception.acceptor_untrusted(hello, entropy)
            if found is not None:
                token_id, acceptor = found
                acceptor.receive_hello_untrusted(hello)
                return Guest(token_id, await self._challenge(sock, acceptor, NOTHING))
        acceptor = Acceptor(self._credentials, self._me, entropy)
        claimed = acceptor.receive_hello_untrusted(hello)
        agreement = await self._challenge(sock, acceptor, self._host.resume_point_of(claimed))
        return Offer(sock, agreement, sock.getpeername()[0])

    async def _challenge(self, sock: socket.socket, acceptor: Acceptor, stated: ResumePoint) -> Agreement:
        await send_all(sock, acceptor.challenge(stated))
        acceptor.check_terms()
        return acceptor.receive_proof_untrusted(await receive_exactly(sock, PROOF_BYTES))
