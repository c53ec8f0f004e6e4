"""``matrixctl fs quota``: who uses how much of a mounted filesystem, and may use (issue 5, "Quotas"; decision 0023).

Names of users and groups are those of the node where the command runs.

Exit codes: 0; else those of membership/errors.py.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any, Final

import click

from matrixfs.cli.common import MatrixCommand, MatrixGroup, echo_json, json_option, own_state_option, size_text, table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matrixfs.cli.fs_mounts import Mounts

BLOCK_BYTES: Final = 4096
LOOK_SECONDS: Final = 0.1
TYPES: Final = ("user", "group", "project")
ID_MAX: Final = (1 << 32) - 1
UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "P": 1 << 50}
COUNTS: Final = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
TIMES: Final = {"": 1, "S": 1, "M": 60, "H": 3600, "D": 86_400, "W": 604_800}
AMOUNT_MAX: Final = 1 << 52
FIELDS: Final = (
    "blocks_hard", "blocks_soft", "inodes_hard", "inodes_soft", "blocks_until_ns", "inodes_until_ns"
)  # fmt: skip


class _ReportByDefault(MatrixGroup):
    """Whatever is no command is the name of a filesystem to report on."""

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """See click."""
        first = next((arg for arg in args if not arg.startswith("-")), "")
        return super().resolve_command(context, args if first in self.commands else ["report", *args])


@click.group(
    cls=_ReportByDefault,
    context_settings={"ignore_unknown_options": True},
    subcommand_metavar="NAME | COMMAND [ARGS]...",
)
def quota() -> None:
    """Who uses how much of the filesystem NAME, and may use; from any node."""


@quota.command(cls=MatrixCommand)
@click.argument("name")
@json_option
@own_state_option
def report(name: str, as_json: bool, state: str) -> None:
    """Users, groups and projects that use something of NAME, or have limits.

    Exact for what was written back; what nodes still buffer counts some seconds later.
    """
    from matrixfs.cli.fs_mounts import mounts_of

    mounts = mounts_of(state, name)
    rows, now_ns = _result(mounts, mounts.ask("fs.quota"))
    if as_json:
        echo_json({"filesystem": name, "quotas": [_document(row) for row in rows]})
    else:
        click.echo("\n".join(_lines(rows, now_ns)))


@quota.command("set", cls=MatrixCommand)
@click.argument("name")
@click.argument("who")
@click.option("--space", metavar="[SOFT/]HARD", help="Bytes, with K, M, G, T or P: powers of 1024; 0: no limit.")
@click.option("--files", metavar="[SOFT/]HARD", help="Inodes of any kind, with K or M: thousands; 0: no limit.")
@own_state_option
def set_(name: str, who: str, space: str | None, files: str | None, state: str) -> None:
    """Limit what WHO may use of NAME: user:NAME-OR-ID, group:NAME-OR-ID or project:NUMBER.

    More than a soft limit is allowed for the time of grace, more than a hard one never.
    """
    from matrixfs.cli.fs_mounts import mounts_of

    kind, number = _who(who)
    if space is None and files is None:
        raise click.UsageError("give --space, --files or both")
    blocks = _limits(space, UNITS, BLOCK_BYTES)
    inodes = _limits(files, COUNTS, 1)
    mounts = mounts_of(state, name)
    serial = mounts.ask(
        "fs.quota.set", type=kind, id=number,
        blocks_soft=blocks[0], blocks_hard=blocks[1], inodes_soft=inodes[0], inodes_hard=inodes[1],
    )  # fmt: skip
    rows, now_ns = _result(mounts, serial)
    click.echo("\n".join(_lines(rows, now_ns)))


@quota.command(cls=MatrixCommand)
@click.argument("name")
@click.argument("kind", type=click.Choice(TYPES))
@click.option("--space", metavar="TIME", help="How long more than the soft limit of bytes is allowed: 7d, 12h, 30m.")
@click.option("--files", metavar="TIME", help="And of inodes.")
@own_state_option
def grace(name: str, kind: str, space: str | None, files: str | None, state: str) -> None:
    """Set how long users, groups or projects may use more of NAME than their soft limits; at first 7 days."""
    from matrixfs.cli.fs_mounts import mounts_of

    if space is None and files is None:
        raise click.UsageError("give --space, --files or both")
    times = [-1 if text is None else _number(text, TIMES) * 10**9 for text in (space, files)]
    if 0 in times:
        raise click.UsageError("a time of 0 is none: set the soft limit as the hard one instead")
    mounts = mounts_of(state, name)
    _result(mounts, mounts.ask("fs.quota.grace", type=TYPES.index(kind), blocks_ns=times[0], inodes_ns=times[1]))
    click.echo(f"{name}: set; whose grace has begun keeps its end")


def _result(mounts: Mounts, serial: int) -> tuple[list[dict[str, Any]], int]:
    """Wait for the end of a work; its rows, and the time there.  Raises MatrixError: it failed."""
    from membership.errors import MatrixError, PeerError

    rows: list[dict[str, Any]] = []
    while True:
        found = mounts.ask("fs.quota.result", **{"from": len(rows)})
        if found is None or found["serial"] != serial:
            raise PeerError("another command works on the quotas of this filesystem: try again")
        if found["error"]:
            error = MatrixError(found["error"])
            error.exit_code = found["exit_code"]
            raise error
        if not found["done"]:
            time.sleep(LOOK_SECONDS)
            continue
        rows += [_row(row) for row in found["rows"]]
        if len(rows) >= found["count"] or not found["rows"]:
            return rows, found["now_ns"]


def _row(values: Sequence[int]) -> dict[str, Any]:
    return dict(zip(("type", "id", "blocks", "inodes", *FIELDS), values, strict=True))


# --- words to numbers -------------------------------------------------------------------------------------------


def _who(text: str) -> tuple[int, int]:
    """Type and id.  Raises UsageError."""
    kind, _, name = text.partition(":")
    if kind not in TYPES or not name:
        raise click.UsageError(f"{text!r}: write user:NAME, group:NAME or project:NUMBER")
    if name.isascii() and name.isdecimal():
        number = int(name)
    else:
        number = _named(kind, name)
    if not 0 < number <= ID_MAX:
        raise click.UsageError(f"{text!r}: ids are 1 to {ID_MAX}; 0 is counted and has no limits")
    return TYPES.index(kind), number


def _named(kind: str, name: str) -> int:
    import grp
    import pwd

    try:
        if kind == "user":
            return pwd.getpwnam(name).pw_uid
        if kind == "group":
            return grp.getgrnam(name).gr_gid
    except (KeyError, ValueError):
        raise click.UsageError(f"this node knows no {kind} {name!r}; give the number") from None
    raise click.UsageError("projects have numbers, no names")


def _number(text: str, units: dict[str, int]) -> int:
    """A number with a unit.  Raises UsageError."""
    found = re.fullmatch(r"([0-9]{1,18})([A-Za-z]?)", text.strip())
    if found is None or found[2].upper() not in units:
        known = ", ".join(unit for unit in units if unit)
        raise click.UsageError(f"{text!r}: write a whole number, with or without one of {known}")
    return int(found[1]) * units[found[2].upper()]


def _limits(text: str | None, units: dict[str, int], per: int) -> tuple[int, int]:
    """Soft and hard limit in blocks or inodes; -1: as it is.  A hard one alone takes the soft one away."""
    if text is None:
        return -1, -1
    soft, slash, hard = text.rpartition("/")
    values = [_number(part, units) if part else 0 for part in (soft, hard)]
    soft_limit, hard_limit = (-(-value // per) for value in values)
    if (slash and not soft) or max(soft_limit, hard_limit) > AMOUNT_MAX:
        raise click.UsageError(f"{text!r}: write HARD, or SOFT/HARD; no filesystem is larger than {AMOUNT_MAX} blocks")
    if hard_limit and soft_limit > hard_limit:
        raise click.UsageError(f"{text!r}: the soft limit comes first, and is not above the hard one")
    return soft_limit, hard_limit


# --- numbers to words -------------------------------------------------------------------------------------------


def _name(kind: int, number: int) -> str:
    import grp
    import pwd

    try:
        if kind == 0:
            return pwd.getpwuid(number).pw_name
        if kind == 1:
            return grp.getgrgid(number).gr_name
    except (KeyError, OverflowError):
        pass
    return str(number)


def _lines(rows: list[dict[str, Any]], now_ns: int) -> list[str]:
    head = ("TYPE", "NAME", "SPACE", "SOFT", "HARD", "GRACE", "FILES", "SOFT", "HARD", "GRACE")
    lines: list[tuple[object, ...]] = [head]
    for row in rows:
        blocks = [row[name] * BLOCK_BYTES for name in ("blocks", "blocks_soft", "blocks_hard")]
        lines.append((
            TYPES[row["type"]], _name(row["type"], row["id"]),
            _bytes(blocks[0]), *(_bytes(limit) if limit else "-" for limit in blocks[1:]),
            _grace(row["blocks_until_ns"], now_ns),
            row["inodes"], row["inodes_soft"] or "-", row["inodes_hard"] or "-", _grace(row["inodes_until_ns"], now_ns),
        ))  # fmt: skip
    return table(lines, right={2, 3, 4, 6, 7, 8}) if rows else ["Nobody uses anything, nobody has limits."]


def _bytes(size: int) -> str:
    return size_text(size) if size >= 0 else f"-{size_text(-size)}"


def _grace(until_ns: int, now_ns: int) -> str:
    if not until_ns:
        return ""
    left = (until_ns - now_ns) // 10**9
    if left <= 0:
        return "over"
    days, hours = divmod(left // 3600, 24)
    return f"{days}d{hours:02}h" if days else f"{hours}h{left % 3600 // 60:02}m"


def _document(row: dict[str, Any]) -> dict[str, Any]:
    limits = {f"{what}_{which}": row[f"{unit}_{which}"] * per for what, unit, per in (
        ("space", "blocks", BLOCK_BYTES), ("files", "inodes", 1)) for which in ("soft", "hard")}  # fmt: skip
    return {
        "type": TYPES[row["type"]], "id": row["id"], "name": _name(row["type"], row["id"]),
        "space": row["blocks"] * BLOCK_BYTES, "files": row["inodes"], **limits,
        "space_grace_ends_ns": row["blocks_until_ns"], "files_grace_ends_ns": row["inodes_until_ns"],
    }  # fmt: skip
