"""``matrixctl fs``: what the cluster does with a whole filesystem while it is mounted (issue 5).

Exit codes: 0; 3 also when a mount does not answer; else those of membership/errors.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from matrixfs.cli.common import (
    MatrixCommand,
    Seconds,
    echo_json,
    json_option,
    own_state_option,
    printable,
    size_text,
    table,
)
from matrixfs.cli.matrixctl_fs_quota import quota
from matrixfs.cli.matrixctl_fs_scrub import scrub
from matrixfs.cli.matrixctl_fs_trim import trim
from matrixfs.cli.mkfs_cmd import parse_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matrixfs.cli.asking import MountValue

BLOCK_BYTES: Final = 4096
FROZEN_SECONDS: Final = 60.0
FROZEN_SECONDS_MAX: Final = 86_400.0


@click.group()
def fs() -> None:
    """Filesystems as a whole, while they are mounted."""


fs.add_command(scrub)
fs.add_command(quota)
fs.add_command(trim)


@fs.command("list", cls=MatrixCommand)
@json_option
@own_state_option
@click.pass_context
def list_(context: click.Context, as_json: bool, state: str) -> None:
    """The mounted filesystems: how large they are, and how many can mount them."""
    from matrixfs.cli.fs_mounts import all_mounts

    mounts, silent, _ = all_mounts(state)
    if as_json:
        echo_json({"mounts": [{"node": m.name, "filesystem": m.filesystem, **m.value} for m in mounts]})
    else:
        click.echo("\n".join(_rows(mounts)) if mounts else "No filesystem is mounted.")
    for line in silent:
        click.echo(f"matrixctl: {printable(line)}", err=True)
    context.exit(3 if silent else 0)


def _rows(mounts: Sequence[MountValue]) -> list[str]:
    rows: list[Sequence[object]] = [("FILESYSTEM", "FOR FILES", "STORE", "JOURNALS", "MOUNTED BY")]
    for name in sorted({mount.filesystem for mount in mounts}):
        of_it = [mount for mount in mounts if mount.filesystem == name]
        facts = of_it[0].value
        nodes = " ".join(sorted(mount.name for mount in of_it))
        size, store = size_text(facts["blocks"] * BLOCK_BYTES), size_text(facts["store_bytes"])
        rows.append((printable(name), size, store, facts["journals"], printable(nodes)))
    return table(rows, right={3})


@fs.command(cls=MatrixCommand)
@click.argument("name")
@click.option("--size", type=parse_size, metavar="SIZE", help="The store is a file: make it so long first, sparse.")
@click.option("-j", "--journals", type=click.IntRange(1), help="So many nodes can mount it at once from now on.")
@json_option
@own_state_option
def grow(name: str, size: int | None, journals: int | None, as_json: bool, state: str) -> None:
    """Let the filesystem NAME use all of its store, which was enlarged; it stays mounted and in use.

    From any node.  Every node must see the larger store: a LUN that was enlarged is rescanned on each of them first.
    """
    from matrixfs.cli.fs_mounts import await_size, mounts_of

    mounts = mounts_of(state, name)
    if size is not None:
        mounts.ask("fs.enlarge", size=size)
    facts = mounts.ask("fs")
    await_size(mounts, facts["disk"], facts["store_bytes"])
    serial = mounts.ask("fs.grow", journals=journals or 0)
    done = mounts.await_done(serial, lambda step: None if as_json else click.echo(f"{printable(step)} ..."))
    before, after = done["blocks_before"] * BLOCK_BYTES, done["blocks"] * BLOCK_BYTES
    if as_json:
        sizes = {"bytes_before": before, "bytes": after, "journals": done["journals"]}
        echo_json({"filesystem": name, **sizes, "by": mounts.worker.name})
        return
    if done["journals"] > facts["journals"]:
        click.echo(f"{name} had {facts['journals']} journals and has {done['journals']} now")
    if after > before:
        click.echo(f"{name} had {size_text(before)} for files and has {size_text(after)} now")
    elif not journals:
        click.echo(f"{name} has all of its store already: {size_text(after)} for files; enlarge the store first")


@fs.command(cls=MatrixCommand)
@click.argument("name")
@click.option(
    "--timeout",
    type=Seconds(1, FROZEN_SECONDS_MAX),
    default=FROZEN_SECONDS,
    show_default=True,
    metavar="SECONDS",
    help="Thaw by itself after that, whatever becomes of who froze it.",
)
@own_state_option
def freeze(name: str, timeout: float, state: str) -> None:
    """Hold the filesystem NAME still on all nodes, until matrixctl fs thaw NAME: for a snapshot of its LUN.

    When this returns, everything that was written is on the store and in its place, and the journals are empty: a copy
    made before the thaw needs no replay.  Readers go on, writers wait.
    """
    from matrixfs.cli.fs_mounts import await_frozen, frozen_by, mounts_of
    from membership.errors import OperatorError

    mounts = mounts_of(state, name)
    by = frozen_by(state, name)
    if by:
        raise OperatorError(f"{name} is frozen already: {by}")
    mounts.ask("fs.freeze", seconds=timeout)
    await_frozen(mounts)
    click.echo(f"{name} is frozen, for {timeout:g} s at most; go on with: matrixctl fs thaw {name}")


@fs.command(cls=MatrixCommand)
@click.argument("name")
@own_state_option
def thaw(name: str, state: str) -> None:
    """Let the filesystem NAME go on.

    It is an error when it was not frozen any more: then a copy that was made may not be whole.
    """
    from matrixfs.cli.fs_mounts import thaw_all
    from membership.errors import OperatorError

    if not thaw_all(state, name):
        raise OperatorError(
            f"{name} is not frozen, or no longer: what was copied since then may not be whole "
            "(matrixctl events says when it ended)"
        )
    click.echo(f"{name} goes on")
