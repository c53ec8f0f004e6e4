"""What a pure core wants done (R1).

The contract order is persist, then send, then tell.  What the membership cores persist is always followed by a
decision that needs it durable, so it is an event answered by an input (``WriteHeader`` by ``header_written``,
``TakeGeneration`` by ``generation_taken``): nothing that depends on it can stand in the same Effects.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from membership.messages import Body


@dataclass(frozen=True, slots=True)
class Envelope:
    """A message to one node."""

    node: int
    body: Body


@dataclass(frozen=True, slots=True)
class Effects:
    """The outcome of one input: send, then tell."""

    send: tuple[Envelope, ...] = ()
    events: tuple[object, ...] = ()


@dataclass(slots=True)
class Outbox:
    """Where the cores of one node gather their effects; one per node, so that order is kept across cores."""

    send: list[Envelope] = field(default_factory=list)
    events: list[object] = field(default_factory=list)
    called: Callable[[int], str] = str  # what events call a node: its name where that is known

    def post(self, node: int, body: Body) -> None:
        """Add a message."""
        self.send.append(Envelope(node, body))

    def tell(self, event: object) -> None:
        """Add an event."""
        self.events.append(event)
