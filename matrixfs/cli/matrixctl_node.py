"""``matrixctl node``: who belongs to the cluster (002-31, 002-46, 002-47; R11).

A new server joins with a token, which a node of the cluster made for its name: it gets the cluster's key over a link
that the token encrypts, and keeps it in STATE/credentials.  Then its matrixd starts without any option.
"""

from __future__ import annotations

import hashlib
import os
import sys
from typing import TYPE_CHECKING, Any, Final

import click

from matrixfs import __version__
from matrixfs.cli.common import (
    MatrixCommand,
    Seconds,
    echo_json,
    json_option,
    own_state_option,
    printable,
    state_argument,
    table,
)
from membership.errors import BadMessage, MatrixError, OperatorError, PeerError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from membership.enrol.credentials import NodeCredentials
    from membership.enrol.exchange import EnrolRequest
    from membership.enrol.token import Contact, Token

PORT_DEFAULT: Final = 7474  # where matrixd listens when --address names no port
EXPIRES_DEFAULT: Final = 3600
EXPIRES_MAX: Final = 30 * 86400
_WORDS: Final = {"": "-", "known": "-", "expected": "has a token", "fenced": "kept out", "removed": "removed"}


@click.group()
def node() -> None:
    """Add, join, fence and remove nodes of the cluster."""


@node.command(cls=MatrixCommand, name="add")
@click.argument("name")
@click.option(
    "--expires",
    type=Seconds(60, EXPIRES_MAX),
    default=EXPIRES_DEFAULT,
    show_default=True,
    metavar="SECONDS",
    help="How long the token can be used.",
)
@own_state_option
@json_option
def add(name: str, expires: float, state: str, as_json: bool) -> None:
    """Make a token with which a new server joins the cluster as NAME: once, and soon.

    The token is a secret: who has it first is the node.
    """
    from matrixfs.cli.administer import administer
    from matrixfs.cli.matrixd_cmd import checked_name

    made = administer(state, "node.add", name=checked_name(name), seconds=int(expires))
    if as_json:
        echo_json(made)
        return
    click.echo("On the new server, with an address of it:")
    click.echo(f"  matrixctl node join --name {name} --address ADDRESS {printable(made['token'])}")
    click.echo(printable(made["text"]), err=True)


@node.command(cls=MatrixCommand, name="join")
@click.argument("text", metavar="TOKEN")
@click.option(
    "--address",
    required=True,
    multiple=True,
    metavar="IP[:PORT]",
    help=f"Of this server, where the others reach its matrixd; port {PORT_DEFAULT} if none.  Again: further networks.",
)
@click.option("--name", metavar="NAME", help="As the token was made for.  [default: the short host name]")
@own_state_option
def join(text: str, address: tuple[str, ...], name: str | None, state: str) -> None:
    """Join the cluster that made TOKEN ("-": read it from stdin): get its key and the names of its disks.

    Run again after an answer that was lost, it gets it again.
    """
    from matrixfs.cli.matrixd_cmd import checked_name, host_name

    if text == "-":
        text = sys.stdin.read()
    contacts = own_contacts(address)
    found = join_cluster(text, checked_name(name or host_name()), contacts, os.path.abspath(state))
    click.echo(f"This server is node {printable(found.node)} of cluster {printable(found.cluster_name)} now.")
    click.echo(f"Next:  matrixd --daemon{state_argument(state)}")


def own_contacts(addresses: tuple[str, ...]) -> tuple[Contact, ...]:
    """Where the matrixd of this server will listen.  Raises OperatorError."""
    from matrixfs.cli.matrixd_cmd import parse_addresses
    from membership.enrol.token import Contact

    hosts, port = parse_addresses(addresses)
    return tuple(Contact(host, port or PORT_DEFAULT) for host in hosts)


def join_cluster(text: str, name: str, contacts: tuple[Contact, ...], directory: str) -> NodeCredentials:
    """Use a token and keep what it gives.

    Raises:
        OperatorError: no token, refused, or this server is of another cluster.
        PeerError: no node of the cluster answers.
    """
    import trio

    from membership.enrol import credentials as files
    from membership.enrol.exchange import VERSION, EnrolRequest
    from membership.enrol.token import decode_untrusted

    try:
        token = decode_untrusted(text)
    except BadMessage as error:
        raise OperatorError(str(error)) from None
    if os.path.lexists(os.path.join(directory, files.FILE_NAME)):
        files.load(directory, token.cluster)  # refuses another cluster's
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
    except OSError as error:
        raise OperatorError(f"can't use the state directory {directory}: {error.strerror} (see --state)") from None
    request = EnrolRequest(VERSION, name, tuple(contacts), __version__, _instance(token, directory))
    found = trio.run(_ask_any, token, request)
    made = files.NodeCredentials.of(found, contacts)
    files.save(directory, made)
    return made


