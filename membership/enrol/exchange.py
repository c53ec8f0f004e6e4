"""What a new server and the administrator say to each other, and who decides (pure; R11).

One request and one answer, inside a conversation that is encrypted and keyed by the token (``Grants.key_of``), so both
are proven to hold it.  Bodies are MessagePack arrays that begin with a number; fields are only added at the end.

Invariants:

E1. The answer with the cluster's key exists only after the use of the token is durable (G3 in ``grants``):
    ``Desk.answer_untrusted`` returns both, and the caller keeps the order.
E2. Nothing of the cluster is told to who is refused, but the reason.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final, NamedTuple, TypeAlias, TypeVar

import msgspec
from msgspec import Meta, Struct

from membership.enrol.grants import Verdict
from membership.enrol.token import contact_of_untrusted
from membership.errors import BadMessage, OperatorError
from membership.label import NAME_BYTES_MAX

if TYPE_CHECKING:
    from collections.abc import Callable

    from membership.enrol.grants import Grant, Grants
    from membership.enrol.token import Token

VERSION: Final = 1
MESSAGE_BYTES_MAX: Final = 64 * 1024
ADDRESSES_MAX: Final = 8
STORES_MAX: Final = 8
STORE_CHARACTERS_MAX: Final = 1024

Name: TypeAlias = Annotated[str, Meta(min_length=1, max_length=NAME_BYTES_MAX)]
Bytes16: TypeAlias = Annotated[bytes, Meta(min_length=16, max_length=16)]
Bytes32: TypeAlias = Annotated[bytes, Meta(min_length=32, max_length=32)]
Addresses: TypeAlias = Annotated[tuple[tuple[str, int], ...], Meta(min_length=1, max_length=ADDRESSES_MAX)]
StoreName: TypeAlias = Annotated[str, Meta(min_length=1, max_length=STORE_CHARACTERS_MAX)]
Stores: TypeAlias = Annotated[tuple[StoreName, ...], Meta(min_length=1, max_length=STORES_MAX)]


class EnrolRequest(Struct, frozen=True, array_like=True, tag=1):
    """A server wants to be a node."""

    version: Annotated[int, Meta(ge=0)]
    node: Name
    addresses: Addresses  # where it will listen: numeric address, port
    software: Annotated[str, Meta(max_length=64)]  # its version of MatrixFS, for people
    instance: Bytes16  # made for this attempt: who lost the answer and asks again is known by it


class Enrolled(Struct, frozen=True, array_like=True, tag=2):
    """It may: all that its matrixd needs."""

    cluster_name: Name
    cluster: Bytes16  # uuid
    cluster_key: Bytes32
    encrypt: bool  # links between nodes are encrypted
    node: Name
    stores: Stores  # of the membership areas: paths or iscsi:// names

    def __repr__(self) -> str:
        return f"Enrolled({self.cluster_name!r}, node={self.node!r})"  # without the key


class Refused(Struct, frozen=True, array_like=True, tag=3):
    """It may not."""

    reason: Annotated[str, Meta(max_length=1024)]


_T = TypeVar("_T")
_ENCODER = msgspec.msgpack.Encoder()
_REQUEST = msgspec.msgpack.Decoder(EnrolRequest)
_ANSWER: msgspec.msgpack.Decoder[Enrolled | Refused] = msgspec.msgpack.Decoder(Enrolled | Refused)


def encode(message: EnrolRequest | Enrolled | Refused) -> bytes:
    """The bytes of a message."""
    return _ENCODER.encode(message)


def request_untrusted(data: bytes) -> EnrolRequest:
    """Decode a request.  Raises BadMessage."""
    request = _decode_untrusted(_REQUEST, data)
    _check_name_untrusted(request.node)
    _check_printable_untrusted(request.software)
    for host, port in request.addresses:
        if contact_of_untrusted(host, port).host != host:
            raise BadMessage("enrolment: an address that is not in its usual spelling")
    return request


def answer_untrusted(data: bytes) -> Enrolled | Refused:
    """Decode an answer.  Raises BadMessage."""
    answer: Enrolled | Refused = _decode_untrusted(_ANSWER, data)
    if isinstance(answer, Refused):
        _check_printable_untrusted(answer.reason)
        return answer
    _check_name_untrusted(answer.node)
    for text in (answer.cluster_name, *answer.stores):
        _check_printable_untrusted(text)
    return answer


def enrolled_untrusted(data: bytes, token: Token, request: EnrolRequest) -> Enrolled:
    """The new server's side: what it got for its request.

    Raises:
        BadMessage: no answer, or one for another cluster or node.
        OperatorError: refused; the line has the reason.
    """
    answer = answer_untrusted(data)
    if isinstance(answer, Refused):
        raise OperatorError(f"the cluster refused this server: {answer.reason}")
    if answer.cluster != token.cluster or answer.node != request.node:
        raise BadMessage("enrolment: an answer for another cluster or another node")
    return answer


def _decode_untrusted(decoder: msgspec.msgpack.Decoder[_T], data: bytes) -> _T:
    if len(data) > MESSAGE_BYTES_MAX:
        raise BadMessage(f"enrolment: message of {len(data)} bytes, at most {MESSAGE_BYTES_MAX}")
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, RecursionError, ValueError, TypeError, OverflowError) as error:
        raise BadMessage(f"enrolment: {error}") from None


def _check_name_untrusted(name: str) -> None:
    if len(name.encode()) > NAME_BYTES_MAX or not name.isprintable() or any(letter.isspace() for letter in name):
        raise BadMessage("enrolment: a node name of strange characters, or too long")


def _check_printable_untrusted(text: str) -> None:
    if not text.isprintable():
        raise BadMessage("enrolment: text with control characters")


class Reply(NamedTuple):
    """What the desk decided."""

    data: bytes  # the answer
    changed: Grant | None  # make it durable first; when that fails, give no answer (E1)
    alert: str  # for people; "": none
    request: EnrolRequest | None  # granted: who joins


class Desk:
    """The administrator's side: request bytes in, answer bytes out."""

    def __init__(self, grants: Grants, credentials: Enrolled, objection: Callable[[EnrolRequest], str]) -> None:
        """Hand out ``credentials``.

        Args:
            grants: all tokens.
            credentials: of the cluster; its ``node`` is replaced.
            objection: why a server can't join, such as a name or an address that a node has; "": it can.
        """
        self._grants = grants
        self._credentials = credentials
        self._objection = objection

    def answer_untrusted(self, token_id: bytes, data: bytes, wall: int, now: float) -> Reply:
        """Answer a request.  An objection does not use the token up.

        Args:
            token_id: of the token whose key the caller has proven to hold.
            data: the request.
            wall: unix seconds.
            now: monotonic seconds.

        Raises:
            BadMessage: no request; nothing is answered.
        """
        request = request_untrusted(data)
        if request.version != VERSION:
            reason = f"the cluster speaks version {VERSION} of enrolment, this server {request.version}"
            return _refused(reason + ": install the cluster's version of MatrixFS")
        objection = self._objection(request)
        decision = self._grants.redeem(token_id, request.node, request.instance, wall, now, objection)
        if decision.verdict is not Verdict.GRANT:
            return _refused(decision.reason, decision.changed, decision.alert)
        answer = msgspec.structs.replace(self._credentials, node=request.node)
        return Reply(encode(answer), decision.changed, decision.alert, request)


def _refused(reason: str, changed: Grant | None = None, alert: str = "") -> Reply:
    return Reply(encode(Refused(reason)), changed, alert, None)
