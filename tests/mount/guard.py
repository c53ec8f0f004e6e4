"""Ends a lab's processes when its tests hang or die: a process beside pytest, which may be stuck in the mount itself.

A call that waits in a FUSE mount can't be interrupted by a test's timeout; when the mount process dies, it fails with
ENOTCONN.  So this process reads lines from its standard input, each a number of seconds until the next line must come.
When none comes in time, and when the input ends, it sends SIGKILL to every process whose command line names the
directory, and frees the mount points below it.  A control group whose name begins with the directory's is thawed first
(the frozen take no SIGKILL under cgroup v1) and removed.

Run as ``guard.py DIRECTORY [keep]``; the directory's name must be one that only this run of the tests uses.  It is
deleted at the end, unless it is to be kept.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

RUNS = Path("/var/tmp")  # on a disk, unlike many a /tmp: the stores are used with direct I/O
OF_A_RUN = re.compile(r"mfs-[a-z-]+-(\d+)(-[a-z0-9-]+)?")
BEGIN_SECONDS = 120.0
CGROUPS = ("/sys/fs/cgroup/freezer", "/sys/fs/cgroup/unified", "/sys/fs/cgroup")
THAWED = (("freezer.state", "THAWED"), ("cgroup.freeze", "0"))
EMPTY_SECONDS_MAX = 5.0


def frozen(directory: str) -> list[Path]:
    """Control groups of the tests in this directory (``tests/net/freezer.py``)."""
    return [group for root in CGROUPS for group in Path(root).glob(f"{os.path.basename(directory)}.*")]


def remove(group: Path) -> None:
    """Remove a control group as soon as its processes are gone."""
    deadline = time.monotonic() + EMPTY_SECONDS_MAX
    while group.exists() and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            group.rmdir()
            return
        time.sleep(0.02)


def clean(directory: str) -> None:
    """Thaw, kill, detach, and delete."""
    named = re.compile(re.escape(directory.encode()) + rb"(?![\w-])")  # not the run of a process whose number goes on
    for group in frozen(directory):
        for name, word in THAWED:
            if (group / name).exists():
                (group / name).write_text(word)
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if named.search((entry / "cmdline").read_bytes()):
                os.kill(int(entry.name), signal.SIGKILL)
        except OSError:
            continue  # it ended meanwhile
    for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
        path = line.split(" ")[4]
        if path == directory or path.startswith(f"{directory}/"):
            for how in ("-f", "-l"):  # -f aborts the connection, which frees whoever waits in it; -l detaches
                subprocess.run(["umount", "-i", how, path], check=False, capture_output=True)
    for group in frozen(directory):
        remove(group)


def sweep() -> None:
    """Clean up after runs whose guards were killed with them, as when a machine ends all that a session started."""
    for path in RUNS.iterdir():
        match = OF_A_RUN.fullmatch(path.name)
        if match and not Path("/proc", match[1]).exists():
            clean(str(path))
            shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def guarded(directory: Path, *, keep: bool = False) -> Iterator[TextIO]:
    """With a guard for the directory; the value is its ear."""
    command = [sys.executable, __file__, str(directory), *(["keep"] if keep else [])]
    guard = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, start_new_session=True)
    assert guard.stdin is not None
    try:
        yield guard.stdin
    finally:
        guard.stdin.close()
        guard.wait()


@contextlib.contextmanager
def guarded_run(name: str) -> Iterator[tuple[Path, TextIO]]:
    """A directory of this run, with its guard's ear."""
    path = RUNS / f"mfs-{name}-{os.getpid()}"
    path.mkdir()
    with guarded(path) as ear:
        yield path, ear


@contextlib.contextmanager
def watched_for(seconds: float, ear: TextIO) -> Iterator[None]:
    """Whoever hangs longer within loses his cluster."""
    print(seconds, file=ear, flush=True)
    yield
    print(10 * seconds, file=ear, flush=True)


def main(directory: str, *, keep: bool) -> None:
    """Watch until the input ends."""
    seconds = BEGIN_SECONDS
    while True:
        ready, _, _ = select.select([0], [], [], seconds)
        if not ready:
            print(f"guard: nothing heard for {seconds:g} s, ending all of {directory}", file=sys.stderr, flush=True)
            clean(directory)
            seconds = BEGIN_SECONDS
            continue
        data = os.read(0, 4096)
        if not data:
            break
        seconds = float(data.split()[-1])
    clean(directory)
    if not keep:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for pytest; we clean up after it
    main(sys.argv[1], keep=sys.argv[2:] == ["keep"])
