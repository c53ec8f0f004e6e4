"""A session: numbered messages between two process incarnations that survive a lost connection (pure).

Source: 002-19; style.md 3.2.  Below it packets may be lost (a connection died), duplicated and reordered; above
it every message arrives at most once and in order.  Invariants:

- S1. Messages are numbered 1, 2, 3... per direction; ``received`` is the last one handed up, none missing before it.
- S2. A message is kept until the peer acknowledged it; ``rewind`` makes all kept ones unsent again.
- S3. Kept messages never exceed ``QUEUED_MESSAGES_MAX`` nor ``QUEUED_BYTES_MAX``: ``queue`` says so instead, and the
  caller drops the session, because a peer that far behind is stuck.
- S4. By S3 an honest peer never sends a number beyond ``received + QUEUED_MESSAGES_MAX``, which bounds what waits
  here for a missing one.

There is no acknowledgement timer.  Acknowledgements ride on packets going the other way, and a packet without
messages goes out after ``ACK_MESSAGES`` or ``ACK_BYTES``; what is then still kept costs memory, not correctness.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from membership.errors import BadMessage

MESSAGE_BYTES_MAX = 256 << 10
QUEUED_MESSAGES_MAX = 1 << 18  # a node may give up all its cached locks in one go
QUEUED_BYTES_MAX = 64 << 20
PACKET_MESSAGES_MAX = 1024
PACKET_BYTES_MAX = 512 << 10  # of payload; with frame overhead under the frame cap
ACK_MESSAGES = 256
ACK_BYTES = 1 << 20


MESSAGES, PING, PONG, DEAF = range(4)  # kinds of packets


class Packet(NamedTuple):
    """What one frame carries: consecutive messages, the first one's number, and what the sender has received.

    The others have no messages.  PING and PONG have in place of a number a token, which the PONG repeats (``pulse``);
    DEAF tells that nothing is heard of the peer on this path.
    """

    first: int
    ack: int
    messages: list[bytes]
    kind: int = MESSAGES


class Session:
    """Both directions of one session.  ``id`` is 0 until a handshake has bound it to a peer's."""

    __slots__ = (
        "_acked",
        "_late",
        "_sent",
        "_unacknowledged_bytes",
        "_unacknowledged_messages",
        "_unsent",
        "id",
        "queued_bytes",
        "received",
    )

    def __init__(self) -> None:
        self.id = 0
        self.received = 0  # S1
        self.queued_bytes = 0  # payload bytes in _unsent and _sent
        self._unsent: deque[bytes] = deque()
        self._sent: deque[bytes] = deque()  # on the present connection, not acknowledged
        self._acked = 0  # the peer has all of ours up to this number
        self._late: dict[int, bytes] = {}  # arrived before an earlier one did
        self._unacknowledged_messages = 0  # received since we last told the peer
        self._unacknowledged_bytes = 0

    @property
    def queued(self) -> int:
        """Messages the peer has not acknowledged."""
        return len(self._unsent) + len(self._sent)

    def queue(self, payload: bytes) -> bool:
        """Number and keep a message.

        Returns:
            False when the queue is full (S3): the message was not taken, the session is to be dropped.

        Raises:
            ValueError: longer than ``MESSAGE_BYTES_MAX``; the caller's bug.
        """
        size = len(payload)
        if size > MESSAGE_BYTES_MAX:
            raise ValueError(f"message of {size} bytes, at most {MESSAGE_BYTES_MAX}")
        if self.queued >= QUEUED_MESSAGES_MAX or self.queued_bytes + size > QUEUED_BYTES_MAX:
            return False
        self._unsent.append(payload)
        self.queued_bytes += size
        return True

    def take(self) -> Packet | None:
        """The next packet: as many unsent messages as fit (003-33), an acknowledgement that is due, or None."""
        unsent, sent = self._unsent, self._sent
        if not unsent and not self.ack_due:
            return None
        first = self._acked + len(sent) + 1
        messages: list[bytes] = []
        size = 0
        while unsent and len(messages) < PACKET_MESSAGES_MAX:
            size += len(unsent[0])
            if size > PACKET_BYTES_MAX and messages:
                break
            messages.append(unsent.popleft())
        sent.extend(messages)
        self._unacknowledged_messages = 0
        self._unacknowledged_bytes = 0
        return Packet(first, self.received, messages)

    def control(self, kind: int, token: int) -> Packet:
        """Any other kind; it carries an acknowledgement, so an idle link keeps no messages."""
        return Packet(token, self.received, [], kind)

    @property
    def ack_due(self) -> bool:
        """Whether the peer should hear of what we received even if we have nothing else to say."""
        return self._unacknowledged_messages >= ACK_MESSAGES or self._unacknowledged_bytes >= ACK_BYTES

    def receive_untrusted(self, packet: Packet) -> list[bytes]:
        """Take a packet in; return the messages now deliverable, in order.

        Raises:
            BadMessage: it acknowledges what was never sent, or runs ahead further than S4 allows.
        """
        self.acknowledge_untrusted(packet.ack)
        first, messages = packet.first, packet.messages
        if first == self.received + 1 and not self._late:  # always so on TCP, except right after a resume
            ready = messages
        else:
            if first < 1 or first + len(messages) - 1 > self.received + QUEUED_MESSAGES_MAX:
                raise BadMessage(f"message {first} is out of the window after {self.received}")
            ready = self._reorder(first, messages)
        self.received += len(ready)
        self._unacknowledged_messages += len(ready)
        self._unacknowledged_bytes += sum(map(len, ready))
        return ready

    def _reorder(self, first: int, messages: list[bytes]) -> list[bytes]:
        late = self._late
        expected = self.received + 1
        for number, message in enumerate(messages, first):
            if number >= expected:
                late[number] = message
        ready: list[bytes] = []
        while (found := late.pop(expected, None)) is not None:
            ready.append(found)
            expected += 1
        return ready

    def acknowledge_untrusted(self, ack: int) -> None:
        """Forget what the peer has (S2).  An older acknowledgement than one seen arrived late and says nothing.

        Raises:
            BadMessage: it acknowledges what was never sent.
        """
        count = ack - self._acked
        if count <= 0:
            return
        if count > len(self._sent):
            raise BadMessage(f"acknowledges message {ack}, but only {self._acked + len(self._sent)} were sent")
        for _ in range(count):
            self.queued_bytes -= len(self._sent.popleft())
        self._acked = ack

    def rewind(self, peer_received: int) -> None:
        """Resume on a new connection: everything the peer does not have becomes unsent again, in order.

        The peer said what it has when it began the handshake.  Until then and now the connection before, which may
        have stood all the time, may have brought it more, and us its acknowledgement: the later word counts (S2).

        Raises:
            BadMessage: the peer claims to have what was never sent.
        """
        if peer_received > self._acked + len(self._sent):
            raise BadMessage(f"resumes after message {peer_received}, outside of what we keep")
        self.acknowledge_untrusted(peer_received)
        self._unsent.extendleft(reversed(self._sent))
        self._sent.clear()
        self._late.clear()  # the peer rewinds too and sends them again
