"""A cluster of machines on one machine: four nodes, each in a network of its own, behind a switch that can do harm.

Each node's matrixd and mount process run in its network namespace, and see an identity of their own
(``tests/net/machine.py``), so that the nodes can't look up or kill each other's processes: what is left is the lease,
as between real servers.  With ``own_machines=False`` they share this machine's identity, and are fenced by process.

matrixd runs in the foreground, as under systemd: its exit code is known, and it says by sd_notify(3) that the node is a
member.  The test is the service manager: who ended with code 6 (evicted) is started again by ``launch``.
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from membership.errors import Fenced
from tests.mount.lab import BIN, END_SECONDS_MAX, Lab, LabError, LabNode, wait_gone, wait_until
from tests.net.freezer import Freezer
from tests.net.machine import Machine, share, unshare
from tests.net.switch import Switch, address

EVICTED = Fenced.exit_code  # of a matrixd that lost its right
MEMBER_SECONDS_MAX = 60


class NetLab(Lab):
    """See the module.

    Args:
        directory: as for Lab.
        nodes: how many, on 10.232.0.1 and up.
        size: of the store.
        name: of the cluster and its filesystem.
        own_machines: whether each node is a machine of its own.
        subnets: how many networks connect them: 10.232.0, 10.232.1 and up.
        seed: of the losses.
    """

    def __init__(
        self,
        directory: Path,
        nodes: int = 4,
        size: str = "512M",
        name: str = "net",
        *,
        own_machines: bool = True,
        subnets: int = 1,
        seed: int = 1,
    ) -> None:
        super().__init__(directory, nodes=nodes, size=size, name=name)
        for number, node in enumerate(self.nodes, 1):
            node.address = address(number)
        self._own = own_machines
        self._subnets = subnets
        self._seed = seed
        self._machines: dict[str, Machine] = {}
        self._switch: Switch | None = None
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._ears: dict[str, socket.socket] = {}  # where matrixd says that it is a member
        self._freezers: list[Freezer] = []

    # --- life -------------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Make machines and network."""
        self.directory.mkdir(parents=True, exist_ok=True)
        share(self.directory)
        self._switch = Switch(self.directory / "switch", self._seed)
        for number, node in enumerate(self.nodes, 1):
            machine = self._machines[node.name] = Machine(self.directory, node.name, own=self._own)
            for subnet in range(self._subnets):
                self._switch.add(number, machine.pid, subnet)

    def format(self, *options: str) -> None:
        """Also makes machines and network."""
        if not self._machines:
            self.open()
        super().format(*options)

    def up(self) -> None:
        """Format, start and mount everything; the first node is administrator, the others come together."""
        self.format()
        first, *others = self.nodes
        self.start(first)
        for node in others:
            self.launch(node)
        for node in others:
            self.wait_member(node)
        self.mount_all(self.nodes)

    def close(self) -> None:
        """End everything."""
        self.thaw()
        if self._switch is not None:
            self._switch.heal()
        super().close()
        for daemon in self._daemons.values():
            daemon.wait()
        for ear in self._ears.values():
            ear.close()
        for machine in self._machines.values():
            machine.close()
        if self._switch is not None:
            self._switch.close()
        if self._machines:
            unshare(self.directory)
        self._switch = None
        for kept in (self._daemons, self._ears, self._machines):
            kept.clear()

    # --- the network ------------------------------------------------------------------------------------------------

    @property
    def switch(self) -> Switch:
        """The network; nodes are known to it by ``place``."""
        assert self._switch is not None, "not open"
        return self._switch

    def place(self, node: LabNode) -> int:
        """Last number of a node's address."""
        return self.nodes.index(node) + 1

    # --- nodes ------------------------------------------------------------------------------------------------------

    def inside(self, node: LabNode, *command: str | Path) -> list[str]:
        """A command line that runs on a node's machine."""
        return self._machines[node.name].inside(*command)

    def matrixd(self, node: LabNode) -> list[str | Path]:
        """The command line that starts a node's matrixd, with an address in every subnet."""
        others = [address(self.place(node), subnet) for subnet in range(1, self._subnets)]
        return [*super().matrixd(node), *(word for other in others for word in ("--address", other))]

    def start(self, node: LabNode) -> None:
        """Start a node's matrixd; returns when it is a member."""
        self.launch(node)
        self.wait_member(node)

    def launch(self, node: LabNode) -> None:
        """Start a node's matrixd, whose predecessor has ended or is about to; returns at once."""
        if node.name in self._daemons:
            self.exit_code(node)
        node.state.mkdir(mode=0o700, exist_ok=True)
        program, *arguments = [part for part in self.matrixd(node) if part != "--daemon"]
        ear = self._ears.pop(node.name, None)
        if ear is not None:
            ear.close()
        path = self.directory / f"{node.name}-ready"
        path.unlink(missing_ok=True)
        ear = self._ears[node.name] = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        ear.bind(str(path))
        ear.setblocking(False)
        with (node.state / "matrixd.log").open("ab") as log:
            daemon = subprocess.Popen(
                self.inside(node, BIN / program, *arguments),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                env={**os.environ, "NOTIFY_SOCKET": str(path)},
            )  # fmt: skip
        self._daemons[node.name] = daemon
        node.pids.append(daemon.pid)

    def wait_member(self, node: LabNode) -> None:
        """Wait until a launched node says that it is a member.  Raises LabError when it ended instead."""
        daemon, ear = self._daemons[node.name], self._ears[node.name]

        def is_ready() -> bool:
            if daemon.poll() is not None:
                raise LabError(f"matrixd of {node.name} ended with {daemon.returncode}\n{node.log_tail()}")
            try:
                return ear.recv(64) == b"READY=1"
            except BlockingIOError:
                return False

        try:
            wait_until(is_ready, f"{node.name} is a member", MEMBER_SECONDS_MAX)
        except LabError as error:
            raise LabError(f"{error}\n{node.log_tail()}") from None

    def exit_code(self, node: LabNode) -> int:
        """Wait for the end of a node's matrixd."""
        try:
            return self._daemons[node.name].wait(END_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            raise LabError(f"matrixd of {node.name} does not end\n{node.log_tail()}") from None

    def mount(self, node: LabNode, *options: str) -> None:
        """Mount the tree on a node, with plain mount(8) there."""
        node.mountpoint.mkdir(parents=True, exist_ok=True)
        wanted = ",".join((f"state={node.state}", *options))
        self.run(*self.inside(node, "mount", "-t", "fuse.matrixfs", self.name, node.mountpoint, "-o", wanted))
        node.pids.append(node.mount_pid)

    def mount_all(self, nodes: Sequence[LabNode]) -> None:
        """Mount on several nodes at once."""
        with ThreadPoolExecutor() as pool:
            list(pool.map(self.mount, nodes))

    # --- violence ---------------------------------------------------------------------------------------------------

    def freeze(self, node: LabNode, kind: str) -> Freezer:
        """Freeze both processes of a node."""
        name = f"{self.directory.parent.name}.{self.name}.{node.name}"
        freezer = Freezer(kind, name, [node.daemon_pid, node.mount_pid])
        self._freezers.append(freezer)
        freezer.freeze()
        return freezer

    def thaw(self) -> None:
        """Thaw whoever is frozen still."""
        for freezer in self._freezers:
            freezer.thaw()
        self._freezers.clear()

    def power_off(self, node: LabNode) -> float:
        """Everything of it is gone, and no packet tells anybody; when, by the monotonic clock."""
        self.switch.isolate(self.place(node))
        return self.kill(node)

    def wait_end(self, node: LabNode, mount_pid: int) -> None:
        """Wait until both processes of a node ended by themselves, evicted; and free its mount point."""
        code = self.exit_code(node)
        if code != EVICTED:
            raise LabError(f"matrixd of {node.name} ended with {code}, not {EVICTED}\n{node.log_tail()}")
        wait_gone([mount_pid])
        self.detach(node)
