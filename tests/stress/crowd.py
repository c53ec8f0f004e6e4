"""A machine with too much to do: whoever waits for an answer of the filesystem takes it in late.

Replies that are in flight while a lock is given up are where the kernel's caches go wrong, and on a calm machine they
are in flight for microseconds.  So the workers run beside busy processes, and come last.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

BUSY_PER_CPU = 2


def _spin() -> None:
    while os.getppid() != 1:  # not for ever, if the test is killed
        sum(range(100_000))
    os._exit(0)


@contextlib.contextmanager
def busy() -> Iterator[None]:
    """With so many busy processes."""
    pids = []
    try:
        for _ in range(BUSY_PER_CPU * len(os.sched_getaffinity(0))):
            pid = os.fork()
            if not pid:
                _spin()
            pids.append(pid)
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def come_last() -> None:
    """This process gets a hundredth of what a busy one gets."""
    os.nice(19)
