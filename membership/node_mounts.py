"""The mounts of one node: admission and the channels to the mount processes (002-10; R9).

Invariant (H2): a mount is in the node's slot on disk before the administrator is asked to admit it, and stays there
until its process has left or is gone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import trio

from membership.errors import OperatorError, PeerError
from membership.lease.core import LeaseState
from membership.lease.records import MOUNTS_MAX, MountProcess
from membership.mounts import MountChannel
from membership.orders import Evict, Lease, Left, Told, Withdraw
from membership.san.agent import Admitted, Refused, ToMount

if TYPE_CHECKING:
    from collections.abc import Callable

    from membership.node_core import NodeCore
    from membership.node_disk import NodeDisk
    from membership.node_events import EventBook
    from membership.orders import MountRequest, Order, Said


class Shell(Protocol):
    """What the mounts need of the node."""

    def apply(self, step: Callable[[float], None]) -> None:
        """Run a core step and carry out its effects, with no checkpoint."""
        ...


@dataclass(slots=True, eq=False)
class _Admission:
    """A mount that waits for its journal."""

    request: MountRequest
    answered: trio.Event = field(default_factory=trio.Event)
    outcome: Admitted | Refused | None = None


class NodeMounts:
    """All mounts of one node, admitted or about to be."""

    def __init__(self, core: NodeCore, book: EventBook, shell: Shell, name: str) -> None:
        self.processes: dict[bytes, MountProcess] = {}  # what the slot must show (H2), by filesystem uuid
        self._channels: dict[bytes, MountChannel] = {}
        self._admissions: dict[bytes, _Admission] = {}
        self._core = core
        self._book = book
        self._shell = shell
        self._name = name
        self._disk: NodeDisk | None = None

    def attach(self, disk: NodeDisk) -> None:
        """The disk work needs the mounts and the mounts need it: joined once both exist."""
        self._disk = disk

    def mountpoints(self) -> list[str]:
        """Where this node has trees mounted, or is about to."""
        waiting = [admission.request.mountpoint for admission in self._admissions.values()]
        return sorted({channel.request.mountpoint for channel in self._channels.values()} | set(waiting))

    async def admit(self, request: MountRequest) -> MountChannel:
        """Admit a mount; see ``Node.admit_mount``."""
        self._check(request)
        assert self._disk is not None
        admission = _Admission(request)
        self.processes[request.fs_uuid] = MountProcess(request.pid, request.start_time, request.incarnation)
        self._admissions[request.fs_uuid] = admission
        admitted = False
        try:
            await self._disk.renew()  # H2
            self._shell.apply(lambda now: self._core.join_mount(request, now))
            await admission.answered.wait()
            channel = self._outcome(admission)
            admitted = True
            return channel
        finally:
            del self._admissions[request.fs_uuid]
            if not admitted:
                self.processes.pop(request.fs_uuid, None)
                self._channels.pop(request.fs_uuid, None)
                self._shell.apply(lambda now: self._core.mount_said(request, Left(clean=True), now))  # it never wrote

    def _check(self, request: MountRequest) -> None:
        if self._core.lease.state is not LeaseState.MEMBER or self._core.admin.is_leaving:
            raise PeerError(f"node {self._name} is not a member of the cluster: wait for it, or start matrixd")
        if request.fs_uuid in self.processes:
            raise OperatorError(f"{request.fs_name} is already mounted on this node, or still being unmounted")
        if len(self.processes) >= MOUNTS_MAX:
            raise OperatorError(f"this node has {MOUNTS_MAX} mounts, the most it can have")

    def _outcome(self, admission: _Admission) -> MountChannel:
        if isinstance(admission.outcome, Refused):
            raise OperatorError(admission.outcome.reason)
        if admission.outcome is None:
            raise PeerError(f"node {self._name} lost its right to the store while it mounted")
        return self._channels[admission.request.fs_uuid]

    def carry_out(self, event: ToMount | Admitted | Refused) -> None:
        """An event of the core for a mount."""
        if isinstance(event, ToMount):
            channel = self._channels.get(event.fs_uuid)
            if channel is not None and channel.request.incarnation == event.incarnation:
                self._order(channel, event.order)
            return
        admission = self._admissions.get(event.fs_uuid)
        if admission is None or admission.request.incarnation != event.incarnation:
            return
        admission.outcome = event
        if isinstance(event, Admitted):  # at once: orders may follow before ``admit`` runs again
            core, request = self._core, admission.request
            self._channels[event.fs_uuid] = MountChannel(
                request, core.me.node, core.admin.header.generation, core.lease.deadline, event.journal, self._said
            )
        admission.answered.set()

    def _order(self, channel: MountChannel, order: Order) -> None:
        if not isinstance(order, Evict):
            channel.push(order)
        elif not channel.evicted:
            request = channel.request
            self._book.log("alert", f"{request.fs_name} on {request.mountpoint} is evicted: {order.reason}")
            channel.evict(order.reason)

    def _said(self, channel: MountChannel, said: Said) -> None:
        """A mount speaks; no checkpoint."""
        request = channel.request
        if isinstance(said, Told):
            self._book.log("filesystem", f"{request.fs_name}: {said.text}")
            return
        if isinstance(said, Left):
            if self._channels.get(request.fs_uuid) is channel:
                del self._channels[request.fs_uuid]
                del self.processes[request.fs_uuid]
                assert self._disk is not None
                self._disk.renew_soon()
            self._book.log("mount", f"{request.fs_name} on {request.mountpoint} {'left' if said.clean else 'died'}")
        self._shell.apply(lambda now: self._core.mount_said(request, said, now))

    def renewed(self) -> None:
        """Mounts learn of the new deadline (O4)."""
        for channel in self._channels.values():
            channel.push(Lease(self._core.lease.deadline, self._core.admin.header.generation))

    def withdraw(self, reason: str) -> None:
        """All mounts stop at once (O5), and nobody is admitted any more."""
        for channel in self._channels.values():
            channel.push(Withdraw(reason))
            channel.close()
        for admission in self._admissions.values():
            admission.answered.set()
