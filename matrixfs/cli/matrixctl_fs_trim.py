"""``matrixctl fs trim``: the store is told which blocks of a mounted filesystem are free (matrixfs/trimming.py).

Exit codes: 0; 2 the store can't be told; else those of membership/errors.py.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, Final

import click

from matrixfs.cli.common import MatrixCommand, echo_json, json_option, own_state_option, size_text
from matrixfs.cli.mkfs_cmd import parse_size

if TYPE_CHECKING:
    from matrixfs.cli.fs_mounts import Mounts

LOOK_SECONDS: Final = 0.2
BLOCK_BYTES: Final = 4096


@click.command(cls=MatrixCommand)
@click.argument("name")
@click.option("--minimum", type=parse_size, metavar="SIZE", help="Leave smaller free runs alone.  [default: none]")
@click.option("--stop", is_flag=True, help="End the trim that is under way.")
@json_option
@own_state_option
def trim(name: str, minimum: int | None, stop: bool, as_json: bool, state: str) -> None:
    """Tell the store which blocks of the mounted filesystem NAME are free, as fstrim(8) does.

    A thin LUN, a loop device or a sparse file gives that space back.  Ctrl-C stops watching, not the trim.
    """
    from matrixfs.cli.fs_mounts import mounts_of

    mounts = mounts_of(state, name)
    if stop:
        was = any(mounts.ask_each("fs.trim.stop"))
        click.echo(f"the trim of {name} was stopped" if was else f"{name} is not being trimmed")
        return
    serial = mounts.ask("fs.trim", least=minimum or 0)
    totals = _wait(mounts, serial, watched=not as_json and sys.stderr.isatty())
    if as_json:
        sizes = {"bytes": totals["blocks"] * BLOCK_BYTES, "discards": totals["runs"]}
        echo_json({"filesystem": name, **sizes, "by": mounts.worker.name})
    else:
        click.echo(f"{name}: the store was told that {size_text(totals['blocks'] * BLOCK_BYTES)} are free")


def _wait(mounts: Mounts, serial: int, *, watched: bool) -> dict[str, Any]:
    """Wait for the end of the trim; its totals.  Raises OperatorError, PeerError: it did not see everything."""
    from membership.errors import OperatorError, PeerError

    while True:
        found: dict[str, Any] | None = mounts.ask("fs.trimmed")
        if found is None or found["serial"] != serial:
            raise PeerError("another trim has begun meanwhile: look at matrixctl events")
        totals: dict[str, Any] = found["totals"]
        if watched:
            click.echo(f"\r  {totals['groups']} of {totals['groups_all']} groups ", nl=not found["running"], err=True)
        if not found["running"]:
            break
        time.sleep(LOOK_SECONDS)
    if not found["whole"]:
        raise OperatorError(f"{mounts.filesystem} was not trimmed to its end by {mounts.worker.name}: {found['end']}")
    return totals
