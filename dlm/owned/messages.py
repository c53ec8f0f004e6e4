"""Messages about owned locks, between a client and the arbiter of an object; layout in ``docs/format/wire-dlm.md``.

They travel as lock messages do (``dlm.messages`` decodes them) and obey the same rules of views (L1 to L4).  The
owner's node is the sender: nobody can ask in another's name.  ``serial`` counts a client's requests: an answer
names the request by it, and a request whose serial is not above the last one's is a repetition.

Every Acquire and Inquire gets one answer, every Free one Freed, unless the view changes first.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, NamedTuple, TypeAlias

import msgspec
from msgspec import Meta

from dlm.names import U64
from dlm.owned.ranges import END_MAX

REPORTS_MAX = 512  # of at most 60 bytes: one Rebuild message stays below 32 KiB
HOPS_MAX = 32  # owners in a cycle that is found across arbiters
FOLLOWED_MAX = 512  # owners in one Follow

_Position = Annotated[int, Meta(ge=0, le=END_MAX)]
_Pid = Annotated[int, Meta(ge=0, le=(1 << 32) - 1)]
_Node = Annotated[int, Meta(ge=0, le=63)]
_Stamp = Annotated[int, Meta(ge=0, le=END_MAX)]


class Kind(IntEnum):
    """Kinds of owned locks; they never conflict with each other."""

    FLOCK = 0  # flock(2): whole objects, owner is an open file
    POSIX = 1  # fcntl(2): ranges, owner is a process, or an open file for F_OFD_SETLK
    NAMED = 2  # application locks: the object is the hash of a name


class Reason(IntEnum):
    """Why an Acquire is refused."""

    AGAIN = 0  # a try, and somebody holds it
    DEADLOCK = 1  # waiting would close a cycle
    NOLOCKS = 2  # the sender has too many
    WITHDRAWN = 3  # as it asked for


class Message(msgspec.Struct, array_like=True, gc=False):
    """Base of what a client asks of an arbiter."""

    kind: Kind
    object: U64
    serial: U64


class Ranged(Message):
    """Base of what is about a range of an owner."""

    owner: U64
    start: _Position
    end: _Position

    def __post_init__(self) -> None:
        _check_range(self.start, self.end)


class Acquire(Ranged, tag=32):
    """Client to arbiter: give me this range in at least this mode.  ``wait``: else refuse at once."""

    exclusive: bool
    wait: bool
    pid: _Pid
    stamp: _Stamp  # orders waits by age (``dlm.owned.deadlock``)


class Free(Ranged, tag=33):
    """Client to arbiter: I hold nothing of this range any more, or with ``shared`` nothing exclusively."""

    shared: bool = False


class Inquire(Ranged, tag=34):
    """Client to arbiter: tell who stands against this."""

    exclusive: bool


class Withdraw(Message, tag=35):
    """Client to arbiter: refuse my Acquire of this serial, unless you have answered it."""


class Acquired(msgspec.Struct, array_like=True, gc=False, tag=36):
    """Arbiter to client: you have it."""

    serial: U64
    stamp: _Stamp


class Refused(msgspec.Struct, array_like=True, gc=False, tag=37):
    """Arbiter to client: you have it not."""

    serial: U64
    reason: Reason


class Freed(msgspec.Struct, array_like=True, gc=False, tag=38):
    """Arbiter to client: done, others may have it.  Not ``done``: the rest would be too many ranges."""

    serial: U64
    done: bool = True


class Conflict(NamedTuple):
    """Who stands against a request."""

    node: _Node
    pid: _Pid
    start: _Position
    end: _Position  # included
    exclusive: bool


class Inquired(msgspec.Struct, array_like=True, gc=False, tag=39):
    """Arbiter to client: the first who stands against it, or nobody."""

    serial: U64
    conflict: Conflict | None


class Hop(NamedTuple):
    """One wait on a path of waits."""

    node: _Node
    owner: U64
    serial: U64
    object: U64


class Path(msgspec.Struct, array_like=True, gc=False):
    """Base of the probes: the waits from the initiator's (first) to the one being looked at (last)."""

    kind: Kind
    stamp: _Stamp  # of the initiator's wait
    turn: U64  # counts the initiator's probes
    hops: Annotated[list[Hop], Meta(min_length=1, max_length=HOPS_MAX)]
    plan: Annotated[list[Hop], Meta(max_length=HOPS_MAX)]  # empty: search; else the cycle to confirm


class Chase(Path, tag=40):
    """Home of the last hop to its arbiter: find who stands in its way."""


class Follow(Path, tag=41):
    """Arbiter of the last hop to the home of these owners: they stand in its way, follow what they wait for."""

    owners: Annotated[list[U64], Meta(max_length=FOLLOWED_MAX)]


class Found(Path, tag=42):
    """Arbiter of the last hop to the initiator's home: you stand in its way."""


class OwnedReport(msgspec.Struct, array_like=True, gc=False):
    """A range that the sender's owner holds, told to the new arbiter."""

    kind: Kind
    object: U64
    owner: U64
    start: _Position
    end: _Position
    exclusive: bool
    pid: _Pid

    def __post_init__(self) -> None:
        _check_range(self.start, self.end)


ToArbiter: TypeAlias = Acquire | Free | Inquire | Withdraw
ToClient: TypeAlias = Acquired | Refused | Freed | Inquired
Probe: TypeAlias = Chase | Follow | Found
AboutOwned: TypeAlias = ToArbiter | ToClient | Probe


def _check_range(start: int, end: int) -> None:
    """Msgspec turns a ValueError into its ValidationError."""
    if start > end:
        raise ValueError(f"range from {start} to {end}")
