"""``mkfs.matrixfs``: make a cluster disk with one empty filesystem on it.

The order of things (I1, I2 in ``matrixfs/blockstore/initialize.py``): all refusals; then the old label goes; then the
membership area and the filesystem are written; the label is written last.  So nothing is written on a refusal, and an
interrupted mkfs leaves a store that no node takes for a cluster disk.

Source: issue 2 (commands and bad input); ecosystem 6 ("already in use?" is ours to check); 002-21.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import stat
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import click

from matrixfs import __version__
from matrixfs.cli.common import MatrixCommand, printable, size_text
from matrixfs.store_names import is_iscsi, public_name
from membership.errors import OperatorError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matrixfs.blockstore.device.api import Store
    from matrixfs.blockstore.initialize import DiskIdentity
    from matrixfs.ondisk.superblock import Superblock
    from membership.label import Label
    from membership.seams import Clock, Rng, SectorDevice

JOURNALS_DEFAULT: Final = 8
_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE: Final = re.compile(r"([0-9]{1,18})([KMGT]?)(?:i?B)?", re.IGNORECASE)
_ALIGNMENT: Final = 4096


class FormatVolume(Protocol):
    """``matrixfs.fs.mkfs.format_volume``; tests put another in its place."""

    async def __call__(
        self,
        device: SectorDevice,
        *,
        name: str,
        journals: int,
        journal_blocks: int | None,
        clock: Clock,
        rng: Rng,
        quotas: bool = False,
    ) -> Superblock:
        """Write an empty filesystem to ``device``."""
        ...


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for; sizes in bytes."""

    store: str
    name: str  # of the filesystem; "": none
    journals: int = JOURNALS_DEFAULT
    journal_bytes: int | None = None
    size: int | None = None
    force: bool = False
    vouched: bool = False  # its reservations are good, says the operator
    quotas: bool = False
    identity: DiskIdentity | None = None  # None: the only disk of a new cluster called ``name``


def parse_size(text: str) -> int:
    """Bytes, or a number with K, M, G or T (powers of 1024), rounded down to 4 KiB.  Raises click.BadParameter."""
    match = _SIZE.fullmatch(text.strip())
    size = int(match[1]) * _UNITS[match[2].upper()] // _ALIGNMENT * _ALIGNMENT if match else 0
    if not 0 < size < 1 << 63:
        raise click.BadParameter(f"{text!r} is no size; write for example 512M, 2G or 1T")
    return size


quota_option = click.option(
    "--quota", is_flag=True, help="Count what users, groups and projects use, and keep it within limits."
)
trust_option = click.option(
    "--trust-reservations",
    is_flag=True,
    help="STORE is a SCSI or NVMe device of the kernel whose persistent reservations you know to work: fence by them.  "
    "(Of a LUN given as iscsi://... it is tried.)",
)


