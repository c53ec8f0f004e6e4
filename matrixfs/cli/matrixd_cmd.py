"""``matrixd``: be one node of a cluster.  Here are the options and what is refused before anything starts;
the running node is ``matrixd_run.py``.

Exit codes: those of membership/errors.py; 0 after a clean stop; 6 when the node lost its right to the store.

Source: architecture 2; issue 2 (commands and bad input); BRIEF ("two commands make a cluster").
"""

from __future__ import annotations

import ipaddress
import os
import re
from typing import Final

import click

from matrixfs import __version__
from matrixfs.cli.common import MatrixCommand, state_option
from matrixfs.store_names import absolute_name, is_iscsi
from membership.errors import OperatorError

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_ADDRESS: Final = re.compile(r"(?P<v6>\[[^]]*\])(:(?P<port6>\d+))?|(?P<v4>[^:]*)(:(?P<port4>\d+))?")
_LEVELS: Final = ("debug", "info", "warning", "error")


@click.command(cls=MatrixCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="matrixd")
@click.option(
    "--store", required=True, metavar="STORE", help="The cluster disk that mkfs.matrixfs made: a path or URL."
)
@click.option(
    "--address",
    required=True,
    metavar="IP[:PORT]",
    help="Own address that the other nodes reach; they find it on the disk.  Without a port: any free one.",
)
@click.option("--name", metavar="NAME", help="Name of this node in the cluster.  [default: the short host name]")
@click.option("--metrics", metavar="IP:PORT", help="Serve GET /metrics for Prometheus there, to whoever connects.")
@state_option
@click.option("--daemon", is_flag=True, help="Go to the background when the node is a member of its cluster.")
@click.option("--log-level", type=click.Choice(_LEVELS), default="info", show_default=True, help="What to log.")
def main(
    *, store: str, address: str, name: str | None, metrics: str | None, state: str, daemon: bool, log_level: str
) -> None:
    """Be one node of the cluster on a shared disk: member, lease, fencing, recovery, and the mounts of this host.

    SIGTERM or `matrixctl stop` end it; both refuse while trees are mounted here, for their data would be cut off.
    """
    host, port = parse_address(address)
    served = parse_address(metrics, "--metrics") if metrics is not None else None
    node_name = checked_name(name if name is not None else os.uname().nodename.split(".")[0])
    if not is_iscsi(store) and not os.path.exists(store):
        raise OperatorError(f"{store}: no such store (make one with mkfs.matrixfs)")
    directory = os.path.abspath(state)

    from matrixfs.cli.host import LOG_NAME, Readiness, go_background, lock_state, start_logging

    lock = lock_state(directory)
    log_path = os.path.join(directory, LOG_NAME) if daemon else None
    store = absolute_name(store)
    readiness = go_background(log_path) if log_path else Readiness()
    lock.write_pid()
    start_logging(log_level, log_path)
    try:
        from matrixfs.cli.matrixd_run import MatrixdOptions, run_matrixd

        run_matrixd(MatrixdOptions(store, node_name, host, port, directory, served), readiness)
    finally:
        lock.release()


def parse_address(text: str, option: str = "--address") -> tuple[str, int]:
    """``IP``, ``IP:PORT`` or ``[IPV6]:PORT`` as (IP, port), port 0 for none.  Raises OperatorError."""
    found = _ADDRESS.fullmatch(text)
    host, port = "", 0
    if found is not None:
        host = (found["v6"] or found["v4"]).strip("[]")
        port = int(found["port6"] or found["port4"] or 0)
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise OperatorError(
            f"{option} {text!r} is no IP address with an optional port (10.0.0.1, 10.0.0.1:7001, [fd00::1]:7001)"
        ) from None
    if address.is_unspecified or address.is_multicast:
        raise OperatorError(f"{option} {host}: other nodes can't connect to that; give one address of this host")
    if port >= 1 << 16:
        raise OperatorError(f"{option} {text}: port {port} is over 65535")
    return str(address), port


def checked_name(name: str) -> str:
    """``name`` if a node can be called that.  Raises OperatorError."""
    from membership.label import NAME_BYTES_MAX

    if not _NAME.fullmatch(name) or len(name) > NAME_BYTES_MAX:
        raise OperatorError(
            f"node name {name!r}: give 1 to {NAME_BYTES_MAX} of A-Z a-z 0-9 . _ - with --name, a letter or digit first"
        )
    return name
