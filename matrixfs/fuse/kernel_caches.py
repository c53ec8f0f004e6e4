"""Makes what the kernel caches unreachable before a lock is given up (R8, coherence.md).

Called by the filesystem's demote callouts.  Invariants:
    K1  A purge never waits without bound for anything local: the local operation may be waiting for the very lock that
        is being demoted.  Calls that may block run in worker threads; the wait for them is cut short as soon as the
        bound has passed and something local is pending on the object.
    K2  Attributes are unreachable when ``purge_inode`` returns.  The kernel numbers its attribute versions, so a reply
        that is still on its way to an inode it knows can't bring old ones back; for an inode it is just being
        introduced to, the invalidation is repeated until it lands (``_repeat``): when that takes too long, until the
        kernel first asks about it (``landed``), so whoever opens it by that reply sees it as it is.  It takes those of
        SETATTR and of whatever makes a name as they come (``gave``): unless its caller has asked for something since,
        they are invalidated once more when they are in (``LATE``).
    K3  Names are unreachable when ``purge_names`` returns: dropped one by one, or all by one step of the epoch, or run
        out.  Dropping takes the directory's lock in the kernel and so waits for lookups under way; the epoch is read
        by the kernel before it asks, so a late reply is born expired.  Not so a listing: ``listings`` L2.
    K4  A directory's own name is only marked as expired, not dropped: dropping unhashes it, and ``getcwd`` of processes
        in it fails until somebody has walked there again (the epoch does the same on the next walk, so it is the second
        choice).  Marking doesn't wait for a revalidation under way, whose reply would bring the name back: so it is
        done ``SETTLED`` seconds after the last reply in that directory, which the kernel has taken in by then; and,
        where that was not ``LATE`` seconds ago, once more, for who waited for a processor.
    K5  Pages are dropped when ``purge_inode`` returns, unless something local was pending: then it returns at most
        ``PAGES_BOUND`` later than without, and until the drop is over only mappings and splices can see old pages.
        read(2) asks for the attributes first, and that answer waits for the drop (``dropped``): the changed mtime
        alone is no safeguard, for the kernel ignores attributes asked for before an invalidation or a local write.
    K6  Where the kernel opens files without asking (coherence.md 6), ``shed`` returns when it has forgotten the inode,
        or when somebody may have the file open: in use, not yet taken in, or a kernel that can't be told to forget.
    K7  The extension answers for an inode without extended attributes (``bare``) while the lock is held under which
        that was seen: from the reply that tells of it to the purge, or to a change of them here.  The access control
        lists that the kernel keeps go with the attributes (K2).
    K8  What lost its last name here (``keep``) counts as open until it is forgotten, if the kernel can be made to
        forget what is not in use (6.18): it tells of no O_PATH, and of no working directory.
"""

from __future__ import annotations

import errno
import logging
from collections import deque
from functools import partial
from typing import TYPE_CHECKING

import trio

from matrixfs.fuse.handles import NodeTable, Pending
from matrixfs.fuse.listings import Listing, Listings
from matrixfs.fuse.workers import Job, Workers

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from matrixfs.fuse.notifier import Notifier
    from membership.seams import Clock

log = logging.getLogger(__name__)

FOREVER = 10 * 365 * 86400.0  # seconds: until invalidated
SHORT = 0.1  # seconds a name is trusted by kernels without the epoch: a purge waits this out
SHORT_SLACK = 0.05  # seconds more: the kernel counts in ticks, and from when it has taken the reply in
PAGES_BOUND = 0.05  # seconds a purge waits for pages while something local is pending
DROPPED_BOUND = 2.0  # seconds an answer waits for pages that a purge left behind
NO_NODE = 0
NAMES_BOUND = 0.02  # seconds a purge waits for names before it bumps the epoch
NAMES_MAX = 64  # more names than this are not dropped one by one
SETTLED = 0.01  # seconds after which a reply to a revalidation has been taken in (K4)
LATE = 0.25  # seconds after which it, or any reply, has been taken in on a machine with too much to do
QUIET = 0.05  # seconds in which nobody asks for attributes before they are invalidated once more,
PATIENCE = 20  # if there are such within so many times that
REPEAT_SECONDS = 0.001
REPEAT_MAX = 20
SHED_ROUNDS = 5
_COUNTERS = (
    "inodes",
    "pages",
    "pages_left_behind",
    "drops_awaited",
    "names",
    "names_dropped",
    "epochs",
    "epochs_awaited",
    "waited_out",
    "settled",
    "repeats",
    "repeated_in_vain",
    "sheds",
    "shed_in_vain",
)
_DONE = (0, errno.ENOENT, errno.ENOTCONN, errno.EBADF)  # the kernel doesn't know it, or there is no mount any more


