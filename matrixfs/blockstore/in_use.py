"""Is this store somebody's?  What mkfs asks before it writes (ecosystem.md 6: to blkid our volumes look blank).

Two kinds of answer: what ``--force`` may overwrite (data of somebody who is not there), and what nothing may
overwrite (a disk somebody works on just now: a live node, a mount, swap, another driver).
"""

from __future__ import annotations

import datetime as dt
import errno
import os
import shutil
import stat
import subprocess
from typing import TYPE_CHECKING

from membership.errors import CorruptRecord, OperatorError
from membership.label import BLOCK_BYTES, DATA_BLOCK, DEFAULT_TIMING, Label, read_label

if TYPE_CHECKING:
    from membership.seams import Clock, SectorDevice

_FOREIGN_BYTES = 1 << 20  # signatures of filesystems, partition tables and RAID lie in the first 1 MiB
_RENEW_SECONDS_MAX = 10.0  # a label is bytes from a disk: don't wait longer on its word
_BLKID_FOUND, _BLKID_NOTHING, _BLKID_SEVERAL = 0, 2, 8
_BLKID_SECONDS_MAX = 10
_OVERWRITE = "--force overwrites it"
_MOUNTS, _SWAPS = "/proc/mounts", "/proc/swaps"


async def refuse_if_holding_data(device: SectorDevice, clock: Clock, *, force: bool) -> None:
    """Refuse a store that holds a cluster or foreign data, or (``force`` or not) on which a node is alive.

    A node counts as alive when the membership area changes within two renewals; a stopped one can't be seen.

    Raises:
        OperatorError: with what was found, and whether ``--force`` helps.
    """
    renew = DEFAULT_TIMING.renew
    try:
        label = await read_label(device)
    except CorruptRecord as error:
        if not force:
            raise OperatorError(f"{error} (once a cluster disk of MatrixFS); {_OVERWRITE}") from None
    except OperatorError:  # no label
        if not force:
            await _refuse_if_not_blank(device)
    else:
        if not force:
            raise OperatorError(f"{device.name}: already holds {describe(label)}; {_OVERWRITE}")
        renew = min(label.renew_ms / 1000, _RENEW_SECONDS_MAX)
    if await _is_changing(device, clock, 2 * renew):
        raise OperatorError(f"{device.name}: a node is working on it now; stop matrixd on all nodes first")


def describe(label: Label) -> str:
    """A cluster in a few words."""
    seconds = label.created_ns // 1_000_000_000
    try:
        made = f"{dt.datetime.fromtimestamp(seconds, dt.UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (ValueError, OverflowError, OSError):
        made = "at an impossible time"
    return f"the cluster {label.cluster_name!r}, made {made}"


async def _refuse_if_not_blank(device: SectorDevice) -> None:
    head = await device.read(0, min(_FOREIGN_BYTES, device.size_bytes))
    if any(head):
        raise OperatorError(f"{device.name}: is not blank (other data in its first 1 MiB); {_OVERWRITE}")


async def _is_changing(device: SectorDevice, clock: Clock, seconds: float) -> bool:
    before = await device.read(0, DATA_BLOCK * BLOCK_BYTES)
    if not any(before):
        return False
    await clock.sleep(seconds)
    return await device.read(0, DATA_BLOCK * BLOCK_BYTES) != before


def refuse_if_host_uses(path: str, *, force: bool) -> None:
    """Refuse a store that this host uses for something else.  Blocks for a moment; for commands, before trio.

    Raises:
        OperatorError: mounted, swap, or claimed by another driver (never forced); foreign signature (unless forced).
    """
    where = _mounted_on(path) or _swap(path)
    if where is not None:
        raise OperatorError(f"{path}: is in use ({where})")
    if stat.S_ISBLK(os.stat(path).st_mode):
        _refuse_if_claimed(path)
    if not force:
        found = _signature(path)
        if found is not None:
            raise OperatorError(f"{path}: holds {found}; {_OVERWRITE}")


def _refuse_if_claimed(path: str) -> None:
    """O_EXCL on a block device fails while a filesystem, swap, LVM or RAID holds it, or one of its partitions."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise OperatorError(f"{path}: is in use by another driver of this host (mount, LVM, RAID, swap)") from None
        raise OperatorError(f"{path}: can't be opened: {error.strerror}") from None


def _identity(path: str) -> tuple[str, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return ("block", found.st_rdev, 0) if stat.S_ISBLK(found.st_mode) else ("file", found.st_dev, found.st_ino)


def _mounted_on(path: str) -> str | None:
    wanted = _identity(path)
    for line in _lines(_MOUNTS):
        source, directory = line.split(" ")[:2]
        if source.startswith("/") and _identity(_plain(source)) == wanted:
            return f"mounted on {_plain(directory)}"
    return None


def _swap(path: str) -> str | None:
    wanted = _identity(path)
    for line in _lines(_SWAPS)[1:]:
        if _identity(_plain(line.split()[0])) == wanted:
            return "swap"
    return None


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read().splitlines()
    except OSError:
        return []


def _plain(name: str) -> str:
    """The kernel writes blanks and backslashes in these tables as octal."""
    for code, plain in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        name = name.replace(code, plain)
    return name


def _signature(path: str) -> str | None:
    """What blkid sees, for example ``an ext4 filesystem``; None when nothing, or there is no blkid."""
    blkid = shutil.which("blkid", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if blkid is None:
        return None
    try:
        answer = subprocess.run(
            [blkid, "-p", "-o", "export", path], capture_output=True, timeout=_BLKID_SECONDS_MAX, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if answer.returncode == _BLKID_NOTHING:
        return None
    if answer.returncode != _BLKID_FOUND:
        return "several signatures" if answer.returncode == _BLKID_SEVERAL else None
    values = dict(line.split("=", 1) for line in answer.stdout.decode(errors="replace").splitlines() if "=" in line)
    kind = values.get("TYPE") or values.get("PTTYPE")
    return f"data of another kind ({kind})" if kind else None
