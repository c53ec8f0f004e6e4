"""The join token: one line that a person carries from the cluster to a new server (pure; R11).

``mxj1.`` and then, in Crockford's base32 (no letter can be taken for a digit; case does not matter), these bytes::

    1   version, 1                          then for each contact point:
    16  cluster uuid                        1   4 or 6: family of the address
    16  token id                            4|16 address
    32  secret                              2   port
    5   expiry, unix seconds                and at the end:
    1   number of contact points, 1 to 4    5   checksum: BLAKE2b of all before

Numbers are big-endian.  The expiry is for people: what counts is what the issuer knows (``grants``).

Invariants:

T1. A mistyped token is told from a good one by its checksum, before anything is sent anywhere.
T2. The secret is in the token alone.  The issuer keeps ``key_of_secret``: enough to prove itself to the holder of the
    token and to recognise it, not enough to show the token again.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, NamedTuple

from membership.errors import BadMessage

PREFIX: Final = "mxj1."
VERSION: Final = 1
ID_BYTES: Final = 16
SECRET_BYTES: Final = 32
KEY_BYTES: Final = 32
CONTACTS_MAX: Final = 4
EXPIRY_MAX: Final = 253402300799  # the end of the year 9999, the last that dates can show
TEXT_CHARACTERS_MAX: Final = 400  # a token of four IPv6 contact points has 249

_EXPIRY_BYTES = 5
_CHECK_BYTES = 5
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_VALUES = {letter: value for value, letter in enumerate(_ALPHABET)} | {"o": 0, "i": 1, "l": 1}
_ADDRESS_BYTES = {4: 4, 6: 16}


class Contact(NamedTuple):
    """Where a member listens."""

    host: str  # numeric IPv4 or IPv6
    port: int


@dataclass(frozen=True, slots=True)
class Token:
    """What a token says.  Its fields were checked by ``decode_untrusted``, or are the issuer's own."""

    cluster: bytes  # uuid
    token_id: bytes
    secret: bytes = field(repr=False)
    expires: int  # unix seconds; for people
    contacts: tuple[Contact, ...]

    @property
    def key(self) -> bytes:
        """What both ends of the conversation prove to each other that they know."""
        return key_of_secret(self.secret, self.cluster, self.token_id)


def key_of_secret(secret: bytes, cluster: bytes, token_id: bytes) -> bytes:
    """HKDF-SHA256 of the secret (RFC 5869), salted with the cluster and bound to the token (T2)."""
    extracted = hmac.digest(cluster, secret, hashlib.sha256)
    return hmac.digest(extracted, b"matrixfs join token 1\0" + token_id + b"\x01", hashlib.sha256)


def encode(token: Token) -> str:
    """The line."""
    assert len(token.cluster) == len(token.token_id) == ID_BYTES
    assert len(token.secret) == SECRET_BYTES
    assert 1 <= len(token.contacts) <= CONTACTS_MAX
    assert 0 <= token.expires <= EXPIRY_MAX
    head = bytes([VERSION]) + token.cluster + token.token_id + token.secret
    body = head + token.expires.to_bytes(_EXPIRY_BYTES, "big") + bytes([len(token.contacts)])
    for contact in token.contacts:
        address = ipaddress.ip_address(contact.host)
        body += bytes([address.version]) + address.packed + contact.port.to_bytes(2, "big")
    return PREFIX + _base32(body + _check(body))


def decode_untrusted(text: str) -> Token:
    """The token in a line that somebody typed or pasted; white space in it does not matter.

    Raises:
        BadMessage: one line that says what is wrong.
    """
    if len(text) > TEXT_CHARACTERS_MAX:
        raise BadMessage(f"join token: {len(text)} characters are too many; paste the token alone")
    line = "".join(text.split()).lower()
    if not line.startswith(PREFIX):
        raise BadMessage(f"join token: does not begin with {PREFIX}")
    data = _unbase32_untrusted(line.removeprefix(PREFIX))
    body, check = data[:-_CHECK_BYTES], data[-_CHECK_BYTES:]
    if check != _check(body):
        raise BadMessage("join token: mistyped or cut short (its checksum is wrong); copy all of it again")
    if body[:1] != bytes([VERSION]):
        raise BadMessage("join token: of another version of MatrixFS; install the cluster's version on this server")
    return _fields_untrusted(body)


def describe(token: Token) -> str:
    """One line for people; no secret."""
    until = datetime.fromtimestamp(token.expires, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    contacts = ", ".join(f"[{c.host}]:{c.port}" if ":" in c.host else f"{c.host}:{c.port}" for c in token.contacts)
    return f"token {token.token_id.hex()[:8]} of cluster {token.cluster.hex()}, until {until}, at {contacts}"


def contact_of_untrusted(host: object, port: object) -> Contact:
    """A contact point of plain data, its address in its one spelling.  Raises BadMessage."""
    if not isinstance(host, str) or "%" in host:
        raise BadMessage("contact point: no numeric address")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise BadMessage(f"contact point: {host[:64]!r} is no numeric address") from None
    if type(port) is not int or not 1 <= port <= 65535:
        raise BadMessage("contact point: no port from 1 to 65535")
    return Contact(str(address), port)


def _fields_untrusted(body: bytes) -> Token:
    """The fields of a body whose checksum is right, which says nothing about who made it."""
    at = 1 + 2 * ID_BYTES + SECRET_BYTES
    cluster, token_id, secret = body[1:17], body[17:33], body[33:at]
    expires = int.from_bytes(body[at : at + _EXPIRY_BYTES], "big")
    at += _EXPIRY_BYTES
    count = body[at] if len(body) > at else 0
    if not 1 <= count <= CONTACTS_MAX or expires > EXPIRY_MAX:
        raise BadMessage("join token: contradicts itself")
    at += 1
    contacts: list[Contact] = []
    for _ in range(count):
        size = _ADDRESS_BYTES.get(body[at] if len(body) > at else 0, 0)
        end = at + 1 + size + 2
        if size == 0 or end > len(body):
            raise BadMessage("join token: a contact point is no address")
        host = str(ipaddress.ip_address(body[at + 1 : at + 1 + size]))
        contacts.append(contact_of_untrusted(host, int.from_bytes(body[end - 2 : end], "big")))
        at = end
    if at != len(body):
        raise BadMessage("join token: more in it than a token has")
    return Token(cluster, token_id, secret, expires, tuple(contacts))


def _check(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=_CHECK_BYTES, person=b"matrixfs join").digest()


def _base32(data: bytes) -> str:
    digits = -(-len(data) * 8 // 5)
    number = int.from_bytes(data, "big") << (digits * 5 - len(data) * 8)
    return "".join(_ALPHABET[number >> shift & 31] for shift in range((digits - 1) * 5, -1, -5))


def _unbase32_untrusted(text: str) -> bytes:
    number = 0
    for letter in text:
        value = _VALUES.get(letter)
        if value is None:
            raise BadMessage(f"join token: {letter!r} is in no token")
        number = number << 5 | value
    size = len(text) * 5 // 8
    spare = len(text) * 5 - size * 8
    if spare >= 5 or number & ((1 << spare) - 1):
        raise BadMessage("join token: mistyped or cut short; copy all of it again")
    return (number >> spare).to_bytes(size, "big")
