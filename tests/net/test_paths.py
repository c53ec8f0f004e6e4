"""Two nodes with two networks between them: work goes on while one of the two is cut, and nobody notices but status.

Each node's processes live in a network namespace of their own; two pairs of virtual cables join them.  The networks are
cut as they are in life: a cable pulled (``ip link set down``), and a switch that swallows everything (``nft``).
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.guard import guarded
from tests.mount.lab import BIN, Lab, LabNode, wait_until

NETWORKS = (1, 2)
SECONDS_MAX = 60  # for a broken product
pytestmark = [pytest.mark.seed("002-19", "003-26"), pytest.mark.timeout(3 * SECONDS_MAX)]


class TwoNetworks(Lab):
    """Node N has 10.111.1.N and 10.111.2.N, and is in a namespace of its own."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, nodes=2, size="256M", name="paths")
        self._spaces = {node.name: f"mfs{os.getpid()}{node.name}" for node in self.nodes}

    def inside(self, node: LabNode, *command: str | Path) -> None:
        """Run in the node's namespace; the mounts stay visible to all."""
        program = BIN / str(command[0])
        first = program if program.exists() else command[0]
        self.run("nsenter", f"--net=/run/netns/{self._spaces[node.name]}", first, *command[1:])

    def lay_cables(self) -> None:
        a, b = self._spaces.values()
        for space in a, b:
            self.run("ip", "netns", "add", space)
            self.run("ip", "-n", space, "link", "set", "lo", "up")
        for network in NETWORKS:
            name = f"net{network}"
            self.run("ip", "-n", a, "link", "add", name, "type", "veth", "peer", "name", name, "netns", b)
            for number, space in enumerate((a, b), 1):
                self.run("ip", "-n", space, "address", "add", f"10.111.{network}.{number}/24", "dev", name)
                self.run("ip", "-n", space, "link", "set", name, "up")

    def remove(self) -> None:
        super().remove()
        for space in self._spaces.values():
            subprocess.run(["ip", "netns", "delete", space], check=False, capture_output=True)

    def start(self, node: LabNode) -> None:
        number = self.nodes.index(node) + 1
        addresses = [word for network in NETWORKS for word in ("--address", f"10.111.{network}.{number}")]
        names = ("--name", node.name, "--state", node.state)
        self.inside(node, "matrixd", "--daemon", "--store", self.store, *addresses, *names)
        node.pids.append(node.daemon_pid)

    def mount(self, node: LabNode, *options: str) -> None:
        node.mountpoint.mkdir(parents=True)
        self.inside(node, "mount", "-t", "fuse.matrixfs", self.name, node.mountpoint, "-o", f"state={node.state}")
        node.pids.append(node.mount_pid)

    def pull(self, network: int) -> None:
        self.inside(self.nodes[0], "ip", "link", "set", f"net{network}", "down")

    def plug_in(self, network: int) -> None:
        self.inside(self.nodes[0], "ip", "link", "set", f"net{network}", "up")

    def swallow(self, node: LabNode, network: int, *ways: str) -> None:
        """What the node sends over that network goes nowhere (output), or it receives nothing (input)."""
        rules = "".join(
            f"add chain inet cut {way} {{ type filter hook {way} priority 0; policy accept; }};"
            f'add rule inet cut {way} {way[0]}ifname "net{network}" drop;'
            for way in ways
        )
        self.inside(node, "nft", f"add table inet cut; {rules}")

    def spit_out(self, node: LabNode) -> None:
        self.inside(node, "nft", "delete table inet cut")

    def networks_in_use(self) -> set[str]:
        """Of all links: of both matrixds and both mounts."""
        found = set()
        for node in self.nodes:
            status = self.status(node)
            found |= {link["path"] for link in status["nodes"] if not link["is_self"]}
            found |= {link["path"] for mount in status["local_mounts"] for link in mount["counters"]["peers"]}
        return {path.split(".")[2] for path in found}


class Counting:
    """Both nodes add one to a number in one file, again and again, under fcntl's lock: every step is lock traffic."""

    def __init__(self, lab: Lab) -> None:
        self.counts = [0 for _ in lab.nodes]
        self.longest = 0.0  # seconds of one step
        self.errors: list[BaseException] = []
        self._paths = [node.mountpoint / "number" for node in lab.nodes]
        self._paths[0].write_text("0")
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._count, args=(i,), daemon=True) for i in range(len(lab.nodes))]
        for thread in self._threads:
            thread.start()

    def _count(self, who: int) -> None:
        try:
            while not self._ended.is_set():
                began = time.monotonic()
                with self._paths[who].open("r+") as file:
                    fcntl.lockf(file, fcntl.LOCK_EX)
                    number = int(file.read())
                    file.seek(0)
                    file.write(str(number + 1))
                self.counts[who] += 1
                self.longest = max(self.longest, time.monotonic() - began)
        except BaseException as error:
            self.errors.append(error)

    def go_on(self, what: str) -> None:
        """Both nodes take further steps."""
        before = list(self.counts)
        wait_until(
            lambda: self.errors or all(now > then + 5 for now, then in zip(self.counts, before, strict=True)),
            f"both nodes count {what}",
            SECONDS_MAX,
        )
        assert self.errors == [], what

    def end(self) -> int:
        self._ended.set()
        for thread in self._threads:
            thread.join(SECONDS_MAX)
        return int(self._paths[0].read_text())


@pytest.fixture
def lab() -> Iterator[TwoNetworks]:
    directory = Path(f"/var/tmp/mfs-paths-{os.getpid()}")
    directory.mkdir()
    with guarded(directory) as ear:
        print(3 * SECONDS_MAX, file=ear, flush=True)
        lab = TwoNetworks(directory)
        try:
            lab.lay_cables()
            lab.up()
            yield lab
            lab.down()
        finally:
            lab.remove()


def test_work_goes_on_whichever_of_two_networks_is_cut(lab: TwoNetworks) -> None:
    before = lab.status(lab.nodes[0])
    assert lab.networks_in_use() == {"1"}
    counting = Counting(lab)
    counting.go_on("over the first network")

    lab.pull(1)
    wait_until(lambda: lab.networks_in_use() == {"2"}, "all links use the second network")
    counting.go_on("over the second network")
    lab.plug_in(1)

    lab.swallow(lab.nodes[1], 2, "input", "output")
    wait_until(lambda: lab.networks_in_use() == {"1"}, "all links use the first network again")
    counting.go_on("over the first network again")
    lab.spit_out(lab.nodes[1])

    for node, network, other in (lab.nodes[0], 1, "2"), (lab.nodes[1], 2, "1"):
        lab.swallow(node, network, "input")
        wait_until(lambda other=other: lab.networks_in_use() == {other}, "a network that works one way is left")
        counting.go_on(f"while {node.name} hears nothing over one of two networks")
        lab.spit_out(node)

    assert counting.end() == sum(counting.counts)
    after = lab.status(lab.nodes[0])
    assert (after["view"], after["generation"]) == (before["view"], before["generation"]), "no node was missed"
    assert after["fences"] == before["fences"] == []
    for node in lab.nodes:
        (peer,) = lab.counters(node)["peers"]
        assert (peer["losses"], peer["moves"]) == (0, 4)
    text = lab.run("matrixctl", "--state", lab.nodes[0].state, "status").stdout
    assert "Paths of this node's links" in text
    assert "10.111.2.2" in text
    assert counting.longest < 5, "a step waits for the change of path, not for a recovery"
    print(f"{sum(counting.counts)} steps, longest {counting.longest:.2f} s")
