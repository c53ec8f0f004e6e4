"""``umount.fuse.matrixfs``: unmounts, then waits until the mount process has flushed its last byte.

umount(8) doesn't wait for a FUSE process (ecosystem.md finding 4); it runs this helper where it exists.  The process is
found through the mount's device number (``fuse/registry.py``) and waited for by pidfd, so a reused pid can't fool us.
Exit codes as in mount(8): 0 flushed, 1 wrong arguments, 32 not unmounted, or unmounted but not flushed.
"""

from __future__ import annotations

import getopt
import os
import select
import subprocess
import sys
from typing import NoReturn

from matrixfs.fuse import registry
from membership.processes import process_start

USAGE, FAILED = 1, 32
_SYNOPSIS = "usage: umount.fuse.matrixfs DIR [-flnrv] [-N namespace] [-t type]"
_TELL_AFTER_MS = 5000


def _say(line: str) -> None:
    print(f"umount.matrixfs: {line}", file=sys.stderr, flush=True)


def _full_path(directory: str) -> str:
    """The mount point's path without asking the mount itself, which may hang."""
    parent, name = os.path.split(os.path.abspath(directory))
    return os.path.join(os.path.realpath(parent), name)


def _open_server(server: registry.Server) -> int | None:
    """A pidfd of the mount process; None when it is gone (or its pid is another's now)."""
    try:
        pidfd = os.pidfd_open(server.pid)
    except OSError:
        return None
    if process_start(server.pid) == server.start_ticks:  # after the open: the pid can't change hands any more
        return pidfd
    os.close(pidfd)
    return None


def _wait(pidfd: int, server: registry.Server) -> None:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    if not poll.poll(_TELL_AFTER_MS):
        _say(f"unmounted; waiting for process {server.pid} to flush {server.source} (interrupting this won't stop it)")
        poll.poll()


def unmount(directory: str, flags: list[str]) -> int:
    """Unmount ``directory`` and wait for the flush; returns the exit code.

    Args:
        directory: the mount point.
        flags: of umount(8), passed on, for example ``-l`` (which doesn't wait).
    """
    path = _full_path(directory)
    mount = registry.mount_at(path)
    server = registry.read(mount.device) if mount is not None and mount.fs_type == "fuse.matrixfs" else None
    pidfd = _open_server(server) if server is not None else None
    code = subprocess.run(["umount", "-i", *flags, path], check=False).returncode
    if code or mount is None or "-l" in flags:
        return code
    if any(other.device == mount.device for other in registry.mounts()):
        return 0  # a bind mount of the same tree is left: it goes on
    if server is None:
        _say("unmounted; who flushes it is not known, so not waited for")
        return 0
    if pidfd is not None:
        _wait(pidfd, server)
        os.close(pidfd)
    return _verdict(mount.device, server)


def _verdict(device: str, server: registry.Server) -> int:
    left = registry.read_of(device, server.pid)
    if left is None:
        return 0
    registry.remove(device, server.pid)
    if left.error:
        _say(f"unmounted, but the last flush failed: {left.error}")
    else:
        _say(f"unmounted, but process {server.pid} died before its last flush: what was fsynced is safe, see its log")
    return FAILED


def main(arguments: list[str] | None = None) -> NoReturn:
    """The command."""
    try:
        pairs, words = getopt.gnu_getopt(sys.argv[1:] if arguments is None else arguments, "flnrvhN:t:")
    except getopt.GetoptError as error:
        _say(f"{error} ({_SYNOPSIS})")
        sys.exit(USAGE)
    if len(words) != 1 or ("-h", "") in pairs:
        print(_SYNOPSIS, file=sys.stderr)
        sys.exit(0 if ("-h", "") in pairs else USAGE)
    passed = [word for flag, value in pairs if flag != "-t" for word in (flag, value) if word]
    try:
        sys.exit(unmount(words[0], passed))
    except KeyboardInterrupt:
        _say("interrupted: unmounted, the flush goes on")
        sys.exit(8)


if __name__ == "__main__":
    main()
