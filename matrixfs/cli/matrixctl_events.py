"""``matrixctl events``: what happened in the cluster, from the books of all its nodes (002-26, R14).

Every matrixd keeps its latest events (membership/node_events.py); here they are put in the order of time.  The clocks
of the nodes may differ, so the order between nodes is as good as they are; that of one node's events is kept.

Exit codes: 0; 3 when a node did not answer, so that its events are missing; else those of membership/errors.py.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import click

from matrixfs.cli.common import MatrixCommand, echo_json, json_option, local_time, own_state_option, printable
from membership.control_wire import take, take_natural
from membership.errors import BadMessage

if TYPE_CHECKING:
    from collections.abc import Iterable

    from membership.control_wire import Message

FOLLOW_SECONDS: Final = 2.0
SAME_NS: Final = 2_000_000_000  # what several nodes say alike within that time is one line for people


@dataclass(frozen=True, slots=True)
class Event:
    """One, of one node."""

    node: int  # -1: a matrixd that has not claimed a slot
    name: str
    incarnation: int  # of its matrixd
    seq: int  # counts from 1 in each matrixd
    wall_ns: int
    kind: str
    text: str

    @property
    def key(self) -> tuple[int, int, int]:
        """No other event has it."""
        return self.node, self.incarnation, self.seq

    def to_map(self) -> Message:
        """For programs."""
        return {field: getattr(self, field) for field in self.__slots__}


@click.command(cls=MatrixCommand)
@click.option("--here", is_flag=True, help="Only those of this node.")
@click.option("--follow", is_flag=True, help="Go on with what happens from now on, until Ctrl-C.")
@json_option
@own_state_option
@click.pass_context
def events(context: click.Context, here: bool, follow: bool, as_json: bool, state: str) -> None:
    """What happened in the cluster: joins, evictions, fencing, recoveries; newest last.

    From all nodes, in the order of their clocks; what several say alike is one line.  Each node has its latest 200,
    since its matrixd was started.  With --follow and --json: one event a line.
    """
    found, silent = _all_events(state, here=here)
    if as_json and not follow:
        echo_json({"events": [event.to_map() for event in found], "silent": silent})
        context.exit(3 if silent else 0)
    _show(found, silent, as_json=as_json)
    if not follow:
        context.exit(3 if silent else 0)
    known, missed = {event.key for event in found}, silent
    while True:
        try:
            time.sleep(FOLLOW_SECONDS)
        except KeyboardInterrupt:
            return
        found, silent = _all_events(state, here=here)
        _show([event for event in found if event.key not in known], sorted({*silent} - {*missed}), as_json=as_json)
        known, missed = {event.key for event in found} | known, silent


def _show(found: list[Event], silent: list[str], *, as_json: bool) -> None:
    if as_json:
        for event in found:
            click.echo(json.dumps(event.to_map()))
    else:
        for names, event in fold(found):
            what = (f"{printable(', '.join(names)):<10}", f"{printable(event.kind):<10}", printable(event.text))
            click.echo("  ".join((local_time(event.wall_ns), *what)))
    for line in silent:
        click.echo(f"matrixctl: {printable(line)}", err=True)


def _all_events(state: str, *, here: bool) -> tuple[list[Event], list[str]]:
    """In order, and sentences about nodes whose events are missing."""
    from matrixfs.cli.asking import ask_mounts
    from membership.control_ask import ask

    own = events_untrusted(ask(state, {"kind": "events"}))
    if here or any(event.node < 0 for event in own):
        return merge([own]), []  # without a slot there is nobody to ask
    answers = ask_mounts(state, "node.events", {}, missing="its events are")
    books, silent = [own], answers.silent
    for each in answers.mounts:
        try:
            books.append(events_untrusted(each.value))
        except BadMessage as error:
            silent.append(f"{each.name}: {error}")
    return merge(books), silent


def events_untrusted(value: Any) -> list[Event]:
    """Events as a matrixd sends them.  Raises BadMessage."""
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise BadMessage("matrixd's events are no list of maps")
    return [
        Event(
            node=take_natural(each, "node", 6) if each.get("node") != -1 else -1,
            name=take(each, "name", str),
            incarnation=take_natural(each, "incarnation"),
            seq=take_natural(each, "seq"),
            wall_ns=take_natural(each, "wall_ns", 63),
            kind=take(each, "kind", str),
            text=take(each, "text", str),
        )
        for each in value
    ]


def merge(books: Iterable[list[Event]]) -> list[Event]:
    """All events of all nodes, each once, by time; those of one matrixd in its own order though its clock was set."""
    known = {event.key: event for book in books for event in book}
    latest: dict[tuple[int, int], int] = {}
    keyed = []
    for (node, incarnation, seq), event in sorted(known.items(), key=lambda item: item[0]):
        at = max(latest.get((node, incarnation), 0), event.wall_ns)
        latest[node, incarnation] = at
        keyed.append(((at, node, incarnation, seq), event))
    return [event for _, event in sorted(keyed, key=lambda item: item[0])]


def fold(found: Iterable[Event]) -> list[tuple[list[str], Event]]:
    """Lines for people: what several nodes say alike at about the same time is one, with all their names."""
    lines: list[tuple[list[str], Event]] = []
    latest: dict[tuple[str, str], int] = {}  # where (kind, text) was said last
    for event in found:
        said = event.kind, event.text
        place = latest.get(said)
        if place is not None and event.name not in lines[place][0]:
            names, first = lines[place]
            if event.wall_ns - first.wall_ns <= SAME_NS:
                names.append(event.name)
                continue
        latest[said] = len(lines)
        lines.append(([event.name], event))
    return lines
