"""The four seams of R1: Clock, Rng, Transport, SectorDevice.

Outside their implementations nothing calls ``time``, ``random``, ``socket`` or ``os.pread`` and the
like (``tests/test_tidy.py`` enforces it).  The pure cores take ``now`` as a parameter and see no seam.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import NamedTuple, NoReturn, Protocol, TypeAlias

Buffer: TypeAlias = bytes | bytearray | memoryview


class Clock(Protocol):
    """Time as this process sees it."""

    def monotonic(self) -> float:
        """Seconds on the host's monotonic clock: comparable between processes of one host (leases are)."""
        ...

    def wall_ns(self) -> int:
        """Nanoseconds since the epoch: file times and log lines only, never a decision."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait; a checkpoint even for 0 seconds."""
        ...


class Rng(Protocol):
    """Randomness: seeded in simulation, the system's elsewhere."""

    def randbytes(self, n: int, /) -> bytes:
        """``n`` unpredictable bytes."""
        ...

    def uniform(self, a: float, b: float, /) -> float:
        """A float between ``a`` and ``b``: back-off and jitter."""
        ...


class SectorDevice(Protocol):
    """A shared store, or a window of one: what everything above the disk reads and writes (R13).

    Offsets and lengths are bytes and multiples of ``sector_bytes``.  A ``write`` that has returned is in
    the device but may be lost with its power until ``flush`` returns, unless it was ``durable``
    (forced unit access: that write alone survives, earlier ones don't ride along).
    """

    @property
    def name(self) -> str:
        """How messages name it, for example the path."""
        ...

    @property
    def sector_bytes(self) -> int:
        """Smallest unit of I/O: 512 or 4096."""
        ...

    @property
    def size_bytes(self) -> int:
        """Capacity, a multiple of ``sector_bytes``."""
        ...

    async def read(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes.  Raises DeviceError, Fenced."""
        ...

    async def write(self, offset: int, data: Buffer, *, durable: bool = False) -> None:
        """Write all of ``data``.  Raises DeviceError, Fenced."""
        ...

    async def flush(self) -> None:
        """Return when every write that returned before this call survives power loss.  Raises DeviceError, Fenced."""
        ...

    async def aclose(self) -> None:
        """Wait for what is in flight, then let go.  Idempotent."""
        ...


@dataclass(frozen=True, slots=True, order=True)
class PeerAddress:
    """Where one incarnation of a peer listens: on ``port`` of each of its hosts."""

    node: int  # node id: the peer's slot in the membership area
    incarnation: int  # u64, new for every start of the process
    host: str
    port: int
    others: tuple[str, ...] = ()  # further hosts of the same process: other paths to it

    @property
    def hosts(self) -> tuple[str, ...]:
        """All of them, the main one first."""
        return (self.host, *self.others)


class Delivery(NamedTuple):
    """One message from an authenticated peer, in the order it was sent, at most once."""

    node: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class LinkUp:
    """The peer answered and proved that it belongs to this cluster."""

    node: int


@dataclass(frozen=True, slots=True)
class LinkDown:
    """No path to the peer.  ``refused``: its host said on every path that nobody listens: the process is gone."""

    node: int
    refused: bool
    reason: str


TransportEvent: TypeAlias = Delivery | LinkUp | LinkDown


class Transport(Protocol):
    """Authenticated, ordered, at-most-once messages to a set of peers (the seed's MCS, 002-19)."""

    def set_peers(self, peers: Collection[PeerAddress]) -> None:
        """The peers wanted from now on; others are dropped, changed incarnations are new peers."""
        ...

    def send(self, node: int, payload: bytes) -> None:
        """Queue a message; never blocks.  Silently dropped when ``node`` is no peer (the view moved on)."""
        ...

    async def receive(self) -> TransportEvent:
        """The next event, in order per peer."""
        ...

    async def serve(self, handler: Callable[[TransportEvent], None]) -> NoReturn:
        """Call ``handler`` with every event from now on, until cancelled; instead of ``receive``, and quicker.

        It is called from the transport's tasks, in the order of ``receive`` and never from within ``send`` or
        ``set_peers``.  What it sends for the messages of one packet leaves together.  It does not block; what it raises
        is a bug of ours and ends the transport.
        """
        ...

    def silence(self, node: int) -> float:
        """Seconds for which the process of a peer gave no sign of life although it was asked for one.

        For who decides that it hangs: a stopped process keeps its connections, and no LinkDown tells of it.  It goes
        on counting while the link is down; time in which we were stopped ourselves does not count.  A living peer shows
        a second at most, also when nothing else is sent.  0 when ``node`` is no peer.
        """
        ...
