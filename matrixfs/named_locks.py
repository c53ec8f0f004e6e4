"""Application locks: a mount's side of ``matrixctl lock NAME -- COMMAND`` (004-33, 002-24).

Each is an owned lock of kind NAMED on the whole of one object, whose number is a hash of the name (``lock_names``);
the names of those held or waited for here are kept, to be shown.

- E1. A lock lives as long as its lease, which matrixd gives up when the connection of ``matrixctl`` ends.  This mount's
  death, or the node's, frees it with the next view of the lockspace, after the fence.
- E2. No storage is touched.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import trio

from matrixfs.lock_names import BUSY, NAME_BYTES_MAX, object_of
from matrixfs.locks.file_locks import END_MAX, Kind
from membership.control_wire import Message, take, take_natural
from membership.errors import OperatorError, PeerError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matrixfs.answers import Handler
    from matrixfs.locks.file_locks import FileLocks

LEASES_MAX: Final = 200  # held or waited for; fewer than answers.ANSWERING_MAX


@dataclass(slots=True, eq=False)
class _Lease:
    """One lock, held or waited for."""

    name: bytes
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    asked: trio.Event = field(default_factory=trio.Event)  # set when ``lock`` has its answer


class NamedLocks:
    """See the module.

    Args:
        locks: of this mount.
    """

    def __init__(self, locks: FileLocks) -> None:
        self._locks = locks
        self._leases: dict[int, _Lease] = {}

    def handlers(self) -> Mapping[str, Handler]:
        """The questions, for ``Answers``."""
        return {"lock": self.lock, "unlock": self.unlock}

    def name_of(self, owner: int) -> bytes:
        """The name that this owner locks, b"" when it is not known."""
        lease = self._leases.get(owner)
        return b"" if lease is None else lease.name

    async def lock(self, arguments: Message) -> None:
        """Take a lock: ``id`` (of the lease), ``name``, ``exclusive``, ``wait``, ``pid``.

        Raises:
            OperatorError: somebody holds it and ``wait`` is false (exit code ``BUSY``), or too many.
            PeerError: given up meanwhile.
            BadMessage: nonsense.
        """
        lease_id, name = take_natural(arguments, "id"), take(arguments, "name", bytes)
        exclusive, wait, pid = (take(arguments, "exclusive", bool), take(arguments, "wait", bool), _pid(arguments))
        if not 0 < len(name) <= NAME_BYTES_MAX:
            raise OperatorError(f"a lock's name has 1 to {NAME_BYTES_MAX} bytes")
        if len(self._leases) >= LEASES_MAX or lease_id in self._leases:
            raise OperatorError(f"{LEASES_MAX} application locks are in use on this node")
        lease = self._leases[lease_id] = _Lease(name)
        held = False
        try:
            with lease.scope:
                await self._locks.set(
                    Kind.NAMED, object_of(name), lease_id, pid, 0, END_MAX, exclusive, wait=wait
                )
                held = True
        except OSError as error:
            raise await self._refusal(error, name, lease_id, exclusive) from None
        finally:
            if not held:
                del self._leases[lease_id]
            lease.asked.set()
        if not held:
            raise PeerError("given up before it was granted")

    async def _refusal(self, error: OSError, name: bytes, lease_id: int, exclusive: bool) -> OperatorError:
        if error.errno != errno.EAGAIN:
            return OperatorError(f"{_shown(name)} can't be locked: {error.strerror}")
        found = await self._locks.test(Kind.NAMED, object_of(name), lease_id, 0, END_MAX, exclusive)
        who = f" by process {found.pid} on node {found.node}" if found is not None else ""
        busy = OperatorError(f"{_shown(name)} is locked{who}: see matrixctl locks {_shown(name)}")
        busy.exit_code = BUSY
        return busy

    async def unlock(self, arguments: Message) -> None:
        """Give up the lease ``id``, held or waited for; on return it is free.  Raises BadMessage."""
        lease_id = take_natural(arguments, "id")
        lease = self._leases.get(lease_id)
        if lease is None:
            return
        lease.scope.cancel()
        await lease.asked.wait()
        if self._leases.pop(lease_id, None) is not None:
            await self._locks.drop(Kind.NAMED, object_of(lease.name), lease_id)

    def rows(self, objects: set[tuple[str, int]] | None) -> list[dict[str, Any]]:
        """File and application locks of this mount on these (kind, object), or those that wait, as plain data."""
        rows = [
            row
            for row in self._locks.dump()
            if ((row["kind"], row["object"]) in objects if objects is not None else row["waiting"] is not None)
        ]
        for row in rows:
            if row["kind"] == Kind.NAMED.name:
                row["name"] = self.name_of(row["owner"])
        return rows


def _pid(arguments: Message) -> int:
    return take_natural(arguments, "pid", 31)


def _shown(name: bytes) -> str:
    return name.decode(errors="backslashreplace")
