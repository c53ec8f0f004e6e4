"""``matrixctl disk``: the cluster's disks while it runs (002-21, 002-43; Figure 12).

A disk is formatted and labelled here, then the administrator makes it known to all; a refusal takes the label away
again.  A crash in between leaves a labelled disk that the cluster does not know: add it again with --force.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from matrixfs.cli.common import MatrixCommand, echo_json, json_option, own_state_option, printable
from matrixfs.cli.mkfs_cmd import JOURNALS_DEFAULT, Request, make, parse_size, quota_option, trust_option
from membership.errors import MatrixError, OperatorError, PeerError

if TYPE_CHECKING:
    from matrixfs.blockstore.initialize import DiskIdentity
    from membership.fence.reservations import LunTraits
    from membership.label import Label
    from membership.naming import Disk


@click.command(cls=MatrixCommand, name="add")
@click.argument("name")
@click.argument("store")
@click.option("--fs", "filesystem", default="", metavar="NAME", help="Make a filesystem NAME on it.  [default: none]")
@click.option("-f", "--force", is_flag=True, help="Overwrite what STORE holds.  Never overwrites a store in use.")
@click.option("--size", type=parse_size, metavar="SIZE", help="STORE is a file: create or extend it, sparse, to SIZE.")
@quota_option
@trust_option
@click.option("-j", "--journals", default=JOURNALS_DEFAULT, show_default=True, help="How many nodes can mount it.")
@click.option("--journal-size", type=parse_size, metavar="SIZE", help="Of each journal.  [default: by STORE's size]")
@own_state_option
def add(
    name: str,
    store: str,
    filesystem: str,
    force: bool,
    size: int | None,
    trust_reservations: bool,
    journals: int,
    journal_size: int | None,
    quota: bool,
    state: str,
) -> None:
    """Add STORE to the cluster as disk NAME, while all goes on.  All nodes must reach it."""
    from matrixfs.cli.administer import administer
    from matrixfs.cli.matrixd_cmd import checked_store
    from matrixfs.cli.storage import describe_fencing
    from matrixfs.fs.mkfs import format_volume
    from membership.clock import SystemClock, SystemRng
    from membership.commands.disks import disk_to_map
    from membership.control_ask import ask

    status = ask(state, {"kind": "status"})
    _refuse_known(status, name, filesystem)
    path = checked_store(store)
    identity = _identity(status, name)
    request = Request(path, filesystem, journals, journal_size, size, force, trust_reservations, quota, identity)
    label, superblock = make(request, format_volume, SystemClock(), SystemRng())
    row = _row(label, path, superblock.owner if superblock is not None else b"", filesystem)
    try:
        administer(state, "disk.add", disk=disk_to_map(row))
    except OperatorError:
        wipe(path, label.disk_uuid)
        raise
    what = f"with filesystem {filesystem}" if filesystem else "without a filesystem"
    click.echo(f"{printable(path)} is disk {name} of the cluster, {what}; nodes are fenced {describe_fencing(label)}")


def _refuse_known(status: dict[str, Any], name: str, filesystem: str) -> None:
    """Before anything is written; the administrator looks again.  Raises OperatorError."""
    from matrixfs.blockstore.initialize import check_cluster_name

    check_cluster_name(name)
    for disk in status["disks"]:
        if disk["name"] == name:
            raise OperatorError(f"a disk of the cluster is called {name} already: see matrixctl disk list")
        if filesystem and disk["filesystem"] == filesystem:
            raise OperatorError(f"the cluster has a filesystem {filesystem} already, on disk {disk['name']}")


def _identity(status: dict[str, Any], name: str) -> DiskIdentity:
    """Of a further disk; all that disks of a cluster share is taken from one that this node has."""
    import trio

    from matrixfs.blockstore.initialize import DiskIdentity, new_uuid
    from membership.clock import SystemRng
    from membership.label import timing_of

    known = next((disk["path_here"] for disk in status["disks"] if disk["path_here"]), None)
    if known is None:
        raise PeerError("this node has no disk of the cluster open: see matrixctl disk list")
    first = trio.run(_read_label, known)
    return DiskIdentity(
        first.owner, first.cluster_name, timing_of(first), new_uuid(SystemRng()), name, first.cluster_key, first.links
    )


async def _read_label(path: str) -> Label:
    from matrixfs.blockstore import opened_store
    from membership.label import read_label

    device = await opened_store(path, read_only=True)
    try:
        return await read_label(device)
    finally:
        await device.aclose()


def _row(label: Label, path: str, fs_uuid: bytes, filesystem: str) -> Disk:
    from membership.label import BLOCK_BYTES
    from membership.naming import Disk

    size = (label.data_block + label.data_blocks + 1) * BLOCK_BYTES
    traits = (label.pr_kind, label.pr_flags, label.pr_leaks)
    return Disk(label.disk_uuid, label.name, path, size, fs_uuid, filesystem, traits)


@click.command(cls=MatrixCommand, name="remove")
@click.argument("name")
@own_state_option
def remove(name: str, state: str) -> None:
    """Take disk NAME out of the cluster: it is a blank store then.  Refused while its filesystem is mounted."""
    from matrixfs.cli.administer import administer
    from membership.control_ask import ask

    disk = next((disk for disk in ask(state, {"kind": "status"})["disks"] if disk["name"] == name), None)
    if disk is None:
        raise OperatorError(f"no disk of the cluster is called {name!r}: see matrixctl disk list")
    uuid, path = bytes.fromhex(disk["uuid"]), disk["path_here"] or disk["path"]
    administer(state, "disk.remove", uuid=uuid)
    try:
        wipe(path, uuid)
    except MatrixError as error:
        click.echo(f"matrixctl: its label is still on it, harmless but in the way: {printable(str(error))}", err=True)
    click.echo(f"{printable(name)} ({printable(path)}) is no disk of the cluster any more")


def wipe(path: str, disk: bytes) -> None:
    """Take the label away, if it is that disk's.  Raises OperatorError, DeviceError."""
    import trio

    trio.run(_wipe, path, disk)


