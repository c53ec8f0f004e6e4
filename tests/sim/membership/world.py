"""A whole cluster of matrixds in one process: simulated network, disk, processes and mounts, from one seed (R2).

What it models: SIGKILL of a node (matrixd and mounts at once) or of one mount, SIGSTOP of either, network cuts in
both directions or one, partitions, a path to the disk that is slow, hangs, fails or is lost, restart under a new
incarnation, one machine (process fence works) or many (lease fence only).  The mounts keep no files: they answer
orders, write their journals, and note what they were told.  ``checkers.py`` holds the invariants.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
from typing import Self

import trio

from membership.disks import ClusterDisks, FoundFilesystem, OpenDisk
from membership.errors import Fenced, MatrixError, OperatorError, PeerError
from membership.fence.process import HostIdentity
from membership.label import BLOCK_BYTES, DATA_BLOCK, HEADER_BLOCK, Label, timing_of
from membership.orders import JournalState, MountRequest
from membership.san.header import make_header
from membership.service import NodeConfig
from tests.sim.disk import SimDisk
from tests.sim.membership.checkers import Checkers
from tests.sim.membership.machines import Machine, SimMesh, SimNode, SimProcessFence
from tests.sim.membership.mounts import SimMount
from tests.sim.membership.paths import Path, Port
from tests.sim.network import SimClock, SimNetwork, SimRng

FS = bytes(range(16))
JOURNALS = 4
LABEL = Label(
    owner=b"C" * 16,
    disk_uuid=b"D" * 16,
    cluster_name="sim",
    cluster_key=b"k" * 32,
    data_block=DATA_BLOCK,
    data_blocks=1024,
    created_ns=0,
    heartbeat_ms=250,
    link_dead_ms=3000,
    renew_ms=500,
    lease_ms=4000,
    io_bound_ms=2000,
    margin_ms=1000,
)


def label_of(area: int) -> Label:
    """The label of one of the disks."""
    return dataclasses.replace(LABEL, disk_uuid=bytes([area + 1]) * 16, disk_name=f"d{area + 1}")


def preload(disk: SimDisk, offset: int, data: bytes) -> None:
    """What lies on a disk when the history begins."""
    disk.media._visible.write(offset, data)
    disk.media._platter = disk.media._visible.copy()
    disk.mark()


class SimOpener:
    """How a simulated machine opens stores: by the name of the disk, through a port of its own."""

    def __init__(self, world: World, machine: Machine) -> None:
        self._world, self._machine = world, machine

    async def open(self, path: str) -> Port:
        await trio.lowlevel.checkpoint()
        for area, label in enumerate(self._world.labels):
            if label.name == path:
                port = self._machine.make_port(area, f"{self._machine.name}-{self._machine.pid}", self._machine)
                self._machine.ports.append(port)
                return port
        raise OperatorError(f"{path}: no such store")

    async def measure(self, device: object) -> None:
        """Simulated disks stay as large as they are."""

    def candidates(self) -> list[str]:
        return []

    def show(self, paths: object, areas: object) -> None:
        """No host shows them."""

    async def filesystem_of(self, device: object, label: Label) -> FoundFilesystem:
        await trio.lowlevel.checkpoint()
        has_it = label.disk_uuid == self._world.labels[0].disk_uuid
        return FoundFilesystem(FS, "web") if has_it else FoundFilesystem()


class World:
    """The cluster.  Use as ``async with World(seed) as world``."""

    label = LABEL
    timing = timing_of(LABEL)

    def __init__(
        self,
        seed: int = 0,
        *,
        one_machine: bool = True,
        writing: bool = False,
        areas: int = 1,
        spares: int = 0,
        **network,
    ) -> None:
        """See the class.

        Args:
            seed: of everything.
            one_machine: all processes are on one host, as the process fence sees it.
            writing: the mounts write their journals all the time.
            areas: disks with a membership area; the first has the data, too.
            spares: further disks, labelled, that the cluster does not have yet.
        """
        self.rng = random.Random(seed)
        self.disk_rng, self.mount_rng = random.Random(seed + 1), random.Random(seed + 2)
        self.clock = SimClock()
        size = (DATA_BLOCK + 1024 + 1) * BLOCK_BYTES
        self.areas = areas
        every = range(areas + spares)
        self.disks = [SimDisk(size, seed=seed + area, latency=(0.0002, 0.002)) for area in every]
        self.labels = [label_of(area) for area in every]
        uuids = [label.disk_uuid for label in self.labels[:areas]]
        header = make_header(LABEL.owner, 0, members={}, fencing={}, areas=uuids)
        for area, (disk, label) in enumerate(zip(self.disks, self.labels, strict=True)):
            preload(disk, 0, label.encode())
            if area < areas:
                preload(disk, HEADER_BLOCK * BLOCK_BYTES, 2 * header.encode())
        self.pauses: dict[tuple[int, str], trio.Event] = {}  # of matrixds, by pid and point
        self.disk = self.disks[0]
        self.net = SimNetwork(seed, **network)
        self.one_machine, self.writing = one_machine, writing
        self.machines: dict[str, Machine] = {}
        self.pids: dict[int, Machine | SimMount] = {}
        self.ports: dict[int, list[Port]] = {}  # by pid; also of the dead: what they left in flight
        self.notes: list[tuple[float, int, int, object]] = []  # (time, node id, mount incarnation, what)
        self.journals: dict[int, tuple[int, int] | None] = dict.fromkeys(range(JOURNALS))
        self.broken: list[str] = []
        self.mounting = 0  # admissions under way
        self.held: set[type] = set()  # orders that no mount carries out until ``release``
        self.let_go = trio.Event()
        self.lock_cuts: set[frozenset[int]] = set()  # node ids whose mounts can't reach each other
        self.checkers = Checkers(self)
        self._pids = itertools.count(100)
        self._nursery: trio.Nursery | None = None

    async def __aenter__(self) -> Self:
        self._manager = trio.open_nursery()
        self._nursery = await self._manager.__aenter__()
        self._nursery.start_soon(self.net.run)
        return self

    async def __aexit__(self, *error) -> None:
        self._nursery.cancel_scope.cancel()
        for port in [port for ports in self.ports.values() for port in ports]:
            port.path.mend()
            port.kill()  # nobody waits for a device any more
        await self._manager.__aexit__(*error)
        if error[0] is None:
            self.demand_unbroken()

    def demand_unbroken(self) -> None:
        """Fail when a checker found something."""
        assert not self.broken, "\n".join(self.broken[:10])

    def start_soon(self, task, *args) -> None:
        """Run a task of the world."""
        self._nursery.start_soon(task, *args)

    # -- what a test calls -------------------------------------------------------------------------------------

    async def start(self, number: int, *, wait: bool = True, host: int | None = None) -> Machine:
        """Start (or restart) matrixd number 1, 2...: name n1, address 10.0.0.1; ``host``: on another machine."""
        name = f"n{number}"
        old = self.machines.get(name)
        assert old is None or not old.running
        if old is not None and old.node.core is not None and old.node.core.admin.is_leaving:
            self.checkers.leavers.add((old.node.node_id, old.node.incarnation))
        boot = b"B" * 16 if self.one_machine else bytes([host or number]) * 16
        paths = [Path(area) for area in range(len(self.disks))] if old is None else old.paths
        machine = Machine(self, name, f"10.0.0.{number}", boot, paths)
        machine.pid = next(self._pids)
        machine.ports = [machine.make_port(area, f"{name}-{machine.pid}", machine) for area in range(self.areas)]
        self.ports[machine.pid] = machine.ports
        self.machines[name] = machine
        self.pids[machine.pid] = machine
        machine.running = True
        identity = HostIdentity(boot, boot, machine.pid, machine.pid)
        machine.node = SimNode(
            self.disks_of(machine, list(range(self.areas))),
            LABEL,
            NodeConfig(name, machine.address, 0),
            identity,
            lambda address: SimMesh(self.net, address, machine.freezer),
            machine.clock,
            SimRng(self.rng.random()),
            (SimProcessFence(self, identity),),
            lambda _node: self._pause_of(machine.pid),
        )
        machine.node.machine = machine
        if wait:
            await self._nursery.start(self._run, machine)
        else:
            self._nursery.start_soon(self._run, machine)
        return machine

    def disks_of(self, machine: Machine, areas: list[int]) -> ClusterDisks:
        """Those that a matrixd was told of, as found by their labels."""
        disks = ClusterDisks(LABEL.owner, SimOpener(self, machine), machine.clock, lambda _kind, _text: None)
        for area in areas:
            label = self.labels[area]
            port = next((port for port in machine.ports if port.path.area == area), None)
            port = port or machine.make_port(area, machine.name, machine)
            found = FoundFilesystem() if area else FoundFilesystem(FS, "web")
            disks.opened[label.disk_uuid] = OpenDisk(label, port, label.name, found)
        return disks

    def hold(self, machine: Machine, point: str) -> trio.Event:
        """Stop a matrixd for good when it comes to a point; set when it is there."""
        reached = self.pauses[machine.pid, point] = trio.Event()
        return reached

    def _pause_of(self, pid: int):
        async def pause(point: str) -> None:
            reached = self.pauses.get((pid, point))
            if reached is not None:
                reached.set()
                await trio.sleep_forever()

        return pause

    async def mount(self, number: int, *, wait: bool = True) -> SimMount:
        machine = self.machines[f"n{number}"]
        pid = next(self._pids)
        mount = SimMount(self, machine, pid, self.rng.getrandbits(63) | 1)
        self.pids[pid], self.ports[pid] = mount, [mount.port]
        machine.mounts.append(mount)
        self.mounting += 1
        try:
            with trio.CancelScope() as scope:
                machine.admissions.append(scope)
                mount.channel = await machine.node.admit_mount(self.request(mount))
            if mount.channel is None:
                raise PeerError("matrixd was killed")
        except BaseException:
            mount.alive = False
            self.pids.pop(pid, None)
            raise
        finally:
            self.mounting -= 1
        mount.renewed(mount.channel.deadline, mount.channel.generation)
        if not mount.alive:
            mount.channel.left(clean=False)
            return mount
        self._nursery.start_soon(mount.run)
        self._nursery.start_soon(mount.watched)
        if wait:
            await self.until(lambda: mount.granting or not mount.alive)
        return mount

    def request(self, mount: SimMount) -> MountRequest:
        address, states = mount.machine.address, self.journal_states()
        return MountRequest(FS, "web", mount.pid, mount.pid, mount.incarnation, address, 9, "/mnt", states)

    def journal_states(self) -> tuple[JournalState, ...]:
        """What a mount reads now."""
        owners = self.journals.items()
        return tuple(JournalState(index, *(owner or (0, 0)), dirty=owner is not None) for index, owner in owners)

    def release(self) -> None:
        """Carry out what was held."""
        self.held.clear()
        self.let_go.set()
        self.let_go = trio.Event()

    def is_link_cut(self, one: int, other: int) -> bool:
        """Whether the lock links between two nodes' mounts are cut."""
        return frozenset((one, other)) in self.lock_cuts

    def kill(self, number: int) -> None:
        """SIGKILL of matrixd and its mounts, as by power off."""
        machine = self.machines[f"n{number}"]
        self.kill_pid(machine.pid)
        for mount in machine.mounts:
            mount.die()

    def kill_pid(self, pid: int) -> None:
        victim = self.pids.pop(pid, None)
        if isinstance(victim, SimMount):
            victim.die()
        elif victim is not None:
            victim.running = False
            for scope in [victim.scope, *victim.admissions]:
                scope.cancel()
            for port in victim.ports:
                port.kill()
            if victim.node.core is not None:
                self.net.kill(victim.node.node_id)

    async def until(self, condition, seconds: float = 60.0, what: str = "") -> float:
        """Virtual seconds until the condition held; it is a liveness bug if it takes longer than ``seconds``."""
        start = trio.current_time()
        while not condition():
            assert trio.current_time() - start < seconds, f"not within {seconds} s: {what}"
            await trio.sleep(0.005)
        return trio.current_time() - start

    def administrators(self) -> list[Machine]:
        return [m for m in self.machines.values() if m.is_member and m.node.core.filesystems is not None]

    def granting(self) -> list[SimMount]:
        return [mount for machine in self.machines.values() for mount in machine.mounts if mount.may_write()]

    def granting_machines(self) -> list[Machine]:
        return [machine for machine in self.machines.values() if any(mount.may_write() for mount in machine.mounts)]

    def note(self, mount: SimMount, what: object) -> None:
        self.notes.append((trio.current_time(), *mount.instance, what))

    async def mount_delay(self) -> None:
        await trio.sleep(self.net.rng.uniform(0.0001, 0.002))

    async def _run(self, machine: Machine, *, task_status=trio.TASK_STATUS_IGNORED) -> None:
        with machine.scope:
            try:
                await machine.node.run(task_status=task_status)
            except* MatrixError as group:
                machine.error = group
                while isinstance(machine.error, BaseExceptionGroup):
                    machine.error = machine.error.exceptions[0]
        was_running, machine.running = machine.running, False
        self.pids.pop(machine.pid, None)
        if was_running and machine.node.core is not None:
            self.net.kill(machine.node.node_id)
        if isinstance(machine.error, Fenced):
            for mount in machine.mounts:  # their control socket ends: they fence themselves at once
                mount.granting = False
                mount.gate.fence("matrixd ended")
