"""Run a command for as long as a lock is held: for ``matrixctl lock`` and ``matrixctl disk lock``.

The connection to matrixd is the lock's lease of life: whatever ends this process, the lock is free, and the command
gets SIGTERM; when the lock is lost, the connection ends and the command is stopped: SIGTERM, after a while SIGKILL.

======== =============================================================================
exit     meaning
======== =============================================================================
126, 127 it can't be run; it does not exist
128 + N  it died by signal N
======== =============================================================================
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import click

from matrixfs.cli.common import printable
from membership.errors import OperatorError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from membership.control_ask import Held

NOT_RUNNABLE, NOT_FOUND = 126, 127
_FORWARDED: Final = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_FROM_TERMINAL: Final = (signal.SIGINT, signal.SIGQUIT)
_PR_SET_PDEATHSIG: Final = 1


def checked_command(command: tuple[str, ...], usage: str) -> tuple[str, ...]:
    """What comes after the --.  Raises OperatorError: nothing does."""
    command = command[1:] if command[0] == "--" else command
    if not command:
        raise OperatorError(f"no command after --: {usage}")
    return command


@dataclass(frozen=True, slots=True)
class Loss:
    """What is done when the lock ends before the command."""

    text: str  # what people are told
    exit_code: int
    grace: float  # seconds between SIGTERM and SIGKILL
    grace_unsaid: float  # the same, when the connection just ended: matrixd may be dead
    is_inherited: bool = False  # who kills matrixctl does not end the lock, but the command and what it started do


def run_under(command: tuple[str, ...], held: Held, loss: Loss) -> int:
    """Run a command while a lock is held.

    Args:
        command: it, and its arguments.
        held: the lock's connection to matrixd.
        loss: for when it ends first.

    Returns:
        The exit code: the command's own, or one of the table.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)  # none may come between the command and its handler
    try:
        kept = (held.fileno(),) if loss.is_inherited else ()
        process = subprocess.Popen(command, preexec_fn=_at_birth(os.getpid(), mask), pass_fds=kept)  # noqa: PLW1509 - one thread
        old = {number: signal.signal(number, _forward(process)) for number in _FORWARDED}
    except OSError as error:
        click.echo(f"matrixctl: {printable(command[0])}: {error.strerror}", err=True)
        return NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_RUNNABLE
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    try:
        return _watch(process, held, loss)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _watch(process: subprocess.Popen[bytes], held: Held, loss: Loss) -> int:
    pidfd = os.pidfd_open(process.pid)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.register(held, select.POLLIN)
        ready = {fd for fd, _ in poll.poll()}
        if pidfd not in ready:
            process.terminate()  # before anything else: the others may act soon
            why = held.why_ended()
            said = f"{loss.text} ({printable(why)})" if why else loss.text
            click.echo(f"matrixctl: {said}: ending the command", err=True)
            _end(process, pidfd, loss.grace if why else loss.grace_unsaid)
            return loss.exit_code
    finally:
        os.close(pidfd)
    code = process.wait()
    return code if code >= 0 else 128 - code


def _end(process: subprocess.Popen[bytes], pidfd: int, grace: float) -> None:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    deadline = time.monotonic() + grace
    while not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        if time.monotonic() >= deadline:
            process.kill()
            break
    process.wait()


def _forward(process: subprocess.Popen[bytes]) -> Callable[[int, object], None]:
    def forward(number: int, _frame: object) -> None:
        if number in _FROM_TERMINAL and _in_foreground():
            return  # the terminal sent it to the command too
        process.send_signal(number)

    return forward


def _in_foreground() -> bool:
    try:
        return os.tcgetpgrp(0) == os.getpgrp()
    except OSError:
        return False


def _at_birth(parent: int, mask: Iterable[int]) -> Callable[[], None]:
    """For the child: SIGTERM when this process dies, for the lock is free then; and signals as they were before."""
    import ctypes

    prctl = ctypes.CDLL(None).prctl

    def arm() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    return arm
