"""What matrixd and a mount process say to each other about membership (002-10, 002-28 to 002-30, R5, R6).

Orders go from the SAN administrator, through the local matrixd, to a mount; replies go back.  The order of
a recovery attempt is fixed (R5)::

    Suspend(attempt)  -> Suspended       every member, before anything else of that attempt; at a cold start one of
                                         them reads all journals (``survey``) and says what they are
    Rebuild(view)     -> Rebuilt         every member, only after all are suspended
    Replay(first)     -> Replayed        one member, only for journals found dirty with no survivor (cold start:
                                         ``dead.views`` is empty), each followed by ReleaseGhosts to all
    Resume(attempt)   -> Resumed         every member, only after all have rebuilt
    Replay(dead)      -> Replayed        one member per dead instance
    ReleaseGhosts     -> GhostsReleased  every member, only after that replay

Contract of the mount process, on which the safety of recovery rests:

O1. Orders are handled in the order they come.  An order of an attempt lower than the last ``Suspend`` is dropped.
O2. ``Suspended`` is sent only when no grant is made any more and **no replay is running in this mount**: a replay of
    an earlier attempt is finished (and answered) or aborted first.  So no two nodes ever replay one journal at once.
    It is aborted between two operations (matrixfs/fs/overtaken.py): grants never wait for the length of a replay.
O3. ``Replay`` of a journal that is clean, or owned by another instance than the one named, is a success with
    nothing done: an administrator that took over may ask again.
O4. Past ``Lease.deadline`` (monotonic seconds of this host) the mount writes nothing (R3).
O5. ``Withdraw``, or the end of the stream, fences the mount at once: no further write, then exit (R9).

Everything here is a frozen dataclass that becomes a plain dict for CBOR; ``*_untrusted`` functions turn dicts from
a socket into dataclasses and raise BadMessage, nothing else (R11).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import msgspec

from membership.errors import BadMessage
from membership.label import NAME_BYTES_MAX, NODE_SLOTS
from membership.transport.paths import others_problem
from membership.views import DeadInstance, LockspaceView

JOURNALS_MAX = 4 * NODE_SLOTS
TEXT_MAX = 1024
_U64_MAX = 2**64 - 1


@dataclass(frozen=True, slots=True)
class JournalState:
    """One journal of a filesystem as a mount process read it from the store."""

    index: int
    node: int  # owner instance; meaningless when clean
    incarnation: int
    dirty: bool


@dataclass(frozen=True, slots=True)
class MountRequest:
    """A mount process asks its matrixd to admit it to a filesystem (002-10)."""

    fs_uuid: bytes  # 16 bytes, from the superblock
    fs_name: str
    pid: int
    start_time: int  # field 22 of /proc/PID/stat, clock ticks since boot: tells a reused pid from ours
    incarnation: int  # u64, new for every mount process; the lockspace's peer incarnation
    host: str  # where its DLM transport listens
    port: int
    mountpoint: str
    journals: tuple[JournalState, ...]  # all of the filesystem, some time ago: how many, and whether fsck ran
    others: tuple[str, ...] = ()  # further hosts of that transport, same port


@dataclass(frozen=True, slots=True)
class Suspend:
    """Stop granting locks; a new attempt begins (002-28)."""

    attempt: int
    survey: bool = False  # read the headers of all journals now, and say in ``Suspended`` what they are


@dataclass(frozen=True, slots=True)
class JournalOwner:
    """Which journal a member of a view writes."""

    node: int
    incarnation: int
    journal: int  # -1: none yet, all were dirty when it came
    mountpoint: str = ""  # for people, on every node


@dataclass(frozen=True, slots=True)
class Rebuild:
    """Rebuild the lock masters for this view.  ``view.attempt`` is the attempt."""

    view: LockspaceView
    journals: tuple[JournalOwner, ...]  # of the members: administrators that take over learn them from here

    @property
    def attempt(self) -> int:
        """The attempt this order belongs to."""
        return self.view.attempt


@dataclass(frozen=True, slots=True)
class Resume:
    """Grant again.  ``journal`` is this mount's own from now on; it writes to no other, and to none before."""

    attempt: int
    journal: int


