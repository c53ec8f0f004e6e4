"""Builds the status of a node from its cores (002-26, R14)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from membership.label import PLAIN_LINKS
from membership.lease.core import LeaseState
from membership.naming import Naming
from membership.san.header import NOBODY
from membership.seams import PeerAddress
from membership.status import (
    DeadStatus,
    FilesystemStatus,
    Memberships,
    MountStatus,
    NodeStatus,
    Status,
    timing_status,
)
from membership.status_disks import disks_status, naming_status

if TYPE_CHECKING:
    from membership.lease.records import HeartbeatSlot
    from membership.node_core import NodeCore
    from membership.san.agent import LocalMount
    from membership.san.recovery import FilesystemRecovery
    from membership.service import Node
    from membership.transport.links import LinkStatus


def status_of(node: Node) -> Status:
    """A snapshot; works in every state of the node."""
    core = node.core
    now = node.clock.monotonic()
    filesystems = _filesystems(core, now) if core is not None else []
    administrator = core.admin.header.administrator if core is not None else NOBODY
    return Status(
        cluster_name=node.label.cluster_name,
        cluster_uuid=node.label.owner.hex(),
        store=node.areas.name,
        node=node.node_id,
        name=node.config.name,
        host=node.config.host,
        others=list(node.config.others),
        port=node.slot.port if node.slot is not None else node.config.port,
        incarnation=node.incarnation,
        state=_state(core),
        generation=node.generation,
        administrator=administrator if administrator != NOBODY else -1,
        links="authenticated" if node.label.links == PLAIN_LINKS else "encrypted",
        coordinator=core.group.view.coordinator if core is not None else -1,
        view=core.group.view.number if core is not None else 0,
        lease_left=max(node.lease_deadline - now, -1e9),
        timing=timing_status(node.timing),
        memberships=_memberships(core, filesystems),
        nodes=_nodes(core, node.slot, node.links(), now) if core is not None and node.slot is not None else [],
        disks=disks_status(core.naming if core is not None else Naming(), node.disks, node.areas),
        naming=naming_status(core),
        filesystems=filesystems,
        recoveries=list(node.book.recoveries),
        fences=list(node.book.fences),
        events=list(node.book.events),
    )


def _state(core: NodeCore | None) -> str:
    if core is None:
        return "starting"
    if core.lease.state is LeaseState.MEMBER:
        return "leaving" if core.admin.is_leaving else "member"
    return {
        LeaseState.OUT: "joining",
        LeaseState.LAPSED: "lapsed",
        LeaseState.FENCED: "fenced",
        LeaseState.LEFT: "leaving",
    }[core.lease.state]


def _memberships(core: NodeCore | None, filesystems: list[FilesystemStatus]) -> Memberships:
    groups = {fs["uuid"]: sorted(mount["node"] for mount in fs["mounts"]) for fs in filesystems}
    if core is None:
        return Memberships(group=[], san=[], storage_groups=groups, cluster=[])
    known = {n for n, sight in core.watch.sights.items() if not sight.slot.is_left} | {core.me.node}
    return Memberships(
        group=sorted(core.group.view.members),
        san=sorted(core.admin.header.members),
        storage_groups=groups,
        cluster=sorted(known),
    )


def _nodes(core: NodeCore, own: HeartbeatSlot, links: dict[int, LinkStatus], now: float) -> list[NodeStatus]:
    alive = core.watch.alive(now) | {core.me.node}
    rows = [(core.me.node, own, now)]
    rows += [(node, sight.slot, sight.moved_at) for node, sight in core.watch.sights.items()]
    result: list[NodeStatus] = []
    for node, slot, moved_at in sorted(rows, key=lambda row: row[0]):
        peer = core.group.peers.get(node)
        path = links.get(node)
        link = "self" if node == core.me.node else peer.state.value if peer is not None else "absent"
        result.append(
            NodeStatus(
                id=node,
                name=slot.name,
                host=slot.host,
                port=slot.port,
                incarnation=slot.incarnation,
                state=_node_state(core, node, slot, is_alive=node in alive),
                is_self=node == core.me.node,
                link=link,
                slot_age=now - moved_at,
                mounts=len(slot.mounts),
                others=list(slot.other_hosts),
                path=path.path if path is not None else "",
                moves=path.moves if path is not None else 0,
                trouble=path.trouble if path is not None else "",
            )
        )
    return result


def _node_state(core: NodeCore, node: int, slot: HeartbeatSlot, *, is_alive: bool) -> str:
    header = core.admin.header
    if header.members.get(node) == slot.incarnation:
        return "member" if is_alive else "dead"
    if node in header.fencing:
        return "fencing"
    if slot.is_left:
        return "left"
    if not is_alive:
        return "dead"
    return "joining" if node in core.group.view.members else "alive"


def _filesystems(core: NodeCore, now: float) -> list[FilesystemStatus]:
    """What the administrator drives; elsewhere what our own mounts were told."""
    if core.filesystems is not None and core.filesystems.by_uuid:
        return [_driven(fs, core, now) for fs in core.filesystems.by_uuid.values()]
    return [_told(mount, core) for mount in core.agent.mounts.values()]


def _driven(fs: FilesystemRecovery, core: NodeCore, now: float) -> FilesystemStatus:
    rows = [(m.address, m.journal, m.mountpoint) for _, m in sorted(fs.members.items())]
    return FilesystemStatus(
        uuid=fs.uuid.hex(),
        name=fs.name,
        attempt=fs.attempt,
        phase=fs.phase.value,
        waiting_for=sorted(fs.waiting),
        phase_age=now - fs.phase_since,
        journals=fs.journals,
        mounts=[_mount(core, fs.uuid, *row) for row in rows],
        dead=[DeadStatus(node=d.node, incarnation=d.incarnation, journal=d.journal) for d in fs.dead.values()],
        error=fs.error,
    )


def _told(mount: LocalMount, core: NodeCore) -> FilesystemStatus:
    request = mount.request
    own = PeerAddress(core.me.node, request.incarnation, request.host, request.port)
    addresses = {address.node: address for address in mount.addresses}
    others = [owner for owner in mount.owners if owner.node in addresses and owner.node != own.node]
    rows = [(addresses[owner.node], owner.journal, owner.mountpoint) for owner in others]
    rows.append((own, mount.journal, request.mountpoint))
    return FilesystemStatus(
        uuid=request.fs_uuid.hex(),
        name=request.fs_name,
        attempt=mount.attempt,
        phase="idle" if mount.is_resumed and not mount.dead else "replay" if mount.is_resumed else "rebuild",
        waiting_for=[],
        phase_age=0.0,
        journals=len(request.journals),
        mounts=[_mount(core, request.fs_uuid, *row) for row in sorted(rows, key=lambda r: r[0])],
        dead=[DeadStatus(node=d.node, incarnation=d.incarnation, journal=d.journal) for d in mount.dead.values()],
        error="",
    )


def _mount(core: NodeCore, fs_uuid: bytes, address: PeerAddress, journal: int, mountpoint: str) -> MountStatus:
    local = core.agent.mounts.get(fs_uuid) if address.node == core.me.node else None
    return MountStatus(
        node=address.node,
        incarnation=address.incarnation,
        host=address.host,
        port=address.port,
        journal=journal,
        pid=local.request.pid if local is not None else 0,
        mountpoint=local.request.mountpoint if local is not None else mountpoint,
    )
