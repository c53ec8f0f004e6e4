"""Resident threads for the notifications that may block in the kernel (coherence.md 1, anchors.md 7.15).

``trio.to_thread`` costs 75 us a call and shares one limiter; one thread with a queue would let one blocked
notification hold up all others.  So: threads that stay, started when all others are busy, up to a limit.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable

import trio

log = logging.getLogger(__name__)


class Job:
    """One call in a worker thread.

    Attributes:
        started: a thread has begun it, so it may have passed what changed since.
        cancelled: the call should stop at its next step; set by whoever submitted it.
    """

    def __init__(self, call: Callable[[Job], None]) -> None:
        self._call = call
        self._token = trio.lowlevel.current_trio_token()
        self._done = trio.Event()
        self.started = False
        self.cancelled = False

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return self._done.is_set()

    async def wait(self, seconds: float) -> bool:
        """Wait for its end, at most ``seconds``; whether it has ended."""
        with trio.move_on_after(seconds):
            await self._done.wait()
        return self._done.is_set()

    def run(self) -> None:
        """Do it; called by the worker thread only."""
        self.started = True
        try:
            if not self.cancelled:
                self._call(self)
        except Exception:
            log.exception("kernel notification failed")
        try:
            self._token.run_sync_soon(self._done.set)
        except trio.RunFinishedError:
            log.debug("a notification outlived the mount")


class Workers:
    """The threads.

    Args:
        limit: most threads; further jobs queue.
    """

    def __init__(self, limit: int = 16) -> None:
        self._limit = limit
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._unfinished = 0  # jobs submitted and not ended: at least as many threads, up to the limit
        self._lock = threading.Lock()
        self._stopped = False

    def submit(self, call: Callable[[Job], None]) -> Job:
        """Have ``call`` run by a thread; trio's thread only."""
        job = Job(call)
        with self._lock:
            if self._stopped:
                job.cancelled = True
            self._unfinished += 1
            grow = self._unfinished > len(self._threads) and len(self._threads) < self._limit and not self._stopped
        if self._stopped:
            job.run()  # cancelled: only reports its end
            return job
        if grow:
            thread = threading.Thread(target=self._loop, name="fuse-notify", daemon=True)
            self._threads.append(thread)
            thread.start()
        self._queue.put(job)
        return job

    def _loop(self) -> None:
        while (job := self._queue.get()) is not None:
            if self._stopped:
                job.cancelled = True
            job.run()
            with self._lock:
                self._unfinished -= 1

    def stop(self, seconds: float) -> bool:
        """Start no further call and wait for the running ones, each at most ``seconds``; whether all have ended."""
        with self._lock:
            self._stopped = True
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join(seconds)
        return not any(thread.is_alive() for thread in self._threads)
