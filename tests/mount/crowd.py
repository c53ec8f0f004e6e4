"""Processes beside a test, one function each, for what must happen on several nodes at once."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, Self

KILL_SECONDS = 5
DONE_SECONDS = 50  # for a broken product, not a bound under test: a deadlock shows as this


_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """It holds the guard's ear open, too."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Crowd:
    """Forked processes; ``wait`` joins them all, and kills them when they hang.

    A process that hangs in a FUSE mount can be killed: the kernel lets a fatal signal through.
    """

    def __init__(self, seconds: float = DONE_SECONDS) -> None:
        self._children: dict[int, str] = {}
        self._seconds = seconds

    def start(self, function: Callable[..., Any], *arguments: Any) -> int:
        """Run ``function(*arguments)`` in a child; an exception there fails ``wait``."""
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                die_with_parent()
                function(*arguments)
                code = 0
            except BaseException:  # noqa: BLE001 - a child must not run the parent's handlers
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        self._children[pid] = f"{function.__name__}{arguments!r}"[:200]
        return pid

    def wait(self, *, may_fail: bool = False) -> None:
        """Join all.  Raises AssertionError for those that failed or hung."""
        failed = []
        deadline = time.monotonic() + self._seconds
        while self._children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid in self._children:
                name = self._children.pop(pid)
                if status and not may_fail:
                    failed.append(f"{name}: exit {os.waitstatus_to_exitcode(status)}")
            elif time.monotonic() > deadline:
                failed += [f"{name} hangs" for name in self._children.values()]
                self.kill()
            else:
                time.sleep(0.005)
        assert not failed, failed

    def kill(self) -> None:
        """End them all; one that a mount holds in the kernel is left to the guard."""
        for pid in self._children:
            os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + KILL_SECONDS
        while self._children and time.monotonic() < deadline:
            pid, _ = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                time.sleep(0.005)
            self._children.pop(pid, None)
        self._children.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def together(*jobs: tuple[Any, ...], seconds: float = DONE_SECONDS) -> None:
    """Run each (function, argument...) in a process of its own and wait for all."""
    with Crowd(seconds) as crowd:
        for function, *arguments in jobs:
            crowd.start(function, *arguments)
        crowd.wait()
