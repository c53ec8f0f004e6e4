"""``matrixctl metrics``: this node's counters as Prometheus text (metrics_text.py).

Exit codes: those of membership/errors.py.
"""

from __future__ import annotations

import click

from matrixfs.cli.common import MatrixCommand, own_state_option


@click.command(cls=MatrixCommand)
@own_state_option
def metrics(state: str) -> None:
    """Counters of this node and its mounts, as Prometheus reads them; matrixd --metrics serves the same over HTTP."""
    from matrixfs.cli.metrics_text import metrics_text
    from membership.control_ask import ask
    from membership.errors import PeerError

    try:
        text = metrics_text(ask(state, {"kind": "status", "local": True}))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PeerError(f"matrixd answers in another version's format ({error!r}): restart it") from None
    click.echo(text, nl=False)
