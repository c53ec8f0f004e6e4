"""What the commands share: errors as one line with an exit code, the state directory, times for people.

Invariant: a MatrixError or wrong usage leaves a command as ``PROGRAM: LINE`` on stderr with its own exit code; our own
bugs keep their traceback, which is what their reader needs.

Source: issue 2 "Bad input"; ecosystem 6 (click, starts in less than 100 ms); style 3.16.
"""

from __future__ import annotations

import json
import math
import os
import shlex
from datetime import UTC, datetime, tzinfo
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

import click

from membership.errors import MatrixError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

STATE_DIR_DEFAULT: Final = "/var/lib/matrixfs"
STATE_DIR_VARIABLE: Final = "MATRIXFS_STATE"

_F = TypeVar("_F", bound="Callable[..., Any]")


class MatrixCommand(click.Command):
    """A command that fails in one line."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Read the command line; wrong usage ends it with one line, instead of click's four."""
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.UsageError as error:
            _usage(error, str(info_name))

    def invoke(self, ctx: click.Context) -> Any:
        """Run it; a MatrixError, also one that a trio nursery wrapped, ends it with one line and its exit code."""
        try:
            return super().invoke(ctx)
        except MatrixError as error:
            _exit(ctx, error)
        except BaseExceptionGroup as group:
            _exit(ctx, worst_of(group))


class MatrixGroup(MatrixCommand, click.Group):
    """A command with verbs that fails in one line, also for a verb that there is not."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb."""
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            _usage(error, ctx.command_path)


class Seconds(click.FloatRange):
    """Seconds within bounds; NaN is no number of seconds, though click finds nothing wrong with it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """As ``click.ParamType``."""
        found = super().convert(value, param, ctx)
        if math.isnan(found):
            self.fail(f"{value!r} is no number", param, ctx)
        return found


def _usage(error: click.UsageError, default: str) -> NoReturn:
    """Say in one line what is wrong with the command line."""
    path = error.ctx.command_path if error.ctx is not None else default
    text = error.format_message().rstrip(".")
    click.echo(f"{path.split()[0]}: {printable(text)}: see {path} --help", err=True)
    raise click.exceptions.Exit(error.exit_code) from None


def _exit(ctx: click.Context, error: MatrixError) -> NoReturn:
    click.echo(f"{ctx.find_root().info_name}: {printable(str(error))}", err=True)
    ctx.exit(error.exit_code)


def worst_of(group: BaseExceptionGroup[BaseException]) -> MatrixError:
    """The MatrixError of the highest exit code in ``group``: the one that explains the others.

    Raises:
        BaseExceptionGroup: ``group`` itself, when anything else is in it.
    """
    expected, unexpected = group.split(MatrixError)
    if expected is None or unexpected is not None:
        raise group
    return max(_leaves(expected), key=lambda error: error.exit_code)


def _leaves(group: BaseExceptionGroup[MatrixError]) -> list[MatrixError]:
    found: list[MatrixError] = []
    for error in group.exceptions:
        found.extend(_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    return found


def state_option(function: _F) -> _F:
    """The option ``--state DIR``; the command gets ``state``."""
    option = click.option(
        "--state",
        metavar="DIR",
        envvar=STATE_DIR_VARIABLE,
        default=STATE_DIR_DEFAULT,
        show_default=True,
        show_envvar=True,
        type=click.Path(readable=False),  # what is wrong with it, the command says itself in one line
        help="Directory of this node's matrixd: socket, pid file, log.",
    )
    return option(function)


def _own_state_or_groups(context: click.Context, _: click.Parameter, value: str | None) -> str:
    return value if value is not None else str(context.obj)


own_state_option = click.option(  # people type it on either side of the command
    "--state",
    metavar="DIR",
    type=click.Path(readable=False),
    callback=_own_state_or_groups,
    help="The same as before the command.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="For programs: the whole answer as JSON.")


def printable(text: str) -> str:
    """``text`` without control characters: names come from the disk and from peers, terminals obey escapes (R11)."""
    return "".join(c if c.isprintable() else "?" for c in text)


def local_time(wall_ns: int, zone: tzinfo | None = None) -> str:
    """``wall_ns`` (ns since the epoch) as date and time in ``zone``, by default the machine's."""
    return datetime.fromtimestamp(wall_ns // 1_000_000_000, UTC).astimezone(zone).strftime("%Y-%m-%d %H:%M:%S")


def echo_json(value: object) -> None:
    """``value`` on stdout for programs; bytes as hex digits."""
    click.echo(json.dumps(value, indent=2, default=bytes.hex))


def state_argument(state: str) -> str:
    """`` --state DIR`` as a command needs it that the operator will type next; empty for the default directory."""
    known = os.environ.get(STATE_DIR_VARIABLE, STATE_DIR_DEFAULT)
    return "" if os.path.abspath(state) == os.path.abspath(known) else f" --state {shlex.quote(state)}"


def size_text(size: int) -> str:
    """``size`` bytes in the greatest binary unit that leaves something before the point."""
    for unit, shift in (("TiB", 40), ("GiB", 30), ("MiB", 20)):
        if size >= 1 << shift:
            return f"{size / (1 << shift):.1f} {unit}"
    return f"{size / 1024:.0f} KiB"


def table(rows: Sequence[Sequence[object]], right: set[int] | None = None) -> list[str]:
    """Columns as wide as their widest cell, two spaces apart; those in ``right`` are flush right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    flush = right or set()
    lines = []
    for row in cells:
        aligned = (cell.rjust(widths[i]) if i in flush else cell.ljust(widths[i]) for i, cell in enumerate(row))
        lines.append(("  " + "  ".join(aligned)).rstrip())
    return lines
