"""Listings that the kernel may still be taking in: where it is weaker than for all other replies.

For names of a READDIRPLUS the kernel reads the epoch when it takes the reply in, not before it asks (6.18,
``fuse_direntplus_link``).  So a step of the epoch between our reply and that moment comes too early for them: they
would be trusted for ever, and with them the attributes of inodes that the listing introduces.  A reader that has to
wait for a processor can be late by any time.

Invariants:
    L1  A listing is here from its reply until the kernel has taken it in for certain: its reader asks again or closes,
        or the directory's lock in the kernel, which a reader holds until then, was had exclusively.
    L2  Whoever takes a step of the epoch waits for the listings that it is for, and has all others ``crossed``; a
        listing that was crossed is followed by another step as soon as it has been taken in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from matrixfs.fuse.workers import Job, Workers

if TYPE_CHECKING:
    from matrixfs.fuse.notifier import Notifier
    from membership.seams import Clock

WAIT_BOUND = 0.25  # seconds; the reader may be waiting for a lookup that waits for our caller's lock
LOOK_SECONDS = 0.001
_NO_NAME = b"/"


class Listing:
    """One reply.

    Attributes:
        directory: of the names.
        crossed: the epoch was stepped meanwhile.
    """

    __slots__ = ("crossed", "directory", "probe")

    def __init__(self, directory: int) -> None:
        self.directory = directory
        self.crossed = False
        self.probe: Job | None = None


class Listings:
    """Those of one mount.

    Args:
        workers: threads for what may wait for a directory's lock in the kernel.
        clock: for the waits.
        step: takes a step of the epoch.
    """

    def __init__(self, workers: Workers, clock: Clock, step: Callable[[], None]) -> None:
        self._workers = workers
        self._clock = clock
        self._step = step
        self._under_way: set[Listing] = set()

    def __len__(self) -> int:
        return len(self._under_way)

    def begin(self, directory: int) -> Listing:
        """A reply with names is about to be written."""
        listing = Listing(directory)
        self._under_way.add(listing)
        return listing

    def taken_in(self, listing: Listing) -> None:
        """It is (L1, L2).  Idempotent."""
        if listing in self._under_way:
            self._under_way.remove(listing)
            if listing.crossed:
                self._step()

    def of(self, directory: int) -> list[Listing]:
        """The listings of a directory."""
        return [listing for listing in self._under_way if listing.directory == directory]

    def all(self) -> list[Listing]:
        """All listings."""
        return list(self._under_way)

    def cross(self) -> set[int]:
        """A step of the epoch was taken; the directories of listings that must be followed by another one."""
        for listing in self._under_way:
            listing.crossed = True
        return {listing.directory for listing in self._under_way}

    async def wait(self, listings: Iterable[Listing], notifier: Notifier, node_id: Callable[[int], int]) -> None:
        """Wait until these have been taken in, at most ``WAIT_BOUND``.

        A reader that does something else in the middle of a directory never asks again: so each is probed, by a
        notification that waits for the directory's lock.  If that outlasts the bound, it steps the epoch itself.
        """
        left = self._under_way.intersection(listings)
        for listing in left:
            if listing.probe is None:
                listing.probe = self._workers.submit(_Probe(notifier, node_id(listing.directory), listing))
        waited = 0.0
        while left and waited < WAIT_BOUND:
            await self._clock.sleep(LOOK_SECONDS)
            waited += LOOK_SECONDS
            for listing in left:
                if listing.probe is not None and listing.probe.done:
                    self.taken_in(listing)
            left &= self._under_way


class _Probe:
    """Has the exclusive lock of a directory once, in a worker thread."""

    def __init__(self, notifier: Notifier, node_id: int, listing: Listing) -> None:
        self._notifier = notifier
        self._node_id = node_id
        self._listing = listing

    def __call__(self, _job: Job) -> None:
        self._notifier.name(self._node_id, _NO_NAME)
        if self._listing.crossed:
            self._notifier.epoch()
