"""What one node knows of one id's quota, under the id's lock (pure; ``quotas`` has the rules)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matrixfs.locks.modes import CW
from matrixfs.ondisk.quota import COUNTERS_PER_BLOCK, NO_LIMITS, Counter, Limits

if TYPE_CHECKING:
    from matrixfs.fs.quota_store import CounterBlock
    from matrixfs.locks.lock import Lock
    from membership.seams import Clock

ENDLESS = 1 << 60  # room where there is no limit
BUFFERED_SHARE = 64  # of a limit, one part of this many may be buffered on a node
BEGINS = -1  # in the place of an end of grace


class Account:
    """One id.

    Args:
        kind: USER, GROUP or PROJECT.
        number: the id.
        lock: its QUOTA lock.
        clock: for the end of grace.
    """

    __slots__ = (
        "block",
        "blocks_aside",
        "blocks_room",
        "blocks_share",
        "blocks_used",
        "buffered_max",
        "clock",
        "exact",
        "inodes_aside",
        "inodes_room",
        "inodes_share",
        "inodes_used",
        "kind",
        "known",
        "limits",
        "lock",
        "number",
        "promised",
        "until_ns",
    )

    def __init__(self, kind: int, number: int, lock: Lock, clock: Clock) -> None:
        self.kind = kind
        self.number = number
        self.lock = lock
        self.clock = clock
        self.block: CounterBlock | None = None  # our counter is in it
        self.known = False  # what follows holds: the lock was not given up since it was read
        self.exact = False  # nobody else can have changed anything: EX was held ever since
        self.limits = NO_LIMITS
        self.blocks_used = self.inodes_used = 0  # where there are limits: in all, as far as is known
        self.blocks_room = self.inodes_room = 0  # we may add so many
        self.blocks_share = self.inodes_share = 0  # and never more than so many, whatever we give back (Q3)
        self.until_ns = 0  # the room is good until then; 0: for ever
        self.blocks_aside = self.inodes_aside = 0  # set aside for operations under way
        self.promised = 0  # blocks that are buffered: others can't see them,
        self.buffered_max = ENDLESS  # so more than that is written back

    @property
    def own(self) -> list[int]:
        """Our counter: [blocks, inodes]."""
        assert self.block is not None
        return self.block.counters[self.number % COUNTERS_PER_BLOCK]

    def learn(self, limits: Limits, others: Counter | None) -> None:
        """Know what was read; ``others`` only where there are limits."""
        self.limits = limits if self.number else NO_LIMITS
        self.known = True
        blocks, inodes = self.own
        if others is not None:
            blocks, inodes = blocks + others.blocks, inodes + others.inodes
        self.blocks_used, self.inodes_used = blocks, inodes

    def share(self, journals: int) -> None:
        """Have a node's share of what is left."""
        self.take_all()
        limits = self.limits
        if limits.blocks_until_ns and self.blocks_used + self.promised <= limits.blocks_soft:
            self.blocks_room = 0  # grace is over, and EX says so
        if limits.inodes_until_ns and self.inodes_used <= limits.inodes_soft:
            self.inodes_room = 0
        if self.blocks_room < ENDLESS:
            self.blocks_room = self.blocks_share = self.blocks_room // journals
        if self.inodes_room < ENDLESS:
            self.inodes_room = self.inodes_share = self.inodes_room // journals

    def take_all(self) -> None:
        """Have all room that the limits leave."""
        limits, now = self.limits, self.clock.wall_ns()
        limit = limits.blocks_hard or limits.blocks_soft
        self.buffered_max = limit // BUFFERED_SHARE if limit else ENDLESS
        self.blocks_room = _room(self.blocks_used, limits.blocks_hard, limits.blocks_soft, limits.blocks_until_ns, now)
        self.inodes_room = _room(self.inodes_used, limits.inodes_hard, limits.inodes_soft, limits.inodes_until_ns, now)
        self.blocks_share = self.inodes_share = ENDLESS
        ends = [end for end in (limits.blocks_until_ns, limits.inodes_until_ns) if end > now]
        self.until_ns = min(ends, default=0)

    def with_grace(self, blocks: int, inodes: int, grace_ns: tuple[int, int]) -> Limits:
        """The limits, with grace begun if so much more exceeds a soft one, or ended."""
        limits, now = self.limits, self.clock.wall_ns()
        block_pair, inode_pair = limits[:2], limits[2:4]
        blocks_end = _until(self.blocks_used, self.promised, blocks, block_pair, limits.blocks_until_ns)
        inodes_end = _until(self.inodes_used, 0, inodes, inode_pair, limits.inodes_until_ns)
        return limits._replace(
            blocks_until_ns=now + grace_ns[0] if blocks_end == BEGINS else blocks_end,
            inodes_until_ns=now + grace_ns[1] if inodes_end == BEGINS else inodes_end,
        )

    def fits(self, blocks: int, inodes: int) -> bool:
        """Whether so much more is within our room, as far as that is known; nothing always is."""
        if blocks > 0 and blocks > self.blocks_room - self.blocks_aside - self.promised:
            return False
        if inodes > 0 and inodes > self.inodes_room - self.inodes_aside:
            return False
        return not self.until_ns or (blocks <= 0 and inodes <= 0) or self.clock.wall_ns() < self.until_ns

    def try_enter(self, blocks: int, inodes: int) -> bool:
        """Hold the lock and set room aside, if both are there: a plain call, no message."""
        if self.block is None or not (self.known or (blocks <= 0 and inodes <= 0)) or not self.lock.try_hold(CW):
            return False
        if self.fits(blocks, inodes):
            self.blocks_aside += blocks
            self.inodes_aside += inodes
            return True
        self.lock.drop(CW)
        return False

    def set_aside(self, blocks: int, inodes: int) -> None:
        """Keep room for an operation, or with less than 0 end that."""
        self.blocks_aside += blocks
        self.inodes_aside += inodes

    def add(self, blocks: int, inodes: int) -> None:
        """Count; part of a change, under the lock."""
        lock = self.lock
        assert lock.readers or lock.exclusive or lock.writers, "charged without its quota's lock"
        own = self.own
        own[0] += blocks
        own[1] += inodes
        self.blocks_used += blocks
        self.inodes_used += inodes
        if self.blocks_room < ENDLESS:
            self.blocks_room = min(self.blocks_room - blocks, self.blocks_share)
        if self.inodes_room < ENDLESS:
            self.inodes_room = min(self.inodes_room - inodes, self.inodes_share)
        limits = self.limits
        if blocks < 0 and limits.blocks_until_ns and self.blocks_used + self.promised <= limits.blocks_soft:
            self.blocks_room = 0  # no grace any more: who adds again gets EX, which says so
        if inodes < 0 and limits.inodes_until_ns and self.inodes_used <= limits.inodes_soft:
            self.inodes_room = 0


def _room(used: int, hard: int, soft: int, until_ns: int, now: int) -> int:
    """How much more the limits of one kind allow."""
    if until_ns:
        limit = hard if now < until_ns else used
        return limit - used if limit or now >= until_ns else ENDLESS
    limit = soft or hard
    return limit - used if limit else ENDLESS


def _until(used: int, promised: int, more: int, hard_and_soft: tuple[int, ...], until_ns: int) -> int:
    """The end of grace when ``more`` are wanted; 0: there is none, BEGINS: it begins now.

    Promises are upper bounds, so alone they begin nothing; but what began stays as long as they may exceed the limit.
    """
    hard, soft = hard_and_soft
    if not soft:
        return 0
    if used > soft:
        return until_ns or BEGINS
    if until_ns and used + promised > soft:
        return until_ns
    wanted = used + promised + more
    return BEGINS if more > 0 and wanted > soft and not (hard and wanted > hard) else 0
