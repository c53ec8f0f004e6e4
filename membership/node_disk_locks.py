"""Locks on cluster disks for the commands of this node (trio; 002-24): between the core, which decides
(``san/disk_lock_agent.py``), and the connections of the commands, which are told (``control_disk_locks.py``).

Invariants:

K1. A lock is wanted for as long as its ``asked`` block runs, however that ends; then the core is told.
K2. Who was told Granted is told Lost, once, when the lease of this node is over or its right ends; after that nothing.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import trio

from membership.errors import OperatorError, PeerError
from membership.lease.core import LeaseState
from membership.san.disk_lock_agent import DiskLockEvent, DiskLockLost

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from membership.node_core import NodeCore
    from membership.node_events import EventBook


class Shell(Protocol):
    """What this needs of the node."""

    def apply(self, step: Callable[[float], None]) -> None:
        """Run a core step and carry out its effects, with no checkpoint."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class _Wanted:
    """One lock, from the request to the end of its command."""

    disk: str
    owner: str
    told: trio.MemorySendChannel[DiskLockEvent]


class NodeDiskLocks:
    """Of one node."""

    def __init__(self, core: NodeCore, book: EventBook, shell: Shell) -> None:
        self._core = core
        self._book = book
        self._shell = shell
        self._wanted: dict[int, _Wanted] = {}  # by serial

    @contextmanager
    def asked(
        self, disk: str, owner: str, *, exclusive: bool, wait: bool
    ) -> Iterator[trio.MemoryReceiveChannel[DiskLockEvent]]:
        """Ask for a lock; gives its events.  It is given up at the end of the block (K1).

        Args:
            disk: its name in the cluster.
            owner: who wants it, for people, at most 256 characters.
            exclusive: alone; else others may hold it shared too.
            wait: for those that stand against it; else refused when there are any.

        Raises:
            OperatorError: no such disk.
            PeerError: this node is no member.
        """
        uuid = self._core.naming.by_name(disk).uuid
        if self._core.lease.state is not LeaseState.MEMBER or self._core.admin.is_leaving:
            raise PeerError("this node is not a member of the cluster just now: see matrixctl status")
        told, events = trio.open_memory_channel[DiskLockEvent](math.inf)  # at most three: queued, granted, lost
        serials: list[int] = []

        def request(now: float) -> None:
            # registered with no checkpoint after the request, so before any event of it is carried out
            serial = self._core.request_disk_lock(uuid, owner, now, exclusive=exclusive, wait=wait)
            self._wanted[serial] = _Wanted(disk, owner, told)
            serials.append(serial)

        self._shell.apply(request)
        try:
            if not serials:
                raise PeerError("this node has just lost its right to the store")
            yield events
        finally:
            for serial in serials:
                del self._wanted[serial]
                self._shell.apply(lambda now, serial=serial: self._core.release_disk_lock(serial, now))  # type: ignore[misc]

    def carry_out(self, event: DiskLockEvent) -> None:
        """An event of the core.  No checkpoint."""
        wanted = self._wanted.get(event.serial)  # None: its command ended just now
        if wanted is None:
            return
        if isinstance(event, DiskLockLost):
            self._book.log("disk", f"the lock on {wanted.disk} of {wanted.owner} is lost: {event.reason}")
        wanted.told.send_nowait(event)

    def end(self, reason: str) -> None:
        """The right of this node has ended: all its locks are lost (K2).  Again: no more than that."""
        for serial in self._core.disk_lock_agent.end(reason):
            self.carry_out(DiskLockLost(serial, reason))

    def check_idle(self) -> None:
        """Raises OperatorError while a command holds a lock or waits for one."""
        if self._wanted:
            users = ", ".join(f"{each.disk} by {each.owner}" for each in self._wanted.values())
            raise OperatorError(f"cluster disks are locked or waited for here ({users}): end that first")

    def is_quiet(self) -> bool:
        """The administrator, too, knows that nothing is held or waited for: this node may leave."""
        return self._core.disk_lock_agent.is_quiet()

    def table(self) -> dict[str, Any]:
        """What the administrator knows: all holders, then those that wait, in their order; elsewhere without rows."""
        found, naming = self._core.disk_locks, self._core.naming
        rows = []
        for row in found.rows() if found is not None else ():
            disk = naming.by_uuid(row.lock.disk)
            name = disk.name if disk is not None else row.lock.disk.hex()
            rows.append(
                {"disk": name, "node": row.node, "owner": row.lock.owner, "exclusive": row.lock.exclusive}
                | {"state": row.state.value}
            )
        return {
            "administrator": found is not None,
            "generation": self._core.admin.header.generation,
            "unknown": list(found.unknown) if found is not None else [],
            "rows": rows,
        }
