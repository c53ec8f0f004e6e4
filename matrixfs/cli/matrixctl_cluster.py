"""``matrixctl cluster``: make a cluster, look at it, take it apart (002-42, 002-46; R4, R11).

``cluster init`` keeps the cluster's key off the disks: this server has it in STATE/credentials, others get it by token
(``matrixctl node add``).  With three stores the membership areas are on all of them, and any one may be lost.
"""

from __future__ import annotations

import dataclasses
import os
import re
import uuid
from typing import TYPE_CHECKING, Final

import click

from matrixfs.cli.common import (
    MatrixCommand,
    echo_json,
    json_option,
    own_state_option,
    printable,
    state_argument,
)
from matrixfs.cli.mkfs_cmd import Request, make, parse_size, quota_option, trust_option
from membership.errors import MatrixError, OperatorError

if TYPE_CHECKING:
    from matrixfs.blockstore.initialize import DiskIdentity
    from membership.enrol.credentials import NodeCredentials
    from membership.label import Timing

_STORE: Final = re.compile(r"(?:(?P<fs>[A-Za-z0-9][A-Za-z0-9._-]*)=)?(?P<store>.+)", re.DOTALL)


@click.group()
def cluster() -> None:
    """Make a cluster, show it, take it apart."""


@cluster.command(cls=MatrixCommand, name="init")
@click.argument("name")
@click.argument("stores", nargs=-1, required=True, metavar="[FS=]STORE...")
@click.option(
    "--address",
    required=True,
    multiple=True,
    metavar="IP[:PORT]",
    help="Of this server, the first node, where the others will reach its matrixd.  Again: further networks.",
)
@click.option("--node", metavar="NAME", help="Name of this server in the cluster.  [default: the short host name]")
@click.option("-f", "--force", is_flag=True, help="Overwrite what the stores hold.  Never overwrites a store in use.")
@click.option("--size", type=parse_size, metavar="SIZE", help="The stores are files: create them, sparse, of SIZE.")
@click.option("-j", "--journals", default=8, show_default=True, help="How many nodes can mount a filesystem at once.")
@quota_option
@trust_option
@click.option("--plain-links", is_flag=True, help="Authenticate what nodes send each other, but do not encrypt it.")
@click.option(
    "--timing", multiple=True, metavar="NAME=SECONDS", help="Other times than the defaults; see cluster show."
)
@own_state_option
def init(
    name: str,
    stores: tuple[str, ...],
    address: tuple[str, ...],
    node: str | None,
    force: bool,
    size: int | None,
    journals: int,
    quota: bool,
    trust_reservations: bool,
    plain_links: bool,
    timing: tuple[str, ...],
    state: str,
) -> None:
    """Make a cluster NAME on one STORE, or on three: then any one may be lost.

    The first store holds a filesystem called NAME; a store written FS=STORE holds one called FS.
    """
    from matrixfs.cli.matrixctl_node import own_contacts
    from matrixfs.cli.matrixd_cmd import checked_name, checked_store, host_name
    from membership.enrol.credentials import FILE_NAME, NodeCredentials, save

    asked = [_store_of(text, name if at == 0 else "") for at, text in enumerate(stores)]
    directory = os.path.abspath(state)
    if os.path.lexists(os.path.join(directory, FILE_NAME)):
        raise OperatorError(
            f"{directory}: this server has joined a cluster already (matrixctl cluster show): give another --state, "
            f"or remove {os.path.join(directory, FILE_NAME)} if it has left that cluster for good"
        )
    contacts, node_name = own_contacts(address), checked_name(node or host_name())
    paths = tuple(checked_store(store) for _, store in asked)
    identities, key = _identities(name, len(asked), timing_of_words(timing), plain_links=plain_links)
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
    except OSError as error:
        raise OperatorError(f"can't use the state directory {directory}: {error.strerror} (see --state)") from None
    made: list[str] = []
    for (filesystem, _), path, identity in zip(asked, paths, identities, strict=True):
        request = Request(path, filesystem, journals, None, size, force, trust_reservations, quota, identity)
        made += _make(request, identity)
    first = identities[0]
    save(directory, NodeCredentials(name, first.cluster, key, not plain_links, node_name, paths, contacts))
    click.echo("\n".join(made))  # only now: whoever reads this may hang up
    click.echo(f"Cluster {name} ({uuid.UUID(bytes=first.cluster)}) is made; this server is its node {node_name}.")
    click.echo(f"Next, here:          matrixd --daemon{state_argument(state)}")
    click.echo("For each new server: matrixctl node add NAME")


def _store_of(text: str, default: str) -> tuple[str, str]:
    """(name of the filesystem or "", store)."""
    found = _STORE.fullmatch(text)
    assert found is not None
    return found["fs"] or default, found["store"]


def _identities(name: str, count: int, timing: Timing, *, plain_links: bool) -> tuple[list[DiskIdentity], bytes]:
    """Of the disks, and the cluster's key."""
    from matrixfs.blockstore.initialize import DiskIdentity, check_cluster_name, new_uuid
    from membership.clock import SystemRng
    from membership.label import PLAIN_LINKS

    check_cluster_name(name)
    if count not in (1, 3):
        raise OperatorError(
            f"{count} stores: make it with one, or three of which any may be lost; more: matrixctl disk add"
        )
    rng = SystemRng()
    owner, disks = new_uuid(rng), [new_uuid(rng) for _ in range(count)]
    links = PLAIN_LINKS if plain_links else 0
    identities = [
        DiskIdentity(owner, name, timing, disk, f"d{at}", links=links, areas=tuple(disks))
        for at, disk in enumerate(disks, 1)
    ]
    return identities, rng.randbytes(32)


