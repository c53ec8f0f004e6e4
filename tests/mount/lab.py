"""A cluster on one machine: real store file, real daemons, real mounts.  For the demo, the bench and the tests.

Everything is started through the product's own commands, found in the virtual environment of the running
Python and, for mount(8), through its helpers in /sbin.  ``Lab.close`` ends what was started, by pid, whatever state it
is in: stopped, half started, or waiting for a peer that is gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from matrixfs.fuse import connection, registry
from membership.processes import process_start

BIN = Path(sys.executable).parent
COMMAND_SECONDS_MAX = 120
END_SECONDS_MAX = 30
LOG_TAIL = 3000  # characters of a log that an error shows
LOOK_SECONDS = 0.02  # between two looks at a condition that is waited for


class LabError(Exception):
    """A command of the product failed; the text says which, and what it printed."""


@dataclass
class LabNode:
    """One node: a state directory, an address, and a mount point."""

    name: str
    address: str
    state: Path
    mountpoint: Path
    pids: list[int] = field(default_factory=list)

    @property
    def daemon_pid(self) -> int:
        """matrixd's process."""
        return int((self.state / "matrixd.pid").read_text())

    def log_tail(self) -> str:
        """The end of matrixd's log."""
        try:
            return (self.state / "matrixd.log").read_text()[-LOG_TAIL:]
        except OSError:
            return ""

    @property
    def mount_pid(self) -> int:
        """The mount process."""
        mount = registry.mount_at(str(self.mountpoint))
        if mount is None:
            raise LabError(f"{self.mountpoint} is not mounted")
        server = registry.read(mount.device)
        if server is None:
            raise LabError(f"nobody serves {self.mountpoint}")
        return server.pid


