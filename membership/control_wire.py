"""The control protocol on STATE/matrixd.sock: frames and messages, without a socket (pure).

A frame is a 4-byte little-endian length and one CBOR map of at most ``FRAME_BYTES_MAX`` bytes.  The map
has a text ``kind``; what else it must hold stands at the kind:

=========== ======================= =================================================================
kind        who sends it            fields
=========== ======================= =================================================================
status      matrixctl               local: ask no other node; answered by ``result`` or ``error``
ask         matrixctl               what, arguments, node; answered by ``result`` or ``error``
lock        matrixctl               filesystem, name, exclusive, wait; answered by ``result`` or ``error``; the
                                    lock is held for as long as the connection is
disk-lock   matrixctl               disk, exclusive, wait, command, pid; answered by ``waiting`` (once, or not),
                                    then ``result`` (grace: seconds) or ``error``; held for as long as the
                                    connection is; lost: ``error``, and matrixd hangs up
events      matrixctl               none; answered by ``result`` or ``error``
stop        matrixctl               none; answered by ``result`` or ``error``
command     matrixctl               what, arguments: for the administrator; answered by ``result`` or ``error``
hello       mount process           version, pid, start_ticks, filesystem; answered by ``welcome`` or ``error``
join        mount process           request (MountRequest); answered by ``admitted`` or ``error``
reply       mount process           reply (membership/orders.py)
answer      mount process           serial, value: bytes of a map ``value`` (value) or ``error``; to a ``query``
left        mount process           none; answered by ``goodbye``
result      matrixd                 value
waiting     matrixd                 reason
error       matrixd                 name, text, exit_code
welcome     matrixd                 cluster (ClusterInfo)
admitted    matrixd                 admission (what an Admission adds to the ClusterInfo)
order       matrixd                 order (membership/orders.py)
query       matrixd                 serial, what, arguments: bytes of a map of kind ``arguments``
goodbye     matrixd                 none
=========== ======================= =================================================================

Invariants:
- W1. Whatever the bytes are, decoding gives a map with text keys and plain values (None, bool, int, float,
  str, bytes, list, map), at most ``DEPTH_MAX`` deep and ``ITEMS_MAX`` items large, or raises BadMessage (R11).
- W2. CBOR tags are refused: cbor2 would build dates, regular expressions, huge powers and cycles from them.
- W3. No trio, no socket, no clock: ``matrixctl`` starts in less than 100 ms because of it.

Source: architecture 2 (processes), R11, ecosystem 6.
"""

from __future__ import annotations

import dataclasses
import struct
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, TypeVar

import cbor2

from membership import errors
from membership.errors import BadMessage, MatrixError
from membership.label import Timing
from membership.transport.paths import others_problem

Message: TypeAlias = dict[str, Any]

PROTOCOL_VERSION: Final = 4
SOCKET_NAME: Final = "matrixd.sock"
FRAME_BYTES_MAX: Final = 8 << 20  # the answers of 64 mounts, each at most messages.ANSWER_BYTES_MAX
DEPTH_MAX: Final = 16
ITEMS_MAX: Final = 1 << 20
_LENGTH: Final = struct.Struct("<I")
_PLAIN: Final = (bool, int, float, str, bytes, type(None))
_TAGS_OF_CBOR2: Final = (*range(38), 43, 100, 256, 258, 260, 261, 1004, 43000, 55799)

T = TypeVar("T")


def _refuse_tag(*_: object) -> Any:
    raise ValueError("a tag")


_NO_TAGS: Final = dict.fromkeys(_TAGS_OF_CBOR2, _refuse_tag)


def encode_frame(message: Message) -> bytes:
    """The bytes of one frame.  Raises BadMessage when it would be larger than a receiver accepts."""
    body = cbor2.dumps(message)
    if len(body) > FRAME_BYTES_MAX:
        raise BadMessage(f"control message {message.get('kind')!r} of {len(body)} bytes is over {FRAME_BYTES_MAX}")
    return _LENGTH.pack(len(body)) + body


def encode_map(message: Message) -> bytes:
    """A map inside a message: arguments of a question, and answers, which matrixd passes on without looking in."""
    return bytes(cbor2.dumps(message))


