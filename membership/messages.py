"""Messages between matrixds: typed, tagged by append-only numbers, validated on receipt (R11).

A packet is MessagePack: ``[view, body]``.  ``view`` is the sender's group view; what belongs to an older view than
the receiver's is dropped, except the messages that make views (002-27, step 716).  A body is an array that begins
with its number; fields are only ever added at the end.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct

from membership.errors import BadMessage
from membership.label import NAME_BYTES_MAX, NODE_SLOTS
from membership.orders import JOURNALS_MAX, JournalOwner, JournalState
from membership.transport.paths import others_problem
from membership.views import DeadInstance, Instance

PACKET_BYTES_MAX = 256 * 1024
PHASES_MAX = 64  # of one recovery, the latest: each attempt has up to eight

NodeId: TypeAlias = Annotated[int, Meta(ge=0, lt=NODE_SLOTS)]
Number: TypeAlias = Annotated[int, Meta(ge=0)]
Uuid: TypeAlias = Annotated[bytes, Meta(min_length=16, max_length=16)]
Text: TypeAlias = Annotated[str, Meta(max_length=4096)]
PhaseName: TypeAlias = Annotated[str, Meta(max_length=32)]
Seconds: TypeAlias = Annotated[float, Meta(ge=0, le=1e9)]
Port: TypeAlias = Annotated[int, Meta(ge=0, lt=65536)]
Members: TypeAlias = Annotated[tuple[tuple[NodeId, Number], ...], Meta(max_length=NODE_SLOTS)]
InstanceList: TypeAlias = Annotated[tuple[Instance, ...], Meta(max_length=NODE_SLOTS)]
History: TypeAlias = Annotated[tuple[InstanceList, ...], Meta(max_length=4096)]


# -- group (7A) -----------------------------------------------------------------------------------------------


class Heartbeat(Struct, frozen=True, array_like=True, tag=1):
    """I live; ``hears`` bit n: I hear node n; ``accepted``: greatest view number I accepted."""

    hears: Number
    accepted: Number
    has_storage: bool = True  # a renewal of mine came to its end within the length of a lease
    naming: Number = 0  # version of the naming that I hold (1606)


class Propose(Struct, frozen=True, array_like=True, tag=2):
    """The coordinator proposes a view (706)."""

    number: Number
    members: Members  # (node, incarnation)


class Accept(Struct, frozen=True, array_like=True, tag=3):
    """I drop messages of views before this number from now on (716)."""

    number: Number


class Install(Struct, frozen=True, array_like=True, tag=4):
    """All accepted: this is the view (708)."""

    number: Number
    members: Members


# -- administrator (Figures 10, 11) -----------------------------------------------------------------------------


class Nominate(Struct, frozen=True, array_like=True, tag=10):
    """Coordinator: try to become administrator (1706)."""

    nomination: Number
    undone: Number  # generations up to here that were won and undone: nobody writes their header


class Won(Struct, frozen=True, array_like=True, tag=11):
    """Candidate: I hold the SAN lock of this generation (1730)."""

    nomination: Number
    generation: Number


class CandidateFailed(Struct, frozen=True, array_like=True, tag=12):
    """Candidate: I can't (1724)."""

    nomination: Number
    reason: Text


class Commit(Struct, frozen=True, array_like=True, tag=13):
    """Coordinator: be it (1754)."""

    nomination: Number


class Undo(Struct, frozen=True, array_like=True, tag=14):
    """Coordinator: not permissible any more (1752)."""

    nomination: Number


class HeaderChanged(Struct, frozen=True, array_like=True, tag=15):
    """The SAN header on disk has this generation now: read it (1758)."""

    generation: Number
    evicted: Members = ()  # who stands in its ``fencing``: who can't read the store learns it nowhere else


class JoinRequest(Struct, frozen=True, array_like=True, tag=16):
    """Import me (1402)."""

    incarnation: Number
    naming: Number = 0  # version of the naming that I hold
    name: Annotated[str, Meta(max_length=NAME_BYTES_MAX)] = ""


class LeaveRequest(Struct, frozen=True, array_like=True, tag=17):
    """Drop me without fencing: I write no more."""

    incarnation: Number


class JoinRefused(Struct, frozen=True, array_like=True, tag=18):
    """Not imported (1412)."""

    incarnation: Number
    reason: Text
    final: bool  # asking again changes nothing: end with this reason


# -- filesystems (7B, 7C) ---------------------------------------------------------------------------------------


