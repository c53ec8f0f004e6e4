"""The handshake: two processes prove to each other that they hold the cluster key (pure; R11).

Three messages of fixed size, layout in ``docs/format/wire-transport.md``::

    connector -> acceptor   HELLO      who I am, whom I want, purpose, cluster, nonce, resume point, MAC
    acceptor -> connector   CHALLENGE  who I am, nonce, resume point, MAC over HELLO and this
    connector -> acceptor   PROOF      MAC over HELLO and CHALLENGE

MACs are HMAC-SHA256.  The key of all three is derived from cluster key, cluster uuid and purpose, each MAC has
its own label, and HELLO names both ends.  Therefore: without the key nothing is answered, not even a version; a
recorded HELLO gets at most a CHALLENGE that its owner cannot turn into a PROOF; a recorded CHALLENGE or PROOF fits
no other nonce; a message sent back to its author fits no label; a lock link is never taken for a matrixd link.
Session keys, one per direction, come from both nonces.

No secrecy: a listener on the network reads the messages.  They are lock names and views; file data goes to the disks.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from typing import Any, NamedTuple

from membership.errors import BadMessage

MAGIC = b"MXLH"
VERSION = 1
NONCE_BYTES = 32
MAC_BYTES = 32

# magic, version, kind, zero
_PREFIX = "<4sBBH"
# purpose digest, cluster uuid, from node, to node, from and to incarnation, session id, received, nonce, MAC
_HELLO = struct.Struct(_PREFIX + "16s16sIIQQQQ32s32s")
# node, zero, incarnation, session id, received, nonce, MAC
_CHALLENGE = struct.Struct(_PREFIX + "IIQQQ32s32s")
# MAC
_PROOF = struct.Struct(_PREFIX + "32s")
HELLO_BYTES, CHALLENGE_BYTES, PROOF_BYTES = _HELLO.size, _CHALLENGE.size, _PROOF.size
_KIND_HELLO, _KIND_CHALLENGE, _KIND_PROOF = 1, 2, 3

assert (HELLO_BYTES, CHALLENGE_BYTES, PROOF_BYTES) == (144, 104, 40)


class Instance(NamedTuple):
    """One start of one process of a node."""

    node: int
    incarnation: int


class ResumePoint(NamedTuple):
    """What one side still has of a session: its id (0: nothing) and the last message it received in it."""

    session: int
    received: int


NOTHING = ResumePoint(0, 0)


class Agreement(NamedTuple):
    """Outcome of a handshake, the same on both sides save for the direction."""

    peer: Instance  # proven; the connector must compare it with the one it wanted
    session: int  # id to use: the resumed one, or a new one
    resumed: bool
    stated: ResumePoint  # what we said: void if our session changed since
    peer_received: int  # when resumed: the last message the peer has
    send_key: bytes
    receive_key: bytes


class Credentials:
    """What both ends must have in common: cluster uuid, cluster key and purpose."""

    def __init__(self, cluster_uuid: bytes, cluster_key: bytes, purpose: str) -> None:
        """Derive the handshake key.

        Args:
            cluster_uuid: 16 bytes.
            cluster_key: the secret of the label.
            purpose: what the link is for, such as ``"matrixd"`` or ``"lockspace:<uuid>"``.
        """
        assert len(cluster_uuid) == 16
        assert cluster_key, "an empty key authenticates nobody"
        self.cluster_uuid = cluster_uuid
        self.purpose = hashlib.blake2b(purpose.encode(), digest_size=16).digest()
        self._key = _mac(cluster_key, b"matrixfs link key 1", cluster_uuid, purpose.encode())

    def mac(self, label: bytes, *parts: bytes) -> bytes:
        """MAC of ``parts`` for one purpose; parts have fixed sizes, so joining them is unambiguous."""
        return _mac(self._key, label, *parts)


def _mac(key: bytes, label: bytes, *parts: bytes) -> bytes:
    return hmac.digest(key, label + b"\0" + b"".join(parts), hashlib.sha256)


class Connector:
    """The side that opened the connection (the lower node id)."""

    def __init__(
        self, credentials: Credentials, me: Instance, peer: Instance, stated: ResumePoint, nonce: bytes
    ) -> None:
        """Args: nonce: ``NONCE_BYTES`` unpredictable bytes, never used before."""
        self._credentials = credentials
        self._stated = stated
        self.wanted = peer
        prefix = (MAGIC, VERSION, _KIND_HELLO, 0, credentials.purpose, credentials.cluster_uuid)
        fields = (me.node, peer.node, me.incarnation, peer.incarnation, *stated, nonce)
        unsigned = _HELLO.pack(*prefix, *fields, b"")[:-MAC_BYTES]
        self.hello = unsigned + credentials.mac(b"hello", unsigned)

    def receive_challenge_untrusted(self, challenge: bytes) -> tuple[bytes, Agreement]:
        """Check the acceptor's answer; return the PROOF to send and what was agreed.  Raises BadMessage."""
        fields = _unpack_untrusted(_CHALLENGE, _KIND_CHALLENGE, challenge)
        node, zero, incarnation, session, received = fields[:5]
        credentials = self._credentials
        unsigned = challenge[:-MAC_BYTES]
        if zero or not hmac.compare_digest(fields[-1], credentials.mac(b"challenge", self.hello, unsigned)):
            raise BadMessage("the peer does not hold our cluster key")
        proof = struct.pack(_PREFIX, MAGIC, VERSION, _KIND_PROOF, 0) + credentials.mac(b"proof", self.hello, challenge)
        theirs = ResumePoint(session, received)
        peer = Instance(node, incarnation)
        return proof, _agree(credentials, self.hello + challenge, peer, self._stated, theirs, connector=True)


