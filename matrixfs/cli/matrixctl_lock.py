"""``matrixctl lock NAME -- COMMAND``: run a command under a lock of the whole cluster (004-33, 002-24).

The connection to matrixd is the lock's lease of life: whatever ends this process, the lock is free; and when the lock
is lost (the mount withdrew, matrixd ended), the connection ends and the command is stopped.

======== =============================================================================
exit     meaning
======== =============================================================================
0 - 123  the command's own; 2 and 3 also before it ran: nothing mounted, no matrixd
124      not locked within --wait, or --try and somebody holds it: it did not run
125      the lock was lost while it ran: it got SIGTERM, then SIGKILL
126, 127 it can't be run; it does not exist
128 + N  it died by signal N
======== =============================================================================
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import time
from typing import TYPE_CHECKING, Final

import click

from matrixfs.cli.common import MatrixCommand, Seconds, own_state_option, printable
from matrixfs.lock_names import BUSY
from membership.errors import MatrixError, OperatorError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

LOST: Final = 125
NOT_RUNNABLE, NOT_FOUND = 126, 127
WAIT_MAX: Final = 1e7  # seconds
GRACE_SECONDS: Final = 10.0  # between SIGTERM and SIGKILL
_FORWARDED: Final = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_FROM_TERMINAL: Final = (signal.SIGINT, signal.SIGQUIT)
_PR_SET_PDEATHSIG: Final = 1


@click.command(cls=MatrixCommand, context_settings={"allow_interspersed_args": False})
@click.option("--shared", is_flag=True, help="Others may hold it shared too.  [default: alone]")
@click.option("--wait", type=Seconds(0, WAIT_MAX), metavar="SECONDS", help="Give up after that.  [default: never]")
@click.option("--try", "try_", is_flag=True, help="Don't wait: the same as --wait 0.")
@click.option("--fs", "filesystem", default="", metavar="NAME", help="Filesystem that keeps the lock, of several.")
@own_state_option
@click.argument("name")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_context
def lock(
    context: click.Context,
    name: str,
    command: tuple[str, ...],
    shared: bool,
    wait: float | None,
    try_: bool,
    filesystem: str,
    state: str,
) -> None:
    """Run COMMAND under the cluster-wide lock NAME (any bytes; it touches no file).

    The lock is free when the command ends, when matrixctl dies (the command then gets SIGTERM), when the tree is
    unmounted and when the node dies.  Put -- before COMMAND.  Exit codes: the command's own; 124: not locked in time;
    125: lost while it ran; 126, 127: can't be run, not found.
    """
    from membership.control_ask import hold

    command = command[1:] if command[0] == "--" else command
    if not command:
        raise OperatorError("no command after --: matrixctl lock NAME -- COMMAND...")
    if try_ and wait:
        raise OperatorError("--try and --wait exclude each other")
    message = {
        "kind": "lock", "filesystem": filesystem, "name": os.fsencode(name), "exclusive": not shared,
        "wait": not (try_ or wait == 0), "pid": os.getpid(),
    }  # fmt: skip
    try:
        with hold(state, message, wait or None) as connection:
            context.exit(_run(command, connection, name))
    except TimeoutError:
        failure = MatrixError(f"{name} was not free within {wait:g} s: see matrixctl locks {name}")
        failure.exit_code = BUSY
        raise failure from None


def _run(command: tuple[str, ...], connection: socket.socket, name: str) -> int:
    """Run the command while ``connection`` lasts; its exit code, or ``LOST``."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)  # none may come between the command and its handler
    try:
        process = subprocess.Popen(command, preexec_fn=_at_birth(os.getpid(), mask))  # noqa: PLW1509 - one thread
        old = {number: signal.signal(number, _forward(process)) for number in _FORWARDED}
    except OSError as error:
        click.echo(f"matrixctl: {printable(command[0])}: {error.strerror}", err=True)
        return NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_RUNNABLE
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    try:
        return _watch(process, connection, name)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _watch(process: subprocess.Popen[bytes], connection: socket.socket, name: str) -> int:
    pidfd = os.pidfd_open(process.pid)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.register(connection, select.POLLIN)
        ready = {fd for fd, _ in poll.poll()}
        if pidfd not in ready:
            click.echo(f"matrixctl: the lock {printable(name)} is lost: ending the command", err=True)
            _end(process, pidfd)
            return LOST
    finally:
        os.close(pidfd)
    code = process.wait()
    return code if code >= 0 else 128 - code


def _end(process: subprocess.Popen[bytes], pidfd: int) -> None:
    process.terminate()
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    deadline = time.monotonic() + GRACE_SECONDS
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