async def _ask_any(token: Token, request: EnrolRequest) -> Any:
    """The answer of the first contact of the token that gives one."""
    from membership.clock import SystemRng
    from membership.enrol.exchange import encode, enrolled_untrusted
    from membership.transport.guest import call_as_guest

    failure: MatrixError = PeerError("the token names no node")
    for host, port in token.contacts:
        try:
            answer = await call_as_guest(
                host, port, token.cluster, token.token_id, token.key, encode(request), SystemRng()
            )
        except PeerError as error:
            failure = error
            continue
        return enrolled_untrusted(answer, token, request)
    raise failure


def _instance(token: Token, directory: str) -> bytes:
    """The same for the same token on the same server: who lost the answer may ask again."""
    try:
        with open("/etc/machine-id", "rb") as file:
            machine = file.read()
    except OSError:
        machine = os.uname().nodename.encode()
    return hashlib.blake2b(b"\0".join((token.token_id, machine, os.fsencode(directory))), digest_size=16).digest()


@node.command(cls=MatrixCommand, name="remove")
@click.argument("name")
@click.option("--force", is_flag=True, help="Fence it when it is a member: its mounts end with an I/O error.")
@own_state_option
def remove(name: str, force: bool, state: str) -> None:
    """Take a node out of the cluster for good; its slot and its name are free.  Stop it first."""
    from matrixfs.cli.administer import administer

    administer(state, "node.remove", name=name, force=force)
    click.echo(f"{printable(name)} is no node of the cluster any more")


@node.command(cls=MatrixCommand, name="fence")
@click.argument("name")
@own_state_option
def fence(name: str, state: str) -> None:
    """Stop a node from writing, recover what it had open, and keep it out until `matrixctl node unfence`.

    Returns when it is certain that the node writes no more.
    """
    from matrixfs.cli.administer import administer
    from membership.control_ask import ask

    if ask(state, {"kind": "status"})["name"] == name:
        raise OperatorError(f"{name} is this node: fence it from another one, or stop it (matrixctl stop)")
    done = administer(state, "node.fence", name=name)
    click.echo(f"{printable(name)} is fenced: {printable(done['fence'])}")


@node.command(cls=MatrixCommand, name="unfence")
@click.argument("name")
@click.option("--power-on", is_flag=True, help="Switch it on first, by all its fence agents.")
@own_state_option
def unfence(name: str, power_on: bool, state: str) -> None:
    """Let a node in again that was fenced by `matrixctl node fence`."""
    from matrixfs.cli.administer import administer

    administer(state, "node.unfence", name=name, power_on=power_on)
    click.echo(f"{printable(name)} may join")


@node.command(cls=MatrixCommand, name="list")
@own_state_option
@json_option
def list_nodes(state: str, as_json: bool) -> None:
    """All nodes the cluster knows, members or not."""
    from matrixfs.cli.administer import administer
    from membership.control_ask import ask

    status = ask(state, {"kind": "status"})
    try:
        words = administer(state, "node.roster")
    except PeerError as error:
        click.echo(f"matrixctl: no administrator answers, so this is what the disk says: {error}", err=True)
        words = {}
    rows = _rows(status, words)
    if as_json:
        echo_json(
            [dict(zip(("id", "name", "state", "operator", "host", "port", "mounts"), row, strict=True)) for row in rows]
        )
        return
    lines: list[Sequence[object]] = [("ID", "NODE", "STATE", "OPERATOR", "ADDRESS", "MOUNTS")]
    for number, name, what, word, host, port, mounts in rows:
        address = "-" if not host else f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        shown = number if number is not None else "-"
        lines.append((shown, printable(name), what, _WORDS.get(word, printable(word)), printable(address), mounts))
    click.echo("\n".join(table(lines, right={0, 5})))


def _rows(status: dict[str, Any], words: dict[str, str]) -> list[tuple[int | None, str, str, str, str, int, int]]:
    """(id, name, state, the operator's word, host, port, mounts): those with a slot, then those without."""
    rows: list[tuple[int | None, str, str, str, str, int, int]] = [
        (n["id"], n["name"], n["state"], words.get(n["name"], ""), n["host"], n["port"], n["mounts"])
        for n in status["nodes"]
    ]
    seen = {row[1] for row in rows}
    return rows + [(None, name, "-", word, "", 0, 0) for name, word in sorted(words.items()) if name not in seen]