class _Directory:
    """Names handed to the kernel under one directory; ``names`` maps to "is a directory", None when too many."""

    __slots__ = ("given_at", "names")

    def __init__(self) -> None:
        self.names: dict[bytes, bool] | None = {}
        self.given_at = 0.0


class KernelCaches:
    """What the kernel was told, and how to make it forget.

    Usable before the mount exists: then the kernel knows nothing and purges return at once.

    Args:
        clock: for the waits.
    """

    def __init__(self, clock: Clock) -> None:
        self.nodes = NodeTable()
        self.pending = Pending()
        self.stamp = 0  # grows with every purge: a reply prepared before one must not be cached by the kernel
        self._clock = clock
        self._workers = Workers()
        self._listings = Listings(self._workers, clock, self._bump)
        self._notifier: Notifier | None = None
        self._epoch = False
        self._prunes = False
        self._opened_by_kernel = False
        self._forgotten: dict[int, trio.Event] = {}  # somebody waits for the kernel to forget these inodes
        self._directories: dict[int, _Directory] = {}
        self._page_jobs: dict[int, Job] = {}
        self.unlanded: set[int] = set()  # inodes that were purged while the reply that introduces them was on its way
        self._late: deque[tuple[float, Callable[[], Awaitable[object]]]] = deque()  # what is done once more, and when
        self._is_late = trio.Event()
        self._counters = dict.fromkeys(_COUNTERS, 0)

    async def run(self) -> None:
        """Do once more what replies may have overtaken (K2, K4); until cancelled."""
        while True:
            while not self._late:
                self._is_late = trio.Event()
                await self._is_late.wait()
            due, call = self._late.popleft()
            await self._clock.sleep(max(0.0, due - self._clock.monotonic()))
            await call()

    def _once_more(self, given_at: float, call: Callable[[], Awaitable[object]]) -> None:
        """Do it again ``LATE`` seconds after a reply, if that is still to come."""
        if given_at + LATE > self._clock.monotonic():
            self._late.append((given_at + LATE, call))
            self._is_late.set()

    def attach(self, notifier: Notifier, *, root_ino: int, opened_by_kernel: bool = False) -> None:
        """Begin with a mounted session; finds out whether the kernel has the epoch notification.

        Args:
            notifier: the kernel.
            root_ino: of the root directory.
            opened_by_kernel: files are opened without asking, so ``shed`` has work to do for all.
        """
        self._notifier = notifier
        self._prunes = notifier.prune(NO_NODE) == 0
        self._opened_by_kernel = opened_by_kernel
        if opened_by_kernel and not self._prunes:
            log.warning("kernel without FUSE_NOTIFY_PRUNE (before 6.18): every file it knows counts as open")
        self.nodes.root = root_ino
        self._epoch = notifier.epoch() == 0

    def detach(self) -> None:
        """The tree is unmounted, so the kernel caches nothing of it: purges return at once from now on."""
        self._notifier = None

    @property
    def has_epoch(self) -> bool:
        """Whether names are trusted until invalidated, rather than for ``SHORT`` seconds."""
        return self._epoch

    @property
    def entry_timeout(self) -> float:
        """Seconds for which the kernel may trust a name it is given now."""
        return FOREVER if self._epoch else SHORT

    def handed_out(self, directory: int, name: bytes, *, is_directory: bool = False) -> None:
        """The reply about to be written gives the kernel this name, or its absence."""
        record = self._directories.get(directory)
        if record is None:
            record = self._directories[directory] = _Directory()
        record.given_at = self._clock.monotonic()
        if record.names is not None:
            record.names[name] = is_directory
            if len(record.names) > NAMES_MAX:
                record.names = None

    def listed(self, directory: int) -> Listing:
        """The reply about to be written gives the kernel names, by READDIRPLUS; ``taken_in`` follows."""
        return self._listings.begin(directory)

    def taken_in(self, listing: Listing) -> None:
        """The kernel has taken a listing in."""
        self._listings.taken_in(listing)

    def bare(self, ino: int, is_bare: bool) -> None:
        """The reply about to be written tells of an inode that has no extended attributes, or some (K7)."""
        if self._notifier is not None:
            self._notifier.bare(self.nodes.node_id(ino), is_bare)

    def forgotten(self, ino: int) -> None:
        """The kernel dropped the inode, so nothing of it is cached."""
        self._directories.pop(ino, None)
        self._page_jobs.pop(ino, None)
        waited = self._forgotten.pop(ino, None)
        if waited is not None:
            waited.set()

    async def shed(self, ino: int) -> None:
        """Have the kernel forget an inode unless it is in use, if its being known counts as open (K1, K6, K8)."""
        known = self.nodes.get(ino)
        if not self._prunes or self._notifier is None or known is None or not (self._opened_by_kernel or known.kept):
            return
        self._counters["sheds"] += 1
        notifier, node = self._notifier, self.nodes.node_id(ino)
        codes: list[int] = []
        for _ in range(SHED_ROUNDS):
            job = self._workers.submit(lambda _job: codes.append(notifier.prune(node)))
            if not await job.wait(NAMES_BOUND) or not codes:
                break
            if notifier.attributes(node) != errno.ENOENT or await self._forgets(ino):
                break
        if self.nodes.known(ino):
            self._counters["shed_in_vain"] += 1

    def keep(self, ino: int) -> bool:
        """An inode lost its last name: whether its being known counts as open from now on, and did not before (K8)."""
        node = self.nodes.get(ino)
        if node is None or node.kept or not self._prunes or self._notifier is None:
            return False
        node.kept = True
        return True

    def knows_directory(self, ino: int) -> bool:
        """Whether the kernel knows a directory of that number: it breaks one that is in use for a new inode (EIO)."""
        node = self.nodes.get(ino)
        return node is not None and node.told is not None

    async def _forgets(self, ino: int) -> bool:
        """Whether the FORGET comes at once; if not, the kernel may just be taking in a reply that names the inode."""
        if not self.nodes.known(ino):
            return True
        event = self._forgotten.setdefault(ino, trio.Event())
        with trio.move_on_after(REPEAT_SECONDS):
            await event.wait()
        return not self.nodes.known(ino)

    def filled(self, ino: int) -> None:
        """The kernel is about to get pages of a file that it opened by itself."""
        node = self.nodes.get(ino)
        if node is not None:
            node.pages = True

    def drop_pages_later(self, ino: int) -> None:
        """Have pages dropped when the request that the kernel waits for has been answered.

        And before any read(2) after it, if that answer's attributes are not valid: the kernel then asks (``dropped``).
        """
        if self._notifier is not None:
            self._page_jobs[ino] = self._submit_drop(self._notifier, ino)

    async def purge_inode(self, ino: int) -> None:
        """Make the inode's attributes and pages unreachable (K1, K2, K5).  Never raises for the kernel's sake."""
        self.stamp += 1
        self.bare(ino, False)
        if self._notifier is None or not self.nodes.known(ino):
            return
        self._counters["inodes"] += 1
        code = self._notifier.attributes(self.nodes.node_id(ino))
        if code == errno.ENOENT:
            await self._repeat(ino)
        elif code not in _DONE:
            log.warning("inode %d: attributes not invalidated (errno %d)", ino, code)
        node = self.nodes.get(ino)
        if node is not None and node.given is not None and self._notifier is not None:
            given_at, *reply = node.given
            if not self._notifier.asked_since(*reply):
                self._once_more(given_at, partial(self._attributes_again, ino))
        if node is not None and node.pages:
            node.pages = node.opens > 0  # before the drop: an open that comes during it sets it again
            await self._drop_pages(ino)

    def gave(self, ino: int, pid: int) -> None:
        """The reply about to be written gives a thread attributes that the kernel takes whatever it knows (K2)."""
        node = self.nodes.get(ino)
        if node is not None and self._notifier is not None:
            node.given = (self._clock.monotonic(), pid, self._notifier.requests())

    def answered(self, ino: int) -> None:
        """The reply about to be written answers who asks for attributes; one more invalidation would throw it away."""
        node = self.nodes.get(ino)
        if node is not None:
            node.answered_at = self._clock.monotonic()

    async def _attributes_again(self, ino: int, patience: int = PATIENCE) -> None:
        node, now = self.nodes.get(ino), self._clock.monotonic()
        if self._notifier is None or node is None:
            self.unlanded.discard(ino)
        elif patience and (self.pending.busy(ino) or now < node.answered_at + QUIET):
            self._late.append((now + QUIET, partial(self._attributes_again, ino, patience - 1)))
        elif self._notifier.attributes(self.nodes.node_id(ino)) == errno.ENOENT:  # still on its way
            self._once_more(now, partial(self._attributes_again, ino))
        else:
            self.unlanded.discard(ino)

    def landed(self, ino: int) -> None:
        """The kernel asks about an inode that was in ``unlanded``: the reply that introduced it has been taken in."""
        self.unlanded.discard(ino)
        self.attributes_changed(ino)

    def attributes_changed(self, ino: int) -> None:
        """Have the kernel ask again: attributes changed without its doing.  Never blocks."""
        if self._notifier is not None and self.nodes.known(ino):
            self._notifier.attributes(self.nodes.node_id(ino))

    async def _repeat(self, ino: int) -> None:
        """We gave the kernel a reference that it hasn't taken in yet, or one whose FORGET we haven't read yet (K2)."""
        for _ in range(REPEAT_MAX):
            await self._clock.sleep(REPEAT_SECONDS)
            self._counters["repeats"] += 1
            if self._notifier is None or not self.nodes.known(ino):
                return
            if self._notifier.attributes(self.nodes.node_id(ino)) != errno.ENOENT:
                return
        await self._bump_behind(self._listings.all())  # whoever finds it by name asks again,
        self.unlanded.add(ino)  # and who has found it when he uses it,
        self._once_more(self._clock.monotonic(), partial(self._attributes_again, ino))  # or later
        self._counters["repeated_in_vain"] += 1
        log.debug("inode %d: told to nobody yet, or its FORGET waits behind other requests", ino)

    async def _drop_pages(self, ino: int) -> None:
        job = self._page_jobs.get(ino)
        if job is None or job.started:  # one that has begun may already be past pages filled since
            assert self._notifier is not None
            job = self._page_jobs[ino] = self._submit_drop(self._notifier, ino)
        while not await job.wait(PAGES_BOUND):
            if self.pending.busy(ino):  # it may wait for the lock that our caller is giving up (K1)
                self._counters["pages_left_behind"] += 1
                return
        if self._page_jobs.get(ino) is job:
            del self._page_jobs[ino]

    def dropping(self, ino: int) -> bool:
        """Whether old pages may still be there, left behind by a purge (K5)."""
        job = self._page_jobs.get(ino)
        if job is not None and job.done:
            del self._page_jobs[ino]
            return False
        return job is not None

    async def dropped(self, ino: int) -> None:
        """Wait for the drop that a purge left behind; what blocks it is answered without us (K5)."""
        job = self._page_jobs.get(ino)
        if job is None:
            return
        self._counters["drops_awaited"] += 1
        if not await job.wait(DROPPED_BOUND) and self._page_jobs.get(ino) is job:
            del self._page_jobs[ino]
            log.warning("inode %d: its pages are not dropped after %g s", ino, DROPPED_BOUND)

    def _submit_drop(self, notifier: Notifier, ino: int) -> Job:
        node_id = self.nodes.node_id(ino)
        self._counters["pages"] += 1

        def drop(_job: Job) -> None:
            code = notifier.pages(node_id)
            if code not in _DONE:
                log.warning("inode %d: pages not dropped (errno %d)", ino, code)

        return self._workers.submit(drop)

    async def purge_names(self, directory: int) -> None:
        """Make every name under the directory unreachable, absent ones too (K1, K3, K4)."""
        self.stamp += 1
        record = self._directories.pop(directory, None)
        if self._notifier is None or record is None:
            return
        self._counters["names"] += 1
        if not self._epoch:
            left = record.given_at + SHORT + SHORT_SLACK - self._clock.monotonic()
            if left > 0:
                self._counters["waited_out"] += 1
                await self._clock.sleep(left)
            return
        if record.names is not None and not self.pending.busy(directory):
            if any(record.names.values()):
                await self._settle(record)
            if self._notifier is None:
                return
            dropper = _Dropper(self._notifier, self.nodes.node_id(directory), record.names)
            self._counters["names_dropped"] += len(record.names)
            listings = self._listings.of(directory)
            job = self._workers.submit(dropper)
            if await job.wait(NAMES_BOUND):
                for listing in listings:
                    self._listings.taken_in(listing)
                self._mark_again(directory, record)
                return
            job.cancelled = True
        await self._bump_behind(self._listings.of(directory))

    async def _bump_behind(self, listings: list[Listing]) -> None:
        """A step of the epoch that is not too early for these (K3)."""
        if listings and self._notifier is not None:
            self._counters["epochs_awaited"] += 1
            await self._listings.wait(listings, self._notifier, self.nodes.node_id)
        self._bump()

    def _mark_again(self, directory: int, record: _Directory) -> None:
        names = {name: True for name, is_directory in (record.names or {}).items() if is_directory}
        if names:
            self._once_more(record.given_at, partial(self._expire, directory, names))

    async def _expire(self, directory: int, names: dict[bytes, bool]) -> None:
        if self._notifier is not None:
            dropper = _Dropper(self._notifier, self.nodes.node_id(directory), names)
            await self._workers.submit(dropper).wait(NAMES_BOUND)

    async def _settle(self, record: _Directory) -> None:
        left = record.given_at + SETTLED - self._clock.monotonic()
        if left > 0:
            self._counters["settled"] += 1
            await self._clock.sleep(left)

    def _bump(self) -> None:
        """One step of the epoch: no name of the mount is trusted any more, so none need be remembered."""
        if self._notifier is None:  # unmounted while our caller waited
            return
        self._counters["epochs"] += 1
        code = self._notifier.epoch()
        if code in _DONE:
            kept = self._listings.cross()
            self._directories = {ino: record for ino, record in self._directories.items() if ino in kept}
        elif self._epoch:
            log.error("the kernel refused an epoch step (errno %d)", code)

    def counters(self) -> dict[str, int]:
        """What was done since the mount; also ``tracked_directories`` and ``pending`` now."""
        return {
            **self._counters,
            "tracked_directories": len(self._directories),
            "known_inodes": len(self.nodes),
            "pending": self.pending.total(),
        }

    def stop(self, seconds: float) -> bool:
        """Begin no further notification, wait for running ones; whether all have ended.  Before the session's end."""
        self._notifier = None
        return self._workers.stop(seconds)


class _Dropper:
    """Drops names one by one in a worker thread, until done or cancelled."""

    def __init__(self, notifier: Notifier, node_id: int, names: dict[bytes, bool]) -> None:
        self._notifier = notifier
        self._node_id = node_id
        self._names = names

    def __call__(self, job: Job) -> None:
        for name, is_directory in self._names.items():
            if job.cancelled:
                return
            call = self._notifier.name_expired if is_directory else self._notifier.name
            code = call(self._node_id, name)
            if code not in _DONE:
                log.warning("name %r under node %d: not invalidated (errno %d)", name, self._node_id, code)
