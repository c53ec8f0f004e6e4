"""``matrixctl fs scrub``: the tree looked through while it is in use (matrixfs/scrubbing.py; issue 5).

Exit codes: 0 all is sound; 5 something is damaged; else those of membership/errors.py.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, Final

import click

from matrixfs.cli.common import MatrixCommand, echo_json, json_option, own_state_option, printable, size_text

if TYPE_CHECKING:
    from matrixfs.cli.fs_mounts import Mounts

LOOK_SECONDS: Final = 0.5
DAMAGED: Final = 5


@click.command(cls=MatrixCommand)
@click.argument("name")
@click.option("--data", is_flag=True, help="Also read every byte of every file.  [default: only what leads there]")
@click.option("--stop", is_flag=True, help="End the scrub that is under way.")
@json_option
@own_state_option
@click.pass_context
def scrub(context: click.Context, name: str, data: bool, stop: bool, as_json: bool, state: str) -> None:
    """Look for damage in the filesystem NAME while it is mounted and in use.

    Whatever could harm other files if it were changed is put in quarantine: it gives an I/O error on all nodes until
    fsck.matrixfs has repaired it; everything else goes on.  Ctrl-C stops watching, not the scrub.
    """
    from matrixfs.cli.fs_mounts import mounts_of

    mounts = mounts_of(state, name)
    if stop:
        was = any(mounts.ask_each("fs.scrub.stop"))
        click.echo(f"the scrub of {name} was stopped" if was else f"{name} is not being scrubbed")
        return
    serial = mounts.ask("fs.scrub", data=data)
    found = _wait(mounts, serial, watched=not as_json and sys.stderr.isatty())
    if as_json:
        echo_json({"filesystem": name, "by": mounts.worker.name, **_plain(found)})
    else:
        _show(name, found)
    context.exit(DAMAGED if found["totals"]["damaged"] else 0)


def _wait(mounts: Mounts, serial: int, *, watched: bool) -> dict[str, Any]:
    """Wait for the end of the scrub; raises PeerError when it was not seen, or did not see everything."""
    from membership.errors import PeerError

    while True:
        found: dict[str, Any] | None = mounts.ask("fs.scrubbed")
        if found is None or found["serial"] != serial:
            raise PeerError("another scrub has begun meanwhile: look at matrixctl events")
        if watched:
            click.echo(f"\r  {_progress(found['totals'])} ", nl=not found["running"], err=True)
        if not found["running"]:
            break
        time.sleep(LOOK_SECONDS)
    if found["end"] != "it saw everything":
        raise PeerError(f"the scrub by {mounts.worker.name} is not whole: {found['end']}")
    return found


def _progress(totals: dict[str, int]) -> str:
    directories, others = totals["directories"], totals["others"]
    seen = f"{_count(directories, 'directory', 'directories')} and {_count(others, 'other object', 'other objects')}"
    read = f", {size_text(totals['data_bytes'])} of files read" if totals["data_bytes"] else ""
    return f"{seen}, {totals['blocks']} blocks of metadata{read}"


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _show(name: str, found: dict[str, Any]) -> None:
    totals, damages = found["totals"], found["damages"]
    for damage in damages:
        path = printable(damage["path"].decode(errors="backslashreplace"))
        end = "; it is in quarantine now" if damage["quarantined"] else ""
        click.echo(f"{path} (inode {damage['inode']}): {printable(damage['text'])}{end}")
    if len(damages) < totals["damaged"]:
        click.echo(f"... and {totals['damaged'] - len(damages)} more: they stand in the mount's log")
    if totals["damaged"]:
        click.echo(
            f"{name}: {totals['damaged']} damaged of {_progress(totals)}; unmount it everywhere and run fsck.matrixfs"
        )
    else:
        click.echo(f"{name} is sound: {_progress(totals)}")


def _plain(found: dict[str, Any]) -> dict[str, Any]:
    damages = [damage | {"path": damage["path"].decode(errors="backslashreplace")} for damage in found["damages"]]
    return {"totals": found["totals"], "damages": damages}