@click.command(cls=MatrixCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("store")
@click.option("-n", "--name", required=True, help="Name of the cluster and its filesystem: what mount is given.")
@click.option("-f", "--force", is_flag=True, help="Overwrite what STORE holds.  Never overwrites a store in use.")
@click.option("--size", type=parse_size, metavar="SIZE", help="STORE is a file: create or extend it, sparse, to SIZE.")
@click.option(
    "-j", "--journals", default=JOURNALS_DEFAULT, show_default=True, help="How many nodes can mount it at once."
)
@click.option("--journal-size", type=parse_size, metavar="SIZE", help="Of each journal.  [default: by STORE's size]")
@quota_option
@trust_option
@click.version_option(__version__, prog_name="mkfs.matrixfs")
def main(
    *,
    store: str,
    name: str,
    force: bool,
    size: int | None,
    journals: int,
    journal_size: int | None,
    quota: bool,
    trust_reservations: bool,
) -> None:
    """Make STORE a MatrixFS cluster disk with an empty filesystem.

    STORE is a block device or file that all nodes reach, or a LUN: iscsi://HOST[:PORT]/TARGET/LUN.
    """
    from matrixfs.fs.mkfs import format_volume
    from membership.clock import SystemClock, SystemRng

    request = Request(store, name, journals, journal_size, size, force, trust_reservations, quota)
    label, superblock = make(request, format_volume, SystemClock(), SystemRng())
    assert superblock is not None
    click.echo(summary(public_name(store), label, superblock))


def make(request: Request, format_volume: FormatVolume, clock: Clock, rng: Rng) -> tuple[Label, Superblock | None]:
    """Check everything, then make the cluster disk; also for ``matrixctl cluster init`` and ``disk add``.

    Raises:
        OperatorError: refused; nothing was written, and no file is left that wasn't there.
        DeviceError: the store failed on the way; it is no cluster disk now.
    """
    import trio

    from matrixfs.blockstore.device.store import open_store
    from matrixfs.blockstore.in_use import refuse_if_host_uses
    from matrixfs.blockstore.initialize import check_cluster_name

    if request.name:
        check_cluster_name(request.name)
    if is_iscsi(request.store):
        if request.size is not None:
            raise OperatorError(f"{public_name(request.store)}: has a size already; leave --size out")
        return trio.run(_make, open_store(request.store), request, format_volume, clock, rng)
    if request.size is None and not os.path.lexists(request.store):
        raise OperatorError(f"{request.store}: does not exist (to make it, a file, give it a --size)")
    with _sized(request.store, request.size):
        device = open_store(request.store)
        try:
            refuse_if_host_uses(request.store, force=request.force)
        except BaseException:
            device.close_unused()
            raise
        return trio.run(_make, device, request, format_volume, clock, rng)


async def _make(
    device: Store, request: Request, format_volume: FormatVolume, clock: Clock, rng: Rng, /
) -> tuple[Label, Superblock | None]:
    from matrixfs.blockstore.in_use import refuse_if_holding_data
    from matrixfs.blockstore.initialize import data_blocks, data_window, new_identity, prepare_disk, write_label
    from matrixfs.cli.storage import clear_reservations, probe_into, vouch_for
    from matrixfs.fs.mkfs import plan_volume
    from membership.label import BLOCK_BYTES, DEFAULT_TIMING

    journal_blocks = None if request.journal_bytes is None else request.journal_bytes // BLOCK_BYTES
    await device.open()
    try:
        left_behind = await device.refuse_if_used(force=request.force)
        if request.name:
            plan_volume(data_blocks(device), request.journals, journal_blocks)  # refuses before anything is written
        if left_behind:
            await refuse_if_holding_data(device, clock, force=True)  # nobody writes to it
            await clear_reservations(device, rng)
        if request.vouched:
            await vouch_for(device, rng, force=request.force)
        identity = request.identity or new_identity(request.name, DEFAULT_TIMING, rng)
        label = await prepare_disk(device, identity, clock, force=request.force)
        await probe_into(label, device, rng, clock, vouched=request.vouched)
        superblock = None
        if request.name:
            superblock = await format_volume(
                data_window(device, label),
                name=request.name,
                journals=request.journals,
                journal_blocks=journal_blocks,
                clock=clock,
                rng=rng,
                quotas=request.quotas,
            )
        else:
            await device.write(label.data_block * BLOCK_BYTES, bytes(BLOCK_BYTES))  # none that was there before
        await write_label(device, label)
    finally:
        await device.aclose()
    return label, superblock


@contextlib.contextmanager
def _sized(path: str, size: int | None) -> Iterator[None]:
    """Give a file store its size; take it back when the body refuses.

    Raises:
        OperatorError: ``size`` is given for a device, smaller than the file, or more than the filesystem takes.
    """
    if size is None:
        yield
        return
    created, size_before = _grow(path, size)
    try:
        yield
    except BaseException as error:
        if created:
            os.unlink(path)
        elif isinstance(error, OperatorError):
            os.truncate(path, size_before)
        raise


def _grow(path: str, size: int) -> tuple[bool, int]:
    """Create or extend the file; return (created, size before)."""
    try:
        try:
            found = os.stat(path)
        except FileNotFoundError:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)  # its label holds the key
            os.close(fd)
            try:
                os.truncate(path, size)
            except BaseException:
                os.unlink(path)
                raise
            return True, 0
        if not stat.S_ISREG(found.st_mode):
            raise OperatorError(f"{path}: is no file, so it has a size already; leave --size out")
        if found.st_size > size:
            raise OperatorError(f"{path}: has {found.st_size} bytes already; leave --size out, or remove the file")
        os.truncate(path, size)
        return False, found.st_size
    except ValueError:
        raise OperatorError(f"{path!r}: is no path") from None
    except OSError as error:
        raise OperatorError(f"{path}: can't make it {size} bytes long: {error.strerror}") from None


def summary(store: str, label: Label, superblock: Superblock) -> str:
    """What was made, and the command to type next."""
    from matrixfs.cli.storage import describe_fencing
    from membership.label import BLOCK_BYTES

    journal = size_text(superblock.journal_blocks * BLOCK_BYTES)
    lines = [
        f"{printable(store)} is now a cluster disk with an empty filesystem.",
        f"  name      {superblock.name}",
        f"  uuid      {uuid.UUID(bytes=superblock.owner)}",
        f"  cluster   {uuid.UUID(bytes=label.owner)}",
        f"  size      {size_text((label.data_block + label.data_blocks + 1) * BLOCK_BYTES)}",
        f"  journals  {superblock.journals} of {journal}: so many nodes can mount it at once",
        f"  quotas    {'counted' if superblock.has_quotas else 'none'}",
        f"  fencing   {describe_fencing(label)}",
        "Next, on every node, with an address of that node:",
        f"  matrixd --daemon --store {shlex.quote(printable(store))} --address ADDRESS",
    ]
    return "\n".join(lines)
