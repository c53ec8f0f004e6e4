"""Gathering: what is sent together leaves in one frame per peer, and what is sent alone leaves at once (003-33; trio).

Together is, first, what the reader sends while it takes in what one ``recv`` brought: from ``cork`` to ``uncork``.
Together is, else, what the tasks of one scheduler pass send.  trio runs all runnable tasks, then asks the kernel for
events, and so on; just before it asks, it calls its instruments: there the gatherer flushes every peer that was sent
to in this pass.  So no message waits for a task to be scheduled.

A pass may have long to go, so the first message to a peer does not wait for its end if the pass (or cork) before, in
which that peer was sent to, had a single message for it.  Under load no message leaves early, and at rest none waits:
a burst after rest costs one frame more than it must.
"""

from __future__ import annotations

from typing import Protocol

import trio


class Link(Protocol):
    """What can be flushed."""

    def flush(self) -> None:
        """Send what is queued: no waiting, no exception, and no waking of tasks but by ``run_sync_soon``."""
        ...


class Outbox:
    """One peer's share in gathering; ``link`` is its present connection, if any: a later one flushes by itself."""

    __slots__ = ("_alone", "_gatherer", "_sent", "link")

    def __init__(self, gatherer: Gatherer) -> None:
        self._gatherer = gatherer
        self._alone = True  # the last time together it was one message
        self._sent = 0  # messages since then
        self.link: Link | None = None

    def sent(self) -> None:
        """A message was queued for the peer."""
        self._sent += 1
        if self._sent == 1:
            self._gatherer.mark(self)
            if self._alone and self.link is not None and not self._gatherer.corked:
                self.link.flush()

    def flush(self) -> None:
        """The end of what is together."""
        self._alone = self._sent == 1
        self._sent = 0
        if self.link is not None:
            self.link.flush()


class Gatherer(trio.abc.Instrument):
    """Flushes what was marked, at the end of the pass or of the cork."""

    def __init__(self) -> None:
        self.corked = False
        self._marked: list[Outbox] = []

    def mark(self, outbox: Outbox) -> None:
        """Flush it at the end; it marks itself once until then."""
        self._marked.append(outbox)

    def cork(self) -> None:
        """What is sent from now on is together, and with what went before in this pass.  Has no checkpoint inside."""
        self.corked = True

    def uncork(self) -> None:
        """Send it.  No checkpoint since ``cork``."""
        self._flush()
        self.corked = False

    def before_io_wait(self, timeout: float) -> None:
        """Called by trio; its ``timeout`` is fixed by now, hence the rule in ``Link``."""
        if self._marked:
            try:
                self._flush()
            except Exception as error:  # trio would only log it and stop calling us: a node that never sends again
                trio.lowlevel.current_trio_token().run_sync_soon(_crash, error)

    def _flush(self) -> None:
        marked = self._marked
        if marked:
            self._marked = []
            for outbox in marked:
                outbox.flush()


def _crash(error: Exception) -> None:
    raise error
