"""Which process a pid means: an edge to /proc (R1).

A pid alone is a name that is used again; with its start time it is one process for ever.
"""

from __future__ import annotations

import os

from membership.mount_watch import Activity


def process_start(pid: int) -> int | None:
    """Start time of a process, clock ticks since boot; None when there is no such process or it is a zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            data = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = data[data.rindex(b")") + 2 :].split()  # the name may contain spaces and parentheses
    return None if fields[0] in (b"Z", b"X") and len(_threads(pid)) <= 1 else int(fields[19])


def _threads(pid: int) -> list[str]:
    try:
        return os.listdir(f"/proc/{pid}/task")
    except (FileNotFoundError, ProcessLookupError):
        return []


def is_dying(pid: int, start_time: int) -> bool:
    """Whether that process is dead but for threads that hang in the kernel."""
    if process_start(pid) != start_time:
        return False
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b") ")[2][:1] in (b"Z", b"X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def activity(pid: int) -> Activity | None:
    """State and CPU time of a process, None when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b") ")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return Activity(fields[0].decode(), int(fields[11]) + int(fields[12]))


def open_process(pid: int, start_time: int) -> int | None:
    """A pidfd of exactly that process, or None when it is gone.  Raises OSError otherwise."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    if process_start(pid) != start_time:  # compared while the pidfd pins the pid
        os.close(fd)
        return None
    return fd
