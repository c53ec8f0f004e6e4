"""What a node is made with: what its command line said, and the links that it starts itself (R1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import trio

from membership.errors import OperatorError
from membership.label import NAME_BYTES_MAX
from membership.lease.records import HOST_BYTES_MAX
from membership.seams import PeerAddress, Transport
from membership.transport.paths import others_problem

if TYPE_CHECKING:
    from membership.transport.links import LinkStatus


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """What matrixd was told on its command line."""

    name: str
    host: str
    port: int  # 0: any free port
    others: tuple[str, ...] = ()  # further own addresses: other paths to this node

    def __post_init__(self) -> None:
        for what, value, most in (("--name", self.name, NAME_BYTES_MAX), ("--address", self.host, HOST_BYTES_MAX)):
            if not 0 < len(value.encode()) <= most or "\0" in value:
                raise OperatorError(f"{what}: {value!r} must be 1 to {most} bytes long")
        if problem := others_problem(self.others):
            raise OperatorError(f"--address: {problem}")


class MeshTransport(Transport, Protocol):
    """Transport that a node starts itself: LinkMesh, or the simulated network's."""

    async def listen(self, host: str, port: int = 0, others: tuple[str, ...] = ()) -> int:
        """Bind; returns the port."""
        ...

    def links(self) -> list[LinkStatus]:
        """Every peer's state."""
        ...

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled."""
        ...


MeshFactory = Callable[[PeerAddress], MeshTransport]
