"""A network switch in user space: what netem does, without netem, which many kernels are built without.

Usage: ``python -m tests.net.switch CONTROL``.  A process of its own, so that the Python of a test never stalls the
network.  Every port is a TUN device, moved into the network namespace of the node behind it; its address is
``10.232.SUBNET.NODE``, so a node may have several ports, each in another subnet, as with redundant networks.

For every ordered pair of nodes in a subnet there is a rule: delay, jitter, loss, duplication, cut.  A packet that is to
come later is kept in order of its time, so jitter reorders and delay alone does not.  Losses are drawn from a seed.

CONTROL is a unix socket; each line sent there is one JSON object with a ``do``, each is answered by one line (``{}``,
an answer, or ``{"error": ...}``).  ``Switch`` is the caller's side.  The process ends with its standard input.
"""

from __future__ import annotations

import fcntl
import heapq
import json
import os
import random
import socket
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import trio

SUBNETS = "10.232"
MTU = 16000  # few packets: each costs this process some 30 us
PACKET_BYTES_MAX = 65536
START_SECONDS = 20

_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 1, 0x1000
_SOURCE, _TARGET = slice(14, 16), slice(18, 20)  # last two bytes of each address in an IPv4 header: subnet, node

Pair: TypeAlias = tuple[int, int, int]  # subnet, from node, to node


@dataclass(frozen=True)
class Rule:
    """What happens to packets of one direction.  Seconds, and probabilities."""

    delay: float = 0.0
    jitter: float = 0.0
    loss: float = 0.0
    duplication: float = 0.0
    cut: bool = False


CLEAR = Rule()
CUT = Rule(cut=True)


def address(node: int, subnet: int = 0) -> str:
    return f"{SUBNETS}.{subnet}.{node}"


# --- the caller's side ----------------------------------------------------------------------------------------------


class Switch:
    """Starts a switch and changes it at run time.  Each method returns when the change is in force.

    Args:
        control: where its socket is made; in the command line of its process, too.
        seed: of the losses.
    """

    def __init__(self, control: Path, seed: int = 1) -> None:
        command = [sys.executable, "-m", "tests.net.switch", str(control), str(seed)]
        top = Path(__file__).parents[2]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=top)
        assert self.process.stdout is not None
        if self.process.stdout.readline() != b"ready\n":
            raise RuntimeError("the switch did not start")
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(START_SECONDS)
        self._socket.connect(str(control))
        self._lines = self._socket.makefile("rb")
        self._nodes: list[int] = []

    def _ask(self, **request: Any) -> Any:
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        answer = json.loads(self._lines.readline() or b'{"error": "the switch ended"}')
        if "error" in answer:
            raise RuntimeError(f"switch: {answer['error']}")
        return answer

    def add(self, node: int, pid: int, subnet: int = 0) -> None:
        """Give the network namespace of process ``pid`` a port."""
        self._ask(do="add", node=node, pid=pid, subnet=subnet)
        if node not in self._nodes:
            self._nodes.append(node)

    def rule(self, source: int, target: int, rule: Rule, subnet: int | None = None) -> None:
        """One direction; in all subnets when none is named."""
        self._ask(do="rules", pairs=[(source, target)], subnet=subnet, rule=asdict(rule))

    def between(self, ones: Sequence[int], others: Sequence[int], rule: Rule, subnet: int | None = None) -> None:
        """Both directions between every one of ``ones`` and every one of ``others``, at one instant."""
        both = [pair for a in ones for b in others if a != b for pair in ((a, b), (b, a))]
        self._ask(do="rules", pairs=both, subnet=subnet, rule=asdict(rule))

    def everywhere(self, rule: Rule) -> None:
        """All links, at one instant."""
        self.between(self._nodes, self._nodes, rule)

    def isolate(self, node: int) -> None:
        """Cut a node off from all the others."""
        self.between([node], self._nodes, CUT)

    def heal(self) -> None:
        """All links as if new."""
        self.everywhere(CLEAR)

    def counts(self) -> dict[str, int]:
        """Packets: forwarded, lost, cut, doubled, stray."""
        found: dict[str, int] = self._ask(do="counts")
        return found

    def close(self) -> None:
        """End it; its devices go with it."""
        self._lines.close()
        self._socket.close()
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


# --- the process ----------------------------------------------------------------------------------------------------


