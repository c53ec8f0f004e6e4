"""Views of a lockspace: who the peers are, who died, and what the survivors may not know (R5, R6).

The administrator's matrixd makes a ``LockspaceView`` per attempt and sends it to every mount of the
filesystem; the DLM rebuilds from it.  Both sides import this file, so it holds data only.

Invariants:

V1. ``attempt`` (generation << 32 | counter) only grows; a message or view of a smaller attempt is stale.
V2. ``members`` is sorted by node, one instance per node, and disjoint from ``dead``.
V3. ``dead`` names *every* instance whose journal is not known to be replayed.  Each of them is released
    by one RELEASE_GHOSTS to all members after its replay, also when an earlier attempt had done so already.
V4. ``DeadInstance.views`` holds the members of the last view that every member had acknowledged to be rebuilt
    when the instance died, and of all views sent out since, as far as the instance was a member.  It names
    instances, not bare node ids: a master that died and came back under the same id has forgotten what it knew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from membership.errors import BadMessage
from membership.label import NODE_SLOTS
from membership.seams import PeerAddress
from membership.transport.paths import PATHS_MAX, others_problem

_U64 = 1 << 64
_DEAD_MAX = 4 * NODE_SLOTS  # one node can die several times before its first journal is replayed
_VIEWS_MAX = 256  # attempts since the last complete view; more means that recovery never ends
_HOST_BYTES_MAX = 255


class Instance(NamedTuple):
    """One life of one node's process."""

    node: int
    incarnation: int


@dataclass(frozen=True, slots=True)
class DeadInstance:
    """An instance that is fenced, and whose journal is not replayed yet.

    ``journal`` is the index of its journal; ``views`` see V4 (empty: unknown, then the caller replays
    the journal before RESUME).
    """

    node: int
    incarnation: int
    journal: int
    views: tuple[tuple[Instance, ...], ...] = ()

    @property
    def instance(self) -> Instance:
        """Its identity."""
        return Instance(self.node, self.incarnation)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for CBOR."""
        return {
            "node": self.node,
            "incarnation": self.incarnation,
            "journal": self.journal,
            "views": [[list(instance) for instance in view] for view in self.views],
        }

    @classmethod
    def from_dict_untrusted(cls, data: object) -> DeadInstance:
        """The inverse of ``to_dict``.  Raises BadMessage."""
        fields = _mapping(data)
        views = _list(fields.get("views"), _VIEWS_MAX)
        return cls(
            _number(fields.get("node"), NODE_SLOTS),
            _number(fields.get("incarnation")),
            _number(fields.get("journal")),
            tuple(tuple(_instance(pair) for pair in _list(view, NODE_SLOTS)) for view in views),
        )


@dataclass(frozen=True, slots=True)
class LockspaceView:
    """One attempt at a common set of peers; see V1 to V4."""

    attempt: int
    members: tuple[PeerAddress, ...]
    dead: tuple[DeadInstance, ...] = ()

    @property
    def instances(self) -> tuple[Instance, ...]:
        """The members as instances: what belongs into ``DeadInstance.views`` when one of them dies."""
        return tuple(Instance(member.node, member.incarnation) for member in self.members)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for CBOR."""
        return {
            "attempt": self.attempt,
            "members": [[m.node, m.incarnation, m.host, m.port, list(m.others)][: 5 if m.others else 4]
                        for m in self.members],
            "dead": [dead.to_dict() for dead in self.dead],
        }

    @classmethod
    def from_dict_untrusted(cls, data: object) -> LockspaceView:
        """The inverse of ``to_dict``.  Raises BadMessage, also when V2 does not hold."""
        fields = _mapping(data)
        members = tuple(_peer(entry) for entry in _list(fields.get("members"), NODE_SLOTS))
        dead = tuple(DeadInstance.from_dict_untrusted(entry) for entry in _list(fields.get("dead"), _DEAD_MAX))
        view = cls(_number(fields.get("attempt")), members, dead)
        nodes = [member.node for member in members]
        if nodes != sorted(set(nodes)) or set(view.instances) & {one.instance for one in dead}:
            raise BadMessage("lockspace view: members are unsorted, repeated, or dead")
        return view


def _mapping(data: object) -> Mapping[str, object]:
    if not isinstance(data, dict):
        raise BadMessage("lockspace view: no mapping")
    return data


def _list(data: object, length_max: int) -> Sequence[object]:
    if not isinstance(data, list | tuple) or len(data) > length_max:
        raise BadMessage(f"lockspace view: no list of at most {length_max}")
    return data


def _number(data: object, end: int = _U64) -> int:
    if type(data) is not int or not 0 <= data < end:
        raise BadMessage("lockspace view: number missing or out of range")
    return data


def _instance(data: object) -> Instance:
    pair = _list(data, 2)
    if len(pair) != 2:
        raise BadMessage("lockspace view: an instance is a pair")
    return Instance(_number(pair[0], NODE_SLOTS), _number(pair[1]))


def _peer(data: object) -> PeerAddress:
    """Node, incarnation, host, port, and the further hosts if there are any."""
    entry = _list(data, 5)
    if len(entry) < 4 or not isinstance(entry[2], str) or len(entry[2]) > _HOST_BYTES_MAX:
        raise BadMessage("lockspace view: bad member")
    others = tuple(host for host in _list(entry[4], PATHS_MAX) if isinstance(host, str)) if len(entry) == 5 else ()
    if len(entry) == 5 and (len(others) != len(_list(entry[4], PATHS_MAX)) or others_problem(others)):
        raise BadMessage("lockspace view: bad further hosts of a member")
    return PeerAddress(_number(entry[0], NODE_SLOTS), _number(entry[1]), entry[2], _number(entry[3], 1 << 16), others)
