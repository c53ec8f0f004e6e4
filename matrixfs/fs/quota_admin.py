"""What an administrator asks of quotas: who uses how much, new limits, new grace periods.

Each id that is reported or changed is taken in EX for a moment, so what others count of it is in place: a report is
exact, each row for its own moment.  What is still buffered counts once it is written back, some seconds later.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from matrixfs.fs.parallel import for_each
from matrixfs.locks.modes import EX
from matrixfs.ondisk.quota import Limits, are_possible, meaning_of
from membership.errors import OperatorError, PeerError

if TYPE_CHECKING:
    from matrixfs.fs.quota_account import Account
    from matrixfs.fs.quotas import Quotas
    from matrixfs.fs.volume import Volume

WAIT_SECONDS = 30.0  # for others to give an id up
IDS_AT_ONCE = 16


class Row(NamedTuple):
    """One id: what it uses, and may use."""

    kind: int
    number: int
    blocks: int
    inodes: int
    limits: Limits


def quotas_of(volume: Volume) -> Quotas:
    """The quotas.  Raises OperatorError where nothing is counted."""
    if volume.quotas is None:
        raise OperatorError(
            f"{volume.superblock.name} has no quotas: unmount it everywhere, and fsck.matrixfs --quota turns them on"
        )
    return volume.quotas


async def report(volume: Volume) -> list[Row]:
    """All ids that use something or have limits, by type and id.

    Raises OperatorError, PeerError, CorruptRecord, DeviceError, Fenced.
    """
    quotas = quotas_of(volume)
    rows: list[Row] = []

    async def look(key: tuple[int, int]) -> None:
        rows.append(await _change(volume, quotas.account(*key), None))

    await for_each(sorted(await _known(quotas, volume.superblock.journals)), look, workers=IDS_AT_ONCE)
    return sorted(row for row in rows if row.blocks or row.inodes or row.limits.are_set)


async def _known(quotas: Quotas, journals: int) -> set[tuple[int, int]]:
    """Ids that may use something or have limits: who was ever counted here, or stands in a block that is in place."""
    found = quotas.counted()
    for extent in await quotas.store.extents():
        for key in range(extent.logical, extent.end):
            meaning = meaning_of(key)
            if meaning is None or meaning.journal >= journals:
                continue
            if meaning.journal < 0:
                rows = [limits.are_set for limits in await quotas.store.all_limits(key)]
            else:
                rows = [any(row) for row in await quotas.store.counted(key, extent.physical + key - extent.logical)]
            found |= {(meaning.type, number) for number, used in enumerate(rows, meaning.first) if used}
    return found


async def set_limits(volume: Volume, kind: int, number: int, change: Callable[[Limits], Limits]) -> Row:
    """Change the limits of an id; durable on return.

    Raises OperatorError: they can't be, or there are no quotas; PeerError, CorruptRecord, DeviceError, Fenced.
    """
    if not number:
        raise OperatorError("id 0 has no limits: it is counted only")
    row = await _change(volume, quotas_of(volume).account(kind, number), change)
    await volume.journal.commit()
    return row


async def set_grace(volume: Volume, kind: int, blocks_ns: int | None, inodes_ns: int | None) -> None:
    """Change how long users, groups or projects may have more than their soft limits; durable on return.

    Whose grace has begun keeps its end.  Raises as ``set_limits``.
    """
    quotas = quotas_of(volume)
    await volume.changes.enter()
    try:
        before = await quotas.store.limits(kind, 0)
        await quotas.store.set_limits(
            kind,
            0,
            before._replace(
                blocks_until_ns=before.blocks_until_ns if blocks_ns is None else blocks_ns,
                inodes_until_ns=before.inodes_until_ns if inodes_ns is None else inodes_ns,
            ),
        )
    finally:
        volume.changes.leave()
    await volume.journal.commit()


async def _change(volume: Volume, account: Account, change: Callable[[Limits], Limits] | None) -> Row:
    """Change the limits of an id, or only look."""
    quotas = quotas_of(volume)
    await volume.changes.enter()
    try:
        if not await account.lock.hold(EX, exclusive=True, timeout=WAIT_SECONDS):
            raise PeerError("another node does not give up what it counts: look at matrixctl status, and try again")
        try:
            await quotas.learn_exactly(account)
            if change is not None:
                limits = change(account.limits)
                if not are_possible(limits):
                    raise OperatorError("limits that can't be: the soft one must not be above the hard one")
                await quotas.limit(account, limits)
            return Row(account.kind, account.number, account.blocks_used, account.inodes_used, account.limits)
        finally:
            account.lock.drop(EX, exclusive=True)
    finally:
        volume.changes.leave()
