"""The handshake: two processes prove to each other that they hold the cluster key, and agree on new ones (pure; R11).

Three messages of fixed size, layout in ``docs/format/wire-transport.md``::

    connector -> acceptor   HELLO      who I am, whom I want, purpose, cluster, nonce, public key, resume point, MAC
    acceptor -> connector   CHALLENGE  who I am, nonce, public key, resume point, MAC over HELLO and this
    connector -> acceptor   PROOF      MAC over HELLO and CHALLENGE

MACs are HMAC-SHA256.  The key of all three is derived from cluster key, cluster uuid and purpose, each MAC has
its own label, and HELLO names both ends.  Therefore: without the key nothing is answered, not even a version; a
recorded HELLO gets at most a CHALLENGE that its owner cannot turn into a PROOF; a recorded CHALLENGE or PROOF fits
no other nonce; a message sent back to its author fits no label; a lock link is never taken for a matrixd link.

Session keys, one per direction, come from the X25519 secret of two key pairs made for this handshake alone and from
the cluster key, by HKDF-SHA256 over all three messages.  Who records the traffic and learns the cluster key later can
read nothing; who has the cluster key now must stand in the middle.

Whether frames are encrypted is a setting of the cluster, said under the MAC of HELLO and CHALLENGE.  Two ends that
differ refuse each other, and both know why: a holder of the key that wants otherwise gets a CHALLENGE, a stranger
never.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from typing import Any, NamedTuple

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from membership.errors import BadMessage

MAGIC = b"MXLH"
VERSION = 2  # 1: before encryption
NONCE_BYTES = 32
SECRET_BYTES = 32
ENTROPY_BYTES = NONCE_BYTES + SECRET_BYTES
MAC_BYTES = 32
KEY_BYTES = 32
FLAG_ENCRYPT = 1

# magic, version, kind, flags
_PREFIX = struct.Struct("<4sBBH")
# purpose digest, cluster uuid, from node, to node, from and to incarnation, session id, received, nonce, public, MAC
_HELLO = struct.Struct(_PREFIX.format + "16s16sIIQQQQ32s32s32s")
# node, zero, incarnation, session id, received, nonce, public, MAC
_CHALLENGE = struct.Struct(_PREFIX.format + "IIQQQ32s32s32s")
# MAC
_PROOF = struct.Struct(_PREFIX.format + "32s")
PREFIX_BYTES = _PREFIX.size
HELLO_BYTES, CHALLENGE_BYTES, PROOF_BYTES = _HELLO.size, _CHALLENGE.size, _PROOF.size
_KIND_HELLO, _KIND_CHALLENGE, _KIND_PROOF = 1, 2, 3

assert (PREFIX_BYTES, HELLO_BYTES, CHALLENGE_BYTES, PROOF_BYTES) == (8, 176, 136, 40)


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
    encrypt: bool = True  # frames are encrypted, else authenticated only


class Credentials:
    """What both ends must have in common: cluster uuid, cluster key, purpose, and whether links are encrypted."""

    def __init__(self, cluster_uuid: bytes, cluster_key: bytes, purpose: str, *, encrypt: bool = True) -> None:
        """Derive the handshake key.

        Args:
            cluster_uuid: 16 bytes.
            cluster_key: the secret of the cluster.
            purpose: what the link is for, such as ``"matrixd"`` or ``"lockspace:<uuid>"``.
            encrypt: whether frames are to be encrypted; the same on all nodes of a cluster.
        """
        assert len(cluster_uuid) == 16
        assert cluster_key, "an empty key authenticates nobody"
        self.cluster_uuid = cluster_uuid
        self.encrypt = encrypt
        self.purpose = hashlib.blake2b(purpose.encode(), digest_size=16).digest()
        self._key = _mac(cluster_key, b"matrixfs link key 2", cluster_uuid, purpose.encode())

    @classmethod
    def of_token(cls, cluster_uuid: bytes, token_id: bytes, secret: bytes) -> Credentials:
        """What a guest has in common with the cluster: a join token (``reception.py``).

        Args:
            cluster_uuid: 16 bytes.
            token_id: 16 bytes; travels in the clear, in place of the purpose.
            secret: 32 bytes.
        """
        assert len(token_id) == 16
        assert len(secret) == KEY_BYTES
        made = cls(cluster_uuid, secret, f"guest:{token_id.hex()}")
        made.purpose = token_id
        return made

    @property
    def flags(self) -> int:
        """Of our HELLO or CHALLENGE."""
        return FLAG_ENCRYPT if self.encrypt else 0

    def mac(self, label: bytes, *parts: bytes) -> bytes:
        """MAC of ``parts`` for one purpose; parts have fixed sizes, so joining them is unambiguous."""
        return _mac(self._key, label, *parts)

    def session_keys(self, shared: bytes, transcript: bytes) -> tuple[bytes, bytes]:
        """Keys of the frames from connector to acceptor, and back.

        Args:
            shared: the X25519 secret of this handshake.
            transcript: HELLO, CHALLENGE and PROOF.
        """
        info = b"matrixfs session keys 2\0" + transcript
        both = HKDF(algorithm=SHA256(), length=2 * KEY_BYTES, salt=self._key, info=info).derive(shared)
        return both[:KEY_BYTES], both[KEY_BYTES:]


def _mac(key: bytes, label: bytes, *parts: bytes) -> bytes:
    return hmac.digest(key, label + b"\0" + b"".join(parts), hashlib.sha256)


class _Ephemeral:
    """Our nonce and key pair for one handshake."""

    __slots__ = ("_secret", "nonce", "public")

    def __init__(self, entropy: bytes) -> None:
        assert len(entropy) == ENTROPY_BYTES
        self.nonce = entropy[:NONCE_BYTES]
        self._secret = X25519PrivateKey.from_private_bytes(entropy[NONCE_BYTES:])
        self.public = self._secret.public_key().public_bytes_raw()

    def exchange_untrusted(self, public: bytes) -> bytes:
        """The secret that only the owner of ``public`` shares.  Raises BadMessage for a key that has none."""
        try:
            return self._secret.exchange(X25519PublicKey.from_public_bytes(public))
        except ValueError:
            raise BadMessage("a public key that gives no secret") from None


class Connector:
    """The side that opened the connection (the lower node id)."""

    def __init__(
        self, credentials: Credentials, me: Instance, peer: Instance, stated: ResumePoint, entropy: bytes
    ) -> None:
        """Args: entropy: ``ENTROPY_BYTES`` unpredictable bytes, never used before."""
        self._credentials = credentials
        self._stated = stated
        self._ephemeral = _Ephemeral(entropy)
        self.wanted = peer
        prefix = (MAGIC, VERSION, _KIND_HELLO, credentials.flags, credentials.purpose, credentials.cluster_uuid)
        instances = (me.node, peer.node, me.incarnation, peer.incarnation)
        ours = (self._ephemeral.nonce, self._ephemeral.public)
        unsigned = _HELLO.pack(*prefix, *instances, *stated, *ours, b"")[:-MAC_BYTES]
        self.hello = unsigned + credentials.mac(b"hello", unsigned)

    def receive_challenge_untrusted(self, challenge: bytes) -> tuple[bytes, Agreement]:
        """Check the acceptor's answer; return the PROOF to send and what was agreed.  Raises BadMessage."""
        flags, *fields = _unpack_untrusted(_CHALLENGE, _KIND_CHALLENGE, challenge)
        node, zero, incarnation, session, received, _, public, mac = fields
        credentials = self._credentials
        unsigned = challenge[:-MAC_BYTES]
        if zero or not hmac.compare_digest(mac, credentials.mac(b"challenge", self.hello, unsigned)):
            raise BadMessage("the peer does not hold our cluster key")
        _check_flags(flags, credentials, f"node {node}")
        shared = self._ephemeral.exchange_untrusted(public)
        proof = _PREFIX.pack(MAGIC, VERSION, _KIND_PROOF, 0) + credentials.mac(b"proof", self.hello, challenge)
        theirs = ResumePoint(session, received)
        peer = Instance(node, incarnation)
        messages = (self.hello, challenge, proof)
        return proof, _agree(credentials, messages, shared, peer, self._stated, theirs, connector=True)


