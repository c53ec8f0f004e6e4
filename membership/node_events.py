"""What happened on this node, for people and for the membership database: bounded lists, newest last."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from membership.san.header import NOBODY
from membership.status import EventStatus, FenceStatus, RecoveryStatus

if TYPE_CHECKING:
    from collections.abc import Callable

    from membership.san.events import FenceOrder
    from membership.san.fence import FenceResult
    from membership.san.header import SanHeader
    from membership.san.recovery import Finished
    from membership.seams import Clock

KEPT = 200
NEWS_SECONDS = 5.0  # a recovery that ended longer ago is no event any more
AGO_MAX = 10 * 365 * 86400.0  # seconds; more is nonsense from a peer


class EventBook:
    """Events, fences and recoveries."""

    def __init__(self, clock: Clock) -> None:
        self.events: deque[EventStatus] = deque(maxlen=KEPT)
        self.fences: deque[FenceStatus] = deque(maxlen=KEPT)
        self.recoveries: deque[RecoveryStatus] = deque(maxlen=KEPT)
        self.total = 0  # events ever, so that a reader knows whether something is new
        self.called: Callable[[int], str] = str  # what to call a node
        self._clock = clock

    def log(self, kind: str, text: str) -> None:
        """One line."""
        self.total += 1
        self.events.append(EventStatus(wall_ns=self._clock.wall_ns(), kind=kind, text=text))

    def numbered(self) -> list[tuple[int, EventStatus]]:
        """What is kept, each with its number; the first event ever has 1."""
        return list(enumerate(self.events, self.total - len(self.events) + 1))

    def header(self, header: SanHeader, is_member: bool) -> None:
        """A new SAN generation."""
        who = "nobody" if header.administrator == NOBODY else f"node {self.called(header.administrator)}"
        members = ", ".join(map(self.called, header.members)) or "none"
        text = f"generation {header.generation}: members {members}; administrator {who}"
        if header.fencing:
            text += f"; to be fenced {', '.join(map(self.called, header.fencing))}"
        self.log("generation", text if is_member else text + "; this node is no member")

    def fenced(self, order: FenceOrder, name: str, result: FenceResult) -> None:
        """One fencing attempt."""
        self.fences.append(
            FenceStatus(
                wall_ns=self._clock.wall_ns(),
                node=order.node,
                name=name,
                incarnation=order.incarnation,
                driver=result.driver,
                confirmed=result.confirmed,
                detail=result.detail,
            )
        )

    def finished(self, event: Finished) -> None:
        """A recovery ended; what is told again is kept once."""
        if any((known["fs"], known["attempt"]) == (event.fs_name, event.attempt) for known in self.recoveries):
            return
        self.recoveries.append(
            RecoveryStatus(
                fs=event.fs_name,
                attempt=event.attempt,
                wall_ns=self._clock.wall_ns() - round(max(0.0, min(event.ago, AGO_MAX)) * 1e9),
                members=list(event.members),
                dead=list(event.dead),
                phases=list(event.phases),
                seconds=sum(seconds for _, seconds in event.phases),
                error=event.error,
            )
        )
        if event.ago > NEWS_SECONDS:
            return  # it was before this node came: status shows it, the log tells what happened since
        if event.error:
            self.log("alert", f"{event.fs_name} is isolated: {event.error}")
        elif event.dead:
            seconds = sum(phase[1] for phase in event.phases)
            dead = ", ".join(map(self.called, event.dead))
            phases = ", ".join(f"{name} {1000 * took:.1f}" for name, took in event.phases)
            self.log("recovery", f"{event.fs_name}: node {dead} recovered in {seconds:.3f} s (ms: {phases})")
