"""``matrixd``: be one node of a cluster.  Here are the options and what is refused before anything starts;
the running node is ``matrixd_run.py``.

Exit codes: those of membership/errors.py; 0 after a clean stop; 6 when the node lost its right to the store.

Source: architecture 2; issue 2 (commands and bad input); BRIEF ("two commands make a cluster").
"""

from __future__ import annotations

import ipaddress
import os
import re
from typing import TYPE_CHECKING, Final

import click

from matrixfs import __version__
from matrixfs.cli.common import MatrixCommand, state_option
from matrixfs.store_names import is_iscsi, public_name
from membership.errors import OperatorError

if TYPE_CHECKING:
    from membership.enrol.credentials import NodeCredentials

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_ADDRESS: Final = re.compile(r"(?P<v6>\[[^]]*\])(:(?P<port6>\d+))?|(?P<v4>[^:]*)(:(?P<port4>\d+))?")
SCAN_DEFAULT: Final = ("/dev/disk/by-id/*",)
_LEVELS: Final = ("debug", "info", "warning", "error")


@click.command(cls=MatrixCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="matrixd")
@click.option(
    "--store",
    "stores",
    multiple=True,
    metavar="STORE",
    help="A disk that mkfs.matrixfs made, path or iscsi://...; it leads to the others.  Several: any may be away.  "
    "[default: what this server joined with]",
)
@click.option(
    "--scan",
    multiple=True,
    default=SCAN_DEFAULT,
    show_default=True,
    metavar="PATTERN",
    help="Where to look for disks that are not where the others have them.",
)
@click.option(
    "--address",
    multiple=True,
    metavar="IP[:PORT]",
    help="Own address that the other nodes reach; they find it on the disk.  Without a port: any free one.  "
    "Given again: an address in another network, for when the first is cut; networks in the same order on all nodes.  "
    "[default: what this server joined with]",
)
@click.option(
    "--name", metavar="NAME", help="Name of this node in the cluster.  [default: as it joined, or the host's]"
)
@click.option("--metrics", metavar="IP:PORT", help="Serve GET /metrics for Prometheus there, to whoever connects.")
@state_option
@click.option("--daemon", is_flag=True, help="Go to the background when the node is a member of its cluster.")
@click.option("--log-level", type=click.Choice(_LEVELS), default="info", show_default=True, help="What to log.")
def main(
    *,
    stores: tuple[str, ...],
    scan: tuple[str, ...],
    address: tuple[str, ...],
    name: str | None,
    metrics: str | None,
    state: str,
    daemon: bool,
    log_level: str,
) -> None:
    """Be one node of the cluster on a shared disk: member, lease, fencing, recovery, and the mounts of this host.

    SIGTERM or `matrixctl stop` end it; both refuse while trees are mounted here, for their data would be cut off.
    """
    directory = os.path.abspath(state)
    credentials = own_credentials(directory)
    if credentials is None and not stores:
        raise OperatorError(
            "which cluster? this server has joined none (matrixctl node join, matrixctl cluster init); or name a disk "
            "with --store"
        )
    if credentials is None and not address:
        raise OperatorError("give an address of this host that the other nodes reach: --address IP")
    joined = credentials if credentials is not None and not address else None
    hosts, port = parse_addresses(address) if joined is None else addresses_of(joined)
    served = parse_address(metrics, "--metrics") if metrics is not None else None
    node_name = checked_name(name or (credentials.node if credentials is not None else host_name()))
    if not stores:
        assert credentials is not None
        stores = credentials.stores
    missing = [store for store in stores if not is_iscsi(store) and not os.path.exists(store)]
    if len(missing) == len(stores):
        hint = "make one with mkfs.matrixfs" if credentials is None else "attach it, or name a disk of it with --store"
        raise OperatorError(f"{missing[0]}: no such store ({hint})")

    from matrixfs.cli.host import LOG_NAME, Readiness, go_background, lock_state, start_logging

    lock = lock_state(directory)
    log_path = os.path.join(directory, LOG_NAME) if daemon else None
    paths = tuple(map(checked_store, stores))
    readiness = go_background(log_path) if log_path else Readiness()
    lock.write_pid()
    start_logging(log_level, log_path)
    try:
        from matrixfs.cli.matrixd_run import MatrixdOptions, run_matrixd

        host, *others = hosts
        options = MatrixdOptions(
            paths, node_name, host, port, directory, served, scan, tuple(others), credentials
        )  # fmt: skip
        run_matrixd(options, readiness)
    finally:
        lock.release()


def own_credentials(directory: str) -> NodeCredentials | None:
    """What this server joined a cluster with, if it did.  Raises OperatorError when they can't be trusted."""
    from membership.enrol.credentials import FILE_NAME, load

    return load(directory) if os.path.lexists(os.path.join(directory, FILE_NAME)) else None


def addresses_of(credentials: NodeCredentials) -> tuple[list[str], int]:
    """As ``parse_addresses``."""
    return [contact.host for contact in credentials.addresses], credentials.addresses[0].port


def host_name() -> str:
    """The host's, without its domain."""
    return os.uname().nodename.split(".")[0]


def checked_store(store: str) -> str:
    """The store's absolute name.  Raises OperatorError when it holds a password: ps and the database would show it."""
    name = public_name(store)
    if is_iscsi(store) and name != store:
        raise OperatorError(
            f"{name}: write user and password into /etc/matrixfs/iscsi.env (mode 600): mounts need to find them too"
        )
    return name


def parse_addresses(texts: tuple[str, ...]) -> tuple[list[str], int]:
    """All own addresses as (IPs, port).  Raises OperatorError: there is one port for all, and no address twice."""
    from membership.transport.paths import PATHS_MAX

    found = [parse_address(text) for text in texts]
    hosts, port = [host for host, _ in found], found[0][1]
    if any(other not in (0, port) for _, other in found[1:]):
        raise OperatorError("--address: all addresses have one port, give it with the first")
    if len(set(hosts)) < len(hosts):
        raise OperatorError("--address: an address is given twice; a second path needs one in another network")
    if len(hosts) > PATHS_MAX:
        raise OperatorError(f"--address: {len(hosts)} addresses, at most {PATHS_MAX}")
    return hosts, port


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
