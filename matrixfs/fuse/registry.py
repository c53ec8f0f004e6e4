"""Which process serves which mount: one small file per mount under /run, by the mount's device number and the process.

umount(8) gives its helper a directory and nothing else, and it doesn't wait for us (ecosystem.md finding 4).  The
directory's device number is in mountinfo, which can be read without asking the mount itself; this file leads from there
to the process that has to finish its last flush.  /run is empty after a reboot, as the mounts are.

The file disappears when the process has flushed everything; one whose process is gone tells of a crash.

The kernel gives a device number to the next mount as soon as the tree is unmounted, while its process still flushes:
for that time both have a file.  So whoever looks for the server of a mount takes the newest, and nobody touches
another process's file.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import re
from dataclasses import asdict, dataclass

from membership.processes import process_start

RUN_DIRECTORY = "/run/matrixfs/mounts"
MOUNTINFO = "/proc/self/mountinfo"
_RECORD_BYTES_MAX = 65536
_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo."""

    device: str  # "major:minor"
    path: str
    fs_type: str
    source: str


@dataclass(frozen=True, slots=True)
class Server:
    """The process behind a mount."""

    pid: int
    start_ticks: int  # with the pid: who it is, also after the pid is used again
    mountpoint: str
    source: str
    error: str = ""  # what went wrong with the last flush


def _unescape(text: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)


def mounts() -> list[Mount]:
    """All mounts of this mount namespace, in the order they were made."""
    found = []
    with open(MOUNTINFO, encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            left, _, right = line.partition(" - ")
            fields, rest = left.split(" "), right.split(" ")
            found.append(Mount(fields[2], _unescape(fields[4]), rest[0], _unescape(rest[1])))
    return found


def mount_at(path: str) -> Mount | None:
    """The topmost mount at exactly this (absolute) path; never touches the path itself."""
    at = [mount for mount in mounts() if mount.path == path]
    return at[-1] if at else None


# ``directory`` below is where the records are; RUN_DIRECTORY when empty.


def _path(device: str, pid: int, directory: str) -> str:
    return os.path.join(directory or RUN_DIRECTORY, f"{device.replace(':', '_')}.{pid}.json")


def _records(device: str, directory: str) -> list[str]:
    """All records of a device number; of every one if it is ``*``."""
    return glob.glob(os.path.join(glob.escape(directory or RUN_DIRECTORY), device.replace(":", "_") + ".*.json"))


def devices_of(pid: int, start: int, *, directory: str = "") -> list[str]:
    """Device numbers of the mounts that this process serves."""
    found = []
    for path in _records("*", directory):
        with contextlib.suppress(OSError):
            server = _read(path)
            if server is not None and (server.pid, server.start_ticks) == (pid, start):
                found.append(os.path.basename(path).partition(".")[0].replace("_", ":"))
    return found


def write(device: str, server: Server, *, directory: str = "") -> None:
    """Record who serves the mount.  Raises OSError."""
    path = _path(device, server.pid, directory)
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    temporary = f"{path}.new"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(asdict(server), file)
    os.replace(temporary, path)


def read(device: str, *, directory: str = "") -> Server | None:
    """Who serves the mount of that device; None when no record, or none that makes sense, is there."""
    found = []
    for path in _records(device, directory):
        with contextlib.suppress(OSError):  # its process has just finished
            server = _read(path)
            if server is not None and not server.error:
                found.append((os.stat(path).st_mtime_ns, server))
    return max(found, key=lambda each: each[0])[1] if found else None


def read_of(device: str, pid: int, *, directory: str = "") -> Server | None:
    """What process ``pid`` has recorded about its mount, also after its end."""
    try:
        return _read(_path(device, pid, directory))
    except OSError:
        return None


def _read(path: str) -> Server | None:
    with open(path, "rb") as file:
        data = file.read(_RECORD_BYTES_MAX)
    try:
        server = Server(**json.loads(data))
    except (ValueError, TypeError):
        return None
    numbers = isinstance(server.pid, int) and isinstance(server.start_ticks, int) and server.pid > 0
    return server if numbers else None


def servers(*, directory: str = "") -> list[Server]:
    """All records that make sense."""
    found = []
    for path in _records("*", directory):
        with contextlib.suppress(OSError):
            server = _read(path)
            if server is not None:
                found.append(server)
    return found


def prune(*, directory: str = "") -> None:
    """Drop the records of processes that are gone; where the tree is mounted still, umount(8) has yet to tell of it."""
    mounted = {mount.path for mount in mounts() if mount.fs_type == "fuse.matrixfs"}
    for path in _records("*", directory):
        with contextlib.suppress(OSError):
            server = _read(path)
            gone = server is None or process_start(server.pid) != server.start_ticks
            if gone and (server is None or server.mountpoint not in mounted):
                os.unlink(path)


def remove(device: str, pid: int, *, directory: str = "") -> None:
    """Drop the record of process ``pid``."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_path(device, pid, directory))
