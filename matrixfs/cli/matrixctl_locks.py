"""``matrixctl locks``: who blocks me, on any node, in one command (R14; anchors.md 8).

Exit codes: 0; 3 when somebody did not answer, so that something may be missing; else those of membership/errors.py.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Final

import click

from matrixfs.cli.common import MatrixCommand, echo_json, json_option, own_state_option, printable

if TYPE_CHECKING:
    from matrixfs.cli.asking import Answers
    from matrixfs.cli.file_locks_format import FileLock
    from matrixfs.cli.locks_chain import Contention

OBJECTS_MAX: Final = 50  # contended files whose holders are asked for


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
    found = _look(state, target)
    if as_json:
        echo_json(_to_map(found))
    else:
        from matrixfs.cli.file_locks_format import format_files
        from matrixfs.cli.locks_format import format_locks

        lines = format_locks(found.locks, found.answers.name, chains=waiters or bool(found.object))
        files = format_files(found.files, found.answers)
        lines += ["File and application locks", *files] if files else []
        click.echo("\n".join([*map(printable, found.notes), *(lines or [_nothing(target)])]))
        for line in found.answers.silent:
            click.echo(f"matrixctl: {printable(line)}", err=True)
    context.exit(3 if found.answers.silent else 0)


@dataclass(slots=True)
class _Found:
    """What the cluster said."""

    answers: Answers
    locks: list[Contention]
    files: list[FileLock]
    object: int = 0  # the inode asked about
    notes: list[str] = field(default_factory=list)


def _look(state: str, target: str | None) -> _Found:
    from matrixfs.cli.asking import ask_mounts, find_file
    from matrixfs.cli.file_locks_format import combine_files
    from matrixfs.cli.locks_chain import combine
    from matrixfs.lock_names import object_of
    from membership.errors import OperatorError

    if target == "":
        raise OperatorError("neither a path nor a lock's name: leave it out to see every lock that somebody waits for")
    if target is not None and "/" not in target:
        answers = ask_mounts(state, "files", {"objects": [["NAMED", object_of(os.fsencode(target))]]})
        return _Found(answers, [], combine_files(answers))
    if target is not None:
        place = find_file(state, target)
        answers = ask_mounts(state, "locks", {"object": place.object})
        files = ask_mounts(state, "files", {"objects": [["FLOCK", place.object], ["POSIX", place.object]]})
        for each in (answers, files):
            each.mounts = [mount for mount in each.mounts if mount.filesystem == place.filesystem]
        known = [lock for lock in combine(answers) if lock.holders or lock.waiters or lock.ghosts]
        notes = [f"{target}: {place.rest} can't be looked up while this directory is waited for:"] if place.rest else []
        return _Found(answers, known, combine_files(files), place.object, notes)
    answers = ask_mounts(state, "locks", {"object": 0})
    waiting = combine_files(ask_mounts(state, "files", {"objects": []}))
    wanted = [list(each) for each in dict.fromkeys((lock.kind, lock.object) for lock in waiting)][:OBJECTS_MAX]
    files = ask_mounts(state, "files", {"objects": wanted}) if wanted else answers
    return _Found(answers, combine(answers), combine_files(files) if wanted else [])


def _nothing(target: str | None) -> str:
    return "Nobody waits for a lock." if target is None else f"{printable(target)}: nobody holds it or waits for it."


def _to_map(found: _Found) -> dict[str, object]:
    return {
        "locks": [asdict(lock) for lock in found.locks],
        "files": [asdict(lock) for lock in found.files],
        "nodes": found.answers.names,
        "silent": found.answers.silent,
    }