class Acceptor:
    """The side that was connected to."""

    def __init__(self, credentials: Credentials, me: Instance, nonce: bytes) -> None:
        """Args: nonce: ``NONCE_BYTES`` unpredictable bytes, never used before."""
        self._credentials = credentials
        self._me = me
        self._nonce = nonce
        self._hello = b""
        self._theirs = NOTHING
        self._stated = NOTHING
        self._peer = Instance(0, 0)
        self._challenge = b""

    def receive_hello_untrusted(self, hello: bytes) -> Instance:
        """Check the first message; return who it claims to be (proven only by the PROOF).

        Raises:
            BadMessage: answer nothing and close.
        """
        fields = _unpack_untrusted(_HELLO, _KIND_HELLO, hello)
        purpose, cluster, from_node, to_node, from_incarnation, _, session, received = fields[:8]
        if cluster != self._credentials.cluster_uuid:
            raise BadMessage("a node of another cluster")
        if purpose != self._credentials.purpose:
            raise BadMessage("a link for another purpose")
        if not hmac.compare_digest(fields[-1], self._credentials.mac(b"hello", hello[:-MAC_BYTES])):
            raise BadMessage("the caller does not hold our cluster key")
        # A wish for another incarnation of us is answered: it proves to the caller that the other one is gone.
        if to_node != self._me.node or from_node >= to_node:
            raise BadMessage(f"node {from_node} calls for node {to_node}, here is {self._me.node}")
        self._hello, self._theirs = hello, ResumePoint(session, received)
        self._peer = Instance(from_node, from_incarnation)
        return self._peer

    def challenge(self, stated: ResumePoint) -> bytes:
        """The answer to HELLO.  Args: stated: what we have of a session with that peer."""
        self._stated = stated
        fields = (MAGIC, VERSION, _KIND_CHALLENGE, 0, self._me.node, 0, self._me.incarnation, *stated, self._nonce)
        unsigned = _CHALLENGE.pack(*fields, b"")[:-MAC_BYTES]
        self._challenge = unsigned + self._credentials.mac(b"challenge", self._hello, unsigned)
        return self._challenge

    def receive_proof_untrusted(self, proof: bytes) -> Agreement:
        """Check the last message; the caller is now proven.  Raises BadMessage."""
        (mac,) = _unpack_untrusted(_PROOF, _KIND_PROOF, proof)
        if not hmac.compare_digest(mac, self._credentials.mac(b"proof", self._hello, self._challenge)):
            raise BadMessage("the caller could not prove that it holds our cluster key")
        transcript = self._hello + self._challenge
        return _agree(self._credentials, transcript, self._peer, self._stated, self._theirs, connector=False)


def _unpack_untrusted(layout: struct.Struct, kind: int, data: bytes) -> tuple[Any, ...]:
    """The fields after the prefix.  Raises BadMessage."""
    if len(data) != layout.size:
        raise BadMessage(f"handshake message of {len(data)} bytes, expected {layout.size}")
    magic, version, found, zero, *fields = layout.unpack(data)
    if magic != MAGIC or version != VERSION or found != kind or zero:
        raise BadMessage("no handshake of this protocol version")
    return tuple(fields)


def _agree(
    credentials: Credentials,
    transcript: bytes,
    peer: Instance,
    stated: ResumePoint,
    theirs: ResumePoint,
    *,
    connector: bool,
) -> Agreement:
    """Both sides compute this from the same bytes, so they agree without another message."""
    resumed = stated.session != 0 and stated.session == theirs.session
    fresh = int.from_bytes(credentials.mac(b"session", transcript)[:8], "little") | 1  # never 0
    forth = credentials.mac(b"connector to acceptor", transcript)
    back = credentials.mac(b"acceptor to connector", transcript)
    return Agreement(
        peer=peer,
        session=stated.session if resumed else fresh,
        resumed=resumed,
        stated=stated,
        peer_received=theirs.received if resumed else 0,
        send_key=forth if connector else back,
        receive_key=back if connector else forth,
    )
