"""Which call of a fence agent comes next, and whether a level is off (pure; 002-38).

Invariants:

P1. A level is off only when every device confirmed ``off`` by exit code 0 *and then*, after the last ``off`` of any of
    them, every device said by ``status`` that it is off (exit code 2).  Exit 0 of ``off`` alone is no fence, and two
    power supplies that were off one after the other prove nothing.
P2. Nothing is ever asked but ``off`` and ``status``, or ``on`` and ``status``.
P3. It ends: each failure uses up one try of the device that it happened to, and a try is used once.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence


class Phase(Enum):
    """What the devices are being asked, one after the other."""

    OFF = "off"
    SEE_OFF = "see off"
    ON = "on"
    SEE_ON = "see on"


class Outcome(Enum):
    """How a call ended."""

    ZERO = "exit 0"
    TWO = "exit 2"  # of status: off
    OTHER = "failed"
    TIMED_OUT = "timed out"
    NOT_RUN = "could not be run"


class Next(Enum):
    """What follows."""

    FORWARD = "the next device, then the next phase"
    REPEAT = "the same call again"
    BACK = "switch this device again, then look at all again"
    GIVE_UP = "this level can't be confirmed"


ACTIONS: Final = {Phase.OFF: "off", Phase.SEE_OFF: "status", Phase.ON: "on", Phase.SEE_ON: "status"}
AFTER: Final = {Phase.OFF: Phase.SEE_OFF, Phase.ON: Phase.SEE_ON}
BEFORE: Final = {after: before for before, after in AFTER.items()}

TABLE: Final[dict[tuple[Phase, Outcome], Next]] = {
    (Phase.OFF, Outcome.ZERO): Next.FORWARD,
    (Phase.OFF, Outcome.TWO): Next.REPEAT,
    (Phase.OFF, Outcome.OTHER): Next.REPEAT,
    (Phase.OFF, Outcome.TIMED_OUT): Next.REPEAT,  # it may have worked: then the repetition finds it off, and says 0
    (Phase.OFF, Outcome.NOT_RUN): Next.GIVE_UP,
    (Phase.SEE_OFF, Outcome.ZERO): Next.BACK,  # the agent said that it is off, and it is not
    (Phase.SEE_OFF, Outcome.TWO): Next.FORWARD,
    (Phase.SEE_OFF, Outcome.OTHER): Next.REPEAT,
    (Phase.SEE_OFF, Outcome.TIMED_OUT): Next.REPEAT,
    (Phase.SEE_OFF, Outcome.NOT_RUN): Next.GIVE_UP,
    (Phase.ON, Outcome.ZERO): Next.FORWARD,
    (Phase.ON, Outcome.TWO): Next.REPEAT,
    (Phase.ON, Outcome.OTHER): Next.REPEAT,
    (Phase.ON, Outcome.TIMED_OUT): Next.REPEAT,
    (Phase.ON, Outcome.NOT_RUN): Next.GIVE_UP,
    (Phase.SEE_ON, Outcome.ZERO): Next.FORWARD,
    (Phase.SEE_ON, Outcome.TWO): Next.BACK,
    (Phase.SEE_ON, Outcome.OTHER): Next.REPEAT,
    (Phase.SEE_ON, Outcome.TIMED_OUT): Next.REPEAT,
    (Phase.SEE_ON, Outcome.NOT_RUN): Next.GIVE_UP,
}


class Call(NamedTuple):
    """The next call."""

    device: int  # index in the level
    action: str


class LevelPlan:
    """One level on its way to off (or on): take ``call``, run it, tell ``done`` how it ended, until it is None."""

    def __init__(self, retries: Sequence[int], *, switch_on: bool = False) -> None:
        """Args: retries: of each device."""
        assert retries
        self.is_confirmed = False
        self.failed: int | None = None  # index of the device at which it was given up
        self.must_wait = False  # the next call repeats one that failed: leave the device a moment
        self._left = list(retries)
        self._phase = Phase.ON if switch_on else Phase.OFF
        self._device = 0
        self._is_redo = False  # in the first phase for one device only (BACK)

    @property
    def call(self) -> Call | None:
        """What to do next; None: it is over."""
        if self.is_confirmed or self.failed is not None:
            return None
        return Call(self._device, ACTIONS[self._phase])

    def done(self, outcome: Outcome) -> None:
        """The call ended so."""
        assert self.call is not None
        following = TABLE[self._phase, outcome]
        self.must_wait = following in (Next.REPEAT, Next.BACK)
        if following is Next.FORWARD:
            self._forward()
        elif following is Next.GIVE_UP or self._left[self._device] == 0:
            self.failed = self._device
        else:
            self._left[self._device] -= 1
            if following is Next.BACK:
                self._phase, self._is_redo = BEFORE[self._phase], True

    def _forward(self) -> None:
        if self._device + 1 < len(self._left) and not self._is_redo:
            self._device += 1
        elif self._phase in AFTER:
            self._phase, self._device, self._is_redo = AFTER[self._phase], 0, False
        else:
            self.is_confirmed = True
