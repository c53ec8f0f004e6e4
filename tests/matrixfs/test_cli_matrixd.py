"""matrixd as a process: options, refusals, background, readiness, signals (issue 2 "Bad input").

The node behind it is a fake that joins when the file STATE/may-join appears; all the rest is real.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from matrixfs.cli.host import lock_state
from matrixfs.cli.matrixd_cmd import main, parse_address, parse_addresses
from membership import presence
from membership.control_ask import ask, stop_matrixd
from membership.errors import OperatorError
from membership.label import BLOCK_BYTES, DATA_BLOCK, Label

FAKE = """
import os, sys
import trio
import matrixfs.cli.matrixd_run as run
from membership.errors import Fenced, OperatorError
from membership.relay import Relay

class FakeNode:
    node_id, incarnation = 3, 77
    def __init__(self, device, label, config, host, mesh, clock, rng, fences, *_seams):
        self.name, self.state, self.left = config.name, "joining", trio.Event()
        self.relay = Relay(self, clock)
        assert [f.name for f in fences] == ["process"]  # agents and time are the node's own
    def reachable(self):
        return {3: self.name}
    def status(self):
        return {"state": self.state, "name": self.name, "node": 3, "nodes": [], "events": []}
    def own_answer(self, what):
        return None
    async def run(self, *, task_status):
        if self.name == "taken":
            raise OperatorError("node taken is already running on 10.0.0.9")
        if self.name == "buggy":
            raise ZeroDivisionError
        while self.name == "slow":
            await trio.sleep_forever()
        self.state = "member"
        task_status.started()
        if self.name == "fenced":
            raise Fenced("evicted by n1")
        await self.left.wait()
    async def stop(self):
        if os.path.exists(os.environ["MATRIXFS_STATE"] + "/mounted"):
            raise OperatorError("trees are mounted here: /mnt/a")
        self.left.set()

