"""Guests: callers that hold no cluster key yet, but the secret of a join token (trio; R11).

A guest's HELLO has the token's id where others have the purpose.  Who holds the token's secret on our side is asked for
(``Guests``), and the handshake is the same as between nodes, with that secret in place of the cluster key.  Then the
guest sends one request, gets one answer, and the connection ends.

- G1. A caller without the secret of a token that ``guests`` knows is a stranger: it gets no answer, not even a refusal.
- G2. A guest's connection never becomes a link: it has no node id, no session, and another key.
- G3. Always encrypted, whatever the cluster's links are: the answer may carry the cluster key.
- G4. ``GUESTS_MAX`` proven guests at once, ``GUEST_SECONDS_MAX`` for each, ``GUEST_BYTES_MAX`` each way; unproven callers
  are bounded by the door.

A recorded conversation is of no use: its HELLO gets a CHALLENGE with other keys, which its owner can't answer.
"""

from __future__ import annotations

import socket
from typing import Protocol

import trio

from membership.errors import BadMessage, PeerError
from membership.seams import Rng
from membership.transport.connection import open_socket, send_all
from membership.transport.door import HANDSHAKE_SECONDS_MAX, Offer, dial
from membership.transport.frames import HEADER_BYTES, TAG_BYTES, FrameReader, FrameWriter
from membership.transport.handshake import (
    ENTROPY_BYTES,
    NOTHING,
    Acceptor,
    Agreement,
    Connector,
    Credentials,
    Instance,
)