@dataclass(frozen=True, slots=True)
class Replay:
    """Replay the journal of a dead instance (contract O3)."""

    attempt: int
    dead: DeadInstance


@dataclass(frozen=True, slots=True)
class ReleaseGhosts:
    """The journal of this dead instance is replayed: release the locks it held."""

    attempt: int
    node: int
    incarnation: int


@dataclass(frozen=True, slots=True)
class Lease:
    """The node's right to write was renewed (R3)."""

    deadline: float  # seconds, monotonic clock of this host
    generation: int  # SAN generation under which it holds


@dataclass(frozen=True, slots=True)
class Withdraw:
    """The mount's right is gone, or its filesystem is isolated: stop at once (R9, 002-30)."""

    reason: str


@dataclass(frozen=True, slots=True)
class Evict:
    """To the mount's matrixd, which kills the process and says ``Left`` when it is gone; the mount never sees it."""

    reason: str


Order: TypeAlias = Suspend | Rebuild | Resume | Replay | ReleaseGhosts | Lease | Withdraw | Evict


@dataclass(frozen=True, slots=True)
class Suspended:
    """No grants and no replay here until the next order (contract O2)."""

    attempt: int
    journals: tuple[JournalState, ...] = ()  # all, read after the ``Suspend`` came, if it asked for that


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """Every peer's locks have reached this master; the filesystem has so many journals (0: not said)."""

    attempt: int
    journals: int = 0


@dataclass(frozen=True, slots=True)
class Resumed:
    """Grants go on."""

    attempt: int


@dataclass(frozen=True, slots=True)
class Replayed:
    """Outcome of a replay; it counts also when a newer attempt has begun meanwhile."""

    attempt: int
    node: int
    incarnation: int
    ok: bool
    detail: str  # blocks replayed, or what is wrong


@dataclass(frozen=True, slots=True)
class GhostsReleased:
    """The ghosts of this instance are gone here."""

    attempt: int
    node: int
    incarnation: int


@dataclass(frozen=True, slots=True)
class LinkLost:
    """Not an answer: the link to a member broke, and messages of this attempt with it.  Only a new attempt helps."""

    attempt: int
    node: int  # the member at the other end
    refused: bool = False  # its host says that nobody listens: it died, and its matrixd will say so


@dataclass(frozen=True, slots=True)
class AttemptWanted:
    """Not an answer: the mount has something to do while everybody is suspended (matrixfs/fs/grow.py).

    Said every second until a new attempt begins: in the middle of one it is passed over.
    """

    attempt: int


@dataclass(frozen=True, slots=True)
class Stuck:
    """Not an answer: the mount's matrixd asks to have it evicted.  Said again while it is so (mount_watch.py)."""

    reason: str
    seconds: float  # since when it has been so


@dataclass(frozen=True, slots=True)
class Told:
    """Not an answer: the mount's matrixd writes it into its event log, and passes it on to nobody."""

    text: str


AttemptReply: TypeAlias = Suspended | Rebuilt | Resumed | Replayed | GhostsReleased | LinkLost | AttemptWanted
Reply: TypeAlias = AttemptReply | Stuck | Told


@dataclass(frozen=True, slots=True)
class Left:
    """The mount process is gone.  ``clean``: its journal is clean and it gave back all locks."""

    clean: bool


Said: TypeAlias = Reply | Left

ORDERS: dict[str, type[Order]] = {
    "suspend": Suspend,
    "rebuild": Rebuild,
    "resume": Resume,
    "replay": Replay,
    "release_ghosts": ReleaseGhosts,
    "lease": Lease,
    "withdraw": Withdraw,
    "evict": Evict,
}
REPLIES: dict[str, type[Reply]] = {
    "suspended": Suspended,
    "rebuilt": Rebuilt,
    "resumed": Resumed,
    "replayed": Replayed,
    "ghosts_released": GhostsReleased,
    "link_lost": LinkLost,
    "attempt_wanted": AttemptWanted,
    "stuck": Stuck,
    "told": Told,
}
_TAGS: dict[type[Any], str] = {cls: tag for table in (ORDERS, REPLIES) for tag, cls in table.items()}

