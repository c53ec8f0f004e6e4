"""What the administration core wants done, and what it tells (R1; Figures 10, 11)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from membership.san.header import SanHeader


@dataclass(frozen=True, slots=True)
class TakeGeneration:
    """Event: run the disk ballot for this generation, then call ``generation_taken``."""

    generation: int


@dataclass(frozen=True, slots=True)
class WriteHeader:
    """Event: write this header, read it back, then call ``header_written`` (or ``write_failed``).

    ``base``: the generation it was made from.  Over a newer one it must not be written: it knows nothing of that one.
    """

    header: SanHeader
    base: int


@dataclass(frozen=True, slots=True)
class ReadHeader:
    """Event: the header on disk may be newer than ours."""


@dataclass(frozen=True, slots=True)
class FenceOrder:
    """Event: fence this instance, then call ``fence_done``.

    ``evicted_at``: monotonic seconds since when a header without it is durable.
    """

    node: int
    incarnation: int
    evicted_at: float


@dataclass(frozen=True, slots=True)
class HeaderInForce:
    """Event: a newer header is known; ``mine``: we are its administrator."""

    header: SanHeader
    mine: bool


@dataclass(frozen=True, slots=True)
class NodeDead:
    """Event on the administrator: confirmed fenced, its mounts may be recovered (R5)."""

    node: int
    incarnation: int


@dataclass(frozen=True, slots=True)
class Log:
    """Event: a line for the event log."""

    kind: str
    text: str