class MountReport(Struct, frozen=True, array_like=True):
    """One mount, as its matrixd knows it: what a new administrator rebuilds its state from."""

    fs_uuid: Uuid
    fs_name: Text
    incarnation: Number
    host: Text
    port: Port
    mountpoint: Text
    journal: int
    journals: Annotated[tuple[JournalState, ...], Meta(max_length=JOURNALS_MAX)]
    attempt: Number  # of the last Rebuild, 0: none
    resumed: bool  # Resume of that attempt came too
    owners: Annotated[tuple[JournalOwner, ...], Meta(max_length=NODE_SLOTS)]  # members of that attempt
    history: History  # views since the last that was complete
    dead: Annotated[tuple[DeadInstance, ...], Meta(max_length=JOURNALS_MAX)]
    released: Annotated[tuple[Instance, ...], Meta(max_length=JOURNALS_MAX)]
    others: tuple[Text, ...] = ()  # further hosts of its transport


class AskReport(Struct, frozen=True, array_like=True, tag=20):
    """The administrator of ``generation`` asks what mounts there are."""

    generation: Number


class Report(Struct, frozen=True, array_like=True, tag=21):
    """All mounts of the sender."""

    generation: Number
    mounts: Annotated[tuple[MountReport, ...], Meta(max_length=8)]


class MountJoin(Struct, frozen=True, array_like=True, tag=22):
    """Admit this mount; asked again until answered."""

    mount: MountReport


class MountAdmit(Struct, frozen=True, array_like=True, tag=23):
    """Admitted, with this journal meant for it (-1: none yet); Resume names its own."""

    generation: Number
    fs_uuid: Uuid
    incarnation: Number
    journal: int


class MountRefuse(Struct, frozen=True, array_like=True, tag=24):
    """Not admitted."""

    generation: Number
    fs_uuid: Uuid
    incarnation: Number
    reason: Text


class MountLeft(Struct, frozen=True, array_like=True, tag=25):
    """A mount left or died; said again until ``MountForgotten``."""

    fs_uuid: Uuid
    incarnation: Number
    clean: bool


class MountForgotten(Struct, frozen=True, array_like=True, tag=26):
    """Answer to MountLeft."""

    fs_uuid: Uuid
    incarnation: Number


class OrderTo(Struct, frozen=True, array_like=True, tag=27):
    """An order (membership/orders.py) for one mount."""

    generation: Number  # of the administrator's SAN header
    fs_uuid: Uuid
    incarnation: Number
    order: dict[str, Any]


class ReplyFrom(Struct, frozen=True, array_like=True, tag=28):
    """A mount's reply."""

    fs_uuid: Uuid
    incarnation: Number
    reply: dict[str, Any]


class Recovered(Struct, frozen=True, array_like=True, tag=40):
    """The administrator: this recovery ended; so that every node can show it, and how long each phase took."""

    generation: Number
    fs_name: Text
    attempt: Number
    members: Annotated[tuple[NodeId, ...], Meta(max_length=NODE_SLOTS)]
    dead: Annotated[tuple[NodeId, ...], Meta(max_length=JOURNALS_MAX)]
    phases: Annotated[tuple[tuple[PhaseName, Seconds], ...], Meta(max_length=PHASES_MAX)]
    error: Text
    ago: Seconds  # seconds since it ended: it is told again to every new view


# -- commands (Figure 12) -----------------------------------------------------------------------------------------

COMMAND_BYTES_MAX = 32 * 1024


class Command(Struct, frozen=True, array_like=True, tag=60):
    """Somebody at the sender's control socket wants the administrator to do something; sent again until answered."""

    serial: Number  # the sender's: the administrator carries each out once
    what: Annotated[str, Meta(max_length=32)]
    arguments: Annotated[bytes, Meta(max_length=COMMAND_BYTES_MAX)]  # a CBOR map


class CommandDone(Struct, frozen=True, array_like=True, tag=61):
    """What came of it."""

    serial: Number
    answer: Annotated[bytes, Meta(max_length=COMMAND_BYTES_MAX)]  # a CBOR map of kind ``value`` or ``error``


# -- questions (R14) --------------------------------------------------------------------------------------------

ANSWER_BYTES_MAX = 120 * 1024  # of one mount process to one question
ARGUMENT_BYTES_MAX = 8 * 1024


class Ask(Struct, frozen=True, array_like=True, tag=41):
    """Somebody at the sender's control socket asks all mount processes of the receiver."""

    serial: Number  # the sender's, to tell answers apart
    what: Annotated[str, Meta(max_length=32)]
    arguments: Annotated[bytes, Meta(max_length=ARGUMENT_BYTES_MAX)]  # a CBOR map (membership/control_wire.py)


class Answer(Struct, frozen=True, array_like=True, tag=42):
    """What one mount process answered; a node without mounts sends one with pid 0."""

    serial: Number
    more: Annotated[int, Meta(ge=0, le=64)]  # how many answers follow this one
    pid: Number
    filesystem: Text
    mountpoint: Text
    value: Annotated[bytes, Meta(max_length=ANSWER_BYTES_MAX)] | None  # a CBOR map; None: it did not answer


