"""``matrixctl trace``: what happened to locks just before now, on all nodes (matrixfs/locks/trace.py).

Exit codes: as ``matrixctl locks``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from matrixfs.cli.common import MatrixCommand, echo_json, json_option, local_time, own_state_option, printable

if TYPE_CHECKING:
    from matrixfs.cli.asking import Answers

COUNT: Final = 200
COUNT_MAX: Final = 600  # matrixfs/watch.py: EVENTS_MAX
_MODES: Final = ("NL", "CR", "CW", "PR", "PW", "EX")


@click.command(cls=MatrixCommand)
@click.option("--node", metavar="NAME", help="Only this node's events.  [default: all]")
@click.option("--count", type=click.IntRange(1, COUNT_MAX), default=COUNT, show_default=True, help="Newest per node.")
@json_option
@own_state_option
@click.pass_context
def trace(context: click.Context, node: str | None, count: int, as_json: bool, state: str) -> None:
    """What happened to locks, newest last, all nodes merged by time.

    The order within a node is exact; between nodes it is only as good as their clocks agree.
    """
    from matrixfs.cli.asking import ask_mounts

    answers = ask_mounts(state, "trace", {"count": count}, node)
    found = events(answers)
    if as_json:
        echo_json({"events": found, "silent": answers.silent})
    else:
        for event in found:
            click.echo(_line(event))
        for line in answers.silent:
            click.echo(f"matrixctl: {printable(line)}", err=True)
    context.exit(3 if answers.silent else 0)


def events(answers: Answers) -> list[dict[str, Any]]:
    """The events of all mounts by wall time, each node's own in their order; made by others, so checked here."""
    from matrixfs.cli.locks_chain import Names

    told = {
        mount: [event for event in mount.value if isinstance(event, dict) and type(event.get("wall_ns")) is int]
        for mount in answers.mounts
        if isinstance(mount.value, list)
    }
    names = Names(answers)
    for mount, own in told.items():
        names.learn(mount.filesystem, own)
    found: list[dict[str, Any]] = []
    for mount, own in told.items():
        last = 0
        for event in own:
            last = max(last, min(event["wall_ns"], 1 << 62))  # a clock set back must not turn the order round
            mode, peer = event.get("mode"), event.get("peer")
            found.append(
                {
                    "wall_ns": last,
                    "node": answers.name(mount.node),
                    "event": str(event.get("event"))[:20],
                    "lock": names.name(mount.filesystem, event),
                    "mode": _MODES[mode] if type(mode) is int and 0 <= mode < len(_MODES) else "?",
                    "peer": answers.name(peer) if type(peer) is int and peer >= 0 else "",
                }
            )
    return sorted(found, key=lambda event: event["wall_ns"])  # stable: each node's order stays


def _line(event: dict[str, Any]) -> str:
    at = f"{local_time(event['wall_ns'])}.{event['wall_ns'] // 1_000_000 % 1000:03}"
    peer = f" ({event['peer']})" if event["peer"] else ""
    return printable(f"{at}  {event['node']:<10}  {event['event']:<9} {event['mode']}  {event['lock']}{peer}")