class FrameBuffer:
    """Bytes of a stream as they come, cut into messages."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> None:
        """Append what the stream gave."""
        self._data += data

    def next_untrusted(self) -> Message | None:
        """The next whole message, or None when more bytes are needed.  Raises BadMessage."""
        if len(self._data) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._data)
        if length > FRAME_BYTES_MAX:
            raise BadMessage(f"control frame of {length} bytes is over {FRAME_BYTES_MAX}")
        end = _LENGTH.size + length
        if len(self._data) < end:
            return None
        body = bytes(self._data[_LENGTH.size : end])
        del self._data[:end]
        return decode_untrusted(body)


def decode_untrusted(body: bytes) -> Message:
    """Decode the CBOR map of one frame.  Raises BadMessage and nothing else (W1, W2)."""
    try:
        value = cbor2.loads(
            body,
            max_depth=DEPTH_MAX,
            allow_indefinite=False,
            allow_duplicate_keys=False,
            strict_hashable_types=True,
            semantic_decoders=_NO_TAGS,
            tag_hook=_refuse_tag,
        )
    except (cbor2.CBORError, ValueError, TypeError, OverflowError, RecursionError, MemoryError) as error:
        raise BadMessage(f"control message is no CBOR: {error}") from None
    _check_plain_untrusted(value)
    if not isinstance(value, dict) or not isinstance(value.get("kind"), str):
        raise BadMessage("control message is no map with a kind")
    return value


def _check_plain_untrusted(value: object) -> None:
    """W1 on what cbor2 returned.  A stack instead of recursion: the bytes choose the shape."""
    pending: list[tuple[object, int]] = [(value, 1)]
    items = 0
    while pending:
        item, depth = pending.pop()
        items += 1
        if items > ITEMS_MAX or depth > DEPTH_MAX:
            raise BadMessage(f"control message is over {ITEMS_MAX} items or {DEPTH_MAX} levels")
        if type(item) is dict:
            if not all(type(key) is str for key in item):
                raise BadMessage("control message has a key that is no text")
            pending.extend((child, depth + 1) for child in item.values())
        elif type(item) is list:
            pending.extend((child, depth + 1) for child in item)
        elif type(item) not in _PLAIN:
            raise BadMessage(f"control message holds a {type(item).__name__}")


def take(message: Message, key: str, kind: type[T]) -> T:
    """The field ``key``, which must be exactly a ``kind`` (an int stands for a float).  Raises BadMessage."""
    value = message.get(key)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise BadMessage(f"control message: {key} is {type(value).__name__}, not {kind.__name__}")
    return value


def take_natural(message: Message, key: str, bits: int = 64) -> int:
    """The field ``key`` as an integer of 0 .. 2**bits - 1.  Raises BadMessage."""
    value = take(message, key, int)
    if not 0 <= value < 1 << bits:
        raise BadMessage(f"control message: {key} is out of range")
    return value


def error_message(error: MatrixError) -> Message:
    """``error`` as it travels to the other process."""
    return {"kind": "error", "name": type(error).__name__, "text": str(error), "exit_code": error.exit_code}


def error_of_untrusted(message: Message) -> MatrixError:
    """The error an ``error`` message stands for: same blame, same line, same exit code.  Raises BadMessage.

    Only classes that are made from one line come back as themselves; the others come as MatrixError
    with the exit code they had, which is all a command needs.
    """
    plain = {cls.__name__: cls for cls in (errors.OperatorError, errors.PeerError, errors.BadMessage, errors.Fenced)}
    error = plain.get(take(message, "name", str), MatrixError)(take(message, "text", str))
    error.exit_code = take_natural(message, "exit_code", 7)
    return error


def value_of_untrusted(answer: bytes | None) -> Any:
    """The value in the ``answer`` of a mount process.

    Raises:
        MatrixError: the error it answered, PeerError when it did not answer, BadMessage.
    """
    if answer is None:
        raise errors.PeerError("the mount process does not answer")
    message = decode_untrusted(answer)
    if message["kind"] == "error":
        raise error_of_untrusted(message)
    return message.get("value")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterInfo:
    """What a mount process learns before it joins: enough to open the store, read only, and find its filesystem."""

    node_id: int
    node_name: str
    node_address: str  # IP address of this node: the lockspace listens there too
    node_others: tuple[str, ...] = ()  # further addresses of this node: there, too
    cluster_name: str
    cluster_uuid: bytes  # 16 bytes
    cluster_key: bytes  # 32 bytes, authenticates links (R11): never log it
    encrypt: bool  # links between nodes are encrypted
    store_path: str
    data_offset: int  # bytes from the start of the store to the data window
    data_length: int  # bytes of the data window
    traits: tuple[int, int, int]  # what the store's reservations are worth: kind, flags, leaks (label.py)
    timing: Timing

    def __repr__(self) -> str:
        """Without the key: a repr ends in log files."""
        return f"{type(self).__name__}(node {self.node_id} {self.node_name} of {self.cluster_name}, {self.store_path})"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Admission(ClusterInfo):
    """The right to mount, and all that goes with it."""

    fs_name: str
    journal: int  # index of the journal that is meant for this mount, -1: none yet; the Resume order names its own
    generation: int  # SAN generation it was admitted under (R3)
    lease_deadline: float  # monotonic seconds of this host; Lease orders extend it


_CLUSTER_FIELDS: Final = tuple(f.name for f in dataclasses.fields(ClusterInfo) if f.name != "timing")
_TIMING_FIELDS: Final = tuple(f.name for f in dataclasses.fields(Timing))


def cluster_to_map(cluster: ClusterInfo) -> Message:
    """``cluster`` as the ``cluster`` field of a ``welcome``."""
    plain = {name: getattr(cluster, name) for name in _CLUSTER_FIELDS} | {"node_others": list(cluster.node_others)}
    plain["traits"] = list(cluster.traits)
    return plain | {"timing": {name: getattr(cluster.timing, name) for name in _TIMING_FIELDS}}


def cluster_of_untrusted(fields: Message) -> ClusterInfo:
    """The reverse of ``cluster_to_map``.  Raises BadMessage."""
    timing = take(fields, "timing", dict)
    try:
        checked = Timing(**{name: take(timing, name, float) for name in _TIMING_FIELDS})
    except errors.OperatorError as error:
        raise BadMessage(str(error)) from None
    return ClusterInfo(
        node_id=take_natural(fields, "node_id", 6),
        node_name=take(fields, "node_name", str),
        node_address=take(fields, "node_address", str),
        node_others=_others_untrusted(fields),
        cluster_name=take(fields, "cluster_name", str),
        cluster_uuid=take(fields, "cluster_uuid", bytes),
        cluster_key=take(fields, "cluster_key", bytes),
        encrypt=take(fields, "encrypt", bool),
        store_path=take(fields, "store_path", str),
        data_offset=take_natural(fields, "data_offset"),
        data_length=take_natural(fields, "data_length"),
        traits=_traits_untrusted(fields),
        timing=checked,
    )


def _others_untrusted(fields: Message) -> tuple[str, ...]:
    others = tuple(take(fields, "node_others", list))
    if any(type(host) is not str for host in others) or others_problem(others):
        raise BadMessage("control message: bad further addresses of the node")
    return others


def _traits_untrusted(fields: Message) -> tuple[int, int, int]:
    traits = take(fields, "traits", list)
    if len(traits) != 3 or not all(type(word) is int and 0 <= word < 1 << 32 for word in traits):
        raise BadMessage("control message: traits are three numbers")
    return traits[0], traits[1], traits[2]


def admission_of_untrusted(cluster: ClusterInfo, fields: Message) -> Admission:
    """The Admission of an ``admitted`` message.  Raises BadMessage."""
    return Admission(
        **{f.name: getattr(cluster, f.name) for f in dataclasses.fields(ClusterInfo)},
        fs_name=take(fields, "fs_name", str),
        journal=take(fields, "journal", int),
        generation=take_natural(fields, "generation"),
        lease_deadline=take(fields, "lease_deadline", float),
    )