def timing_of_words(words: tuple[str, ...]) -> Timing:
    """The timing of a cluster from ``NAME=SECONDS`` words.  Raises OperatorError."""
    from membership.label import DEFAULT_TIMING

    known = [field.name for field in dataclasses.fields(DEFAULT_TIMING)]
    changes: dict[str, float] = {}
    for word in words:
        name, _, value = word.partition("=")
        if name not in known or not re.fullmatch(r"[0-9]{1,4}(\.[0-9]{1,3})?", value):
            raise OperatorError(f"--timing {word}: write NAME=SECONDS, NAME one of {', '.join(known)}")
        changes[name] = float(value)
    return dataclasses.replace(DEFAULT_TIMING, **changes)


def _make(request: Request, identity: DiskIdentity) -> list[str]:
    """Make a disk; what to tell people when the key is safe."""
    from matrixfs.cli.storage import describe_fencing
    from matrixfs.fs.mkfs import format_volume
    from membership.clock import SystemClock, SystemRng

    label, _ = make(request, format_volume, SystemClock(), SystemRng())
    what = f"filesystem {request.name}" if request.name else "no filesystem"
    return [
        f"{printable(request.store)} is disk {identity.disk_name}, with a membership area and {what}",
        f"  nodes are fenced {describe_fencing(label)}",
    ]


@cluster.command(cls=MatrixCommand, name="show")
@own_state_option
@json_option
def show(state: str, as_json: bool) -> None:
    """What the cluster is: its disks, filesystems, links and timing.  Without matrixd: what this server joined."""
    from membership.control_ask import ask

    try:
        status = ask(state, {"kind": "status"})
    except MatrixError as error:
        _show_offline(state, error, as_json=as_json)
        return
    keys = ("cluster_name", "cluster_uuid", "generation", "links", "naming", "disks", "timing")
    found = {key: status[key] for key in keys}
    found["nodes"] = sorted(each["name"] for each in status["nodes"])
    if as_json:
        echo_json(found)
        return
    from matrixfs.cli.disks_format import disk_lines

    timing = status["timing"]
    click.echo(f"Cluster {printable(status['cluster_name'])} ({status['cluster_uuid']})")
    click.echo(f"  nodes       {' '.join(map(printable, found['nodes'])) or 'none yet'}")
    click.echo(f"  links       {status['links']}")
    click.echo(f"  generation  {status['generation']}, naming of the disks {status['naming']['version']}")
    click.echo(f"  timing      {', '.join(f'{name}={value:g}' for name, value in timing['configured'].items())}")
    click.echo(f"              {timing['formula']}")
    click.echo("\n".join(disk_lines(status)))


def _show_offline(state: str, error: MatrixError, *, as_json: bool) -> None:
    """What the credentials say; raises ``error`` when there are none."""
    from matrixfs.cli.matrixd_cmd import own_credentials

    credentials = own_credentials(os.path.abspath(state))
    if credentials is None:
        raise error
    found = {
        "cluster_name": credentials.cluster_name,
        "cluster_uuid": credentials.cluster.hex(),
        "links": "encrypted" if credentials.encrypt else "authenticated",
        "node": credentials.node,
        "stores": list(credentials.stores),
        "addresses": [f"{contact.host} port {contact.port}" for contact in credentials.addresses],
    }
    if as_json:
        echo_json({**found, "running": False})
        return
    click.echo(f"matrixctl: {printable(str(error))}", err=True)
    for name, value in found.items():
        click.echo(f"  {name:<12}  {printable(', '.join(value) if isinstance(value, list) else str(value))}")


@cluster.command(cls=MatrixCommand, name="destroy")
@click.argument("name")
@click.option("--store", "stores", multiple=True, metavar="STORE", help="A disk of it, where this server joined none.")
@own_state_option
def destroy(name: str, stores: tuple[str, ...], state: str) -> None:
    """Take cluster NAME apart: its disks are blank stores afterwards, ALL ITS FILES ARE GONE.

    Stop matrixd on all nodes first; a disk that a node still uses is refused.  Other servers keep their credentials,
    which are worth nothing then: remove STATE/credentials there.
    """
    import trio

    from matrixfs.cli.destroy import destroy_cluster
    from matrixfs.cli.matrixd_cmd import own_credentials
    from membership.enrol.credentials import wipe

    directory = os.path.abspath(state)
    credentials = own_credentials(directory)
    if not stores and credentials is None:
        raise OperatorError("which cluster? this server has joined none: name a disk of it with --store")
    _refuse_if_running(state)
    known = stores or (credentials.stores if credentials is not None else ())
    for line in trio.run(destroy_cluster, name, known):
        click.echo(printable(line))
    if _is_of(credentials, name):
        wipe(directory)
    click.echo(f"cluster {printable(name)} is gone")


def _is_of(credentials: NodeCredentials | None, name: str) -> bool:
    return credentials is not None and credentials.cluster_name == name


def _refuse_if_running(state: str) -> None:
    from membership.control_ask import ask

    try:
        ask(state, {"kind": "status"})
    except OperatorError:
        return
    raise OperatorError("matrixd runs here: stop it (matrixctl stop), and on all other nodes, first")
