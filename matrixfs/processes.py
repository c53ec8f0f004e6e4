"""Which processes of this machine have a file of the tree open, and what they are doing: an edge to /proc (R1, R14).

Never touches the tree itself, which may be what hangs: /proc/PID/fdinfo tells the inode and the mount of a descriptor.
"""

from __future__ import annotations

import os
from typing import Any

PROCESSES_MAX = 20  # shown of one file
DESCRIPTORS_MAX = 100_000  # looked at; the last step of a question must end


def name_of(pid: int) -> str:
    """Command name of a process, "" when there is none."""
    return _read(f"/proc/{pid}/comm").strip()


def child_of(pid: int) -> int:
    """The oldest child of a process without threads, 0 when it has none (or the kernel does not tell)."""
    children = _read(f"/proc/{pid}/task/{pid}/children").split()
    return int(children[0]) if children else 0


def users_of(ino: int, device: str) -> list[dict[str, Any]]:
    """Processes with an open descriptor on the inode: pid, command, state, doing.  Blocks: call it in a thread.

    Args:
        ino: inode number as stat(2) shows it on this machine.
        device: of the mount, "major:minor".
    """
    mounts: dict[str, set[str]] = {}  # of each mount namespace: ids of the mounts of this device
    found: list[dict[str, Any]] = []
    left = DESCRIPTORS_MAX
    for pid in _numbers("/proc"):
        descriptors = _numbers(f"/proc/{pid}/fdinfo")
        left -= len(descriptors)
        if left < 0 or len(found) >= PROCESSES_MAX:
            break
        if any(_is_on(f"/proc/{pid}/fdinfo/{fd}", ino, pid, device, mounts) for fd in descriptors):
            found.append({"pid": pid, "command": name_of(pid), "doing": _doing(pid)})
    return found


def _is_on(path: str, ino: int, pid: int, device: str, mounts: dict[str, set[str]]) -> bool:
    fields = dict(line.partition(":\t")[::2] for line in _read(path).splitlines())
    return fields.get("ino", "").strip() == str(ino) and fields.get("mnt_id", "").strip() in _mount_ids(
        pid, device, mounts
    )


def _mount_ids(pid: int, device: str, mounts: dict[str, set[str]]) -> set[str]:
    try:
        namespace = os.readlink(f"/proc/{pid}/ns/mnt")
    except OSError:
        return set()
    if namespace not in mounts:
        lines = [line.split(" ", 4) for line in _read(f"/proc/{pid}/mountinfo").splitlines()]
        mounts[namespace] = {fields[0] for fields in lines if len(fields) > 3 and fields[2] == device}
    return mounts[namespace]


def _doing(pid: int) -> str:
    where = _read(f"/proc/{pid}/wchan").strip("0\n")
    states = {"R": "running", "S": "sleeping", "D": "waiting in the kernel", "T": "stopped", "Z": "dead"}
    state = states.get(_read(f"/proc/{pid}/stat").rpartition(") ")[2][:1], "gone")
    return f"{state} in {where}" if where else state


def _numbers(directory: str) -> list[int]:
    try:
        return [int(name) for name in os.listdir(directory) if name.isdigit()]
    except OSError:
        return []


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(1 << 20)
    except OSError:  # it has just ended
        return ""