class Lab:
    """See the module.

    Args:
        directory: where store, states and mount points are made; on a filesystem that does direct I/O.
        nodes: how many, on 127.0.0.1 and up.
        size: of the store, as mkfs.matrixfs takes it.
        name: of the cluster and its filesystem.
        store: URL of a LUN that is the store; without it a file in the directory is.
    """

    def __init__(
        self, directory: Path, nodes: int = 3, size: str = "2G", name: str = "lab", store: str | None = None
    ) -> None:
        self.directory = directory
        self.name = name
        self.size = ("--size", size) if store is None else ()
        self.store = store or directory / "store"
        self.nodes = [
            LabNode(f"n{i}", f"127.0.0.{i}", directory / f"n{i}", directory / f"mnt{i}") for i in range(1, nodes + 1)
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- commands ---------------------------------------------------------------------------------------------

    def run(
        self, *command: str | Path, check: bool = True, seconds: float = COMMAND_SECONDS_MAX
    ) -> subprocess.CompletedProcess[str]:
        """Run one of the product's commands, or any; its output is in the error when it fails."""
        program = str(command[0])
        if (BIN / program).exists():
            program = str(BIN / program)
        arguments = [program, *map(str, command[1:])]
        done = subprocess.run(arguments, check=False, capture_output=True, text=True, timeout=seconds)
        if check and done.returncode:
            said = (done.stderr or done.stdout).strip()
            raise LabError(f"{' '.join(map(str, command))}: exit {done.returncode}: {said}")
        return done

    def format(self, *options: str) -> None:
        """mkfs.matrixfs."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self.run("mkfs.matrixfs", "-n", self.name, *self.size, *options, self.store)

    def start(self, node: LabNode) -> None:
        """Start a node's matrixd; returns when it is a member."""
        self._run_on(node, *self.matrixd(node))
        node.pids.append(node.daemon_pid)

    def matrixd(self, node: LabNode) -> list[str | Path]:
        """The command line that starts a node's matrixd."""
        return [
            "matrixd", "--daemon", "--store", self.store,
            "--address", node.address, "--name", node.name, "--state", node.state,
        ]  # fmt: skip

    def mount(self, node: LabNode, *options: str) -> None:
        """Mount the tree on a node, with plain mount(8)."""
        node.mountpoint.mkdir(parents=True, exist_ok=True)
        wanted = ",".join((f"state={node.state}", *options))
        self._run_on(node, "mount", "-t", "fuse.matrixfs", self.name, node.mountpoint, "-o", wanted)
        node.pids.append(node.mount_pid)

    def _run_on(self, node: LabNode, *command: str | Path) -> None:
        """As ``run``; the end of matrixd's log is in the error, too."""
        try:
            self.run(*command)
        except LabError as error:
            raise LabError(f"{error}\n{node.log_tail()}") from None

    def umount(self, node: LabNode) -> None:
        """umount(8): returns when the last byte is flushed."""
        self.run("umount", node.mountpoint)

    def stop(self, node: LabNode) -> None:
        """Stop a node's matrixd in good order."""
        pid = node.daemon_pid
        self.run("matrixctl", "--state", node.state, "stop")
        wait_gone([pid])

    def up(self) -> None:
        """Format, start and mount everything."""
        self.format()
        for node in self.nodes:
            self.start(node)
        for node in self.nodes:
            self.mount(node)

    def down(self) -> None:
        """Unmount and stop everything that is up, in good order."""
        for node in self.nodes:
            if registry.mount_at(str(node.mountpoint)) is not None:
                self.umount(node)
        for node in self.nodes:
            if node.state.exists() and _alive(node):
                self.stop(node)

    def status(self, node: LabNode) -> dict[str, Any]:
        """matrixctl status --json."""
        found: dict[str, Any] = json.loads(self.run("matrixctl", "--state", node.state, "status", "--json").stdout)
        return found

    def counters(self, node: LabNode) -> dict[str, Any]:
        """The counters of a node's mount process, as matrixctl status --json shows them."""
        mounts = [mount for mount in self.status(node)["local_mounts"] if mount["mountpoint"] == str(node.mountpoint)]
        if len(mounts) != 1 or mounts[0]["counters"] is None:
            raise LabError(f"{node.name}: the mount process tells no counters: {mounts}")
        found: dict[str, Any] = mounts[0]["counters"]
        return found

    def fsck(self, *options: str) -> subprocess.CompletedProcess[str]:
        """fsck.matrixfs; the exit code is the caller's to judge."""
        return self.run("fsck.matrixfs", *options, self.store, check=False)

    # --- violence ------------------------------------------------------------------------------------------------

    def kill(self, node: LabNode) -> float:
        """SIGKILL matrixd and the mount process at once, as if the machine had died; when, by the monotonic clock."""
        return self.kill_all([node])

    def kill_all(self, nodes: Sequence[LabNode]) -> float:
        """The same to several nodes at one instant."""
        pids = [pid for node in nodes for pid in (node.daemon_pid, node.mount_pid)]
        starts = {pid: process_start(pid) or 0 for pid in pids}
        at = time.monotonic()
        _signal(pids, signal.SIGKILL)
        for pid in pids:
            connection.cut_off(pid, starts[pid])  # a machine that dies takes along what hangs in its kernel
        wait_gone(pids)
        for node in nodes:
            self.detach(node)
        return at

    def pause(self, node: LabNode) -> None:
        """SIGSTOP to both processes: a node that hangs, and may wake up later."""
        _signal([node.daemon_pid, node.mount_pid], signal.SIGSTOP)

    def unpause(self, node: LabNode) -> None:
        """SIGCONT to whatever of the node is still there."""
        for pid in node.pids:
            if self._is_ours(pid):
                _signal([pid], signal.SIGCONT)

    def detach(self, node: LabNode) -> None:
        """Free a mount point whose process is gone."""
        while registry.mount_at(str(node.mountpoint)) is not None:
            subprocess.run(["umount", "-i", "-l", str(node.mountpoint)], check=True, capture_output=True)

    def close(self) -> None:
        """End everything this lab started, and free its mount points; the files stay."""
        for node in self.nodes:
            self.unpause(node)
        with contextlib.suppress(LabError, subprocess.TimeoutExpired):
            self.down()
        self.destroy()

    def destroy(self) -> None:
        """End everything this lab started without asking it."""
        for node in self.nodes:
            _signal([pid for pid in node.pids if self._is_ours(pid)], signal.SIGKILL)
            self.detach(node)

    def remove(self) -> None:
        """Close, and delete the lab's directory."""
        self.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _is_ours(self, pid: int) -> bool:
        """Whether a pid still is a process of this lab: its command line names the lab's directory."""
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return False
        return str(self.directory).encode() in line


def _alive(node: LabNode) -> bool:
    try:
        return process_start(node.daemon_pid) is not None
    except (OSError, ValueError):
        return False


def _signal(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def wait_gone(pids: Sequence[int]) -> None:
    """Wait for processes to end, whoever their parent is.  Raises LabError."""
    for pid in pids:
        wait_until(lambda pid=pid: process_start(pid) is None, f"process {pid} ends")


def wait_until(condition: Callable[[], object], what: str, seconds: float = END_SECONDS_MAX) -> None:
    """Wait until ``condition()`` is true.  Raises LabError after ``seconds``, which are for a broken product."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise LabError(f"waited {seconds:g} s in vain until {what}")
        time.sleep(LOOK_SECONDS)


def is_settled(lab: Lab, via: LabNode, members: Sequence[LabNode]) -> bool:
    """``via`` sees exactly ``members`` with the tree mounted, and nothing left to recover."""
    status = lab.status(via)
    names = {node["id"]: node["name"] for node in status["nodes"]}
    (filesystem,) = status["filesystems"]
    mounted = sorted(names[mount["node"]] for mount in filesystem["mounts"])
    quiet = filesystem["phase"] == "idle" and not filesystem["dead"] and not filesystem["error"]
    return quiet and mounted == sorted(node.name for node in members)


def walk_tree(top: Path) -> Iterator[Path]:
    """Every file, directory and link below ``top``, sorted."""
    for directory, names, files in os.walk(top):
        names.sort()
        for name in sorted(names + files):
            yield Path(directory) / name
