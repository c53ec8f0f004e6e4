"""The way that is always there: resident threads, one queue in, one wake back (ecosystem.md 4).

Used where the kernel or the container refuses io_uring (EPERM, ENOSYS), or by ``MATRIXFS_IO=threads``.  A
thread sleeps inside one system call at a time; the trio thread hands over no more than there are threads, so an
operation never waits behind its guard (E4, E5).
"""

from __future__ import annotations

import errno
import os
import queue
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Final

from matrixfs.blockstore.device.engine import Engine, Kind, Operation

THREADS: Final = 16


def perform(operation: Operation) -> int:
    """Do one operation in this thread; bytes moved or a negative errno, as io_uring says it."""
    try:
        if operation.kind is Kind.READ:
            return os.preadv(operation.fd, [operation.view], operation.offset)
        if operation.kind is Kind.WRITE:
            flags = os.RWF_DSYNC if operation.durable else 0
            return os.pwritev(operation.fd, [operation.view], operation.offset, flags)
        os.fdatasync(operation.fd)
        return 0
    except OSError as error:
        return -(error.errno or errno.EIO)


class ThreadEngine(Engine):
    """Engine over ``THREADS`` threads."""

    kind = "threads"

    def __init__(self) -> None:
        super().__init__(THREADS)
        self._jobs: queue.SimpleQueue[Operation | None] = queue.SimpleQueue()
        self._done: deque[Operation] = deque()
        self._signalled = False
        self._threads = [
            threading.Thread(target=self._work, name=f"block I/O {i}", daemon=True) for i in range(THREADS)
        ]
        for thread in self._threads:
            thread.start()

    def _start(self, operations: Sequence[Operation]) -> int:
        for operation in operations:
            self._jobs.put(operation)
        return len(operations)

    def _work(self) -> None:
        while (operation := self._jobs.get()) is not None:
            operation.result = perform(operation)
            self._done.append(operation)
            if not self._signalled:  # appended first, so whoever clears the flag next sees it
                self._signalled = True
                self._wake()
            del operation  # and with it the memory, while this thread waits for the next

    def _collect(self) -> Iterator[Operation]:
        self._signalled = False
        while self._done:
            yield self._done.popleft()

    def _shut(self) -> None:
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()