run.Node = FakeNode
from matrixfs.cli.matrixd_cmd import main
main(prog_name="matrixd")
"""


@pytest.fixture
def store(tmp_path: Path) -> Path:
    label = Label(
        owner=b"u" * 16, cluster_name="web", cluster_key=b"k" * 32, data_block=DATA_BLOCK, data_blocks=10,
        heartbeat_ms=250, link_dead_ms=3000, renew_ms=500, lease_ms=4000, io_bound_ms=2000, margin_ms=1000,
    )  # fmt: skip
    path = tmp_path / "store"
    with path.open("wb") as file:
        file.write(label.encode())
        file.truncate((DATA_BLOCK + 100) * BLOCK_BYTES)
    return path


def command(store: Path, state: Path, *more: str, name: str = "n1") -> dict:
    arguments = [sys.executable, "-c", FAKE, "--store", str(store), "--address", "127.0.0.1", "--name", name, *more]
    return {"args": arguments, "env": {**os.environ, "MATRIXFS_STATE": str(state)}, "text": True}


@contextmanager
def running(store: Path, state: Path, **env: str):
    """A matrixd in the foreground."""
    what = command(store, state)
    what["env"] |= env
    process = subprocess.Popen(**what, stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def wait_log(process: subprocess.Popen, wanted: str) -> None:
    for line in process.stderr:
        if wanted in line:
            return
    pytest.fail(f"matrixd ended without logging {wanted!r}")


def test_it_serves_and_sigterm_ends_it_cleanly(tmp_path: Path, store: Path) -> None:
    state = tmp_path / "made" / "for it"
    with running(store, state) as process:
        wait_log(process, "member of cluster web as node 3")
        assert ask(str(state), {"kind": "status"})["state"] == "member"
        assert (state / "matrixd.pid").read_text() == f"{process.pid}\n"
        assert state.stat().st_mode & 0o777 == 0o700
        assert holder_of(store) == process.pid  # whoever fences it waits until that is gone
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0
    assert not (state / "matrixd.sock").exists()
    assert holder_of(store) is None


def holder_of(store: Path) -> int | None:
    with store.open("rb") as file:
        return presence.find_holder(file.fileno())


def test_sigterm_with_mounts_is_refused_and_it_runs_on(tmp_path: Path, store: Path) -> None:
    with running(store, tmp_path) as process:
        wait_log(process, "member of cluster")
        (tmp_path / "mounted").touch()
        process.send_signal(signal.SIGTERM)
        wait_log(process, "not stopped, running on: trees are mounted here: /mnt/a")
        with pytest.raises(OperatorError, match="mounted here"):
            stop_matrixd(str(tmp_path))
        assert ask(str(tmp_path), {"kind": "status"})["state"] == "member"
        (tmp_path / "mounted").unlink()
        stop_matrixd(str(tmp_path))
        assert os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)  # stop_matrixd waited for its end
        assert process.wait() == 0


def test_the_service_manager_is_told(tmp_path: Path, store: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        with running(store, tmp_path, NOTIFY_SOCKET=str(tmp_path / "notify")) as process:
            assert manager.recv(100) == b"READY=1"
            stop_matrixd(str(tmp_path))
            assert manager.recv(100) == b"STOPPING=1"
            assert process.wait() == 0


def test_in_the_background_when_it_is_a_member(tmp_path: Path, store: Path) -> None:
    done = subprocess.run(**command(store, tmp_path, "--daemon"), capture_output=True, check=False)
    try:
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert ask(str(tmp_path), {"kind": "status"})["state"] == "member"
        pid = int((tmp_path / "matrixd.pid").read_text())
        assert os.getsid(pid) == pid
        second = subprocess.run(**command(store, tmp_path, "--daemon"), capture_output=True, check=False)
        assert second.returncode == 2
        assert second.stderr.startswith(f"matrixd: matrixd is already running here (process {pid}, {tmp_path}): ")
        assert second.stderr.count("\n") == 1
    finally:
        stop_matrixd(str(tmp_path))
    assert "member of cluster web as node 3" in (tmp_path / "matrixd.log").read_text()


@pytest.mark.parametrize("daemon", [(), ("--daemon",)])
@pytest.mark.parametrize(
    ("name", "code", "line"),
    [("taken", 2, "node taken is already running on 10.0.0.9"), ("fenced", 6, "evicted by n1")],
)
def test_what_ends_the_node_is_one_line_and_its_code(
    tmp_path: Path, store: Path, name: str, code: int, line: str, daemon: tuple[str, ...]
) -> None:
    if (name, daemon) == ("fenced", ("--daemon",)):
        code, line = 0, ""  # it was a member: what came later stands in the log
    done = subprocess.run(**command(store, tmp_path, *daemon, name=name), capture_output=True, check=False)
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert done.stderr.count(line or "matrixd") == bool(line)
    if name == "taken":
        lock_state(str(tmp_path)).release()  # nothing of it lives on
    assert done.stderr.splitlines()[-1:] == ([f"matrixd: {line}"] if line else [])


def test_a_bug_is_told_with_where_to_look(tmp_path: Path, store: Path) -> None:
    done = subprocess.run(**command(store, tmp_path, "--daemon", name="buggy"), capture_output=True, check=False)
    assert done.returncode == 1
    assert done.stderr == f"matrixd: matrixd ended before it was a member: see {tmp_path}/matrixd.log\n"
    assert "ZeroDivisionError" in (tmp_path / "matrixd.log").read_text()


def test_sigterm_while_joining_gives_up(tmp_path: Path, store: Path) -> None:
    what = command(store, tmp_path, name="slow")
    with subprocess.Popen(**what, stderr=subprocess.PIPE) as process:
        wait_log(process, "cluster web on")
        while not (tmp_path / "matrixd.sock").exists():
            os.sched_yield()
        assert ask(str(tmp_path), {"kind": "status"})["state"] == "joining"
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0


def spoiled(kind: str, tmp_path: Path, store: Path) -> Path:
    if kind == "directory":
        return tmp_path
    if kind == "tiny":
        store.write_bytes(b"x" * 8192)
    elif kind == "foreign":
        store.write_bytes(b"x" * store.stat().st_size)
    elif kind == "corrupt":
        data = bytearray(store.read_bytes())
        data[100] ^= 1
        store.write_bytes(data)
    elif kind == "future":
        from unittest.mock import patch

        with patch.object(Label, "VERSION", Label.VERSION + 1):
            image = Label(owner=b"u" * 16).encode()
        store.write_bytes(image + store.read_bytes()[BLOCK_BYTES:])
    return store


@pytest.mark.parametrize(
    ("kind", "code", "words"),
    [
        ("directory", 2, "is a directory"),
        ("tiny", 2, "too small"),
        ("foreign", 2, "no MatrixFS cluster disk (make one with mkfs.matrixfs)"),
        ("corrupt", 5, "label in block 0: bad checksum"),
        ("future", 2, "upgrade this node"),
    ],
)
def test_bad_stores(tmp_path: Path, store: Path, kind: str, code: int, words: str) -> None:
    path = spoiled(kind, tmp_path, store)
    before = store.read_bytes()
    done = subprocess.run(
        **command(path, tmp_path / "state", "--log-level", "error", "--daemon"), capture_output=True, check=False
    )
    assert done.returncode == code
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert store.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--store", "/none", "--address", "127.0.0.1"), "/none: no such store (make one with mkfs.matrixfs)"),
        (("--store", "/dev", "--address", "nowhere"), "is no IP address"),
        (("--store", "/dev", "--address", "127.0.0.1:x"), "is no IP address"),
        (("--store", "/dev", "--address", "127.0.0.1:70000"), "port 70000 is over 65535"),
        (("--store", "/dev", "--address", "0.0.0.0"), "other nodes can't connect to that"),
        (("--store", "/dev", "--address", "127.0.0.1", "--address", "127.0.0.1"), "given twice"),
        (("--store", "/dev", "--address", "127.0.0.1", "--address", "127.0.0.2:7"), "one port, give it with the first"),
        (("--store", "/dev", *(f"--address=127.0.0.{i}" for i in range(1, 6))), "5 addresses, at most 4"),
        (("--store", "/dev", "--address", "127.0.0.1", "--name", "a b"), "node name 'a b'"),
        (("--store", "/dev", "--address", "127.0.0.1", "--name", "n" * 65), "1 to 64 of"),
        (("--store", "/dev", "--address", "127.0.0.1", "--state", "/proc/x"), "can't use the state directory /proc/x"),
    ],
)
def test_bad_options_are_one_line(arguments: tuple[str, ...], words: str) -> None:
    result = CliRunner().invoke(main, arguments, prog_name="matrixd")
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stderr.startswith("matrixd: ")
    assert result.stderr.count("\n") == 1


def test_addresses() -> None:
    assert parse_address("10.0.0.1") == ("10.0.0.1", 0)
    assert parse_address("10.0.0.1:7001") == ("10.0.0.1", 7001)
    assert parse_address("[fd00::1]:7001") == ("fd00::1", 7001)
    assert parse_address("[fd00::1]") == ("fd00::1", 0)
    assert parse_addresses(("10.0.0.1:7001", "10.1.0.1", "[fd00::1]:7001")) == (
        ["10.0.0.1", "10.1.0.1", "fd00::1"], 7001,
    )  # fmt: skip
    with pytest.raises(OperatorError):
        parse_address("")


def test_a_store_that_is_another_clusters_now_is_passed_over(tmp_path: Path, store: Path) -> None:
    """Disks come and go; the credentials of a server that was away name them all the same."""
    other, state = tmp_path / "other", tmp_path / "state"
    label = Label(owner=b"o" * 16, cluster_name="other", data_block=DATA_BLOCK, data_blocks=10)
    with other.open("wb") as file:
        file.write(label.encode())
        file.truncate((DATA_BLOCK + 100) * BLOCK_BYTES)
    what = command(store, state)
    what["args"][3:3] = ["--store", str(other)]
    process = subprocess.Popen(**what, stderr=subprocess.PIPE)
    try:
        wait_log(process, "member of cluster web as node 3")
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
