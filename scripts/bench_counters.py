"""What the bench reads from a mount besides the clock: calls from the kernel, messages between nodes, store I/O.

The numbers are those of ``matrixctl status --json``, asked over the same socket; ``Counters`` is their sum over all
mounts of a run, so a message counts once, at its sender.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from matrixfs.cli.common import STATE_DIR_DEFAULT, STATE_DIR_VARIABLE
from matrixfs.fuse import registry
from membership.control_ask import ask


class BenchError(Exception):
    """The bench can't run, or what it read was wrong; the text is one line for the person who started it."""


@dataclass(frozen=True, slots=True)
class Counters:
    """Sums since the mounts began; their differences are what an operation cost."""

    upcalls: int  # requests that the kernel sent to a mount process
    messages: int  # sent to other mount processes
    round_trips: int  # lock requests that waited for an answer from another node
    local_grants: int  # lock requests that this node arbitrated itself: no message
    store_reads: int
    store_writes: int

    def __sub__(self, other: Counters) -> Counters:
        return Counters(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(self)))

    def __add__(self, other: Counters) -> Counters:
        return Counters(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def per(self, operations: int) -> dict[str, float]:
        """Each counter divided by ``operations``."""
        return {f.name: round(getattr(self, f.name) / operations, 3) for f in fields(self)}


ZERO = Counters(0, 0, 0, 0, 0, 0)


class Mounted:
    """One mount point and the matrixd that knows its counters.

    Raises BenchError when it is no MatrixFS mount of this machine.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        mount = registry.mount_at(str(path))
        if mount is None or mount.fs_type != "fuse.matrixfs":
            raise BenchError(f"{path} is no mount point of MatrixFS: mount it first, or give no directory")
        server = registry.read(mount.device)
        if server is None:
            raise BenchError(f"{path}: no process of this machine serves it")
        self.source = mount.source
        self._state = _state_of(server.pid)

    def counters(self) -> Counters:
        """See the class ``Counters``."""
        return _counters_of(self._find(ask(self._state, {"kind": "status"})))

    def _find(self, status: dict[str, Any]) -> dict[str, Any]:
        for mount in status["local_mounts"]:
            if mount["mountpoint"] == str(self.path):
                found: dict[str, Any] = mount["counters"]
                return found
        raise BenchError(f"the matrixd of {self._state} does not know {self.path}")


def _state_of(pid: int) -> str:
    """The state directory a mount process was given: mount(8)'s ``-o state=DIR``, else the default."""
    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    for word in words:
        for option in word.split(b","):
            if option.startswith(b"state="):
                return os.fsdecode(option.removeprefix(b"state="))
    return os.environ.get(STATE_DIR_VARIABLE) or STATE_DIR_DEFAULT


def _counters_of(found: dict[str, Any]) -> Counters:
    store, locks = found["store"], found["dlm"]
    return Counters(
        upcalls=sum(found["fuse"]["calls"].values()),
        messages=found["links"]["messages_sent"],
        round_trips=locks.get("round_trips", 0),
        local_grants=locks.get("local_grants", 0),
        store_reads=store["reads"],
        store_writes=store["writes"],
    )


def total(mounts: Sequence[Mounted]) -> Counters:
    """The sum over all mounts."""
    return sum((mount.counters() for mount in mounts), ZERO)
