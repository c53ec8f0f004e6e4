"""Frames: a gathered batch of messages as sealed bytes (pure; 003-33, R11).

Layout in ``docs/format/wire-transport.md``: a 32-byte header, the messages each with its length, a 16-byte tag.
Encrypted frames (the default) are AES-256-GCM: the body is the ciphertext, the header the associated data, the nonce
the frame's number on this connection.  Plain frames have a BLAKE2b MAC over number, header and body instead.

- F1. The key is one direction's and one connection's, and the number is not sent: a frame that was dropped, repeated,
  reordered or moved to another connection or direction fails.  No number is used twice under a key.
- F2. Nothing of the body is looked at before the tag is right.
- F3. A key seals at most about ``KEY_FRAMES_MAX`` frames, far below what GCM allows; then the connection is replaced.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from membership.errors import BadMessage
from membership.transport.session import (
    DEAF,
    MESSAGE_BYTES_MAX,
    MESSAGES,
    PACKET_BYTES_MAX,
    PACKET_MESSAGES_MAX,
    Packet,
)

MAGIC = b"MXFR"
PLAIN, ENCRYPTED = 1, 2  # versions of the layout
FRAME_BYTES_MAX = 1 << 20
TAG_BYTES = 16
KEY_FRAMES_MAX = 1 << 30
# magic, version, kind, count, body bytes, zero, first, ack
HEADER = struct.Struct("<4sBBHIIQQ")
HEADER_BYTES = HEADER.size
_LENGTH = struct.Struct("<I")
_COUNTER = struct.Struct("<Q")
_NONCE = struct.Struct("<IQ")  # zero, counter

assert HEADER_BYTES == 32
assert HEADER_BYTES + TAG_BYTES + 4 * PACKET_MESSAGES_MAX + PACKET_BYTES_MAX <= FRAME_BYTES_MAX
assert MESSAGE_BYTES_MAX <= PACKET_BYTES_MAX


class _Seal(Protocol):
    """Protects consecutive frames of one direction of one connection."""

    version: int
    count: int  # frames so far

    def close(self, header: bytes, body: bytes) -> bytes:
        """The next frame."""
        ...

    def open_untrusted(self, header: bytes, sealed: bytes) -> bytes:
        """The body of the next frame, given all behind its header.  Raises BadMessage."""
        ...


class _Mac:
    """Plain frames with a MAC."""

    __slots__ = ("_keyed", "count")
    version = PLAIN

    def __init__(self, key: bytes) -> None:
        self._keyed = hashlib.blake2b(key=key, digest_size=TAG_BYTES)
        self.count = 0

    def _next(self, header: bytes, body: bytes) -> bytes:
        mac = self._keyed.copy()  # the key block is already absorbed
        mac.update(_COUNTER.pack(self.count))
        mac.update(header)
        mac.update(body)
        self.count += 1
        return mac.digest()

    def close(self, header: bytes, body: bytes) -> bytes:
        """See ``_Seal``."""
        return header + body + self._next(header, body)

    def open_untrusted(self, header: bytes, sealed: bytes) -> bytes:
        """See ``_Seal``."""
        body = sealed[:-TAG_BYTES]
        if not hmac.compare_digest(self._next(header, body), sealed[-TAG_BYTES:]):
            raise BadMessage("frame with a wrong MAC")
        return body


class _Cipher:
    """Encrypted frames."""

    __slots__ = ("_aes", "count")
    version = ENCRYPTED

    def __init__(self, key: bytes) -> None:
        self._aes = AESGCM(key)
        self.count = 0

    def close(self, header: bytes, body: bytes) -> bytes:
        """See ``_Seal``."""
        nonce = _NONCE.pack(0, self.count)
        self.count += 1
        return header + self._aes.encrypt(nonce, body, header)

    def open_untrusted(self, header: bytes, sealed: bytes) -> bytes:
        """See ``_Seal``."""
        nonce = _NONCE.pack(0, self.count)
        self.count += 1
        try:
            return self._aes.decrypt(nonce, sealed, header)
        except InvalidTag:
            raise BadMessage("frame with a wrong tag") from None


def _seal(key: bytes, *, encrypt: bool) -> _Seal:
    return _Cipher(key) if encrypt else _Mac(key)


class FrameWriter:
    """Encodes packets for one direction of one connection."""

    __slots__ = ("_seal",)

    def __init__(self, key: bytes, *, encrypt: bool) -> None:
        """Args: key: 32 bytes, this direction's session key; encrypt: as agreed in the handshake."""
        self._seal = _seal(key, encrypt=encrypt)

    def encode(self, packet: Packet) -> bytes:
        """The frame's bytes; each call uses up one frame number, so what is encoded must be sent."""
        first, ack, messages, kind = packet
        parts: list[bytes] = []
        for message in messages:
            parts.append(_LENGTH.pack(len(message)))
            parts.append(message)
        body = b"".join(parts)
        seal = self._seal
        return seal.close(HEADER.pack(MAGIC, seal.version, kind, len(messages), len(body), 0, first, ack), body)

    @property
    def is_worn(self) -> bool:
        """The key has sealed enough (F3)."""
        return self._seal.count >= KEY_FRAMES_MAX


class FrameReader:
    """Decodes the byte stream of one direction of one connection."""

    __slots__ = ("_buffer", "_seal", "_wanted")

    def __init__(self, key: bytes, *, encrypt: bool) -> None:
        """Args: key: 32 bytes, the other direction's session key; encrypt: as agreed in the handshake."""
        self._seal = _seal(key, encrypt=encrypt)
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
        seal = self._seal
        while end - at >= HEADER_BYTES:
            kind, count, body_bytes, first, ack = _check_header(data, at, seal.version)
            body_at = at + HEADER_BYTES
            next_at = body_at + body_bytes + TAG_BYTES
            if next_at > end:
                self._wanted = next_at - at
                break
            body = seal.open_untrusted(data[at:body_at], data[body_at:next_at])
            packets.append(Packet(first, ack, _parse_body(body, count), kind))
            at = next_at
        if at < end or self._buffer:
            self._buffer = bytearray(data[at:])
        return packets


def _check_header(data: bytes, at: int, wanted: int) -> tuple[int, int, int, int, int]:
    """Check the header at ``at``; return (kind, count, body bytes, first, ack).  Raises BadMessage."""
    magic, version, kind, count, body_bytes, zero, first, ack = HEADER.unpack_from(data, at)
    if magic != MAGIC or version != wanted or kind > DEAF or zero:
        raise BadMessage("no frame of this protocol version")
    if body_bytes > FRAME_BYTES_MAX - HEADER_BYTES - TAG_BYTES or count > PACKET_MESSAGES_MAX:
        raise BadMessage(f"frame too large: {count} messages in {body_bytes} bytes")
    if kind != MESSAGES and (count or body_bytes):
        raise BadMessage(f"frame of kind {kind} with {count} messages in {body_bytes} bytes")
    return kind, count, body_bytes, first, ack


def _parse_body(data: bytes, count: int) -> list[bytes]:
    """The ``count`` messages that fill ``data`` exactly.  Raises BadMessage."""
    messages: list[bytes] = []
    at, end = 0, len(data)
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
