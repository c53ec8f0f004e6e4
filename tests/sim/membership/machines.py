"""A simulated machine: one matrixd with its links, its ways to the disks, and the mount processes beside it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from membership.lease.core import LeaseState
from membership.san.fence import FenceResult
from membership.service import Node
from tests.sim.membership.freezer import FreezableClock, Freezer
from tests.sim.membership.mounts import SimMount
from tests.sim.membership.paths import Path, Port

if TYPE_CHECKING:
    from collections.abc import Callable

    from membership.fence.process import HostIdentity
    from membership.seams import PeerAddress
    from tests.sim.membership.world import World


class SimMesh:
    """The Transport of one simulated matrixd, with the two methods that a node calls itself."""

    def __init__(self, net, identity: PeerAddress, freezer: Freezer) -> None:
        self._freezer = freezer
        self._inner = net.transport(identity.node, identity.incarnation)
        self.set_peers, self.send = self._inner.set_peers, self._inner.send

    def links(self) -> list:
        return []

    async def listen(self, host: str, port: int = 0, others: tuple[str, ...] = ()) -> int:
        await trio.lowlevel.checkpoint()
        return self._inner.address.port

    async def receive(self):
        event = await self._inner.receive()
        await self._freezer.passed()
        return event

    async def run(self, *, task_status=trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        await trio.sleep_forever()


class SimNode(Node):
    """A Node whose every step and event the checkers see."""

    machine: Machine

    def apply(self, step: Callable[[float], None]) -> None:
        super().apply(step)
        self.machine.world.checkers.stepped(self.machine)

    def _carry_out(self, event: object) -> None:
        self.machine.world.checkers.told(self.machine, event)
        super()._carry_out(event)


class SimProcessFence:
    """Process driver over the world's processes; knows only those of the same simulated machine."""

    name = "process"

    def __init__(self, world: World, host: HostIdentity) -> None:
        self._world, self._host = world, host

    def is_gone(self, target) -> bool | None:
        if target.boot_id != self._host.boot_id:
            return None
        return target.pid not in self._world.pids

    async def fence(self, target, evicted_at: float) -> FenceResult:
        if target.boot_id != self._host.boot_id:
            return FenceResult(False, self.name, "another machine")
        await trio.sleep(0.001)
        pids = [target.pid, *(mount.pid for mount in target.mounts)]
        for pid in pids:
            if getattr(self._world.pids.get(pid), "immortal", False):
                return FenceResult(False, self.name, f"process {pid} did not exit after SIGKILL")
            self._world.kill_pid(pid)
        for pid in pids:
            for port in self._world.ports.get(pid, ()):
                await port.in_flight.wait_idle()  # Landing (0004)
        return FenceResult(True, self.name, "killed")


@dataclass(eq=False)
class Machine:
    """One simulated host that runs (or ran) a matrixd."""

    world: World
    name: str
    address: str
    boot_id: bytes
    paths: list[Path]  # to each disk
    freezer: Freezer = field(default_factory=Freezer)
    node: SimNode | None = None
    ports: list[Port] = field(default_factory=list)  # of matrixd
    pid: int = 0
    running: bool = False
    error: BaseException | None = None
    disturbed_at: float = 0.0  # when a fault of it began or ended last
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    admissions: list[trio.CancelScope] = field(default_factory=list)
    mounts: list[SimMount] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.clock = FreezableClock(self.freezer)
        self.disturbed_at = trio.current_time()

    @property
    def port(self) -> Port:
        """That to the first disk, which has the data."""
        return self.ports[0]

    @property
    def is_member(self) -> bool:
        return self.running and self.node.core is not None and self.node.core.lease.state is LeaseState.MEMBER

    @property
    def is_healthy(self) -> bool:
        """Runs, and reaches the disks without trouble."""
        return self.running and not self.freezer.is_frozen and all(path.is_healthy for path in self.paths)

    def make_port(self, area: int, name: str, who: object) -> Port:
        world = self.world
        return Port(
            world.disks[area], self.paths[area], self.freezer, name, world.disk_rng, world.timing.io_bound,
            world.start_soon, world.checkers.landed, who,
        )  # fmt: skip

    def freeze(self) -> None:
        """SIGSTOP of matrixd and all mounts."""
        self.disturbed_at = trio.current_time()
        self.freezer.freeze()
        if self.running and self.node.core is not None:
            self.world.net.freeze(self.node.node_id)

    def thaw(self) -> None:
        """SIGCONT."""
        self.disturbed_at = trio.current_time()
        if self.running and self.node.core is not None:
            self.world.net.thaw(self.node.node_id)
        self.freezer.thaw()
