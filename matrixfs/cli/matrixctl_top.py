"""``matrixctl top``: the hottest locks of the cluster, live (issue 3, "Seeing contention").

Exit codes: as ``matrixctl locks``; Ctrl-C ends it with 0.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

import click

from matrixfs.cli.common import MatrixCommand, Seconds, echo_json, json_option, own_state_option, printable

if TYPE_CHECKING:
    from matrixfs.cli.asking import Answers

COUNT: Final = 100  # locks asked of each mount
_CLEAR: Final = "\x1b[H\x1b[2J"


@click.command(cls=MatrixCommand)
@click.option("--interval", type=Seconds(0.1, 3600), default=2.0, show_default=True, help="Seconds.")
@click.option("--once", is_flag=True, help="One look, then end: for scripts.")
@json_option
@own_state_option
@click.pass_context
def top(context: click.Context, interval: float, once: bool, as_json: bool, state: str) -> None:
    """The hottest locks of all nodes, as paths: hand-overs, waits and who, over and over; and the links.

    Rates are of the last ten seconds or so, the latest weigh most.  With --json: one look, as with --once.
    """
    from matrixfs.cli.asking import ask_mounts
    from matrixfs.cli.top_format import format_top, hottest, links

    while True:
        answers = ask_mounts(state, "top", {"count": COUNT})
        if as_json:
            echo_json(_to_map(answers))
        else:
            size = shutil.get_terminal_size((120, 40))
            lines = format_top(hottest(answers), links(answers), size.lines - 2 if not once else 1000)
            lines = [line[: size.columns] for line in lines] if not once else lines
            click.echo((_CLEAR if not once else "") + "\n".join([*lines, *map(printable, answers.silent)]))
        if once or as_json:
            context.exit(3 if answers.silent else 0)
        try:
            time.sleep(interval)
        except KeyboardInterrupt:
            return


def _to_map(answers: Answers) -> dict[str, object]:
    from matrixfs.cli.top_format import hottest, links

    found = [asdict(row) | {"mean_ms": row.mean_ms} for row in hottest(answers)]
    return {"locks": found, "links": [asdict(link) for link in links(answers)], "silent": answers.silent}