async def _wipe(path: str, disk: bytes) -> None:
    from matrixfs.blockstore import opened_store
    from matrixfs.blockstore.initialize import wipe_labels
    from matrixfs.cli.storage import clear_reservations
    from membership.clock import SystemRng
    from membership.label import read_label

    device = await opened_store(path)
    try:
        if (await read_label(device)).disk_uuid != disk:
            raise OperatorError(f"{path}: is another disk here: nothing was wiped")
        if await device.refuse_if_used(force=True):
            await clear_reservations(device, SystemRng())
        await wipe_labels(device)
    finally:
        await device.aclose()


@click.command(cls=MatrixCommand, name="areas")
@click.argument("names", nargs=-1, required=True, metavar="DISK...")
@own_state_option
def areas(names: tuple[str, ...], state: str) -> None:
    """Keep the membership areas on these disks: one, or three, of which any may be lost then."""
    from matrixfs.cli.administer import administer

    administer(state, "disk.areas", names=list(names))
    click.echo(f"the membership areas are on {', '.join(map(printable, names))} now")


@click.command(cls=MatrixCommand, name="list")
@own_state_option
@json_option
def list_disks(state: str, as_json: bool) -> None:
    """The cluster's disks and how this node sees them."""
    from matrixfs.cli.disks_format import disk_lines
    from membership.control_ask import ask

    status = ask(state, {"kind": "status"})
    if as_json:
        echo_json({"disks": status["disks"], "naming": status["naming"]})
        return
    click.echo("\n".join(disk_lines(status)))


@click.command(cls=MatrixCommand, name="probe")
@click.argument("store")
@json_option
def probe(store: str, as_json: bool) -> None:
    """Find out what the reservations of a LUN (iscsi://...) are worth, by trying; of a cluster disk: what was found.

    Nobody may use the LUN; some blocks of it are overwritten, and its reservations are cleared.
    """
    import trio

    from matrixfs.store_names import is_iscsi, public_name
    from membership.fence.reservations import LunTraits

    label = _label_or_none(store)
    if label is not None:
        found = LunTraits.from_words_untrusted(label.pr_kind, label.pr_flags, label.pr_leaks)
    elif is_iscsi(store):
        found = trio.run(_probe, store)
    else:
        raise OperatorError(f"{public_name(store)}: is no LUN that this host reaches by itself (iscsi://...)")
    if as_json:
        echo_json(
            {"store": public_name(store), "stored": label is not None, "fence": found.fence, "lines": found.describe()}
        )
        return
    source = "as probed when it was made" if label is not None else "probed now"
    click.echo(f"{printable(public_name(store))}, {source}:")
    click.echo("\n".join(f"  {printable(line)}" for line in found.describe()))


async def _probe(store: str) -> LunTraits:
    from matrixfs.blockstore.scsi.address import parse_address
    from matrixfs.blockstore.scsi.credentials import environment
    from matrixfs.blockstore.scsi.probe_nexus import probe_iscsi
    from matrixfs.cli.matrixd_cmd import host_name
    from membership.clock import SystemRng

    variables, nonce = environment(), SystemRng().randbytes(8).hex()

    def tell(line: str) -> None:
        click.echo(f"  {printable(line)}", err=True)

    return await probe_iscsi(parse_address(store, variables), host_name(), variables, nonce, progress=tell)


def _label_or_none(store: str) -> Label | None:
    """The label, when it is a cluster disk.  Raises DeviceError; OperatorError when it can't be opened."""
    import trio

    return trio.run(_cluster_label, store)


async def _cluster_label(store: str) -> Label | None:
    from matrixfs.blockstore import opened_store
    from membership.errors import CorruptRecord
    from membership.label import read_label

    device = await opened_store(store, read_only=True)
    try:
        return await read_label(device)
    except (OperatorError, CorruptRecord):
        return None
    finally:
        await device.aclose()
