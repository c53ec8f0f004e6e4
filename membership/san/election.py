"""The coordinator's side of an election: whom it nominates, and what it permits (pure; Figure 11, 002-38 to 002-41).

Invariants:

E1. At most one candidate is nominated at a time, and only who was nominated, in the present view, is permitted (1750).
E2. A generation that was undone is passed over by the next candidate: nobody writes its header.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from membership.group.connectivity import candidate
from membership.messages import Commit, Nominate, Undo
from membership.san.events import Log

if TYPE_CHECKING:
    from collections.abc import Mapping

    from membership.effects import Outbox
    from membership.group.state import View
    from membership.label import Timing
    from membership.messages import CandidateFailed, Won
    from membership.seams import PeerAddress


@dataclass(slots=True)
class _Nomination:
    number: int
    node: int
    since: float


class Election:
    """What one node does while it is coordinator and there is no administrator."""

    def __init__(self, timing: Timing, outbox: Outbox) -> None:
        self._timing = timing
        self._out = outbox
        self._nomination: _Nomination | None = None
        self._nominations = 0
        self._failed: list[int] = []  # candidates that failed, latest last (002-39)
        self._undone = 0  # greatest generation that was undone

    def view_installed(self, view: View) -> None:
        """A candidate that left the view has failed."""
        if self._nomination is not None and self._nomination.node not in view.members:
            self._fail(self._nomination.node, "it left the view")

    def over(self) -> None:
        """There is an administrator."""
        self._nomination = None

    def elect(self, candidates: Mapping[int, PeerAddress], view: int, now: float) -> None:
        """1704, 1706: nominate one of ``candidates``; one that stays silent for link_dead has failed."""
        if self._nomination is not None:
            if now - self._nomination.since <= self._timing.link_dead:
                return
            self._fail(self._nomination.node, "no answer")
        node = candidate(candidates, self._failed)
        self._nominations += 1
        number = (view << 16) + self._nominations % 2**16
        self._nomination = _Nomination(number, node, now)
        self._log(f"node {self._out.called(node)} is nominated as administrator")
        self._out.post(node, Nominate(number, self._undone))

    def say_again(self, me: int) -> None:
        """The nomination, which a view change dropped."""
        nomination = self._nomination
        if nomination is not None and nomination.node != me:
            self._out.post(nomination.node, Nominate(nomination.number, self._undone))

    def candidate_failed(self, node: int, body: CandidateFailed) -> None:
        """1724: it says so itself."""
        if self._nomination is not None and self._nomination.number == body.nomination:
            self._fail(node, body.reason)

    def won(self, node: int, body: Won, now: float, *, wanted: bool) -> None:
        """1732, 1750 to 1754: permissible when it is the one nominated, and an administrator is still wanted."""
        nomination = self._nomination
        if nomination is not None and wanted and (nomination.node, nomination.number) == (node, body.nomination):
            nomination.since = now
            self._out.post(node, Commit(body.nomination))
        else:
            self._log(f"generation {body.generation} of node {self._out.called(node)} is undone")
            self._undone = max(self._undone, body.generation)
            self._out.post(node, Undo(body.nomination))

    def _fail(self, node: int, reason: str) -> None:
        self._log(f"node {self._out.called(node)} failed to become administrator: {reason}")
        self._failed = [n for n in self._failed if n != node] + [node]
        self._nomination = None

    def _log(self, text: str) -> None:
        self._out.tell(Log("election", text))
