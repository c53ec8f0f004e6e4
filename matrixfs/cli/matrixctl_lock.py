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
from typing import Final

import click

from matrixfs.cli.common import MatrixCommand, Seconds, own_state_option, printable
from matrixfs.cli.under_lock import Loss, checked_command, run_under
from matrixfs.lock_names import BUSY
from membership.errors import MatrixError, OperatorError

LOST: Final = 125
WAIT_MAX: Final = 1e7  # seconds
GRACE_SECONDS: Final = 10.0  # between SIGTERM and SIGKILL


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

    command = checked_command(command, "matrixctl lock NAME -- COMMAND...")
    if try_ and wait:
        raise OperatorError("--try and --wait exclude each other")
    message = {
        "kind": "lock", "filesystem": filesystem, "name": os.fsencode(name), "exclusive": not shared,
        "wait": not (try_ or wait == 0), "pid": os.getpid(),
    }  # fmt: skip
    try:
        with hold(state, message, wait or None) as held:
            loss = Loss(f"the lock {printable(name)} is lost", LOST, GRACE_SECONDS, GRACE_SECONDS)
            context.exit(run_under(command, held, loss))
    except TimeoutError:
        failure = MatrixError(f"{name} was not free within {wait:g} s: see matrixctl locks {name}")
        failure.exit_code = BUSY
        raise failure from None
