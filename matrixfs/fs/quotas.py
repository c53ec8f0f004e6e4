"""Quotas: what users, groups and projects use is counted, and kept within limits (EDQUOT).

A count changes in the transaction that changes what is counted: each mount adds to counters of its own journal
(``quota_store``), so replay makes them exact for nothing extra, and nodes that charge one id need no message.

Locks, one of each id, QUOTA in the lock order:

==== ==========================================================================================================
CW   "I change my counter of this id, within my share": any number of nodes.  Limits can't change meanwhile.
EX   everybody else's counter is in place: their sum is exact, and all that the limits leave is ours
==== ==========================================================================================================

Invariants:
    Q1 An operation holds the locks of all ids it charges, from before its last wait to the end of its change.
    Q2 A counter is durable in place before its lock goes (``surrender``).  CW is a mode that writes, so a dead node's
       stays with its ghost until its journal was replayed (R6): a sum that somebody reads in EX is exact.
    Q3 Who takes CW reads what is used and may add its share, what is left divided by the number of journals; more than
       that takes EX, which also begins and ends grace.  Giving back makes no share greater than it was.
    Q4 What is buffered counts from write(2) on, by an upper bound, and is written back whatever it takes: EDQUOT
       comes while the data is still the application's.
    Q5 The limits of one id are exceeded by no more than what each node has buffered when the lock is given up (1/64 of
       the limit, and writes under way: then it is written back), blocks of trees that write-back needs, and the shares
       of nodes that have CW while another leaves, comes back and reads anew.

Ids 0 are counted and never limited; the filesystem's own directories and the quota inode are not counted.

Source: issue 5 ("Quotas"); decision 0023; quotactl(2) for what soft limits and grace mean.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from matrixfs.fs.quota_account import Account
from matrixfs.fs.quota_store import QuotaStore
from matrixfs.locks.modes import CW, EX
from matrixfs.locks.resources import QUOTA, Resource
from matrixfs.ondisk.quota import GROUP, PROJECT, USER, Limits

if TYPE_CHECKING:
    from matrixfs.fs.inode import Inode
    from matrixfs.fs.volume import Volume
    from matrixfs.locks.lock import Lock

GRACE_NS = 7 * 86_400 * 10**9  # where nobody set another


class Owner(NamedTuple):
    """Whom something is counted for."""

    uid: int
    gid: int
    project: int


Demand: TypeAlias = tuple[Owner, int, int]  # blocks and inodes that an operation may need more; 0 asks for no room
Entered: TypeAlias = list[tuple[Account, bool, int, int]]  # whether exclusively; blocks and inodes set aside


NOBODY = -1  # in the owner of a demand: nothing is asked of this one


def owner_of(inode: Inode) -> Owner:
    """Whom an inode is counted for."""
    return Owner(inode.uid, inode.gid, inode.project)


def _merged(demands: Sequence[Demand]) -> list[tuple[tuple[int, int], int, int]]:
    """What is wanted of each id, in the lock order."""
    if len(demands) == 1:
        owner, blocks, inodes = demands[0]
        return [(key, blocks, inodes) for key in enumerate(owner) if key[1] != NOBODY]
    wanted: dict[tuple[int, int], tuple[int, int]] = {}
    for owner, blocks, inodes in demands:
        for key in enumerate(owner):
            if key[1] != NOBODY:
                before = wanted.get(key, (0, 0))
                wanted[key] = (before[0] + blocks, before[1] + inodes)
    return [(key, *wanted[key]) for key in sorted(wanted)]


class Quotas:
    """The quotas of one mount; also the callouts of their locks."""

    flushes = True
    upgrades = False  # EX is for those who need it

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self.store = QuotaStore(volume)
        self._accounts: dict[tuple[int, int], Account] = {}

    def account(self, kind: int, number: int) -> Account:
        """The account of an id."""
        account = self._accounts.get((kind, number))
        if account is None:
            lock = self._volume.locks.lock(Resource(QUOTA, kind << 32 | number), self)
            account = self._accounts[kind, number] = Account(kind, number, lock, self._volume.clock)
            lock.subject = account
        return account

    def _of(self, owner: Owner) -> Iterable[Account]:
        return (self.account(USER, owner.uid), self.account(GROUP, owner.gid), self.account(PROJECT, owner.project))

    # --- operations ----------------------------------------------------------------------------------------

    async def enter(self, demands: Sequence[Demand], *, is_bound: bool = False) -> Entered:
        """Hold what these demands need, and set it aside; end with ``leave``.

        ``is_bound``: it may be less, so no grace begins for it.

        Raises OSError EDQUOT, ENOSPC; CorruptRecord, DeviceError, Fenced.
        """
        entered: Entered = []
        try:
            for key, blocks, inodes in _merged(demands):
                account = self._accounts.get(key) or self.account(*key)
                if account.try_enter(blocks, inodes):
                    entered.append((account, False, blocks, inodes))
                else:
                    entered.append(await self._enter(account, blocks, inodes, is_bound=is_bound))
        except BaseException:
            self.leave(entered)
            raise
        return entered

    async def _enter(
        self, account: Account, blocks: int, inodes: int, *, is_bound: bool
    ) -> tuple[Account, bool, int, int]:
        lock = account.lock
        if not lock.try_hold(CW):
            await lock.hold(CW)
        try:
            if account.block is None:
                account.block = await self.store.own(account.kind, account.number)
            # Who asks for no room needs no limits: write-back goes on where those can't be read.
            if not account.known and (blocks > 0 or inodes > 0):
                await self._read(account)
            if account.fits(blocks, inodes):
                account.set_aside(blocks, inodes)
                return account, False, blocks, inodes
        except BaseException:
            lock.drop(CW)
            raise
        lock.drop(CW)
        await lock.hold(EX, exclusive=True)
        try:
            await self._settle(account, *((0, 0) if is_bound else (blocks, inodes)))
            if not account.fits(blocks, inodes):
                raise OSError(errno.EDQUOT, "quota exceeded")
            account.set_aside(blocks, inodes)
        except BaseException:
            lock.drop(EX, exclusive=True)
            raise
        return account, True, blocks, inodes

    @staticmethod
    def leave(entered: Entered) -> None:
        """End what ``enter`` began."""
        for account, exclusive, blocks, inodes in reversed(entered):
            account.blocks_aside -= blocks
            account.inodes_aside -= inodes
            account.lock.drop(EX if exclusive else CW, exclusive)

    def charge(self, inode: Inode, blocks: int, inodes: int = 0) -> None:
        """An inode's blocks, or itself, are used from now on, or no more.  Part of a change (J1, Q1)."""
        if self._volume.superblock.is_counted(inode.ino):
            self._charge(owner_of(inode), blocks, inodes)

    def _charge(self, owner: Owner, blocks: int, inodes: int) -> None:
        for account in self._of(owner):
            account.add(blocks, inodes)
            assert account.block is not None
            self._volume.journal.add(account.block)

    def move(self, inode: Inode, owner: Owner) -> None:
        """An inode, with all its blocks, gets another owner.  Part of a change, for which both owners' ids are held."""
        if owner != owner_of(inode):
            self.charge(inode, -inode.blocks, -1)
            inode.uid, inode.gid, inode.project = owner
            self.charge(inode, inode.blocks, 1)

    # --- what is buffered (Q4) ----------------------------------------------------------------------------------

    def has_room(self, inode: Inode, blocks: int) -> bool:
        """Whether blocks may be buffered for an inode, as far as is known here: a plain call, no message."""
        accounts = self._accounts
        for key in ((USER, inode.uid), (GROUP, inode.gid), (PROJECT, inode.project)):
            account = accounts.get(key)
            if account is None or not account.known or not account.fits(blocks, 0):
                return False
        return True

    async def check(self, inode: Inode, blocks: int, *, is_bound: bool = False) -> None:
        """Make sure that blocks may be buffered for an inode.  Raises as ``enter``."""
        self.leave(await self.enter([(owner_of(inode), blocks, 0)], is_bound=is_bound))

    def is_pressing(self, inode: Inode) -> bool:
        """Whether too much is buffered for whom an inode is counted."""
        accounts = self._accounts
        for key in ((USER, inode.uid), (GROUP, inode.gid), (PROJECT, inode.project)):
            account = accounts.get(key)
            if account is not None and account.promised > account.buffered_max:
                return True
        return False

    def promise(self, inode: Inode, blocks: int) -> None:
        """So many blocks more, or less, are buffered for an inode."""
        for account in self._of(owner_of(inode)):
            account.promised += blocks

    # --- limits ---------------------------------------------------------------------------------------------------

    async def _read(self, account: Account) -> None:
        """What a holder of CW must know (Q3)."""
        limits = await self.store.limits(account.kind, account.number) if account.number else Limits()
        others = await self.store.others(account.kind, account.number) if limits.are_set else None
        if not account.known:  # another task may have been faster
            account.learn(limits, others)
            account.share(self._volume.superblock.journals)

    async def _settle(self, account: Account, blocks: int, inodes: int) -> None:
        """With EX: have exact sums, begin and end grace, and have all room that there is (Q3)."""
        await self.learn_exactly(account)
        before = account.limits
        after = account.with_grace(blocks, inodes, await self._grace(account.kind))
        if after != before:
            await self.store.set_limits(account.kind, account.number, after)
            account.limits = after
        account.take_all()

    async def learn_exactly(self, account: Account) -> None:
        """With EX: have exact sums.  Raises CorruptRecord, DeviceError, Fenced, OSError ENOSPC."""
        if not account.exact:
            account.block = await self.store.own(account.kind, account.number)
            limits = await self.store.limits(account.kind, account.number) if account.number else Limits()
            account.learn(limits, await self.store.others(account.kind, account.number))
            account.take_all()
            account.exact = True

    async def limit(self, account: Account, limits: Limits) -> None:
        """With EX and exact sums: set limits.  Raises as ``learn_exactly``."""
        before, account.limits = account.limits, limits
        try:
            after = account.with_grace(0, 0, await self._grace(account.kind))
            await self.store.set_limits(account.kind, account.number, after)
        except BaseException:
            account.limits = before
            raise
        account.limits = after
        account.take_all()

    def counted(self) -> set[tuple[int, int]]:
        """Who was ever counted on this node."""
        return set(self._accounts)

    async def _grace(self, kind: int) -> tuple[int, int]:
        """How long more than the soft limits is allowed, ns: blocks, inodes."""
        periods = await self.store.limits(kind, 0)
        return periods.blocks_until_ns or GRACE_NS, periods.inodes_until_ns or GRACE_NS

    # --- the locks' callout -----------------------------------------------------------------------------------

    async def surrender(self, lock: Lock, mode: int) -> None:
        """Put the counter in place (Q2); from EX to CW, keep a share."""
        account: Account = lock.subject
        block = account.block
        if block is not None:
            if self._volume.journal.holds(block):
                await self._volume.journal.commit()
            await self._volume.journal.place([block.address])
        account.exact = False
        if mode < CW:
            account.known = False
        elif account.known:
            account.share(self._volume.superblock.journals)
