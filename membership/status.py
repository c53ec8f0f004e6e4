"""What ``matrixctl status`` shows, as plain data: the schema and the text of R4 (002-26, R14).

Every value is CBOR-safe.  Times called ``*_age`` and ``*_left`` are seconds at the moment of the call.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from membership.label import Timing


class NodeStatus(TypedDict):
    """One node of the cluster, from its slot on the disk and its link."""

    id: int
    name: str
    host: str
    port: int
    incarnation: int
    state: str  # "member", "joining", "alive" (on disk, not in our view), "dead", "fencing", "left"
    is_self: bool
    link: str  # "self", "absent", "up", "suspect", "gone"  (group/state.py)
    slot_age: float  # seconds since its disk heartbeat was last seen moving
    mounts: int
    others: list[str]  # its further addresses
    path: str  # its address that the link uses, or used last; "" without one
    moves: int  # times the link took another path
    trouble: str  # why it does not take us, or we not it, though it answers; "" when that is not so


class MountStatus(TypedDict):
    """One mount of a filesystem."""

    node: int
    incarnation: int
    host: str
    port: int
    journal: int
    pid: int  # 0 when the mount is on another node
    mountpoint: str  # "" when the mount is on another node


class DeadStatus(TypedDict):
    """A dead instance whose journal is not replayed yet."""

    node: int
    incarnation: int
    journal: int


class FilesystemStatus(TypedDict):
    """One filesystem as far as this node knows: the administrator knows all, others those they mount."""

    uuid: str
    name: str
    attempt: int
    phase: str  # "idle", "waiting for fence", "suspend", "rebuild", "replay first", "resume", "replay", "error"
    waiting_for: list[int]  # nodes whose answer the phase waits for (R14); [] when not the administrator
    phase_age: float  # seconds in this phase
    journals: int  # how many the filesystem has; 0 when not the administrator
    mounts: list[MountStatus]
    dead: list[DeadStatus]
    error: str


class Memberships(TypedDict):
    """The four memberships of 002-26, as node ids."""

    group: list[int]  # processes that communicate: the installed view
    san: list[int]  # may use the store: the SAN header
    storage_groups: dict[str, list[int]]  # per filesystem uuid: nodes that mount it
    cluster: list[int]  # nodes the cluster knows: every claimed slot that has not left


class TimingStatus(TypedDict):
    """R4 with its numbers, seconds."""

    lease: float
    io_bound: float
    margin: float
    dead: float
    formula: str
    configured: dict[str, float]  # as the label has it, seconds


class RecoveryStatus(TypedDict):
    """One finished or failed recovery, known on every node: seconds per phase, as they came (R5).

    detect is the time since the node was last heard (it beats every ``heartbeat``), or how long the mount was silent.
    Phases: detect, fence, suspend, rebuild, replay first, release first, resume, replay, release.  A failure within
    begins anew with suspend, so a name may come several times.
    """

    fs: str
    attempt: int
    wall_ns: int
    members: list[int]
    dead: list[int]
    phases: list[tuple[str, float]]  # (phase, seconds)
    seconds: float  # all of them together
    error: str  # why the filesystem was isolated; "" when all went well


class DiskStatus(TypedDict):
    """One cluster disk, as this node has it."""

    uuid: str
    name: str
    path: str  # where the node that added it found it
    path_here: str  # "" when this node has not found it
    state: str  # disk_watch.DiskState: "present", "slow", "lost", "another disk", "not found"
    failure: str  # what is wrong with it; "" nothing
    size_bytes: int
    filesystem: str  # "": none
    area: str  # of membership: "yes", "leaving" or "coming" while the set is changed, "" none
    area_failure: str  # why this node can't use it just now; "" it can
    traits: list[int]  # what the probe of its reservations proved: kind, flags, leaks (label.py)


class NamingStatus(TypedDict):
    """The naming of the disks, and how far its change is (Figure 12)."""

    version: int  # that this node holds
    step: str  # san/changes.py; "idle" unless this node is administrator and changes it
    waiting_for: list[int]  # nodes that do not hold it yet


class FenceStatus(TypedDict):
    """One fencing, newest last."""

    wall_ns: int
    node: int
    name: str
    incarnation: int
    driver: str
    confirmed: bool
    detail: str


class EventStatus(TypedDict):
    """One line of the event log, newest last."""

    wall_ns: int
    kind: str
    text: str


class Status(TypedDict):
    """Answer of ``Node.status()``."""

    cluster_name: str
    cluster_uuid: str
    store: str
    node: int
    name: str
    host: str
    others: list[str]  # further addresses of this node
    port: int
    incarnation: int
    state: str  # "starting", "joining", "member", "leaving", "fenced"
    generation: int
    administrator: int  # node id, -1 when there is none
    links: str  # "encrypted", or "authenticated" only
    coordinator: int  # node id of the group coordinator
    view: int  # number of the installed group view
    lease_left: float  # seconds until this node must stop writing; negative: past
    timing: TimingStatus
    memberships: Memberships
    nodes: list[NodeStatus]
    disks: list[DiskStatus]
    naming: NamingStatus
    filesystems: list[FilesystemStatus]
    recoveries: list[RecoveryStatus]
    fences: list[FenceStatus]
    events: list[EventStatus]


def timing_status(timing: Timing) -> TimingStatus:
    """The R4 formula as numbers and as one line of text."""
    text = (
        f"a silent node stops writing {timing.lease:g} s after its last renewal; "
        f"peers act after lease {timing.lease:g} + write in flight {timing.io_bound:g} + margin {timing.margin:g} "
        f"= {timing.dead:g} s unless a fence confirmed it earlier"
    )
    return TimingStatus(
        lease=timing.lease,
        io_bound=timing.io_bound,
        margin=timing.margin,
        dead=timing.dead,
        formula=text,
        configured=dataclasses.asdict(timing),
    )
