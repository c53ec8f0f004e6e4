"""The guest's end of a conversation with a cluster it does not belong to yet (trio; ``reception.py``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from membership.errors import BadMessage, PeerError
from membership.transport.door import HANDSHAKE_SECONDS_MAX, Offer, dial
from membership.transport.handshake import ENTROPY_BYTES, NOTHING, Connector, Credentials
from membership.transport.reception import GUEST, GUEST_SECONDS_MAX, HOST, receive_one_untrusted, send_one

if TYPE_CHECKING:
    from membership.seams import Rng


async def call_as_guest(
    host: str, port: int, cluster_uuid: bytes, token_id: bytes, secret: bytes, request: bytes, rng: Rng
) -> bytes:
    """Ask a node of a cluster one thing, with a join token.

    Args:
        host: address of the node.
        port: where its matrixd listens.
        cluster_uuid: 16 bytes.
        token_id: 16 bytes.
        secret: the token's 32 bytes.
        request: at most ``GUEST_BYTES_MAX`` bytes.
        rng: unpredictable.

    Returns:
        The answer, proven to come from who knows the secret.  It is hostile all the same: decode it as such.

    Raises:
        PeerError: nobody there, the token is not taken, or no answer in time.
    """
    where = f"{host}, port {port}"
    credentials = Credentials.of_token(cluster_uuid, token_id, secret)
    connector = Connector(credentials, GUEST, HOST, NOTHING, rng.randbytes(ENTROPY_BYTES))
    found: Offer | None = None
    try:
        with trio.move_on_after(HANDSHAKE_SECONDS_MAX):
            answered = await dial(host, port, connector)
            assert isinstance(answered, Offer), "a door has one host for guests"
            found = answered
    except BadMessage:
        raise PeerError(
            f"{where} does not take this token (used, expired, withdrawn, or of another cluster): make a new one"
        ) from None
    except OSError as error:
        raise PeerError(f"{where}: {error.strerror}: does matrixd run there, and is that its address?") from None
    if found is None:
        raise PeerError(f"{where} does not answer")
    try:
        with trio.move_on_after(GUEST_SECONDS_MAX):
            await send_one(found.sock, found.agreement, request)
            return await receive_one_untrusted(found.sock, found.agreement)
    except (OSError, BadMessage):
        raise PeerError(f"{where} took the token, but gave no answer: its log says why") from None
    finally:
        found.close()
    raise PeerError(f"{where} took the token, but gave no answer in {GUEST_SECONDS_MAX:g} s")
