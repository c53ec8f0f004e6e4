"""Runs cases in a process of their own, which becomes other users and dies with its parent; brings back the traces."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from tests.mount.crowd import die_with_parent
from tests.posix.cases import Case
from tests.posix.steps import Steps, tree

Trace = list[object]


def run(
    cases: Sequence[Case], roots: Sequence[Path], *, first_mount: int = 0, across: bool = True, everywhere: bool = True
) -> list[Trace]:
    """The traces of the cases, each in a new directory below ``roots``, which show the same tree.

    A trace has a result for each step, and at the end what other mounts show of the directory: that is looked at when
    all cases are done, as looking at once would have the locks of every case travel, most of the time for nothing.

    Args:
        cases: what to do.
        roots: one directory as each mount shows it.
        first_mount: where the first third of the cases makes its changes; then follows the next.
        across: see ``Steps``.
        everywhere: look at the end on all mounts, and not just on one other.
    """
    read_end, write_end = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(read_end)
            die_with_parent()
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            with os.fdopen(write_end, "wb") as pipe:
                pickle.dump(_run_all(cases, roots, first_mount, across, everywhere), pipe)
            code = 0
        except BaseException:  # noqa: BLE001 - a child must not run the parent's handlers
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        data = pipe.read()
    _, status = os.waitpid(pid, 0)
    assert status == 0, f"the cases' process ended with {os.waitstatus_to_exitcode(status)}"
    traces: list[Trace] = pickle.loads(data)
    return traces


def _run_all(
    cases: Sequence[Case], roots: Sequence[Path], first_mount: int, across: bool, everywhere: bool
) -> list[Trace]:
    traces: list[Trace] = []
    for number in range(len(cases)):  # by one mount: else all would wait for one another's turns at that directory
        os.mkdir(roots[first_mount] / f"{number:05}")
        os.chmod(roots[first_mount] / f"{number:05}", 0o777)
    for number, case in enumerate(cases):
        mount = _mount_of(number, cases, roots, first_mount)
        opened = [os.open(root / f"{number:05}", os.O_RDONLY | os.O_DIRECTORY) for root in roots]
        try:
            os.fchdir(opened[mount])
            traces.append(Steps(opened, mount, across=across).run(case))
        except Exception as error:
            raise RuntimeError(f"{case}") from error
        finally:
            os.chdir("/")
            for each in opened:
                os.close(each)
    for look in range(len(roots)):
        for number, trace in enumerate(traces):
            if everywhere or look == (_mount_of(number, cases, roots, first_mount) + 1) % len(roots):
                os.chdir(roots[look] / f"{number:05}")
                trace.append(tree("."))
    os.chdir("/")
    return traces


def _mount_of(number: int, cases: Sequence[Case], roots: Sequence[Path], first_mount: int) -> int:
    return (first_mount + number * len(roots) // len(cases)) % len(roots)


def differing(cases: Sequence[Case], wanted: Sequence[Trace], got: Sequence[Trace]) -> list[tuple[Case, list[str]]]:
    """The cases whose traces differ, each with what is different, in words."""
    found = []
    for case, one, other in zip(cases, wanted, got, strict=True):
        wrong = []
        for at, (left, right) in enumerate(zip(one, other, strict=True)):
            if left != right:
                step = str(case.steps[at])[:200] if at < len(case.steps) else "what is left"
                wrong.append(f"{step}: {_shorter(left, right)}")
        if wrong:
            found.append((case, wrong))
    return found


def _shorter(wanted: object, got: object) -> str:
    if isinstance(wanted, dict) and isinstance(got, dict):
        keys = sorted(key for key in wanted | got if wanted.get(key) != got.get(key))
        return ", ".join(f"{key}: {_shorter(wanted.get(key), got.get(key))}" for key in keys)
    return f"{wanted!r} there, {got!r} here"
