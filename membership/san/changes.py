"""A change of the naming on its way to all members: Figure 12 (pure; 002-43, 002-45).

The administrator's shell stores the changed naming in the database (1602) before it says ``stored`` here.  From then on
the change can only go forward, whoever is administrator: a new one finds it in the database and says ``stored`` again.

========= ============ ==================================================================
step      Figure 12    what it waits for
========= ============ ==================================================================
IDLE      1600, 1610   a change that is stored (1602)
STORED    1604         a SAN header that names it, so with a greater generation, durable
TELLING   1606         every member of the header to hold it, or to be evicted
========= ============ ==================================================================

After TELLING the shell writes to the database that it is committed (1608) and answers who asked (1610).

Invariant C1: the header in force never names a version of the naming that is not in the database on a majority.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from membership.effects import Outbox
    from membership.naming import Naming
    from membership.san.header import SanHeader


class Step(Enum):
    """Where the newest change stands."""

    IDLE = "idle"
    STORED = "stored"
    TELLING = "telling"


class StepEvent(Enum):
    """What happens to it."""

    STORED = "a change is in the database"
    IN_FORCE = "a header names it"
    HELD = "all members hold it"
    DEPOSED = "another node is administrator"


TRANSITIONS: dict[tuple[Step, StepEvent], Step] = {
    (Step.IDLE, StepEvent.STORED): Step.STORED,
    (Step.IDLE, StepEvent.IN_FORCE): Step.IDLE,
    (Step.IDLE, StepEvent.HELD): Step.IDLE,
    (Step.IDLE, StepEvent.DEPOSED): Step.IDLE,
    (Step.STORED, StepEvent.STORED): Step.STORED,
    (Step.STORED, StepEvent.IN_FORCE): Step.TELLING,
    (Step.STORED, StepEvent.HELD): Step.STORED,
    (Step.STORED, StepEvent.DEPOSED): Step.IDLE,
    (Step.TELLING, StepEvent.STORED): Step.STORED,
    (Step.TELLING, StepEvent.IN_FORCE): Step.TELLING,
    (Step.TELLING, StepEvent.HELD): Step.IDLE,
    (Step.TELLING, StepEvent.DEPOSED): Step.IDLE,
}


@dataclass(frozen=True, slots=True)
class NamingTaken:
    """Event on the administrator: all members hold this version (1608 follows)."""

    version: int


class NamingChange:
    """The newest change, as the administrator sees it through."""

    def __init__(self, outbox: Outbox) -> None:
        self.step = Step.IDLE
        self.wanted: Naming | None = None  # what the next header shall name; None: what the present one does
        self._out = outbox

    def stored(self, naming: Naming) -> None:
        """1602: it is in the database, durably on a majority."""
        assert self.wanted is None or naming.version >= self.wanted.version
        self.wanted = naming
        self._step(StepEvent.STORED)

    def header_in_force(self, header: SanHeader) -> None:
        """1604."""
        if self.wanted is not None and header.naming >= self.wanted.version:
            self._step(StepEvent.IN_FORCE)

    def look(self, header: SanHeader, held: Mapping[int, int]) -> None:
        """1606: ``held``: by node, the version of the naming that it holds by its own word."""
        if self.step is not Step.TELLING or self.wanted is None:
            return
        if all(held.get(node, 0) >= self.wanted.version for node in header.members):
            version, self.wanted = self.wanted.version, None
            self._step(StepEvent.HELD)
            self._out.tell(NamingTaken(version))

    def waits_for(self, header: SanHeader, held: Mapping[int, int]) -> list[int]:
        """Members that do not hold it yet (R14)."""
        if self.step is not Step.TELLING or self.wanted is None:
            return []
        return sorted(node for node in header.members if held.get(node, 0) < self.wanted.version)

    def deposed(self) -> None:
        """Somebody else sees it through."""
        self.wanted = None
        self._step(StepEvent.DEPOSED)

    def _step(self, event: StepEvent) -> None:
        self.step = TRANSITIONS[self.step, event]
