"""Opening a shared store by its name, whatever it is; every way to get it wrong is one clear line."""

from __future__ import annotations

import errno
import os
import stat

from matrixfs.blockstore.device.api import Store
from matrixfs.blockstore.device.block import BlockDevice
from matrixfs.blockstore.device.direct import DirectDevice
from matrixfs.blockstore.device.file import FileDevice
from matrixfs.blockstore.device.iscsi import IscsiDevice
from matrixfs.blockstore.scsi.address import identity_of, parse_address
from matrixfs.blockstore.scsi.credentials import environment
from matrixfs.store_names import is_iscsi
from membership.errors import OperatorError
from membership.label import BLOCK_BYTES, DATA_BLOCK

STORE_BYTES_MIN = (DATA_BLOCK + 2) * BLOCK_BYTES  # label, membership area, one data block, copy of the label

_REFUSALS = {
    errno.ENOENT: "does not exist",
    errno.ENOTDIR: "does not exist",
    errno.EACCES: "no permission to open it (run as root, or as a user who may read and write it)",
    errno.EPERM: "no permission to open it (run as root, or as a user who may read and write it)",
    errno.EROFS: "is on a read-only filesystem, or write-protected",
    errno.EINVAL: "its filesystem does no direct I/O; keep the store on ext4, xfs or a block device",
    errno.ENXIO: "there is no device behind it",
    errno.ENODEV: "there is no device behind it",
    errno.ENOMEDIUM: "there is no medium in it",
    errno.EBUSY: "is in use",
    errno.ELOOP: "is a loop of symbolic links",
    errno.ETXTBSY: "is in use as a program or swap file",
}


def open_store(name: str, *, read_only: bool = False, identity: str = "", host: str = "") -> Store:
    """Open a store.  Quick, and allowed outside trio; ``Store.open`` and I/O are not.

    Args:
        name: path of a block device or a regular file, or URL of a LUN (``scsi/address.py``).
        read_only: for ``fsck -n`` and the like.
        identity: who opens a LUN, different from everybody else of this host, and the same when it comes back
            (``matrixd``, ``mount:`` and its incarnation).  Without it: this process.
        host: name of this node to the target.  Without it: of the host.

    Raises:
        OperatorError: the name means no store; as ``open_path`` for a path.
        DeviceError: it failed while it was looked at.
    """
    if not is_iscsi(name):
        return open_path(name, read_only=read_only)
    variables = environment()
    address = parse_address(name, variables)
    who = f"{identity or f'process {os.getpid()}'} on {address.target} {address.lun}"  # a session for each LUN (A2)
    me = identity_of(who, host or os.uname().nodename.split(".")[0], variables)
    return IscsiDevice(address, me, size_min=STORE_BYTES_MIN, read_only=read_only)


async def opened_store(name: str, *, read_only: bool = False, identity: str = "", host: str = "") -> Store:
    """``open_store`` and ``Store.open`` in one, inside trio; arguments and errors are theirs."""
    store = open_store(name, read_only=read_only, identity=identity, host=host)
    await store.open()
    return store


def open_path(path: str, *, read_only: bool = False) -> DirectDevice:
    """Open a block device or file for direct I/O.

    Args:
        path: of a block device or a regular file.
        read_only: for ``fsck -n`` and the like.

    Raises:
        OperatorError: it is missing, a directory, something else, forbidden, too small, or does no direct I/O.
        DeviceError: it failed while it was looked at.
    """
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
            what = "a directory" if stat.S_ISDIR(mode) else "neither a block device nor a file"
            raise OperatorError(f"{path}: is {what}; give a block device or a file")
        access = os.O_RDONLY if read_only else os.O_RDWR
        fd = os.open(path, access | os.O_DIRECT | os.O_CLOEXEC)
        device = BlockDevice(fd, path) if stat.S_ISBLK(mode) else FileDevice(fd, path)
    except ValueError:  # embedded null byte
        raise OperatorError(f"{path!r}: is no path") from None
    except OSError as error:
        refusal = _REFUSALS.get(error.errno or 0, f"can't be opened: {error.strerror}")
        raise OperatorError(f"{path}: {refusal}") from None
    if device.size_bytes < STORE_BYTES_MIN:
        device.close_unused()
        raise OperatorError(
            f"{path}: too small for a cluster disk ({device.size_bytes} bytes, the least is {STORE_BYTES_MIN})"
        )
    return device
