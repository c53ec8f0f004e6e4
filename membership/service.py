"""The node: a trio shell that owns the membership core of one matrixd (architecture 2, 4, 5; R1).

One core, fed from several tasks; every input is applied with no checkpoint between the input and its effects
(``apply``), so the order of messages is the order of decisions.  Tasks: the links, the heartbeat tick, and those of
``node_parts.py``: renewals, the database, the administration, and one short task per ballot, header write and fence.

Invariant:

V1. A renewal counts from its start (L1).  At the deadline, or off the header, the node fences itself: every mount is
    told to withdraw, and ``run`` raises Fenced.  It never joins again in this process.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

import trio

from membership.areas.bootstrap import find_areas
from membership.areas.quorum import Area, Areas
from membership.errors import Fenced, OperatorError, PeerError
from membership.fence.agent import AgentFence
from membership.fence.agent_process import ProcessRunner
from membership.fence.either import EitherFence
from membership.fence.lease import LeaseFence
from membership.label import timing_of
from membership.lease.core import LeaseState
from membership.lease.slots import Claimant, claim_slot
from membership.messages import encode
from membership.node_config import NodeConfig
from membership.node_core import NodeCore, NotAdmitted, Relayed
from membership.node_events import EventBook
from membership.node_parts import NodeParts
from membership.own_answers import own_answer
from membership.pauses import never
from membership.relay import Relay
from membership.san.evictions import Expel
from membership.seams import PeerAddress
from membership.status_of import status_of
from membership.storage import NodeStorage, without_reservations

if TYPE_CHECKING:
    from membership.control_wire import Message
    from membership.disks import ClusterDisks, OpenDisk
    from membership.fence.levels import Level
    from membership.fence.process import HostIdentity
    from membership.label import Label
    from membership.lease.records import HeartbeatSlot, MountProcess
    from membership.messages import Body
    from membership.mounts import MountChannel
    from membership.node_config import MeshFactory, MeshTransport
    from membership.node_disk_locks import NodeDiskLocks
    from membership.node_naming import NodeNaming
    from membership.orders import MountRequest
    from membership.pauses import Pause
    from membership.san.fence import FenceDriver
    from membership.seams import Clock, Rng
    from membership.status import Status
    from membership.storage import Reaches
    from membership.transport.links import LinkStatus


__all__ = ("Node", "NodeConfig")


class Node:
    """One matrixd.  Construct, then ``await nursery.start(node.run)``.

    Args:
        disks: at least one disk of the cluster, which leads to the others; ungated, for the gate is told by membership.
        label: of one of them.
        config: name and address.
        host: this process (``membership.fence.process.this_host()``).
        mesh: makes the transport once the node id is known; the identity's port is not yet.
        clock: seam.
        rng: seam.
        fences: drivers that are certain, in the order they are tried; reservations, agents and time come after them.
        pauses: by node id, for tests (``membership/pauses.py``).
        reaches: how this host reaches the cluster disks.
    """

    def __init__(
        self,
        disks: ClusterDisks,
        label: Label,
        config: NodeConfig,
        host: HostIdentity,
        mesh: MeshFactory,
        clock: Clock,
        rng: Rng,
        fences: Sequence[FenceDriver],
        pauses: Callable[[int], Pause] = lambda _node: never,
        reaches: Reaches = without_reservations,
    ) -> None:
        self.label = label
        self.config = config
        self.timing = timing_of(label)
        self.clock = clock
        self.areas = Areas(label.owner, [Area(label.disk_uuid, None)], clock)  # until ``run`` found those that count
        self.disks = disks
        self.core: NodeCore | None = None
        self.slot: HeartbeatSlot | None = None
        self.book = EventBook(clock)
        disks.log = self.book.log
        self.relay = Relay(self, clock)
        self.incarnation = int.from_bytes(rng.randbytes(8), "little") | 1
        self._host = host
        self._mesh_factory = mesh
        self._mesh: MeshTransport | None = None
        self.rng = rng
        self.agents = AgentFence(self._levels_of, ProcessRunner(), clock)
        self.storage = NodeStorage(self, reaches)
        self._fences = (*fences, self.storage.fence, EitherFence(self.agents, LeaseFence(self.timing, clock)))
        self._pauses = pauses
        self._nursery: trio.Nursery | None = None
        self._parts: NodeParts | None = None  # once it has a slot
        self._peers: list[PeerAddress] | None = None  # as the mesh knows them
        self._member = trio.Event()
        self._named = trio.Event()  # we hold a naming
        self._ended = trio.Event()
        self._finished = trio.Event()  # also the last write is done
        self._fenced = ""  # why, when it ended by losing its right
        self._refused = ""  # why the administrator did not admit it
        self._lease_state = LeaseState.OUT

    # -- life --------------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Claim a slot, join, serve until stopped.  Started when this node is a SAN member with a lease.

        Raises OperatorError (name taken, no free slot), CorruptRecord (the SAN header), DeviceError, Fenced (the
        right is lost: exit at once).  Possibly in an exception group.  Returns after a clean ``stop``.
        """
        self.areas = await find_areas(self.disks, self.clock)
        async with self.areas:
            await self._run(task_status)

    async def _run(self, task_status: trio.TaskStatus[None]) -> None:
        claimant = Claimant(
            self.areas, self.label.owner, self.timing, self.clock, self._fences, self._host,
            self.config.name, self.config.host, self.incarnation,
        )  # fmt: skip
        async with self.storage.claiming():
            node, slot = await claim_slot(claimant)
            await self.storage.admit(node)
        mesh = self._mesh_factory(PeerAddress(node, self.incarnation, self.config.host, self.config.port))
        slot.port = await mesh.listen(self.config.host, self.config.port, self.config.others)
        slot.others = ",".join(self.config.others)
        header = (await self.areas.read_header()).header
        self.slot, self._mesh, self.core = slot, mesh, NodeCore(slot.peer(node), header, self.timing)
        self.book.called = self.core.called
        self._parts = parts = NodeParts(self, self.config.name, slot, self.core, self._fences, self._pauses(node))
        try:
            await self._serve(mesh, parts, task_status)
            if self._refused:
                raise OperatorError(f"node {self.config.name} is not admitted: {self._refused}")
            if self._fenced:
                raise Fenced(f"node {self.config.name} lost its right to the store: {self._fenced}")
            await parts.disk.mark_left()
            await self.storage.withdraw()
        finally:
            self._finished.set()

    async def _serve(self, mesh: MeshTransport, parts: NodeParts, task_status: trio.TaskStatus[None]) -> None:
        """All tasks, until this node left or lost its right."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                await nursery.start(mesh.run)
                nursery.start_soon(self._pump, mesh)
                nursery.start_soon(self._tick)
                for loop in parts.loops:
                    nursery.start_soon(loop)
                nursery.start_soon(self.disks.watch)
                nursery.start_soon(self.storage.keep_always)
                await self._member.wait()
                await self._named.wait()
                if not self._ended.is_set():
                    task_status.started()
                await self._ended.wait()
                nursery.cancel_scope.cancel()
        finally:
            self._nursery = None
            self._end("matrixd ends")

    async def stop(self) -> None:
        """Leave cleanly: off the header without a fence.  Raises OperatorError while mounts or disk locks exist."""
        core = self._core()
        await self._assembled().until_quiet(self.timing.heartbeat)
        self.apply(core.leave)
        await self._ended.wait()
        if self._fenced:
            raise PeerError(f"node {self.config.name} was fenced while it left: {self._fenced}")
        await self._finished.wait()

    def _end(self, reason: str) -> None:
        self._member.set()
        self._named.set()
        self._ended.set()
        if self._parts is not None:
            self._parts.end(reason)

    async def admit_mount(self, request: MountRequest) -> MountChannel:
        """Admit a mount; waits until the administrator assigned a journal, or said that the mount replays first.

        Raises:
            OperatorError: already mounted here, too many mounts, refused by the administrator.
            PeerError: this node is not a member yet, or no longer.
        """
        return await self._assembled().mounts.admit(request)

    # -- questions ---------------------------------------------------------------------------------------------

    def status(self) -> Status:
        """Everything ``matrixctl status`` shows."""
        return status_of(self)

    def own_answer(self, what: str) -> list[Any] | None:
        """Our part of the answer to a question of any node; None: it is for the mounts (own_answers.py)."""
        return own_answer(self, what)

    def reachable(self) -> dict[int, str]:
        """Names of the SAN members, ours included, by node id: whose mounts can be asked, if their links are up."""
        core = self.core
        if core is None or self.slot is None:
            return {}
        names = {node: sight.slot.name for node, sight in core.watch.sights.items()}
        names[core.me.node] = self.slot.name
        return {node: names.get(node, f"node {node}") for node in (*core.admin.header.members, core.me.node)}

    def links(self) -> dict[int, LinkStatus]:
        """The links to the other matrixds, by node id."""
        return {link.node: link for link in self._mesh.links()} if self._mesh is not None else {}

    @property
    def node_id(self) -> int:
        """Our slot, -1 before one is claimed."""
        return self.core.me.node if self.core is not None else -1

    @property
    def generation(self) -> int:
        """SAN generation of the newest header known."""
        return self.core.admin.header.generation if self.core is not None else 0

    @property
    def lease_deadline(self) -> float:
        """Monotonic seconds until which this node may write."""
        return self.core.lease.deadline if self.core is not None else float("-inf")

    @property
    def members(self) -> tuple[PeerAddress, ...]:
        """The group view."""
        return tuple(self.core.group.view.members.values()) if self.core is not None else ()

    def may_write(self) -> bool:
        """True while this node is administrator and its lease holds: it may write the membership database."""
        core = self.core
        return core is not None and core.filesystems is not None and self.clock.monotonic() < core.lease.deadline

    def _levels_of(self, name: str) -> list[Level]:
        """Fence levels of a node; none unless we are administrator, so that nobody switches itself off."""
        return self._parts.administration.levels_of(name) if self._parts is not None else []

    @property
    def membership(self) -> NodeCore:
        """The core.  Raises PeerError before a slot is claimed."""
        return self._core()

    @property
    def naming(self) -> NodeNaming:
        """Our part in the naming."""
        return self._assembled().naming

    @property
    def disk_locks(self) -> NodeDiskLocks:
        """Locks that commands of this node hold on cluster disks.  Raises PeerError before a slot is claimed."""
        return self._assembled().disk_locks

    def disk_of(self, filesystem: str) -> OpenDisk:
        """The disk with a filesystem, as this node has it.

        Raises:
            OperatorError: the cluster has no such filesystem.
            MatrixError: perhaps it has, on a disk whose superblock can't be used.
            PeerError: its disk is not found on this node.
        """
        try:
            row = self._core().naming.by_filesystem(filesystem)
        except OperatorError as error:
            problems = (disk.filesystem.problem for disk in self.disks.opened.values())
            raise next((problem for problem in problems if problem is not None), error) from None
        found = self.disks.opened.get(row.uuid)
        if found is None:
            raise PeerError(f"the disk {row.name}, which holds {filesystem}, is not found on this node")
        return found

    async def command(self, what: str, arguments: Message) -> Any:
        """Have the administrator carry out a command (commander.py).  Raises MatrixError."""
        core, parts = self._core(), self._assembled()
        own = what == "node.unfence" and arguments.get("name") == self.config.name
        if own and core.admin.administrator() is None:
            parts.disk.is_pardoned = True  # nobody else can say so: it may be the only node there is
        return await parts.commander.command(what, arguments)

    # -- tasks and effects -------------------------------------------------------------------------------------

    def _core(self) -> NodeCore:
        if self.core is None:
            raise PeerError(f"node {self.config.name} is still claiming its slot: try again in a second")
        return self.core

    def _assembled(self) -> NodeParts:
        self._core()
        assert self._parts is not None  # made with the core
        return self._parts

    async def _pump(self, mesh: MeshTransport) -> None:
        while True:
            event = await mesh.receive()
            self.apply(lambda now: self._core().transport(event, now))  # noqa: B023  (called at once)

    async def _tick(self) -> None:
        while True:
            self.apply(self._core().tick)
            await self.clock.sleep(self.timing.heartbeat)

    def apply(self, step: Callable[[float], None]) -> None:
        """Run a core step and carry out its effects: send, then tell.  No checkpoint."""
        core = self._core()
        now = self.clock.monotonic()
        core.lease.tick(now)  # a process that was stopped for a while must not act on its past
        if not self._ended.is_set() and core.lease.state is not LeaseState.FENCED:
            step(now)
            self._carry_out_all(core)
            if self._parts is not None:
                self._parts.administration.look()
        self._check_lease(core)

    def _carry_out_all(self, core: NodeCore) -> None:
        effects = core.take()
        if self._mesh is not None:
            peers = core.peers(self.clock.monotonic())
            if peers != self._peers:
                self._peers = peers
                self._mesh.set_peers(peers)
            for envelope in effects.send:
                self._mesh.send(envelope.node, encode(core.group.view.number, envelope.body))
        for event in effects.events:
            self._carry_out(event)

    def _check_lease(self, core: NodeCore) -> None:
        state = core.lease.state
        if LeaseState.LAPSED in (state, self._lease_state) and state is not self._lease_state:
            waits = "its lease ended and is not renewed yet: mounts wait until the store answers"
            self.book.log("lease", waits if state is LeaseState.LAPSED else "renewed: mounts go on")
        self._lease_state = state
        if core.naming.version:
            self._named.set()
        if core.lease.state is LeaseState.MEMBER:
            self._member.set()
        elif core.lease.state is LeaseState.LEFT:
            self._end("matrixd left")
        elif core.lease.state is LeaseState.FENCED:
            self.lose("it was evicted")

    def _carry_out(self, event: object) -> None:
        if isinstance(event, Expel):
            if event.node == self.node_id:
                self.lose(event.reason)
        elif isinstance(event, Relayed):
            self.relay.receive(event.node, event.body)
        elif isinstance(event, NotAdmitted):
            if self._core().lease.state is LeaseState.OUT and not self._ended.is_set():
                self._refused = event.reason
                self._end(event.reason)
        else:
            self._assembled().carry_out(event)

    # -- what the relay needs (relay.RelayShell) -------------------------------------------------------------------

    def post(self, node: int, body: Body) -> None:
        """Send to another matrixd, or nowhere."""
        if self._mesh is not None:
            self._mesh.send(node, encode(self._core().group.view.number, body))

    def start(self, task: Callable[[], Awaitable[None]]) -> None:
        """Run a task beside; not at all when the node has ended."""
        if self._nursery is not None:
            self._nursery.start_soon(task)

    # -- what the disk work needs (node_disk.Shell) ----------------------------------------------------------------

    def lose(self, reason: str) -> None:
        """V1: mounts first, then ``run`` raises Fenced."""
        if not self._ended.is_set():
            self._fenced = reason
            self.book.log("fenced", reason)
            self._end(reason)

    def mount_processes(self) -> tuple[MountProcess, ...]:
        """What our slot must show (H2)."""
        return tuple(self._parts.mounts.processes.values()) if self._parts is not None else ()

    def renewed(self) -> None:
        """Mounts learn of the new deadline (O4)."""
        if self._parts is not None:
            self._parts.mounts.renewed()
