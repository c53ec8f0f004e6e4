"""The parts of a node that has claimed its slot: made together, wired to each other; each event goes to its part.

The node (``service.py``) owns the core, the links and the end; here is everything else that needs a node id.

Source: architecture 2, 4, 5; R1.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Protocol

from membership.administration import Administrated, Administration
from membership.commander import Commander
from membership.commander import Shell as CommanderShell
from membership.commands.table import HANDLERS
from membership.database.keeper import DatabaseKeeper, Kept
from membership.errors import OperatorError
from membership.node_core import Commanded, LoadNaming
from membership.node_disk import NodeDisk
from membership.node_disk import Shell as DiskShell
from membership.node_disk_locks import NodeDiskLocks
from membership.node_mounts import NodeMounts
from membership.node_naming import NodeNaming
from membership.san.agent import Admitted, Refused, ToMount
from membership.san.changes import NamingTaken
from membership.san.disk_lock_agent import DiskLockEvent
from membership.san.events import FenceOrder, HeaderInForce, Log, ReadHeader, TakeGeneration, WriteHeader
from membership.san.recovery import Finished

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from membership.lease.records import HeartbeatSlot
    from membership.node_core import NodeCore
    from membership.pauses import Pause
    from membership.san.fence import FenceDriver


class Shell(Administrated, CommanderShell, DiskShell, Kept, Protocol):
    """What the parts need of the node."""


class NodeParts:
    """See the module.

    Args:
        shell: the node.
        name: its name.
        slot: its slot, claimed.
        core: its core.
        fences: drivers in the order they are tried.
        pause: where tests stop it.
    """

    def __init__(
        self,
        shell: Shell,
        name: str,
        slot: HeartbeatSlot,
        core: NodeCore,
        fences: Sequence[FenceDriver],
        pause: Pause,
    ) -> None:
        self._shell = shell
        self._core = core
        self._book = book = shell.book
        self.mounts = NodeMounts(core, book, shell, name)
        self.keeper = DatabaseKeeper(shell.areas, shell.clock, shell, lambda: self.naming.known())  # noqa: PLW0108  (made below)
        self.naming = NodeNaming(core, shell.areas, shell.disks, self.keeper, book, shell)
        self.disk = NodeDisk(
            shell.areas, slot, core, clock=shell.clock, rng=shell.rng, fences=fences, book=book,
            keeper=self.keeper, naming=self.naming, shell=shell, pause=pause,
        )  # fmt: skip
        self.mounts.attach(self.disk)
        self.administration = Administration(shell, self.keeper, HANDLERS, pause)
        self.disk_locks = NodeDiskLocks(core, book, shell)
        self.commander = Commander(shell, self.administration, shell.clock)
        core.admin.own_name, core.admin.admission = name, self.administration.admission

    @property
    def loops(self) -> tuple[Callable[[], Awaitable[None]], ...]:
        """What runs for as long as the node does."""
        return (self.disk.renew_always, self.keeper.run, self.administration.run)

    async def until_quiet(self, heartbeat: float) -> None:
        """Return with no checkpoint after the look that showed that this node may leave.

        Raises:
            OperatorError: filesystems are mounted here, or cluster disks locked.
        """
        while True:
            if self.mounts.processes:
                names = ", ".join(self.mounts.mountpoints())
                raise OperatorError(f"filesystems are mounted ({names}): unmount them first")
            self.disk_locks.check_idle()
            if self._core.agent.is_quiet() and self.disk_locks.is_quiet():
                return
            await self._shell.clock.sleep(heartbeat)

    def end(self, reason: str) -> None:
        """The right to the store is gone, or given up."""
        self.mounts.withdraw(reason)
        self.disk_locks.end(reason)

    def carry_out(self, event: object) -> None:
        """An event of the core to the part that it is for.  No checkpoint."""
        if isinstance(event, ToMount | Admitted | Refused):
            self.mounts.carry_out(event)
        elif isinstance(event, DiskLockEvent):
            self.disk_locks.carry_out(event)
        elif isinstance(event, Log):
            self._book.log(event.kind, event.text)
        elif isinstance(event, Finished):
            self._book.finished(event)
        elif isinstance(event, Commanded):
            self.commander.receive(event.node, event.body)
        elif isinstance(event, HeaderInForce):
            self._book.header(event.header, self._core.admin.is_member())
            self.disk.renew_soon()
            self.administration.wake()
        elif isinstance(event, NamingTaken):
            self.administration.wake()
        else:
            self._start(event)

    def _start(self, event: object) -> None:
        """Work that takes time."""
        if isinstance(event, TakeGeneration):
            self._shell.start(partial(self.disk.take, event.generation))
        elif isinstance(event, WriteHeader):
            self._shell.start(partial(self.disk.put, event.header, event.base))
        elif isinstance(event, FenceOrder):
            self._shell.start(partial(self.disk.fence, event))
        elif isinstance(event, ReadHeader):
            self._shell.start(self.disk.read_header)
        elif isinstance(event, LoadNaming):
            self._shell.start(self.naming.load)
