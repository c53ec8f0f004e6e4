"""Aborting a FUSE connection: every request that waits for an answer fails with ENOTCONN, at once.

A mount process normally ends its connection by exiting.  But a thread of it may sit in the kernel, in an invalidation
that waits for a lock of an application which in turn waits for the process's answer (coherence.md, "Measured"): after
SIGKILL neither ends, and the process is neither alive nor gone.  Seen: zombie leader, one thread in
fuse_reverse_inval_entry.  The control filesystem of FUSE gets both out of it.
"""

from __future__ import annotations

import logging
import os
import subprocess

from matrixfs.fuse import registry
from membership.processes import is_dying, process_start

log = logging.getLogger(__name__)

CONTROL = "/sys/fs/fuse/connections"


def abort(device: str) -> None:
    """Abort the connection behind a mount's device number ("major:minor").

    Raises:
        OSError: the control filesystem is not to be had, or there is no such connection (any more).
    """
    path = os.path.join(CONTROL, device.partition(":")[2], "abort")
    if not os.path.exists(path) and not os.listdir(CONTROL):  # not mounted yet: distributions differ
        subprocess.run(["mount", "-t", "fusectl", "fusectl", CONTROL], check=False, capture_output=True)
    with open(path, "w") as file:
        file.write("1")


def cut_off(pid: int, start: int, *, directory: str = "") -> None:
    """Abort what a process that was killed, or has fenced itself, still serves.

    Args:
        pid: the process.
        start: when it started, clock ticks since boot.  A process that is quite gone is left alone: its device
            numbers may be others' by now.
        directory: of the registry.
    """
    for device in registry.devices_of(pid, start, directory=directory):
        if process_start(pid) != start:
            return
        try:
            abort(device)
        except OSError as error:
            log.debug("connection %s of process %d: %s", device, pid, error)


def cut_off_dying(*, directory: str = "") -> None:
    """Abort what dead processes still serve that hang in the kernel: where nobody was left to do it when they died."""
    for server in registry.servers(directory=directory):
        if is_dying(server.pid, server.start_ticks):
            cut_off(server.pid, server.start_ticks, directory=directory)
