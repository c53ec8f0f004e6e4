"""``matrixctl disk lock NAME -- COMMAND`` and ``matrixctl disk locks``: a cluster disk for an application (002-24).

The lock is the administrator's (membership/san/disk_locks.py).  It excludes other ``matrixctl disk lock`` of any node;
it does not stop who writes without asking, nor MatrixFS itself.  The command inherits the connection, so the lock lasts
as long as anybody who may write under it; its regular end frees it though something that it left behind lives.

======== =============================================================================
exit     of ``disk lock``
======== =============================================================================
0 - 123  the command's own; 2 and 3 also before it ran: no such disk, no matrixd
6        the lock was lost while it ran (this node was fenced, or its lease ended): it got
         SIGTERM, then SIGKILL; when matrixd died, at once
124      not locked within --timeout: it did not run
126, 127 it can't be run; it does not exist
128 + N  it died by signal N
======== =============================================================================

Exit codes of ``disk locks``: 0; 3 when the administrator did not answer; else those of membership/errors.py.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import click

from matrixfs.cli.common import MatrixCommand, Seconds, echo_json, json_option, own_state_option, printable, table
from matrixfs.cli.under_lock import Loss, checked_command, run_under
from matrixfs.lock_names import BUSY
from membership.control_wire import take, take_natural
from membership.errors import BadMessage, Fenced, MatrixError

if TYPE_CHECKING:
    from matrixfs.cli.asking import Answers
    from membership.control_wire import Message

WAIT_MAX: Final = 1e7  # seconds


@click.command("lock", cls=MatrixCommand, context_settings={"allow_interspersed_args": False})
@click.option("--shared", is_flag=True, help="Others may hold it shared too.  [default: alone]")
@click.option(
    "--timeout", type=Seconds(0, WAIT_MAX), metavar="SECONDS", help="Give up after that; 0: at once.  [default: never]"
)
@own_state_option
@click.argument("name")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_context
def disk_lock(
    context: click.Context, name: str, command: tuple[str, ...], shared: bool, timeout: float | None, state: str
) -> None:
    """Run COMMAND while the cluster disk NAME is locked, for all nodes.

    It keeps out other matrixctl disk lock, nobody else: MatrixFS itself does not ask.  The lock is free when the
    command ends and when the node was fenced; when matrixctl is killed, the command gets SIGTERM, and the lock is free
    when it and all that it started are gone.  Put -- before COMMAND.  Exit codes: the command's own; 6: lost while it
    ran; 124: not locked in time; 126, 127: can't be run, not found.
    """
    from membership.control_ask import hold

    command = checked_command(command, "matrixctl disk lock NAME -- COMMAND...")
    message = {
        "kind": "disk-lock", "disk": name, "exclusive": not shared, "wait": timeout != 0,
        "command": _shown(command[0]), "pid": os.getpid(),
    }  # fmt: skip

    def waits(reason: str) -> None:
        click.echo(f"matrixctl: {printable(name)}: {printable(reason)}: waiting", err=True)

    try:
        with hold(state, message, timeout or None, waits) as held:
            # A matrixd that died may be called dead at once, and its locks free: then there is no time to lose.
            text = f"the lock on the disk {printable(name)} is lost"
            loss = Loss(text, Fenced.exit_code, grace_untrusted(held.value), grace_unsaid=0.0, is_inherited=True)
            context.exit(run_under(command, held, loss))
    except TimeoutError:
        failure = MatrixError(f"{name} was not free within {timeout:g} s: see matrixctl disk locks")
        failure.exit_code = BUSY
        raise failure from None


def _shown(program: str) -> str:
    """What all nodes are shown: without arguments, for those may be secret."""
    return os.path.basename(program).encode(errors="replace").decode()


def grace_untrusted(value: Any) -> float:
    """Seconds that the command may take to end.  Raises BadMessage."""
    grace = value.get("grace") if isinstance(value, dict) else None
    if not isinstance(grace, float) or not 0 <= grace <= 3600:
        raise BadMessage("matrixd does not say how long the command may take to end")
    return grace


@click.command("locks", cls=MatrixCommand)
@json_option
@own_state_option
@click.pass_context
def disk_locks(context: click.Context, as_json: bool, state: str) -> None:
    """Who holds a lock on a cluster disk, and who waits for one, on all nodes."""
    from matrixfs.cli.asking import ask_mounts

    answers = ask_mounts(state, "node.disk-locks", {}, missing="what it knows of disk locks is")
    known = known_untrusted(answers)
    silent = [] if known is not None else [*answers.silent, "no administrator answers: who holds what is not known"]
    if as_json:
        rows = [row.to_map() for row in known.rows] if known is not None else None
        unknown = known.unknown if known is not None else []
        echo_json({"locks": rows, "unknown": unknown, "silent": silent})
    elif known is not None:
        click.echo("\n".join(map(printable, lines_of(known))))
    for line in silent if not as_json else ():
        click.echo(f"matrixctl: {printable(line)}", err=True)
    context.exit(0 if known is not None else 3)


@dataclass(frozen=True, slots=True)
class Row:
    """One lock."""

    disk: str
    node: str  # its name
    owner: str
    exclusive: bool
    state: str  # "held" or "waiting"

    def to_map(self) -> Message:
        """For programs."""
        return {field: getattr(self, field) for field in self.__slots__}


@dataclass(slots=True)
class Known:
    """What the administrator knows."""

    rows: list[Row]
    unknown: list[str]  # names of nodes that have not said yet what they hold


def known_untrusted(answers: Answers) -> Known | None:
    """What the administrator answered; of several that think they are, the latest.  Raises BadMessage."""
    found: dict[tuple[int, int], Known] = {}
    for each in answers.mounts:  # in the order of the pieces
        if not isinstance(each.value, dict):
            raise BadMessage("matrixd's disk locks are no map")
        if not take(each.value, "administrator", bool):
            continue
        key = take_natural(each.value, "generation"), each.node
        known = found.setdefault(key, Known([], [answers.name(_node(n)) for n in take(each.value, "unknown", list)]))
        known.rows += [_row_untrusted(row, answers) for row in take(each.value, "rows", list)]
    return found[max(found)] if found else None


def _row_untrusted(row: Any, answers: Answers) -> Row:
    if not isinstance(row, dict):
        raise BadMessage("matrixd's disk lock is no map")
    return Row(
        disk=take(row, "disk", str),
        node=answers.name(take_natural(row, "node", 6)),
        owner=take(row, "owner", str),
        exclusive=take(row, "exclusive", bool),
        state=take(row, "state", str),
    )


def _node(value: Any) -> int:
    return take_natural({"node": value}, "node", 6)


def lines_of(known: Known) -> list[str]:
    """For people."""
    cells = [(row.disk, row.state, "alone" if row.exclusive else "shared", row.owner) for row in known.rows]
    lines = table([("DISK", "STATE", "HOW", "WHO"), *cells]) if cells else ["No cluster disk is locked."]
    return [*lines, *(f"{name} has not yet said what it holds; nothing is granted before" for name in known.unknown)]
