"""A peer's pulse: does it still answer, and how fast (pure; 003-26).

A peer that is stopped (SIGSTOP, a hung kernel thread, a loop that never ends) keeps its connections: its kernel goes
on acknowledging, and so does nobody notice by TCP.  Every ``BEAT_SECONDS`` the mesh sends each peer a PING, which the
reading task of its process answers with a PONG.

- B1. Whatever proven frame arrives is a sign of life: ``silence`` is 0 from it until the next beat.
- B2. After that it counts from that beat, which sent a PING: a peer that was asked nothing is not silent.
- B3. It counts only time in which we looked: a beat that comes late, because we were stopped ourselves, adds at most
  ``LOOKED_SECONDS_MAX``.  So a node that slept accuses nobody of its own sleep.
- B4. A path is doubtful after ``PATH_SILENT_BEATS`` beats on this connection between which nothing came: not by one
  beat that came late (B3).  The peer may also say that it hears nothing: then only our direction is broken.
"""

from __future__ import annotations

BEAT_SECONDS = 0.5
LOOKED_SECONDS_MAX = 2 * BEAT_SECONDS
PATH_SILENT_BEATS = 2  # 1 to 1.5 s after the last sign of life
EWMA_WEIGHT = 1 / 8  # of the newest round trip, as TCP does (RFC 6298)


class Pulse:
    """One peer's, from the moment it was named."""

    __slots__ = ("_asked", "_beat", "_heard", "_missed", "_silent", "_token", "is_deaf", "round_trip", "round_trip_max")

    def __init__(self, now: float) -> None:
        self.round_trip = 0.0  # seconds, weighted mean; 0 before the first answer
        self.round_trip_max = 0.0  # seconds
        self._beat = now  # when we looked last
        self._silent = 0.0  # seconds without a sign of life, up to that beat
        self._heard = False  # since that beat
        self._token = 0  # of the newest PING
        self._asked = 0.0  # when it was sent; 0: answered
        self._missed = 0  # beats of this connection since a sign of life
        self.is_deaf = False  # the peer said that it hears nothing of us on this connection

    def beat(self, now: float) -> int:
        """It is time to ask; the token of the PING to send."""
        self._silent = 0.0 if self._heard else self._silent + min(now - self._beat, LOOKED_SECONDS_MAX)
        self._missed = 0 if self._heard else self._missed + 1
        self._heard = False
        self._beat = self._asked = now
        self._token += 1
        return self._token

    def heard(self) -> None:
        """A proven frame came from the peer."""
        self._heard = True

    def connected(self) -> None:
        """A new connection: its path is as good as any."""
        self._missed = 0
        self.is_deaf = False

    @property
    def is_doubtful(self) -> bool:
        """Whether another path should be tried (B4)."""
        return self.is_deaf or self.is_silent

    @property
    def is_silent(self) -> bool:
        """Whether this path brings nothing from the peer."""
        return self._missed >= PATH_SILENT_BEATS

    def answered(self, token: int, now: float) -> None:
        """A PONG came; one that answers an older PING, or none, tells nothing about the way."""
        if token != self._token or not self._asked:
            return
        found = now - self._asked
        self._asked = 0.0
        self.round_trip += (found - self.round_trip) * (EWMA_WEIGHT if self.round_trip else 1)
        self.round_trip_max = max(self.round_trip_max, found)

    def silence(self, now: float) -> float:
        """Seconds without a sign of life although asked for one."""
        return 0.0 if self._heard else self._silent + min(now - self._beat, LOOKED_SECONDS_MAX)
