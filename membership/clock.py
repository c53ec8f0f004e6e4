"""The system's Clock and Rng (R1): what production injects where tests inject simulated ones.

Nothing but these two classes calls ``time`` or ``random`` outside a transport or device implementation.
"""

from __future__ import annotations

import random
import time

import trio


class SystemClock:
    """The host's clocks.  ``monotonic`` is comparable between processes of one host and stands still for nobody."""

    def monotonic(self) -> float:
        """Seconds of CLOCK_MONOTONIC."""
        return time.monotonic()

    def wall_ns(self) -> int:
        """Nanoseconds since the epoch: file times and log lines only."""
        return time.time_ns()

    async def sleep(self, seconds: float) -> None:
        """Wait ``seconds`` (at least one checkpoint)."""
        await trio.sleep(seconds)


class SystemRng:
    """The kernel's entropy: nonces and incarnations must not be guessable, jitter does not care."""

    def __init__(self) -> None:
        self._random = random.SystemRandom()

    def randbytes(self, n: int, /) -> bytes:
        """``n`` unpredictable bytes."""
        return self._random.randbytes(n)

    def uniform(self, a: float, b: float, /) -> float:
        """A float between ``a`` and ``b``."""
        return self._random.uniform(a, b)
