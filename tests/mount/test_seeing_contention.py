"""Seeing contention on a real cluster: two nodes fight, a third one's administrator looks (R14)."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from matrixfs.processes import child_of
from tests.matrixfs.test_cli_metrics import parse
from tests.mount.conftest import Tree
from tests.mount.lab import BIN, Lab, LabNode, wait_until


def ctl(lab: Lab, node: LabNode, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return lab.run("matrixctl", "--state", node.state, *arguments, check=check)


def contention(lab: Lab, node: LabNode, path: Path) -> list[dict[str, Any]]:
    done = ctl(lab, node, "locks", str(path), "--json", check=False)
    assert done.returncode in (0, 3), done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)["locks"]
    return found


WRITER = """
import os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
os.pwrite(fd, b"x", 0)
print("wrote", flush=True)
while sys.argv[2] == "on":
    os.pwrite(fd, b"x", 0)
sys.stdin.read()
"""


@contextmanager
def writer(path: Path, then: str = "stop") -> Iterator[subprocess.Popen[str]]:
    """A process that writes a byte and keeps the file open, or writes on and on."""
    command = [sys.executable, "-c", WRITER, str(path), then]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.seed("002-26")
def test_what_nobody_waits_for(tree: Tree) -> None:
    lab, (n1, _, n3) = tree.lab, tree.lab.nodes
    (tree.a / "quiet").write_bytes(b"x")
    with writer(tree.a / "quiet") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "wrote\n"
        done = ctl(lab, n3, "locks", str(tree.c / "quiet"))
        assert f"{tree.c}/quiet" in done.stdout
        assert "held    EX by n1" in done.stdout
        assert f"open in process {process.pid} (python" in done.stdout
        assert "  waits " not in done.stdout
    everything = ctl(lab, n1, "locks")
    assert everything.stdout.strip() == "Nobody waits for a lock."
    absent = ctl(lab, n3, "locks", str(tree.c / "absent"), check=False)
    assert (absent.returncode, absent.stderr.count("\n")) == (2, 1)
    assert "absent: no such file or directory in this tree" in absent.stderr
    outside = ctl(lab, n3, "locks", "/var/tmp", check=False)
    assert (outside.returncode, outside.stderr.count("\n")) == (2, 1)


@contextmanager
def holding(node: LabNode, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """matrixctl lock with a command that says so when it has the lock, and runs on."""
    program = [str(BIN / "matrixctl"), "--state", str(node.state), "lock", *arguments]
    script = ["--", "sh", "-c", "echo locked; exec sleep 1000"]
    with subprocess.Popen([*program, *script], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def said_locked(process: subprocess.Popen[str]) -> bool:
    assert process.stdout is not None
    return process.stdout.readline() == "locked\n"


@pytest.mark.seed("004-33", "002-24")
def test_an_application_lock_is_the_clusters(lab: Lab, watched: None) -> None:
    n1, n2, n3 = lab.nodes
    assert ctl(lab, n1, "lock", "job", "--", "sh", "-c", "exit 7", check=False).returncode == 7
    with holding(n1, "job") as one:
        assert said_locked(one)
        busy = ctl(lab, n2, "lock", "--try", "job", "--", "true", check=False)
        assert (busy.returncode, busy.stderr.count("\n")) == (124, 1)
        late = ctl(lab, n2, "lock", "--wait", "0.2", "--shared", "job", "--", "true", check=False)
        assert late.returncode == 124
        assert ctl(lab, n2, "lock", "--try", "other", "--", "true").returncode == 0
        with holding(n2, "job") as other:
            wait_until(lambda: "waits" in ctl(lab, n3, "locks", "job").stdout, "the third node shows who waits")
            shown = ctl(lab, n3, "locks").stdout
            command = child_of(one.pid)
            assert f"{command} (s" in shown, "sh, or sleep already: not matrixctl"
            assert f"for n1 process {command}" in shown
            one.kill()  # the connection ends, and with it the lock
            assert said_locked(other)
    with holding(n1, "--shared", "job") as one, holding(n2, "--shared", "job") as other:
        assert said_locked(one)
        assert said_locked(other)


@pytest.mark.seed("004-33", "002-24")
def test_an_application_lock_dies_with_its_node(lab: Lab, watched: None) -> None:
    n1, n2, n3 = lab.nodes
    with holding(n2, "job") as one:
        assert said_locked(one)
        with holding(n3, "job") as other:
            wait_until(lambda: "waits" in ctl(lab, n1, "locks", "job").stdout, "the other one waits")
            lab.kill(n2)
            assert one.wait() == 125, "the command is ended when its lock is lost"
            assert said_locked(other)
    lab.start(n2)
    lab.mount(n2)
    assert ctl(lab, n1, "lock", "--wait", "30", "job", "--", "true").returncode == 0


@pytest.mark.seed("002-26")
def test_who_blocks_me_on_a_third_node(tree: Tree) -> None:
    """waiter -> path -> master -> holder -> process."""
    lab, (n1, n2, n3) = tree.lab, tree.lab.nodes
    path = tree.c / "fought over"
    (tree.a / path.name).write_bytes(b"x")
    with writer(tree.a / path.name, "on") as one, writer(tree.b / path.name, "on") as other:
        chains: list[str] = []

        def seen() -> bool:
            chains.append(ctl(lab, n3, "locks", str(path), "--waiters").stdout)
            return "  waits   n" in chains[-1] and "held    EX by n" in chains[-1] and " asked 0." in chains[-1]

        wait_until(seen, "a chain from waiter to holder shows")
        found = chains[-1]
        assert f"{path}   (domain 2" in found
        assert re.search(r"to change it \(EX\), for \d+\.\d s", found)
        assert f"open in process {one.pid} (python" in found or f"open in process {other.pid} (python" in found
        assert f"mount process {n1.mount_pid}" in found
        assert f"mount process {n2.mount_pid}" in found
        everything: list[str] = []

        def listed() -> bool:
            everything.append(ctl(lab, n3, "locks").stdout)
            return str(path) in everything[-1]

        wait_until(listed, "the list of all waits has it as a path")
        top = json.loads(ctl(lab, n3, "top", "--json").stdout)
        (row,) = [row for row in top["locks"] if row["name"] == str(path)]
        assert row["hand_overs"] > 0
        assert sorted(row["nodes"]) == ["n1", "n2"]
        assert {(link["source"], link["target"]) for link in top["links"]} >= {("n1", "n2"), ("n2", "n1")}
        trace = json.loads(ctl(lab, n3, "trace", "--json").stdout)
        assert {event["node"] for event in trace["events"] if event["lock"] == str(path)} == {"n1", "n2"}
        metrics = parse(ctl(lab, n1, "metrics").stdout)
        here = {"node": "n1", "filesystem": lab.name, "type": "inode"}
        assert [value for labels, value in metrics["matrixfs_lock_handovers_total"] if labels == here] > [0.0]
        assert metrics["matrixfs_lock_grant_seconds_count"]
        assert metrics["matrixfs_recovery_phase_seconds"]


def test_a_freeze_and_who_waits_for_its_end(tree: Tree) -> None:
    lab, (n1, n2, _) = tree.lab, tree.lab.nodes
    for name in ("still", "waits"):
        (tree.b / name).write_bytes(b"still")
    ctl(lab, n1, "fs", "freeze", lab.name)
    with writer(tree.b / "waits") as process:
        try:
            wait_until(lambda: "waits   n2 to change it (CW)" in ctl(lab, n1, "locks", "--waiters").stdout, "n2 waits")
            assert "held    EX by n1" in (shown := ctl(lab, n2, "locks", "--waiters").stdout)
            assert "it holds the filesystem frozen (matrixctl fs thaw)" in shown
            assert "FROZEN by n1 for" in ctl(lab, n2, "status").stdout
            assert (tree.c / "still").read_bytes() == b"still"
        finally:
            assert ctl(lab, n2, "fs", "thaw", lab.name).stdout == f"{lab.name} goes on\n"
        assert process.stdout is not None
        assert process.stdout.readline() == "wrote\n"
    assert ctl(lab, n1, "fs", "thaw", lab.name, check=False).returncode == 2


def test_a_grown_filesystem_is_seen_by_all(tree: Tree) -> None:
    lab, (n1, _, n3) = tree.lab, tree.lab.nodes
    (tree.b / "busy").write_bytes(b"x")
    before = os.statvfs(tree.a).f_blocks
    with writer(tree.b / "busy", "on"):
        done = ctl(lab, n3, "fs", "grow", lab.name, "--size", "640M", "--journals", "9")
    assert "had 8 journals and has 9 now" in done.stdout
    after = {os.statvfs(path).f_blocks for path in tree.paths}
    assert len(after) == 1
    assert after.pop() > before + 127 * 256 - 4096  # a journal less
    (tree.c / "more").write_bytes(b"m" * (1 << 20))
    assert (tree.a / "more").read_bytes() == b"m" * (1 << 20)
    assert "has all of its store already" in ctl(lab, n1, "fs", "grow", lab.name).stdout
