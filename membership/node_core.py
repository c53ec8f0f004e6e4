"""One node's membership as one pure core: group, lease, administration and mounts joined (R1, R2).

The shell (service.py) feeds inputs and carries out ``take()``.  After every input ``_settle`` hands messages to
ourselves and events between cores around until nothing is left, then lets the administrator core compare what is
with what should be.

Invariants:

N1. Messages of a view older than the accepted one are dropped, except those that make views (002-27, 716).
N2. Orders and answers about mounts are taken only from the administrator that the header on disk names; a message
    that names a newer generation waits until the header was read.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from membership.effects import Effects, Outbox
from membership.errors import BadMessage
from membership.group.state import GroupCore, ViewInstalled
from membership.lease.core import LeaseCore, LeaseState
from membership.lease.watch import DiskWatch
from membership.messages import (
    Accept,
    Answer,
    Ask,
    AskDiskLocks,
    AskReport,
    CandidateFailed,
    Command,
    CommandDone,
    Commit,
    DiskLockAnswer,
    DiskLockAsk,
    DiskLocksReport,
    DiskUnlock,
    DiskUnlocked,
    HeaderChanged,
    Heartbeat,
    Install,
    JoinRefused,
    JoinRequest,
    LeaveRequest,
    MountAdmit,
    MountForgotten,
    MountJoin,
    MountLeft,
    MountRefuse,
    Nominate,
    OrderTo,
    Propose,
    Recovered,
    ReplyFrom,
    Report,
    Undo,
    Won,
    packet_untrusted,
)
from membership.naming import Naming
from membership.orders import Left
from membership.san.admin import AdminCore
from membership.san.agent import MountAgent
from membership.san.disk_lock_agent import DiskLockAgent
from membership.san.disk_locks import DiskLocks
from membership.san.events import HeaderInForce, NodeDead, ReadHeader
from membership.san.evictions import Expel
from membership.san.filesystems import Filesystems
from membership.san.recovery import Finished
from membership.san.roles import Role
from membership.seams import Delivery, LinkUp

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from membership.label import Timing
    from membership.lease.records import HeartbeatSlot
    from membership.messages import Body
    from membership.orders import MountRequest, Said
    from membership.san.ballot import Decided, Passed
    from membership.san.events import FenceOrder
    from membership.san.fence import FenceResult
    from membership.san.header import SanHeader
    from membership.seams import PeerAddress, TransportEvent

DEFERRED_MAX = 1024
RECOVERED_MAX = 16  # ended recoveries that are told again to every new view: messages of the old one were dropped


@dataclass(frozen=True, slots=True)
class Relayed:
    """A question to our mounts, or an answer to one of ours; no concern of any core."""

    node: int
    body: Ask | Answer


@dataclass(frozen=True, slots=True)
class Commanded:
    """A command for the administrator, or an answer to one of ours; no concern of any core."""

    node: int
    body: Command | CommandDone


@dataclass(frozen=True, slots=True)
class LoadNaming:
    """Event: the header in force names a later naming than ours: read the database, then call ``naming_held``."""


@dataclass(frozen=True, slots=True)
class NotAdmitted:
    """Event: the administrator will not have us."""

    reason: str


class NodeCore:
    """All membership cores of one node.  Times are monotonic seconds."""

    def __init__(self, me: PeerAddress, header: SanHeader, timing: Timing) -> None:
        self.me = me
        self.timing = timing
        self.watch = DiskWatch(timing)
        self.lease = LeaseCore(timing)
        self._out = Outbox()
        self._out.called = self.called
        self.group = GroupCore(me, timing, self._out)
        self.admin = AdminCore(me, header, timing, self._out)
        self.agent = MountAgent(self._out)
        self.filesystems: Filesystems | None = None  # while we are administrator
        self.naming = Naming()
        self.disk_lock_agent = DiskLockAgent(me.incarnation, self._out)
        self.disk_locks: DiskLocks | None = None  # while we are administrator
        self.dropped = {"bad": 0, "stale": 0, "stranger": 0}
        self._deferred: list[tuple[int, Body]] = []  # of generations whose header we have not read (N2)
        self._events: list[object] = []
        self._agent_asked_at = float("-inf")
        self._loaded_at = float("-inf")
        self._recovered: deque[tuple[float, Finished]] = deque(maxlen=RECOVERED_MAX)  # by us as administrator, and when
        self._has_scanned = False  # before the first scan we know nobody, and alone we would be a majority
        self.admin.view_installed(self.group.view, 0.0)

    # -- inputs ------------------------------------------------------------------------------------------------

    def scanned(self, slots: Mapping[int, HeartbeatSlot], now: float) -> None:
        """All slots on the disk."""
        others = {node: slot for node, slot in slots.items() if node != self.me.node}
        for node in self.watch.observe(others, now):
            self.group.disk_moved(node, now)
        self.group.set_peers(self.peers(now), now)
        self._has_scanned = True
        self._settle(now)

    def called(self, node: int) -> str:
        """A node's name, or else its number."""
        sight = self.watch.sights.get(node)
        name = self.admin.own_name if node == self.me.node else sight.slot.name if sight is not None else ""
        return name or str(node)

    def peers(self, now: float) -> list[PeerAddress]:
        """Nodes to link with: alive on disk, in our view, or members of the header; in their present incarnation."""
        alive = self.watch.alive(now)
        members = self.admin.header.members
        return [
            sight.slot.peer(node)
            for node, sight in self.watch.sights.items()
            if sight.slot.port
            and not sight.slot.is_left
            and (node in alive or node in self.group.view.members or members.get(node) == sight.slot.incarnation)
        ]

    def processes_gone(self, instances: Iterable[tuple[int, int]], now: float) -> None:
        """Peers' processes were looked up on this host and are gone: (node, incarnation)."""
        for node, incarnation in instances:
            self.watch.mark_gone(node, incarnation)
            self.group.link_refused(node, now)
        self._settle(now)

    def transport(self, event: TransportEvent, now: float) -> None:
        """An event of the links."""
        if isinstance(event, Delivery):
            try:
                packet = packet_untrusted(event.payload)
            except BadMessage:
                self.dropped["bad"] += 1
                return
            if not self.group.heard(event.node, now):
                self.dropped["stranger"] += 1
                return
            self._route(event.node, packet.body, packet.view, now)
        elif isinstance(event, LinkUp):
            self.group.link_up(event.node, now)
            self._ask_again(now)
        elif event.refused:
            peer = self.group.peers.get(event.node)
            if peer is not None:
                self.watch.mark_gone(event.node, peer.address.incarnation)
            self.group.link_refused(event.node, now)
        self._settle(now)

    def header_read(
        self, header: SanHeader, now: float, *, renewal: float = float("-inf"), settled: bool = True
    ) -> None:
        """The newest header on the disks.

        Args:
            header: it.
            now: monotonic seconds.
            renewal: when the renewal that read it began, if it was one.
            settled: it is on a majority of the areas; else it extends no lease (M3 of areas/quorum.py).
        """
        if settled and header.generation >= self.admin.header.generation:
            listed = header.members.get(self.me.node) == self.me.incarnation
            self.lease.finished(renewal, now, listed=listed, leaving=self.admin.is_leaving)
            if not listed and self.admin.was_member:
                self.lease.evicted()  # also who never had a lease: the others may have called this instance dead
            self.admin.header_read(header, now)
            self.admin.header_stands(renewal, now)
        else:
            self.lease.failed(now)
            self.admin.header_read(header, now)
            self.admin.header_in_doubt(now)
            if self._is_last_leaver():
                self.lease.left()  # nobody is there to write it again; our slot will say that we left
        self._settle(now)

    def _is_last_leaver(self) -> bool:
        """Off the newest header by our own wish, with nobody else in the group."""
        wished = self.admin.is_leaving and not self.admin.is_member()
        return wished and set(self.group.view.members) == {self.me.node}

    def tick(self, now: float) -> None:
        """Time passed; call every heartbeat interval."""
        self.lease.tick(now)
        self.group.has_storage = self.lease.has_storage(now)
        self.group.tick(now)
        self._expel_blind(now)
        if now - self._loaded_at >= self.timing.renew:
            self._load_naming(now)
        if self.filesystems is not None:
            self.filesystems.tick(now)
        if self.disk_locks is not None:
            self.disk_locks.tick(now)
        if now - self._agent_asked_at >= 2 * self.timing.heartbeat:
            self._agent_asked_at = now
            self.agent.ask_again()
            self.disk_lock_agent.ask_again()
        self._settle(now)

    def generation_taken(self, outcome: Decided | Passed | None, now: float, why: str = "") -> None:
        """Answer to TakeGeneration."""
        self.admin.generation_taken(outcome, now, why)
        self._settle(now)

    def header_put(self, header: SanHeader, now: float, *, good: bool) -> None:
        """Answer to WriteHeader."""
        if good:
            self.admin.header_written(header, now)
        else:
            self.admin.write_failed(now)
        self._settle(now)

    def fence_done(self, order: FenceOrder, result: FenceResult, now: float) -> None:
        """Answer to FenceOrder."""
        has_lease = self.lease.state is LeaseState.MEMBER
        self.admin.fence_done(order.node, order.incarnation, result, now, has_lease=has_lease)
        self._settle(now)

    def join_mount(self, request: MountRequest, now: float) -> None:
        """A mount of this node, which is in our slot already, wants to be admitted."""
        self.agent.join(request)
        self._settle(now)

    def mount_said(self, request: MountRequest, said: Said, now: float) -> None:
        """A mount answered an order, left or died."""
        if isinstance(said, Left):
            self.agent.left(request.fs_uuid, request.incarnation, clean=said.clean)
        else:
            self.agent.reply(request.fs_uuid, request.incarnation, said)
        self._settle(now)

    def naming_held(self, naming: Naming, now: float) -> None:
        """We hold this naming: read from the database, or made by ourselves as administrator."""
        self.naming = naming
        self.admin.own_naming = self.group.naming = naming.version
        self.group.tell_at_once()
        self._settle(now)

    def naming_stored(self, naming: Naming, now: float) -> None:
        """As administrator: a changed naming is in the database (1602)."""
        self.admin.change.stored(naming)
        self.admin.change.header_in_force(self.admin.header)
        self.naming_held(naming, now)

    def tell(self, event: object) -> None:
        """Pass an event to the shell with the next effects."""
        self._events.append(event)

    def request_disk_lock(self, disk: bytes, owner: str, now: float, *, exclusive: bool, wait: bool) -> int:
        """An application wants a lock on a cluster disk (002-24); returns its number.  Events of it follow."""
        serial = self.disk_lock_agent.request(disk, owner, exclusive=exclusive, wait=wait)
        self._settle(now)
        return serial

    def release_disk_lock(self, serial: int, now: float) -> None:
        """The application ended, or waits no more."""
        self.disk_lock_agent.release(serial)
        self._settle(now)

    def leave(self, now: float) -> None:
        """Begin a clean leave.  All disk locks were given up before (``disk_lock_agent.is_quiet``)."""
        self.admin.is_leaving = True
        self._settle(now)

    def take(self) -> Effects:
        """What is to be done, since the last call."""
        effects = Effects(tuple(self._out.send), tuple(self._events))
        self._out.send.clear()
        self._events.clear()
        return effects

    # -- internals ---------------------------------------------------------------------------------------------

    def _settle(self, now: float) -> None:
        if self.lease.state in (LeaseState.LAPSED, LeaseState.FENCED):
            self.disk_lock_agent.lapse("the lease of this node is over")
        while True:
            administrator = self.admin.administrator()
            if administrator != self.agent.administrator:
                self.agent.administrator = self.disk_lock_agent.administrator = administrator
                self.agent.ask_again()
                self.disk_lock_agent.ask_again()
            if self.admin.role is Role.ADMIN:
                self.admin.change.look(self.admin.header, self.group.held())
            self.admin.drive(
                self.watch.alive(now),
                self.group.addresses(),
                now,
                settled=self._has_scanned and self.group.is_settled(self.watch.alive(now)),
                sighted=self.group.sighted(),
                has_lease=self.lease.state is LeaseState.MEMBER,
            )
            mine = [e for e in self._out.send if e.node == self.me.node]
            events, self._out.events = self._out.events, []
            if not mine and not events:
                return
            self._out.send = [e for e in self._out.send if e.node != self.me.node]
            for event in events:
                self._dispatch(event, now)
            for envelope in mine:
                self._route(self.me.node, envelope.body, self.group.view.number, now)

    def _dispatch(self, event: object, now: float) -> None:
        if isinstance(event, ViewInstalled):
            self.admin.view_installed(event.view, now)
            self._ask_again(now)
            self._tell_recovered(tuple(self._recovered), now)
        elif isinstance(event, HeaderInForce):
            self._header_in_force(event, now)
        elif isinstance(event, NodeDead) and self.filesystems is not None:
            self.filesystems.node_dead(event.node, event.incarnation, now)
            if self.disk_locks is not None:
                self.disk_locks.node_dead(event.node, event.incarnation)
        elif isinstance(event, Expel):
            self._expel(event)
        elif isinstance(event, Finished):
            self._recovered.append((now, event))
            self._tell_recovered(((now, event),), now)
        self._events.append(event)

    def _load_naming(self, now: float) -> None:
        """1606: at once when a header names a later version, and again until it could be read."""
        if self.admin.header.naming > self.naming.version:
            self._loaded_at = now
            self._events.append(LoadNaming())

    def _expel_blind(self, now: float) -> None:
        """A5 of san/admin.py: who can't reach the store although we can must go."""
        if self.admin.role is not Role.ADMIN or self.lease.state is not LeaseState.MEMBER:
            return
        for node in self.watch.standing(now) & set(self.group.view.members):
            incarnation = self.group.view.members[node].incarnation
            if self.admin.header.members.get(node) == incarnation and not self.admin.is_expelled(node, incarnation):
                self.admin.expel(node, incarnation, f"its disk heartbeat has stood still for {self.timing.dead:g} s")

    def _expel(self, event: Expel) -> None:
        """A node that does not end a mount it must end; ourselves: the shell ends this matrixd (``Expel`` goes on)."""
        incarnation = self.admin.header.members.get(event.node)
        if event.node != self.me.node and incarnation is not None:
            self.admin.expel(event.node, incarnation, event.reason)

    def _tell_recovered(self, ended: tuple[tuple[float, Finished], ...], now: float) -> None:
        if self.filesystems is None:
            return  # administrator no longer: the others were told when it was
        generation = self.admin.header.generation
        for node in sorted(set(self.group.view.members) - {self.me.node}):
            for at, e in ended:
                told = (e.fs_name, e.attempt, e.members, e.dead, e.phases, e.error, now - at)
                self._out.post(node, Recovered(generation, *told))

    def _header_in_force(self, event: HeaderInForce, now: float) -> None:
        if not event.mine:
            self.filesystems = self.disk_locks = None
        elif self.filesystems is None or self.disk_locks is None:
            self.filesystems = Filesystems(event.header, self.timing, self._out, self.group.heard_at)
            self.disk_locks = DiskLocks(event.header, self.timing, self._out)
            self.filesystems.ask_again(now)
            self.disk_locks.ask_again(now)
        else:
            self.filesystems.header_changed(event.header, now)
            self.disk_locks.header_changed(event.header)
        self._load_naming(now)
        self.agent.administrator = self.disk_lock_agent.administrator = self.admin.administrator()
        deferred, self._deferred = self._deferred, []
        for node, body in deferred:
            self._from_administrator(node, body)

    def _ask_again(self, now: float) -> None:
        """Messages of the old view were dropped: say again at once what is still true."""
        if self.filesystems is not None:
            self.filesystems.ask_again(now)
        if self.disk_locks is not None:
            self.disk_locks.ask_again(now)
        self.agent.ask_again()
        self.disk_lock_agent.ask_again()

    def _route(self, node: int, body: Body, view: int, now: float) -> None:
        if isinstance(body, Heartbeat | Propose | Accept | Install):
            self.group.receive(node, body, view, now)
        elif isinstance(body, Ask | Answer):  # of any view: who looks for the cause of trouble asks while it lasts
            self._events.append(Relayed(node, body))
        elif isinstance(body, Command | CommandDone):  # sent again until answered
            self._events.append(Commanded(node, body))
        elif node != self.me.node and not self.group.admits(view):
            self.dropped["stale"] += 1
        elif isinstance(
            body, Nominate | Won | CandidateFailed | Commit | Undo | HeaderChanged | JoinRequest | LeaveRequest
        ):
            if isinstance(body, HeaderChanged) and (self.me.node, self.me.incarnation) in body.evicted:
                self.lease.evicted()
            self.admin.receive(node, body, now)
        elif isinstance(body, JoinRefused):
            if node == self.admin.administrator() and body.incarnation == self.me.incarnation:
                self._events.append(NotAdmitted(body.reason))
        elif isinstance(body, Report | MountJoin | MountLeft | ReplyFrom):
            if self.filesystems is not None and self.admin.role is Role.ADMIN:
                self.filesystems.receive(node, body, now)
        elif isinstance(body, DiskLocksReport | DiskLockAsk | DiskUnlock):
            if self.disk_locks is not None and self.admin.role is Role.ADMIN:
                self.disk_locks.receive(node, body)
        else:
            self._from_administrator(node, body)

    def _from_administrator(self, node: int, body: Body) -> None:
        mounts = AskReport | MountAdmit | MountRefuse | MountForgotten | OrderTo | Recovered
        assert isinstance(body, mounts | AskDiskLocks | DiskLockAnswer | DiskUnlocked)
        generation = 0 if isinstance(body, MountForgotten) else body.generation
        if generation > self.admin.header.generation:
            if len(self._deferred) < DEFERRED_MAX:
                self._deferred.append((node, body))
            self._out.tell(ReadHeader())
        elif node == self.admin.administrator():
            self.agent.administrator = self.disk_lock_agent.administrator = node
            if isinstance(body, Recovered):
                told = (body.fs_name, body.attempt, body.members, body.dead, body.phases, body.error, body.ago)
                self._events.append(Finished(*told))
            elif isinstance(body, AskDiskLocks | DiskLockAnswer | DiskUnlocked):
                self.disk_lock_agent.receive(body)
            else:
                self.agent.receive(body)
        else:
            self.dropped["stranger"] += 1