class Ports:
    """The devices, the rules, and what is under way."""

    def __init__(self, seed: int) -> None:
        self.counts: Counter[str] = Counter()
        self._random = random.Random(seed)
        self._devices: dict[bytes, int] = {}  # by the last two bytes of an address
        self._rules: dict[bytes, Rule] = {}  # by those of the source and of the target
        self._later: list[tuple[float, int, bytes, bytes]] = []
        self._number = 0
        self._wake = trio.Event()

    def add(self, node: int, pid: int, subnet: int) -> int:
        """Make a device and move it into the namespace; its descriptor."""
        name = f"mfs{os.getpid() % 10**6}x{subnet}x{node}"  # until it is moved it must differ from all others
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
        inside = f"net{subnet}"
        run("ip", "link", "set", name, "netns", str(pid))
        within = ("nsenter", f"--net=/proc/{pid}/ns/net", "ip")
        run(*within, "link", "set", name, "name", inside, "mtu", str(MTU))
        run(*within, "addr", "add", f"{address(node, subnet)}/24", "dev", inside)
        run(*within, "link", "set", inside, "up")
        self._devices[bytes([subnet, node])] = fd
        return fd

    def subnets(self) -> set[int]:
        return {key[0] for key in self._devices}

    def set_rule(self, pair: Pair, rule: Rule) -> None:
        subnet, source, target = pair
        self._rules[bytes([subnet, source, subnet, target])] = rule

    async def read(self, fd: int) -> None:
        """Take what a node sends."""
        while True:
            await trio.lowlevel.wait_readable(fd)
            while True:
                try:
                    packet = os.read(fd, PACKET_BYTES_MAX)
                except BlockingIOError:
                    break
                except OSError:
                    return  # the namespace is gone, and the device with it
                self._take(packet)

    def _take(self, packet: bytes) -> None:
        source, target = packet[_SOURCE], packet[_TARGET]
        if packet[0] >> 4 != 4 or target not in self._devices or source[0] != target[0]:
            self.counts["stray"] += 1  # IPv6's greetings, broadcasts
            return
        rule = self._rules.get(source + target, CLEAR)
        if rule.cut:
            self.counts["cut"] += 1
            return
        if rule.loss and self._random.random() < rule.loss:
            self.counts["lost"] += 1
            return
        self.counts["forwarded"] += 1
        self._forward(rule, target, packet)
        if rule.duplication and self._random.random() < rule.duplication:
            self.counts["doubled"] += 1
            self._forward(rule, target, packet)

    def _forward(self, rule: Rule, target: bytes, packet: bytes) -> None:
        if not rule.delay and not rule.jitter:
            self._deliver(target, packet)
            return
        self._number += 1
        at = trio.current_time() + rule.delay + self._random.random() * rule.jitter
        heapq.heappush(self._later, (at, self._number, target, packet))
        self._wake.set()

    def _deliver(self, target: bytes, packet: bytes) -> None:
        try:
            os.write(self._devices[target], packet)
        except OSError:
            self.counts["stray"] += 1  # the node's namespace is gone

    async def deliver_later(self) -> None:
        """Deliver what was delayed, each at its time."""
        while True:
            self._wake = trio.Event()
            seconds = self._later[0][0] - trio.current_time() if self._later else float("inf")
            if seconds > 0:
                with trio.move_on_after(seconds):
                    await self._wake.wait()
                continue
            _, _, target, packet = heapq.heappop(self._later)
            self._deliver(target, packet)


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


async def serve_control(ports: Ports, nursery: trio.Nursery, listener: trio.SocketListener) -> None:
    """Carry out the lines of each caller."""

    async def serve(stream: trio.SocketStream) -> None:
        held = b""
        async for piece in stream:
            *lines, held = (held + piece).split(b"\n")
            for line in lines:
                await stream.send_all(json.dumps(carry_out(ports, nursery, json.loads(line))).encode() + b"\n")

    await trio.serve_listeners(serve, [listener])


def carry_out(ports: Ports, nursery: trio.Nursery, request: dict[str, Any]) -> dict[str, Any]:
    match request:
        case {"do": "add", "node": node, "pid": pid, "subnet": subnet}:
            try:
                fd = ports.add(node, pid, subnet)
            except (OSError, subprocess.CalledProcessError) as error:
                return {"error": f"no port for node {node}: {error} {getattr(error, 'stderr', '')}"}
            nursery.start_soon(ports.read, fd)
            return {}
        case {"do": "rules", "pairs": pairs, "subnet": subnet, "rule": rule}:
            for source, target in pairs:
                for each in ports.subnets() if subnet is None else [subnet]:
                    ports.set_rule((each, source, target), Rule(**rule))
            return {}
        case {"do": "counts"}:
            return dict(ports.counts)
        case _:
            return {"error": f"what is {request}?"}


async def main(control: str, seed: int) -> None:
    """Serve until standard input ends."""
    ports = Ports(seed)
    sock = trio.socket.socket(socket.AF_UNIX)
    await sock.bind(control)
    sock.listen()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ports.deliver_later)
        nursery.start_soon(serve_control, ports, nursery, trio.SocketListener(sock))
        print("ready", flush=True)
        await trio.lowlevel.wait_readable(0)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, sys.argv[1], int(sys.argv[2]))
