"""Taking a cluster apart: every disk that its naming knows becomes a blank store (002-46).

Invariant: nothing is written before every disk that is found was seen to be of this cluster, and used by nobody.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from matrixfs.blockstore import open_store
from matrixfs.blockstore.in_use import refuse_if_holding_data
from matrixfs.blockstore.initialize import wipe_labels
from matrixfs.cli.matrixd_cmd import SCAN_DEFAULT
from matrixfs.cli.opener import HostOpener
from matrixfs.cli.storage import clear_reservations
from membership.areas.bootstrap import stored_naming
from membership.clock import SystemClock, SystemRng
from membership.disks import ClusterDisks
from membership.errors import OperatorError
from membership.label import read_label

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matrixfs.blockstore.device.api import Store
    from membership.label import Label


async def destroy_cluster(name: str, stores: Sequence[str]) -> list[str]:
    """Wipe the labels of all disks of a cluster.

    Args:
        name: what it must be called.
        stores: some of its disks, which lead to the others.

    Returns:
        A line for each disk.

    Raises:
        OperatorError: another cluster, or a node uses it.  Nothing was written.
        DeviceError: I/O failed; the disks of the lines before are wiped.
    """
    paths, missing = await _disks_of(name, stores)
    async with contextlib.AsyncExitStack() as stack:
        opened = [(await _opened(path, stack), path) for path in paths]
        used = []
        for device, _ in opened:
            used.append(await device.refuse_if_used(force=True))
            await refuse_if_holding_data(device, SystemClock(), force=True)
        lines = []
        for (device, path), traces in zip(opened, used, strict=True):
            if traces:
                await clear_reservations(device, SystemRng())
            await wipe_labels(device)
            lines.append(f"{path} is blank")
    return lines + [f"{path} was not found: mkfs.matrixfs --force or wipefs it where it is" for path in missing]


async def _disks_of(name: str, stores: Sequence[str]) -> tuple[list[str], list[str]]:
    """Paths of the disks that are found here, and names of those that are not."""
    first = await _label_of(stores)
    if first.cluster_name != name:
        raise OperatorError(f"{stores[0]}: is of cluster {first.cluster_name!r}, not {name!r}: nothing was done")
    disks = ClusterDisks(
        first.owner,
        HostOpener(stores, SCAN_DEFAULT, "", SystemRng().randbytes(8).hex()),
        SystemClock(),
        lambda _kind, _text: None,
    )
    try:
        for store in stores:
            with contextlib.suppress(OperatorError):
                await disks.add(store)
        naming = await stored_naming(disks)
        missing = []
        for row in naming.disks:
            if row.uuid not in disks.opened and await disks.find(row.uuid, row.path) is None:
                missing.append(f"{row.name} ({row.path})")
        return [disk.path for disk in disks.opened.values()], missing
    finally:
        await disks.aclose()


async def _label_of(stores: Sequence[str]) -> Label:
    failure: OperatorError | None = None
    for store in stores:
        try:
            async with contextlib.AsyncExitStack() as stack:
                return await read_label(await _opened(store, stack))
        except OperatorError as error:
            failure = error
    assert failure is not None
    raise failure


async def _opened(path: str, stack: contextlib.AsyncExitStack) -> Store:
    device = open_store(path)
    stack.push_async_callback(device.aclose)
    await device.open()
    return device
