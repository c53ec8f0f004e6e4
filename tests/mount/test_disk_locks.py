"""Disk locks and the cluster's events with real matrixds, and nothing mounted (002-24, 002-26)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from membership.errors import Fenced
from tests.mount.conftest import STORE_SIZE
from tests.mount.lab import BIN, Lab, LabNode, wait_gone, wait_until

BUSY = 124


@pytest.fixture
def pair(base: tuple[Path, object], watched: None) -> Iterator[Lab]:
    """Two nodes, started."""
    with Lab(base[0] / f"locks-{os.urandom(4).hex()}", nodes=2, size=STORE_SIZE) as lab:
        lab.format()
        for node in lab.nodes:
            lab.start(node)
        yield lab
        lab.remove()


def ctl(lab: Lab, node: LabNode, *arguments: str) -> subprocess.CompletedProcess[str]:
    return lab.run("matrixctl", "--state", node.state, *arguments, check=False)


@contextmanager
def locking(node: LabNode, script: str = "echo locked; exec sleep 1000") -> Iterator[subprocess.Popen[str]]:
    """matrixctl disk lock with a command that says so when it has the lock, and runs on."""
    program = [str(BIN / "matrixctl"), "--state", str(node.state), "disk", "lock", "lab", "--", "sh", "-c", script]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def heard(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def warned(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    return process.stderr.readline()


@pytest.mark.seed("002-24")
def test_n1_locks_n2_is_refused_and_gets_it_when_n1_dies(pair: Lab) -> None:
    n1, n2 = pair.nodes
    assert ctl(pair, n2, "disk", "lock", "lab", "--", "sh", "-c", "exit 7").returncode == 7
    unknown = ctl(pair, n2, "disk", "lock", "none", "--", "true")
    assert (unknown.returncode, unknown.stderr.count("\n")) == (2, 1)
    with locking(n1) as one:
        assert heard(one) == "locked\n"
        refused = ctl(pair, n2, "disk", "lock", "--timeout", "0", "lab", "--", "true")
        assert (refused.returncode, refused.stderr.count("\n")) == (BUSY, 1)
        assert f"(sh, process {one.pid} on n1)" in refused.stderr
        stop = ctl(pair, n1, "stop")
        assert (stop.returncode, stop.stderr.count("\n")) == (2, 1)
        assert "cluster disks are locked or waited for here (lab by sh, process" in stop.stderr
        with locking(n2) as other:
            assert warned(other).endswith(f"(sh, process {one.pid} on n1): waiting\n")
            for node in pair.nodes:
                found = json.loads(ctl(pair, node, "disk", "locks", "--json").stdout)["locks"]
                assert [(row["node"], row["state"]) for row in found] == [("n1", "held"), ("n2", "waiting")]
            os.kill(n1.daemon_pid, signal.SIGKILL)
            assert one.wait() == Fenced.exit_code
            assert warned(one) == "matrixctl: the lock on the disk lab is lost: ending the command\n"
            assert heard(other) == "locked\n"
            (fence,) = [fence for fence in pair.status(n2)["fences"] if fence["confirmed"]]
            assert fence["name"] == "n1", "not before its fence"


@pytest.mark.seed("002-24")
def test_a_released_one_goes_on_and_a_stop_is_allowed_again(pair: Lab) -> None:
    n1, n2 = pair.nodes
    with locking(n1) as one:
        assert heard(one) == "locked\n"
        with locking(n2) as other:
            assert "waiting" in warned(other)
            one.send_signal(signal.SIGTERM)  # goes to the command
            assert one.wait() == 128 + signal.SIGTERM
            assert heard(other) == "locked\n"  # and is freed when matrixctl itself is killed
    wait_until(lambda: "No cluster disk is locked" in ctl(pair, n1, "disk", "locks").stdout, "nobody holds it")
    pid = n1.daemon_pid
    assert ctl(pair, n1, "stop").returncode == 0
    wait_gone([pid])


@pytest.mark.seed("002-24")
def test_who_outlives_matrixctl_keeps_the_lock(pair: Lab) -> None:
    """Its command has SIGTERM, and does not end: it may write on, so nobody else gets the lock."""
    n1, n2 = pair.nodes
    with locking(n1, "trap '' TERM; echo $$; while :; do sleep 0.1; done") as one:
        command = int(heard(one))
    assert one.wait() == -signal.SIGKILL
    with locking(n2) as other:
        assert "waiting" in warned(other)
        os.kill(command, signal.SIGKILL)
        assert heard(other) == "locked\n"
    left = ctl(pair, n1, "disk", "lock", "lab", "--", "sh", "-c", "sleep 1000 >&- 2>&- & echo $!")
    try:
        assert ctl(pair, n2, "disk", "lock", "--timeout", "20", "lab", "--", "true").returncode == 0
    finally:
        os.kill(int(left.stdout), signal.SIGKILL)


@pytest.mark.seed("002-24")
def test_who_lost_its_right_ends_its_command_though_it_will_not(pair: Lab) -> None:
    """n1 freezes, n2 fences it by ending its processes; so the command of n1 is killed, which ignores SIGTERM."""
    n1, n2 = pair.nodes
    with locking(n1, "trap '' TERM; echo $$; while :; do sleep 0.1; done") as one:
        command = int(heard(one))
        os.kill(n1.daemon_pid, signal.SIGSTOP)
        with locking(n2) as other:
            assert heard(other) == "locked\n"
        assert one.wait() == Fenced.exit_code
        wait_gone([command])


@pytest.mark.seed("002-26")
def test_events_are_the_clusters(pair: Lab) -> None:
    n1, n2 = pair.nodes

    def told(node: LabNode, *more: str) -> list[dict]:
        return json.loads(ctl(pair, node, "events", "--json", *more).stdout)["events"]

    assert told(n1) == told(n2)
    assert {event["name"] for event in told(n1)} == {"n1", "n2"}
    assert {event["name"] for event in told(n2, "--here")} == {"n2"}
    times = [event["wall_ns"] for event in told(n1)]
    assert times == sorted(times)
    common = [line for line in ctl(pair, n1, "events").stdout.splitlines() if "n1, n2" in line or "n2, n1" in line]
    assert common, "what both say alike is one line"
    pair.stop(n1)
    assert {event["name"] for event in told(n2)} == {"n2"}
