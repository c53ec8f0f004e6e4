"""Messages between the lock services of two peers; layout and numbers in ``docs/format/wire-dlm.md`` (R12).

A payload is the attempt (u64, little-endian: the number of the view the sender speaks under), then one
MessagePack array whose first element is the type.  Type numbers and fields are only ever appended.

Every request gets exactly one answer, Granted or Denied, unless the view changes first.  ``serial`` names
the request, so that a Release that crossed a Granted on the wire is recognised as older.
"""

from __future__ import annotations

import struct
from typing import Annotated, NamedTuple, TypeAlias

import msgspec
from msgspec import Meta

from dlm.names import U64, Resource
from dlm.owned.messages import REPORTS_MAX, AboutOwned, OwnedReport
from membership.errors import BadMessage

VALUE_BYTES_MAX = 256  # 64 are usual
PAYLOAD_BYTES_MAX = 65536  # a full batch of the largest entries is 48 KiB
BATCH_ENTRIES_MAX = 128
GHOSTS_MAX = 64
EXTRAS_MAX = 128  # prefetched with one request; all granted with full values they take 40 KiB
HISTORY_MAX = 64  # views; full of 64 members each they take 45 KiB
SEQUENCE_MAX = (1 << 64) - 1  # of a value: reached only if a peer lies, and then it stays
NEVER = -1  # Granted.finish and LockReport.wanted: there is none
_ATTEMPT = struct.Struct("<Q")

_Mode = Annotated[int, Meta(ge=0, le=5)]
_WantedMode = Annotated[int, Meta(ge=1, le=5)]
_ModeOrNever = Annotated[int, Meta(ge=-1, le=5)]
_Node = Annotated[int, Meta(ge=0, le=63)]
_Priority = Annotated[int, Meta(ge=0, le=255)]


class Value(NamedTuple):
    """A value block with its stamp.  Stamps order all values a resource ever had (``dlm/recovery.py``)."""

    data: Annotated[bytes, Meta(max_length=VALUE_BYTES_MAX)]
    valid: bool
    attempt: U64  # view under which it was written
    sequence: U64  # counts within that view

    @property
    def stamp(self) -> tuple[int, int]:
        """What orders it."""
        return self.attempt, self.sequence


NO_VALUE = Value(b"", False, 0, 0)


class Member(NamedTuple):
    """An Instance as it travels."""

    node: _Node
    incarnation: U64


class Ghost(NamedTuple):
    """What an old master knows that a dead instance held."""

    node: _Node
    incarnation: U64
    mode: _Mode


class Extra(NamedTuple):
    """A further resource of a request, and the serial that its answer will name."""

    resource: Resource
    serial: U64


class HandOver(NamedTuple):
    """With a write lock: you arbitrate the resource from now on, and this is what the granter has of it."""

    held: _Mode
    serial: U64  # of its last grant
    wanted: _ModeOrNever = NEVER  # it waits for this
    wanted_serial: U64 = 0
    priority: _Priority = 0


class ExtraAnswer(NamedTuple):
    """What became of an Extra: granted in the request's mode, or left out because somebody stands against it."""

    resource: Resource
    serial: U64
    granted: bool
    value: Value = NO_VALUE
    hand_over: HandOver | None = None


class Message(msgspec.Struct, array_like=True, gc=False):
    """Base of the messages about one resource."""

    resource: Resource


class Request(Message, tag=1):
    """Client to master: I want ``mode``.  ``try_``: deny instead of queueing.

    ``priority``: greater is served first, where the lockspace orders its queues so (003-12).  ``extras``: grant me
    these too, in the same mode, if nobody stands against it now (003-42).
    """

    mode: _WantedMode
    serial: U64
    try_: bool = False
    priority: _Priority = 0
    extras: Annotated[list[Extra], Meta(max_length=EXTRAS_MAX)] = []