# -- locks on cluster disks for applications (002-24; san/disk_locks.py) ------------------------------------------

DISK_LOCKS_MAX = 64  # of one node, held or waited for
LockOwner: TypeAlias = Annotated[str, Meta(max_length=256)]


class DiskLock(Struct, frozen=True, array_like=True):
    """One lock of one node, held or wanted."""

    serial: Number  # the node's own number for it, never used again by this incarnation
    disk: Uuid
    owner: LockOwner  # who wants it, for people
    exclusive: bool


class AskDiskLocks(Struct, frozen=True, array_like=True, tag=50):
    """The administrator of ``generation`` asks what locks the receiver holds."""

    generation: Number


class DiskLocksReport(Struct, frozen=True, array_like=True, tag=51):
    """All that the sender holds; what it waits for it asks for again."""

    generation: Number
    incarnation: Number  # of the sender, as in all that follow
    held: Annotated[tuple[DiskLock, ...], Meta(max_length=DISK_LOCKS_MAX)]


class DiskLockAsk(Struct, frozen=True, array_like=True, tag=52):
    """Grant this lock; asked again until granted or refused."""

    incarnation: Number
    lock: DiskLock
    wait: bool  # else refuse when it is not free


class DiskLockAnswer(Struct, frozen=True, array_like=True, tag=53):
    """What became of it."""

    generation: Number
    incarnation: Number  # of the receiver
    serial: Number
    answer: Literal["granted", "queued", "refused"]
    reason: Text


class DiskUnlock(Struct, frozen=True, array_like=True, tag=54):
    """Not held or wanted any more; said again until ``DiskUnlocked``."""

    incarnation: Number
    serial: Number


class DiskUnlocked(Struct, frozen=True, array_like=True, tag=55):
    """Answer to DiskUnlock."""

    generation: Number
    incarnation: Number  # of the receiver
    serial: Number


Body: TypeAlias = (
    Heartbeat
    | Propose
    | Accept
    | Install
    | Nominate
    | Won
    | CandidateFailed
    | Commit
    | Undo
    | HeaderChanged
    | JoinRequest
    | LeaveRequest
    | JoinRefused
    | Command
    | CommandDone
    | AskReport
    | Report
    | MountJoin
    | MountAdmit
    | MountRefuse
    | MountLeft
    | MountForgotten
    | OrderTo
    | ReplyFrom
    | Recovered
    | Ask
    | Answer
    | AskDiskLocks
    | DiskLocksReport
    | DiskLockAsk
    | DiskLockAnswer
    | DiskUnlock
    | DiskUnlocked
)


class Packet(Struct, frozen=True, array_like=True):
    """What travels."""

    view: Number
    body: Body


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Packet)


def encode(view: int, body: Body) -> bytes:
    """The bytes of a packet."""
    return _ENCODER.encode(Packet(view, body))


def packet_untrusted(data: bytes) -> Packet:
    """Decode a packet.  Raises BadMessage, nothing else."""
    if len(data) > PACKET_BYTES_MAX:
        raise BadMessage(f"message of {len(data)} bytes, at most {PACKET_BYTES_MAX}")
    try:
        packet = _DECODER.decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError, ValueError, TypeError, OverflowError) as error:
        raise BadMessage(f"matrixd message: {error}") from None
    for mount in _mounts(packet.body):
        _check_mount(mount)
    return packet


def _mounts(body: Body) -> tuple[MountReport, ...]:
    if isinstance(body, Report):
        return body.mounts
    return (body.mount,) if isinstance(body, MountJoin) else ()


def _check_mount(mount: MountReport) -> None:
    """Ranges of the dataclasses inside, which msgspec only types."""
    nodes = [o.node for o in mount.owners] + [d.node for d in mount.dead] + [j.node for j in mount.journals if j.dirty]
    nodes += [i.node for d in mount.dead for view in d.views for i in view]
    nodes += [i.node for view in mount.history for i in view] + [i.node for i in mount.released]
    if any(not 0 <= node < NODE_SLOTS for node in nodes):
        raise BadMessage("mount report: node id out of range")
    journals = [mount.journal, *(o.journal for o in mount.owners), *(d.journal for d in mount.dead)]
    if any(not -1 <= journal < JOURNALS_MAX for journal in journals):
        raise BadMessage("mount report: journal out of range")
    if [j.index for j in mount.journals] != list(range(len(mount.journals))):
        raise BadMessage("mount report: journals are not numbered 0 to n-1")
    if problem := others_problem(mount.others):
        raise BadMessage(f"mount report: {problem}")
