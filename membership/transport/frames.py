"""Frames: a gathered batch of messages as authenticated bytes (pure; 003-33, R11).

Layout in ``docs/format/wire-transport.md``: a 32-byte header, the messages each with its length, a 16-byte MAC.
The MAC is BLAKE2b keyed with the direction's session key over the frame's number on this connection, header
and body.  The number is not sent: a frame that was dropped, repeated, reordered or moved to another connection
or direction fails the MAC.  Nothing of the body is looked at before the MAC is right.
"""

from __future__ import annotations

import hashlib
import hmac
import struct

from membership.errors import BadMessage
from membership.transport.session import (
    MESSAGE_BYTES_MAX,
    MESSAGES,
    PACKET_BYTES_MAX,
    PACKET_MESSAGES_MAX,
    PONG,
    Packet,
)

MAGIC = b"MXFR"
VERSION = 1
FRAME_BYTES_MAX = 1 << 20
MAC_BYTES = 16
# magic, version, kind, count, body bytes, zero, first, ack
HEADER = struct.Struct("<4sBBHIIQQ")
HEADER_BYTES = HEADER.size
_LENGTH = struct.Struct("<I")
_COUNTER = struct.Struct("<Q")

assert HEADER_BYTES == 32
assert HEADER_BYTES + MAC_BYTES + 4 * PACKET_MESSAGES_MAX + PACKET_BYTES_MAX <= FRAME_BYTES_MAX
assert MESSAGE_BYTES_MAX <= PACKET_BYTES_MAX


class _Mac:
    """MAC of consecutive frames in one direction of one connection."""

    __slots__ = ("_count", "_keyed")

    def __init__(self, key: bytes) -> None:
        self._keyed = hashlib.blake2b(key=key, digest_size=MAC_BYTES)
        self._count = 0

    def next(self, data: bytes | memoryview) -> bytes:
        """MAC of the next frame, given its header and body."""
        mac = self._keyed.copy()  # the key block is already absorbed
        mac.update(_COUNTER.pack(self._count))
        mac.update(data)
        self._count += 1
        return mac.digest()


class FrameWriter:
    """Encodes packets for one direction of one connection."""

    __slots__ = ("_mac",)

    def __init__(self, key: bytes) -> None:
        """Args: key: 32 bytes, this direction's session key."""
        self._mac = _Mac(key)

    def encode(self, packet: Packet) -> bytes:
        """The frame's bytes; each call uses up one frame number, so what is encoded must be sent."""
        first, ack, messages, kind = packet
        parts = [b""]
        for message in messages:
            parts.append(_LENGTH.pack(len(message)))
            parts.append(message)
        body_bytes = sum(map(len, parts))
        parts[0] = HEADER.pack(MAGIC, VERSION, kind, len(messages), body_bytes, 0, first, ack)
        frame = b"".join(parts)
        return frame + self._mac.next(frame)


class FrameReader:
    """Decodes the byte stream of one direction of one connection."""

    __slots__ = ("_buffer", "_mac", "_wanted")

    def __init__(self, key: bytes) -> None:
        """Args: key: 32 bytes, the other direction's session key."""
        self._mac = _Mac(key)
        self._buffer = bytearray()
        self._wanted = 0  # bytes of the first frame in _buffer: don't look again before they are there

    def feed_untrusted(self, data: bytes) -> list[Packet]:
        """Take bytes as they arrive; return the packets they complete.

        Raises:
            BadMessage: and nothing else; the connection is then useless.
        """
        if self._buffer:
            self._buffer += data
            if len(self._buffer) < self._wanted:
                return []
            data = bytes(self._buffer)
        packets: list[Packet] = []
        at, end = 0, len(data)
        self._wanted = 0
        while end - at >= HEADER_BYTES:
            kind, count, body_bytes, first, ack = _check_header(data, at)
            mac_at = at + HEADER_BYTES + body_bytes
            if mac_at + MAC_BYTES > end:
                self._wanted = mac_at + MAC_BYTES - at
                break
            signed = memoryview(data)[at:mac_at]
            if not hmac.compare_digest(self._mac.next(signed), data[mac_at : mac_at + MAC_BYTES]):
                raise BadMessage("frame with a wrong MAC")
            packets.append(Packet(first, ack, _parse_body(data, at + HEADER_BYTES, mac_at, count), kind))
            at = mac_at + MAC_BYTES
        if at < end or self._buffer:
            self._buffer = bytearray(data[at:])
        return packets


def _check_header(data: bytes, at: int) -> tuple[int, int, int, int, int]:
    """Check the header at ``at``; return (kind, count, body bytes, first, ack).  Raises BadMessage."""
    magic, version, kind, count, body_bytes, zero, first, ack = HEADER.unpack_from(data, at)
    if magic != MAGIC or version != VERSION or kind > PONG or zero:
        raise BadMessage("no frame of this protocol version")
    if body_bytes > FRAME_BYTES_MAX - HEADER_BYTES - MAC_BYTES or count > PACKET_MESSAGES_MAX:
        raise BadMessage(f"frame too large: {count} messages in {body_bytes} bytes")
    if kind != MESSAGES and (count or body_bytes):
        raise BadMessage(f"ping with {count} messages in {body_bytes} bytes")
    return kind, count, body_bytes, first, ack


def _parse_body(data: bytes, at: int, end: int, count: int) -> list[bytes]:
    """The ``count`` messages that fill ``data[at:end]`` exactly.  Raises BadMessage."""
    messages: list[bytes] = []
    for _ in range(count):
        start = at + 4
        if start > end:
            raise BadMessage("frame ends inside a length")
        (length,) = _LENGTH.unpack_from(data, at)
        at = start + length
        if length > MESSAGE_BYTES_MAX or at > end:
            raise BadMessage(f"message of {length} bytes does not fit")
        messages.append(data[start:at])
    if at != end:
        raise BadMessage("bytes after the last message of a frame")
    return messages
