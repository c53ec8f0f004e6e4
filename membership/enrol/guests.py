"""Guests at this node's door: their requests go to the administrator (R11; ``transport/reception.py``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from membership.control_wire import take
from membership.errors import BadMessage
from membership.transport.handshake import Credentials

if TYPE_CHECKING:
    from membership.control_wire import Message
    from membership.node_core import NodeCore


class Hosting(Protocol):
    """What guests need of the node."""

    core: NodeCore | None

    async def command(self, what: str, arguments: Message) -> Any:
        """Have the administrator carry out a command.  Raises MatrixError."""
        ...


class TokenGuests:
    """Holders of join tokens.  ``node`` is set before the mesh runs."""

    node: Hosting

    def __init__(self, cluster: bytes) -> None:
        self._cluster = cluster

    def credentials(self, token_id: bytes) -> Credentials | None:
        """Of a token that the naming has, used up or not: its holder is told why it is refused."""
        core = self.node.core
        keys = dict(core.naming.tokens) if core is not None else {}
        key = keys.get(token_id)
        return Credentials.of_token(self._cluster, token_id, key) if key is not None else None

    async def answer(self, token_id: bytes, request: bytes) -> bytes:
        """What the administrator says.  Raises MatrixError: the guest gets no answer and may ask again."""
        found = await self.node.command("token.redeem", {"token": token_id, "request": request})
        if not isinstance(found, dict):
            raise BadMessage("the administrator's answer is no map")
        return take(found, "answer", bytes)