class Acceptor:
    """The side that was connected to."""

    def __init__(self, credentials: Credentials, me: Instance, entropy: bytes) -> None:
        """Args: entropy: ``ENTROPY_BYTES`` unpredictable bytes, never used before."""
        self._credentials = credentials
        self._me = me
        self._entropy = entropy
        self._ephemeral: _Ephemeral | None = None
        self._hello = b""
        self._flags = 0
        self._public = b""
        self._theirs = NOTHING
        self._stated = NOTHING
        self._peer = Instance(0, 0)
        self._challenge = b""

    def receive_hello_untrusted(self, hello: bytes) -> Instance:
        """Check the first message; return who it claims to be (proven only by the PROOF).

        Raises:
            BadMessage: answer nothing and close.
        """
        flags, *fields = _unpack_untrusted(_HELLO, _KIND_HELLO, hello)
        purpose, cluster, from_node, to_node, from_incarnation, _, session, received, _, public, mac = fields
        if cluster != self._credentials.cluster_uuid:
            raise BadMessage("a node of another cluster")
        if purpose != self._credentials.purpose:
            raise BadMessage("a link for another purpose")
        if not hmac.compare_digest(mac, self._credentials.mac(b"hello", hello[:-MAC_BYTES])):
            raise BadMessage("the caller does not hold our cluster key")
        # A wish for another incarnation of us is answered: it proves to the caller that the other one is gone.
        if to_node != self._me.node or from_node >= to_node:
            raise BadMessage(f"node {from_node} calls for node {to_node}, here is {self._me.node}")
        self._hello, self._flags, self._public = hello, flags, public
        self._theirs = ResumePoint(session, received)
        self._peer = Instance(from_node, from_incarnation)
        return self._peer

    def challenge(self, stated: ResumePoint) -> bytes:
        """The answer to HELLO.  Args: stated: what we have of a session with that peer."""
        self._stated = stated
        self._ephemeral = ours = _Ephemeral(self._entropy)  # it costs more than a MAC: not for strangers
        prefix = (MAGIC, VERSION, _KIND_CHALLENGE, self._credentials.flags)
        fields = (self._me.node, 0, self._me.incarnation, *stated, ours.nonce, ours.public)
        unsigned = _CHALLENGE.pack(*prefix, *fields, b"")[:-MAC_BYTES]
        self._challenge = unsigned + self._credentials.mac(b"challenge", self._hello, unsigned)
        return self._challenge

    def receive_proof_untrusted(self, proof: bytes) -> Agreement:
        """Check the last message; the caller is now proven.  Raises BadMessage."""
        flags, mac = _unpack_untrusted(_PROOF, _KIND_PROOF, proof)
        _check_flags(self._flags, self._credentials, f"node {self._peer.node}")
        expected = self._credentials.mac(b"proof", self._hello, self._challenge)
        if flags or self._ephemeral is None or not hmac.compare_digest(mac, expected):
            raise BadMessage("the caller could not prove that it holds our cluster key")
        shared = self._ephemeral.exchange_untrusted(self._public)
        messages = (self._hello, self._challenge, proof)
        return _agree(self._credentials, messages, shared, self._peer, self._stated, self._theirs, connector=False)

    def check_terms(self) -> None:
        """Before waiting for the PROOF of a caller that will send none.  Raises BadMessage when we want otherwise."""
        _check_flags(self._flags, self._credentials, f"node {self._peer.node}")


