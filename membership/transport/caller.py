"""The caller: goes the paths to a peer, to connect or to learn that nobody is there any more (trio; ``paths.py``).

It dials from its own address of the same position as the peer's where that works, so that both directions of a
connection use one network, and the failure of that network moves both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from membership.errors import BadMessage
from membership.transport.connection import open_socket
from membership.transport.door import HANDSHAKE_SECONDS_MAX, Offer, dial
from membership.transport.handshake import ENTROPY_BYTES, Connector, Credentials, Instance
from membership.transport.pulse import BEAT_SECONDS

if TYPE_CHECKING:
    from membership.seams import Clock, LinkDown, LinkUp, Rng
    from membership.transport.peer import PeerLink

PATIENCE_SECONDS_MIN = 0.200  # for an attempt, however little is left of the grace


class Caller:
    """Connects for all links of a mesh.

    ``hosts`` are our own addresses, once the mesh listens.
    """

    def __init__(self, credentials: Credentials, me: Instance, clock: Clock, rng: Rng) -> None:
        self.hosts: tuple[str, ...] = ()
        self._credentials = credentials
        self._me = me
        self._clock = clock
        self._rng = rng

    async def connect(self, link: PeerLink) -> tuple[Offer | None, list[LinkUp | LinkDown]]:
        """Try every path once: a proven connection, or what is to be reported."""
        refused, paths = 0, link.paths.order(len(link.address.hosts))
        for position in paths:
            try:
                found = await self._dial(link, position, self._patience(link, len(paths)))
            except ConnectionRefusedError:
                refused += 1
                continue
            if isinstance(found, Offer):
                return found, []
            if found is not None:
                text = f"node {found.node} runs again, as incarnation {found.incarnation:#x}"
                return None, link.refused(text, self._clock.monotonic())
        return None, link.unanswered(refused, len(paths), self._clock.monotonic())

    async def detour(self, link: PeerLink) -> Offer | Instance | None:
        """Try every path but the present one, whose connection stands: who answers, if anybody.

        About as long as a beat, after which it is tried again if need be: with several silent paths, too, the peer is
        found before others call it dead.
        """
        paths = link.paths.order(len(link.address.hosts))[1:]
        for position in paths:
            try:
                found = await self._dial(link, position, max(PATIENCE_SECONDS_MIN, BEAT_SECONDS / len(paths)))
            except ConnectionRefusedError:
                continue
            if found is not None:
                return found
        return None

    async def ask(self, link: PeerLink) -> list[LinkUp | LinkDown]:
        """Ask a peer that should connect to us whether it is there at all; what is to be reported."""
        refused, paths = 0, link.paths.order(len(link.address.hosts))
        for position in paths:
            host = link.address.hosts[position]
            try:
                with trio.move_on_after(self._patience(link, len(paths))):
                    (await open_socket(host, link.address.port, self._source(position))).close()
                    refused = 0  # the process lives
                    break
            except ConnectionRefusedError:
                refused += 1
            except OSError:
                pass
        return link.unanswered(refused, len(paths), self._clock.monotonic())

    async def _dial(self, link: PeerLink, position: int, patience: float) -> Offer | Instance | None:
        """One attempt; None when the path gives no usable connection.  Raises ConnectionRefusedError."""
        address = link.address
        wanted = Instance(address.node, address.incarnation)
        entropy = self._rng.randbytes(ENTROPY_BYTES)
        connector = Connector(self._credentials, self._me, wanted, link.resume_point, entropy)
        try:
            with trio.move_on_after(patience):
                found = await dial(address.hosts[position], address.port, connector, self._source(position))
                if isinstance(found, Offer):
                    link.paths.position = position
                return found
        except BadMessage as error:
            link.trouble = str(error)
        except ConnectionRefusedError:
            raise
        except OSError:
            link.trouble = ""  # no path: reported by the end of the grace; the next attempt may tell more
        return None

    def _source(self, position: int) -> str:
        """Our address for the peer's address of that position; "": whatever the kernel takes."""
        return self.hosts[position] if 1 < len(self.hosts) > position else ""

    def _patience(self, link: PeerLink, paths: int) -> float:
        """Seconds for one attempt: with those on the other paths not past the moment when the grace ends."""
        left = link.deadline - self._clock.monotonic()
        return max(PATIENCE_SECONDS_MIN, min(HANDSHAKE_SECONDS_MAX, left) / paths)
