"""Three ways to freeze the processes of a node: SIGSTOP, and the freezers of cgroups v1 and v2.

They differ in what still works: a process that is stopped, or frozen by v2, can be killed; one that is frozen by v1
takes no SIGKILL until it is thawed.  So who cleans up thaws first (``tests/mount/guard.py`` does, too: it knows a group
by its name, which begins with that of the tests' directory).
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Sequence
from pathlib import Path

from matrixfs.fuse import registry
from tests.mount.lab import wait_until


def _root(kind: str) -> Path | None:
    """Where groups of this kind are made; None where the machine has none."""
    wanted = {"v1": "cgroup", "v2": "cgroup2"}[kind]
    for mount in registry.mounts():
        path = Path(mount.path)
        if mount.fs_type == wanted and (kind == "v2" or path.name == "freezer"):
            return path
    return None


KINDS = ("stop", *(kind for kind in ("v1", "v2") if _root(kind) is not None))


class Freezer:
    """Freezes processes, once.

    Args:
        kind: one of ``KINDS``.
        name: of the group; it begins with the name of the directory that the guard watches, and a dot.
        pids: of the processes.
    """

    def __init__(self, kind: str, name: str, pids: Sequence[int]) -> None:
        self._kind = kind
        self._pids = list(pids)
        root = _root(kind) if kind != "stop" else None
        self._root = root or Path()
        self._group = self._root / name

    def freeze(self) -> None:
        """Returns when all are frozen."""
        if self._kind == "stop":
            self._signal(signal.SIGSTOP)
            return
        self._group.mkdir()
        for pid in self._pids:
            (self._group / "cgroup.procs").write_text(f"{pid}")
        self._write(frozen=True)
        wait_until(self._is_frozen, f"{self._group} is frozen")

    def thaw(self) -> None:
        """Let them go on, and remove the group.  Idempotent."""
        if self._kind == "stop":
            self._signal(signal.SIGCONT)
        elif self._group.exists():
            self._write(frozen=False)
            for pid in (self._group / "cgroup.procs").read_text().split():
                with contextlib.suppress(OSError):  # it ended
                    (self._root / "cgroup.procs").write_text(pid)
            wait_until(self._remove, f"{self._group} is empty")

    def _signal(self, number: signal.Signals) -> None:
        for pid in self._pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _write(self, *, frozen: bool) -> None:
        if self._kind == "v1":
            (self._group / "freezer.state").write_text("FROZEN" if frozen else "THAWED")
        else:
            (self._group / "cgroup.freeze").write_text("1" if frozen else "0")

    def _is_frozen(self) -> bool:
        if self._kind == "v1":
            return (self._group / "freezer.state").read_text() == "FROZEN\n"
        return "frozen 1" in (self._group / "cgroup.events").read_text()

    def _remove(self) -> bool:
        try:
            self._group.rmdir()
        except OSError:
            return False  # a process is on its way out
        return True
