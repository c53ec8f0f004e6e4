"""``matrixctl locks``: who blocks me, on any node, in one command (R14; anchors.md 8).

Exit codes: 0; 3 when somebody did not answer, so that something may be missing; else those of membership/errors.py.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from matrixfs.cli.common import MatrixCommand, json_option, own_state_option, printable

if TYPE_CHECKING:
    from matrixfs.cli.asking import Answers
    from matrixfs.cli.locks_chain import Contention


@click.command(cls=MatrixCommand)
@click.argument("target", metavar="[PATH|NAME]", required=False)
@click.option("--waiters", is_flag=True, help="The whole chain: waiter, lock, master, holder, process, what it does.")
@json_option
@own_state_option
@click.pass_context
def locks(context: click.Context, target: str | None, waiters: bool, as_json: bool, state: str) -> None:
    """Who holds a lock, and who waits for it, on all nodes.

    Without PATH: every lock that somebody waits for.  PATH is a file or directory of a tree mounted here; what has no
    slash in it is the NAME of an application lock (write ./FILE for a file of the current directory).
    """
    from matrixfs.cli.asking import ask_mounts, find_file
    from matrixfs.cli.locks_chain import combine
    from matrixfs.cli.locks_format import format_locks

    notes: list[str] = []
    object_, filesystem = 0, ""
    if target is not None:
        found = find_file(state, target)
        object_, filesystem = found.object, found.filesystem
        if found.rest:
            notes.append(f"{target}: {found.rest} could not be looked up, for its directory is waited for; this is it:")
    answers = ask_mounts(state, "locks", {"object": object_})
    answers.mounts = [mount for mount in answers.mounts if filesystem in ("", mount.filesystem)]
    combined = combine(answers)
    if object_:
        combined = [lock for lock in combined if lock.holders or lock.waiters or lock.ghosts]
    if as_json:
        click.echo(_to_json(answers, combined))
    else:
        lines = format_locks(combined, answers.name, chains=waiters or bool(object_))
        click.echo("\n".join([*map(printable, notes), *(lines or [_nothing(target)])]))
        for line in answers.silent:
            click.echo(f"matrixctl: {printable(line)}", err=True)
    context.exit(3 if answers.silent else 0)


def _nothing(target: str | None) -> str:
    return "Nobody waits for a lock." if target is None else f"{printable(target)}: nobody holds it or waits for it."


def _to_json(answers: Answers, found: list[Contention]) -> str:
    value = {"locks": [asdict(lock) for lock in found], "nodes": answers.names, "silent": answers.silent}
    return json.dumps(value, indent=2, default=bytes.hex)