class Granted(Message, tag=2):
    """Master to client: you hold ``mode``.  ``finish``: others wait already, go down to it when done (003-39).

    ``extras``: the answers to the request's extras, if it is granted at once; else they go in a Prefetched.
    """

    mode: _WantedMode
    serial: U64
    value: Value = NO_VALUE
    finish: _ModeOrNever = NEVER
    extras: Annotated[list[ExtraAnswer], Meta(max_length=EXTRAS_MAX)] = []
    hand_over: HandOver | None = None


class Denied(Message, tag=3):
    """Master to client: your try failed, or your request is cancelled."""

    serial: U64


class Revoke(Message, tag=4):
    """Master to holder: go down to ``mode``, the greatest that whoever waits can bear."""

    mode: _Mode


class Release(Message, tag=5):
    """Holder to master: I went down to ``mode``; ``serial`` is of the last grant I have seen."""

    mode: _Mode
    serial: U64
    value: Value | None = None


class Cancel(Message, tag=6):
    """Client to master: answer my request with Denied, unless you have granted it already."""

    serial: U64


class LockReport(NamedTuple):
    """A client's lock, told to its new master."""

    resource: Resource
    held: _Mode
    serial: U64
    value: Value
    written: bool  # the client wrote ``value`` and nobody acknowledged it yet
    wanted: _ModeOrNever
    wanted_serial: U64
    try_: bool
    priority: _Priority = 0


class RecordReport(NamedTuple):
    """What an old master knows of a resource that its holders may not: the value, and the dead."""

    resource: Resource
    value: Value
    ghosts: Annotated[list[Ghost], Meta(max_length=GHOSTS_MAX)]


class Rebuild(msgspec.Struct, array_like=True, gc=False, tag=7):
    """Member to new master: a batch of what the master has to know."""

    locks: Annotated[list[LockReport], Meta(max_length=BATCH_ENTRIES_MAX)]
    records: Annotated[list[RecordReport], Meta(max_length=BATCH_ENTRIES_MAX)]
    owned: Annotated[list[OwnedReport], Meta(max_length=REPORTS_MAX)] = []


class RebuildDone(msgspec.Struct, array_like=True, gc=False, tag=8):
    """Member to member: that was all; ``batches`` Rebuild messages came before this one.

    ``history``: members of the views the sender went through while dead were waiting for their replay.
    """

    batches: U64
    history: Annotated[list[Annotated[list[Member], Meta(max_length=64)]], Meta(max_length=HISTORY_MAX)] = []


class Prefetched(msgspec.Struct, array_like=True, gc=False, tag=9):
    """Master to client: the answers to the extras of a request that is not granted with them."""

    mode: _WantedMode
    extras: Annotated[list[ExtraAnswer], Meta(max_length=EXTRAS_MAX)]


class Return(Message, tag=10):
    """Arbiter of two members to the other: nobody holds it any more, arbitrate it again as the map says."""


AboutResource: TypeAlias = Request | Granted | Denied | Revoke | Release | Cancel | Return
Order: TypeAlias = AboutResource | Prefetched  # what a client and a master say to each other
AnyMessage: TypeAlias = Order | Rebuild | RebuildDone | AboutOwned

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(AnyMessage)


def encode(attempt: int, message: AnyMessage) -> bytes:
    """The payload of ``message``, spoken under the view ``attempt``."""
    return _ATTEMPT.pack(attempt) + _encoder.encode(message)


def decode_untrusted(payload: bytes) -> tuple[int, AnyMessage]:
    """The inverse of ``encode``.

    Returns:
        The attempt and the message.

    Raises:
        BadMessage: and nothing else, whatever the bytes are (R11).
    """
    if not _ATTEMPT.size < len(payload) <= PAYLOAD_BYTES_MAX:
        raise BadMessage(f"lock message of {len(payload)} bytes")
    try:
        message = _decoder.decode(memoryview(payload)[_ATTEMPT.size :])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadMessage(f"lock message: {error}") from None
    return _ATTEMPT.unpack_from(payload)[0], message
