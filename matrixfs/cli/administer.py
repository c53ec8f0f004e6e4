"""Commands that the administrator of the cluster carries out, from whichever node they are typed on (002-46, 002-47).

What takes long shows on a terminal what happens meanwhile: the events of this node, as they come.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from typing import TYPE_CHECKING, Any, Final

import click

from matrixfs.cli.common import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

ANSWER_SECONDS_MAX: Final = 150.0  # longer than the cluster tries (membership/commander.py)
_PROGRESS_SECONDS: Final = 1.0


def administer(state: str, what: str, **arguments: Any) -> Any:
    """Have a command carried out.

    Args:
        state: directory of the matrixd of this machine.
        what: a name of ``membership/commands/table.py``.
        arguments: of it.

    Raises:
        OperatorError: no matrixd there, no permission, or the administrator's refusal.
        PeerError: nobody answers; it may still be carried out.
    """
    from membership.control_ask import ask

    message = {"kind": "command", "what": what, "arguments": arguments}
    with _progress(state) if sys.stderr.isatty() else contextlib.nullcontext():
        return ask(state, message, ANSWER_SECONDS_MAX)


@contextlib.contextmanager
def _progress(state: str) -> Iterator[None]:
    """Tell on stderr what happens on this node while the body waits."""
    done = threading.Event()
    reporter = threading.Thread(target=_report, args=(state, done), daemon=True)
    reporter.start()
    try:
        yield
    finally:
        done.set()
        reporter.join()


def _report(state: str, done: threading.Event) -> None:
    from membership.control_ask import ask
    from membership.errors import MatrixError

    newest = 0
    while not done.wait(_PROGRESS_SECONDS):
        try:
            events = ask(state, {"kind": "status"}, _PROGRESS_SECONDS)["events"]
            for event in events if newest else []:
                if event["wall_ns"] > newest:
                    click.echo(f"  {printable(event['kind'])}: {printable(event['text'])}", err=True)
            newest = max([newest, 1, *(event["wall_ns"] for event in events)])
        except (MatrixError, KeyError, TypeError):
            continue  # the command itself will say what is wrong