_T = TypeVar("_T")


def order_to_dict(order: Order) -> dict[str, Any]:
    """A plain dict with the key ``order``: ints, strings, bytes, lists only."""
    return {"order": _TAGS[type(order)], **_plain(order)}


def reply_to_dict(reply: Reply) -> dict[str, Any]:
    """A plain dict with the key ``reply``."""
    return {"reply": _TAGS[type(reply)], **_plain(reply)}


def request_to_dict(request: MountRequest) -> dict[str, Any]:
    """A plain dict of the request's fields."""
    return _plain(request)


def order_from_dict_untrusted(data: object) -> Order:
    """The order in a dict from a socket.  Raises BadMessage."""
    order: Order = _tagged(data, "order", ORDERS)
    return order


def reply_from_dict_untrusted(data: object) -> Reply:
    """The reply in a dict from a socket.  Raises BadMessage."""
    reply: Reply = _tagged(data, "reply", REPLIES)
    text = reply.detail if isinstance(reply, Replayed) else reply.reason if isinstance(reply, Stuck) else ""
    text = reply.text if isinstance(reply, Told) else text
    if len(text) > TEXT_MAX:
        raise BadMessage(f"reply: detail of {len(text)} characters, at most {TEXT_MAX}")
    if isinstance(reply, Suspended) and reply.journals and (problem := _journals_problem(reply.journals)):
        raise BadMessage(f"reply: {problem}")
    return reply


def request_from_dict_untrusted(data: object) -> MountRequest:
    """The mount request in a dict from a socket.  Raises BadMessage."""
    request = _convert(data, MountRequest)
    problems = {
        "fs_uuid": len(request.fs_uuid) == 16,
        "fs_name": 0 < len(request.fs_name.encode(errors="replace")) <= NAME_BYTES_MAX,
        "pid": 0 < request.pid < 2**31,
        "start_time": 0 <= request.start_time <= _U64_MAX,
        "incarnation": 0 < request.incarnation <= _U64_MAX,
        "host": 0 < len(request.host) <= 255,
        "port": 0 < request.port < 2**16,
        "mountpoint": 0 < len(request.mountpoint) <= 4096,
        "others": not others_problem(request.others),
    }
    for name, good in problems.items():
        if not good:
            raise BadMessage(f"mount request: {name} out of range")
    if problem := _journals_problem(request.journals):
        raise BadMessage(f"mount request: {problem}")
    return request


def _journals_problem(journals: tuple[JournalState, ...]) -> str:
    if not 0 < len(journals) <= JOURNALS_MAX:
        return "journals out of range"
    if sorted(j.index for j in journals) != list(range(len(journals))):
        return "journals are not numbered 0 to n-1"
    if any(not (0 <= j.node < NODE_SLOTS and 0 <= j.incarnation <= _U64_MAX) for j in journals if j.dirty):
        return "owner of a dirty journal out of range"
    return ""


def _plain(value: object) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(value, builtin_types=(bytes,))
    return plain


def _tagged(data: object, key: str, table: dict[str, Any]) -> Any:
    if not isinstance(data, dict):
        raise BadMessage(f"{key}: no map")
    tag = data.get(key)
    cls = table.get(tag) if isinstance(tag, str) else None
    if cls is None:
        raise BadMessage(f"{key}: unknown kind {str(tag)[:32]!r}")
    return _convert({k: v for k, v in data.items() if k != key}, cls)


def _convert(data: object, cls: type[_T]) -> _T:
    try:
        return msgspec.convert(data, cls, builtin_types=(bytes,), strict=True)
    except (msgspec.ValidationError, RecursionError, OverflowError, TypeError, ValueError) as error:
        raise BadMessage(f"{cls.__name__}: {error}") from None
