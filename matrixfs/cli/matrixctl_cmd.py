"""``matrixctl``: ask and stop the matrixd of this machine.

Everything comes over the control socket with one blocking request (membership/control_ask.py), so the
command starts without trio.  Exit codes: those of membership/errors.py; 2 also for wrong options.

Source: issue 2 (matrixctl status for people and --json for programs), 002-26, R14.
"""

from __future__ import annotations

import click

from matrixfs import __version__
from matrixfs.cli.common import MatrixCommand, echo_json, json_option, own_state_option, state_option
from matrixfs.cli.matrixctl_cluster import cluster
from matrixfs.cli.matrixctl_disk import disk
from matrixfs.cli.matrixctl_events import events
from matrixfs.cli.matrixctl_fence import fence
from matrixfs.cli.matrixctl_fs import fs
from matrixfs.cli.matrixctl_lock import lock
from matrixfs.cli.matrixctl_locks import locks
from matrixfs.cli.matrixctl_metrics import metrics
from matrixfs.cli.matrixctl_node import node
from matrixfs.cli.matrixctl_top import top
from matrixfs.cli.matrixctl_trace import trace
from membership.errors import PeerError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="matrixctl")
@state_option
@click.pass_context
def main(context: click.Context, state: str) -> None:
    """Make and run a MatrixFS cluster, from any of its servers."""
    context.obj = state


@main.command(cls=MatrixCommand)
@own_state_option
@json_option
def status(state: str, as_json: bool) -> None:
    """Nodes, memberships, filesystems, mounts, journals, recoveries."""
    from membership.control_ask import ask

    answer = ask(state, {"kind": "status"})
    if as_json:
        echo_json(answer)
        return
    from matrixfs.cli.status_format import format_status

    try:
        text = format_status(answer)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise PeerError(f"matrixd answers in another version's format ({error!r}): restart it, or use --json") from None
    click.echo(text, nl=False)


@main.command(cls=MatrixCommand)
@own_state_option
def stop(state: str) -> None:
    """Leave the cluster cleanly and end matrixd; refused while trees are mounted here."""
    from membership.control_ask import stop_matrixd

    stop_matrixd(state)
    click.echo("matrixd has stopped")


for _command in (cluster, disk, events, fence, fs, lock, locks, metrics, node, top, trace):
    main.add_command(_command)
