"""The switch does to packets what it is told, the guard leaves nothing behind, and machines are told apart."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest

from matrixfs.fuse import registry
from tests.mount.lab import wait_gone, wait_until
from tests.net.freezer import KINDS
from tests.net.machine import IDENTITIES, Machine, share, unshare
from tests.net.switch import CLEAR, CUT, Rule, Switch, address

CLONE_NEWNET = 0x40000000
PORT = 9000
PACKETS = 300
SEED = 7


@pytest.fixture
def machines(base: tuple[Path, TextIO], tmp_path: Path) -> Iterator[tuple[list[Machine], Switch]]:
    """Three machines in two subnets."""
    directory = base[0] / tmp_path.name
    directory.mkdir()
    share(directory)
    switch = Switch(directory / "switch", SEED)
    found = [Machine(directory, f"n{number}", own=True) for number in (1, 2, 3)]
    try:
        for number, machine in enumerate(found, 1):
            for subnet in (0, 1):
                switch.add(number, machine.pid, subnet)
        yield found, switch
    finally:
        for machine in found:
            machine.close()
        switch.close()
        unshare(directory)


def socket_on(machine: Machine, number: int, subnet: int = 0) -> socket.socket:
    """A UDP socket in a machine's network, made by a thread that went there; the socket stays there."""
    made: list[socket.socket] = []

    def make() -> None:
        fd = os.open(f"/proc/{machine.pid}/ns/net", os.O_RDONLY)
        assert ctypes.CDLL(None, use_errno=True).setns(fd, CLONE_NEWNET) == 0
        os.close(fd)
        made.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        made[0].bind((address(number, subnet), PORT))

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    made[0].settimeout(5)
    return made[0]


def sent(switch: Switch, source: socket.socket, node: int, subnet: int = 0, packets: int = PACKETS) -> dict[str, int]:
    """Send one after the other; what the switch counted meanwhile, when it has seen them all."""
    before = switch.counts()

    def counted() -> dict[str, int]:
        return {name: count - before.get(name, 0) for name, count in switch.counts().items()}

    for number in range(packets):
        source.sendto(b"%d" % number, (address(node, subnet), PORT))
    wait_until(lambda: sum(counted().get(name, 0) for name in ("forwarded", "lost", "cut")) >= packets, "all arrived")
    return {name: count for name, count in counted().items() if name != "stray"}


def received(sock: socket.socket, packets: int) -> list[int]:
    return [int(sock.recv(100)) for _ in range(packets)]


def test_a_cut_has_a_direction_and_a_subnet(machines: tuple[list[Machine], Switch]) -> None:
    (one, two, _), switch = machines
    with socket_on(one, 1) as a, socket_on(two, 2) as b, socket_on(one, 1, 1) as a1, socket_on(two, 2, 1) as b1:
        switch.rule(1, 2, CUT, subnet=0)
        assert sent(switch, a, 2, packets=5).get("cut") == 5
        assert sent(switch, b, 1, packets=5) == {"cut": 0, "forwarded": 5}
        assert sent(switch, a1, 2, 1, packets=5) == {"cut": 0, "forwarded": 5}
        assert received(a, 5) == received(b1, 5) == [0, 1, 2, 3, 4]
        switch.rule(1, 2, CLEAR)
        sent(switch, a, 2, packets=5)
        assert received(b, 5) == [0, 1, 2, 3, 4]


def test_losses_are_as_many_as_told_and_the_seed_chooses_them(machines: tuple[list[Machine], Switch]) -> None:
    (one, two, _), switch = machines
    with socket_on(one, 1) as a, socket_on(two, 2) as b:
        switch.rule(1, 2, Rule(loss=0.2, duplication=0.1))
        counts = sent(switch, a, 2)
        arrived = received(b, counts["forwarded"] + counts["doubled"])
    seeded = random.Random(SEED)
    expected = []
    for number in range(PACKETS):
        if seeded.random() >= 0.2:
            expected += [number] * (2 if seeded.random() < 0.1 else 1)
    assert arrived == expected
    assert counts["lost"] == PACKETS - len(set(expected))


def test_delay_keeps_the_order_and_jitter_does_not(machines: tuple[list[Machine], Switch]) -> None:
    (one, two, _), switch = machines
    with socket_on(one, 1) as a, socket_on(two, 2) as b:
        switch.rule(1, 2, Rule(delay=0.05))
        began = time.monotonic()
        sent(switch, a, 2, packets=50)
        assert received(b, 50) == list(range(50))
        assert time.monotonic() - began >= 0.05
        switch.rule(1, 2, Rule(jitter=0.05))
        sent(switch, a, 2, packets=50)
        arrived = received(b, 50)
        assert sorted(arrived) == list(range(50))
        assert arrived != list(range(50))


def test_each_machine_has_an_identity_of_its_own(machines: tuple[list[Machine], Switch]) -> None:
    seen = [subprocess.check_output(machine.inside("cat", *IDENTITIES), text=True) for machine in machines[0]]
    seen.append("".join(Path(path).read_text() for path in IDENTITIES))
    assert len(set(seen)) == len(seen)


_ABANDONED = """
import sys, time
from pathlib import Path
from tests.mount.guard import guarded
from tests.net.lab import NetLab
directory = Path(sys.argv[1])
directory.mkdir()
with guarded(directory):
    lab = NetLab(directory / "lab", nodes=1, size="128M", name="abandoned")
    lab.up()
    lab.freeze(lab.nodes[0], sys.argv[2])
    print(lab.nodes[0].daemon_pid, lab.nodes[0].mount_pid, flush=True)
    time.sleep(1000)
"""


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_test_leaves_nothing_behind(base: tuple[Path, TextIO], kind: str) -> None:
    """No process, frozen or not, no mount, no file, no control group; its namespaces have no names."""
    directory = base[0].with_name(f"{base[0].name}-abandoned-{kind}")
    command = [sys.executable, "-c", _ABANDONED, str(directory), kind]
    test = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2], text=True)
    assert test.stdout is not None
    with test, test.stdout:
        pids = test.stdout.readline().split()
        assert len(pids) == 2
        test.send_signal(signal.SIGKILL)
    wait_until(lambda: not directory.exists(), "the guard has cleaned up")
    wait_gone([int(pid) for pid in pids])
    assert not [mount for mount in registry.mounts() if mount.path.startswith(str(directory))]
    assert not list(Path("/sys/fs/cgroup").glob(f"*/{directory.name}.*"))
