"""The reception: what the door does with guests, who hold a join token's secret instead of the cluster key (trio; R11).

A guest's HELLO has the token's id where others have the purpose.  The token's secret is asked for (``Guests``), and the
handshake is the same as between nodes, with that secret in place of the cluster key.  Then the guest sends one request,
gets one answer, and the connection ends.

- G1. A caller without the secret of a token that ``Guests`` knows is a stranger: it gets no answer, not even a refusal.
- G2. A guest's connection never becomes a link: it has no node id, no session, and other keys.
- G3. It is always encrypted, whatever the cluster's links are: the answer may carry the cluster key.
- G4. ``GUESTS_MAX`` proven guests at once, ``GUEST_SECONDS_MAX`` for each, ``GUEST_BYTES_MAX`` each way; who is not
  proven yet is bounded by the door, so who only recorded a guest's HELLO keeps no guest out.

A recorded conversation is of no use: its HELLO gets a CHALLENGE with new keys, which its owner can't answer.
"""

from __future__ import annotations

import logging
import socket
from typing import NamedTuple, Protocol

import trio

from membership.errors import BadMessage, MatrixError
from membership.transport.connection import receive_some, send_all
from membership.transport.frames import HEADER_BYTES, TAG_BYTES, FrameReader, FrameWriter
from membership.transport.handshake import Acceptor, Agreement, Credentials, Instance, purpose_untrusted
from membership.transport.session import MESSAGES, Packet

GUESTS_MAX = 4  # at once
GUEST_SECONDS_MAX = 30.0  # from the proof to the answer
GUEST_BYTES_MAX = 64 << 10  # of a request, and of an answer
_FRAME_BYTES_MAX = HEADER_BYTES + 4 + GUEST_BYTES_MAX + TAG_BYTES

GUEST, HOST = Instance(0, 0), Instance(1, 0)  # roles in the handshake, no nodes

log = logging.getLogger(__name__)


class Guests(Protocol):
    """Who knows the join tokens, and what their holders may ask."""

    def credentials(self, token_id: bytes) -> Credentials | None:
        """``Credentials.of_token`` of a token that is valid now; None for any other.

        Args:
            token_id: 16 bytes, of anybody.
        """
        ...

    async def answer(self, token_id: bytes, request: bytes) -> bytes:
        """Answer a proven holder of the token; cancelled after ``GUEST_SECONDS_MAX``.

        Args:
            token_id: as given to ``credentials``.
            request: at most ``GUEST_BYTES_MAX`` bytes, of an outsider: hostile.

        Returns:
            At most ``GUEST_BYTES_MAX`` bytes.

        Raises:
            MatrixError: the guest gets no answer, and the log the reason.
        """
        ...


class Guest(NamedTuple):
    """A proven holder of a token."""

    token_id: bytes
    agreement: Agreement


class Reception:
    """Receives the guests of one door."""

    def __init__(self, guests: Guests) -> None:
        self.received = 0  # guests that got an answer
        self._guests = guests
        self._present = 0

    def acceptor_untrusted(self, hello: bytes, entropy: bytes) -> tuple[bytes, Acceptor] | None:
        """Token id and our side of the handshake, if a HELLO names a token; it is not checked yet."""
        token_id = purpose_untrusted(hello)
        credentials = self._guests.credentials(token_id)
        return None if credentials is None else (token_id, Acceptor(credentials, HOST, entropy))

    async def serve(self, sock: socket.socket, guest: Guest) -> None:
        """Take the request and answer it, in time or not at all.  Raises BadMessage, OSError; the socket stays open."""
        if self._present >= GUESTS_MAX:
            raise BadMessage(f"more than {GUESTS_MAX} guests at once")
        self._present += 1
        try:
            with trio.move_on_after(GUEST_SECONDS_MAX):
                request = await receive_one_untrusted(sock, guest.agreement)
                answer = await self._guests.answer(guest.token_id, request)
                await send_one(sock, guest.agreement, answer)
                self.received += 1
        except BadMessage:
            raise
        except MatrixError as error:
            log.warning("a guest with token %s got no answer: %s", guest.token_id.hex(), error)
        finally:
            self._present -= 1


async def send_one(sock: socket.socket, agreement: Agreement, message: bytes) -> None:
    """Send the one message of our direction.  Raises OSError."""
    assert len(message) <= GUEST_BYTES_MAX
    writer = FrameWriter(agreement.send_key, encrypt=True)
    await send_all(sock, writer.encode(Packet(1, 0, [message])))


async def receive_one_untrusted(sock: socket.socket, agreement: Agreement) -> bytes:
    """The one message of the other direction.  Raises BadMessage, OSError."""
    reader = FrameReader(agreement.receive_key, encrypt=True)
    left = _FRAME_BYTES_MAX
    while left:
        data = await receive_some(sock, left)
        left -= len(data)
        packets = reader.feed_untrusted(data)
        if packets:
            first, ack, messages, kind = packets[0]
            if len(packets) > 1 or kind != MESSAGES or len(messages) != 1 or (first, ack) != (1, 0):
                break
            return messages[0]
    raise BadMessage(f"a guest's conversation has one message each way, of at most {GUEST_BYTES_MAX} bytes")