def check_prefix_untrusted(prefix: bytes) -> None:
    """Check the first ``PREFIX_BYTES`` of a HELLO: an older or newer one has another length.  Raises BadMessage."""
    magic, version, _, _ = _PREFIX.unpack(prefix)
    if magic != MAGIC:
        raise BadMessage("no handshake of MatrixFS")
    if version != VERSION:
        raise BadMessage(f"the caller speaks link protocol {version}, we {VERSION}: run one MatrixFS on all nodes")


def purpose_untrusted(hello: bytes) -> bytes:
    """The purpose that a HELLO of ``HELLO_BYTES`` claims: nothing else of it is looked at."""
    return hello[PREFIX_BYTES : PREFIX_BYTES + 16]


def _check_flags(flags: int, credentials: Credentials, who: str) -> None:
    if flags == credentials.flags:
        return
    if flags & ~FLAG_ENCRYPT:
        raise BadMessage(f"{who} wants what this MatrixFS does not know (flags {flags:#x})")
    theirs, ours = ("encrypted", "plain") if flags else ("plain", "encrypted")
    raise BadMessage(f"{who} wants {theirs} links, we {ours} ones: all nodes of a cluster must agree")


def _unpack_untrusted(layout: struct.Struct, kind: int, data: bytes) -> tuple[Any, ...]:
    """The flags and what follows.  Raises BadMessage."""
    if len(data) != layout.size:
        raise BadMessage(f"handshake message of {len(data)} bytes, expected {layout.size}")
    magic, version, found, *fields = layout.unpack(data)
    if magic != MAGIC or version != VERSION or found != kind:
        raise BadMessage("no handshake of this protocol version")
    return tuple(fields)


def _agree(
    credentials: Credentials,
    messages: tuple[bytes, bytes, bytes],
    shared: bytes,
    peer: Instance,
    stated: ResumePoint,
    theirs: ResumePoint,
    *,
    connector: bool,
) -> Agreement:
    """Both sides compute this from the same bytes, so they agree without another message."""
    transcript = b"".join(messages)
    resumed = stated.session != 0 and stated.session == theirs.session
    fresh = int.from_bytes(credentials.mac(b"session", transcript)[:8], "little") | 1  # never 0
    forth, back = credentials.session_keys(shared, transcript)
    return Agreement(
        peer=peer,
        session=stated.session if resumed else fresh,
        resumed=resumed,
        stated=stated,
        peer_received=theirs.received if resumed else 0,
        send_key=forth if connector else back,
        receive_key=back if connector else forth,
        encrypt=credentials.encrypt,
    )
