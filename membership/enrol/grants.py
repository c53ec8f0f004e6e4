"""What the administrator knows of join tokens, and whether one is good (pure; R11).

Time: wall clocks are for people and may jump.  A token is over when the issuer's wall clock is more than SKEW_SECONDS
past its expiry, *or* as much time went by on the monotonic clock since we know it.  So a clock set back prolongs
nothing while this administrator lives, and one set forward ends tokens early, which is safe.

Invariants:

G1. A token is redeemed once.  Who redeemed it may have lost the answer: the same instance (an id made for this one
    attempt) is answered again for AGAIN_SECONDS; anybody else gets a refusal, and people an alert.
G2. A state is never left for a better one: EXPIRED, REVOKED and REDEEMED stay over, whatever the clocks say later.
G3. A decision changes memory at once, so two callers can't both win; the caller makes ``changed`` durable **before** it
    lets the answer go.  When that fails it gives no answer: the token is used up for all but the same instance.
G4. The secret of a token is never kept (T2 in ``token``).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from membership.enrol.token import EXPIRY_MAX, ID_BYTES, KEY_BYTES, SECRET_BYTES, Contact, Token, key_of_secret
from membership.errors import BadMessage, OperatorError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from membership.seams import Rng

SKEW_SECONDS: Final = 60  # by which wall clocks of members may differ: issued on one, redeemed on another
AGAIN_SECONDS: Final = 60
LIFETIME_SECONDS_MAX: Final = 30 * 86400
GRANTS_MAX: Final = 64
NODE_CHARACTERS_MAX: Final = 64
_BYTES: Final = frozenset({"token_id", "key", "redeemed_by"})


class State(Enum):
    """Of a token."""

    ISSUED = "issued"
    REDEEMED = "redeemed"
    EXPIRED = "expired"
    REVOKED = "revoked"


class Event(Enum):
    """What happens to a token."""

    REDEEM = "a server wants to join with it"
    AGAIN = "the instance that redeemed it asks again, in time"
    UNFIT = "a server that can't join wants to: another name than the token's, or one that is taken"
    EXPIRE = "its time is over"
    REVOKE = "an operator revokes it"


class Verdict(Enum):
    """What follows."""

    GRANT = "answer with the credentials"
    REFUSE = "answer with a reason"
    ALARM = "answer with a reason, and alert: a token is in hands where it should not be"
    NOTHING = "nothing"


TABLE: Final[dict[tuple[State, Event], tuple[State, Verdict]]] = {
    (State.ISSUED, Event.REDEEM): (State.REDEEMED, Verdict.GRANT),
    (State.ISSUED, Event.AGAIN): (State.REDEEMED, Verdict.GRANT),
    (State.ISSUED, Event.UNFIT): (State.ISSUED, Verdict.REFUSE),
    (State.ISSUED, Event.EXPIRE): (State.EXPIRED, Verdict.NOTHING),
    (State.ISSUED, Event.REVOKE): (State.REVOKED, Verdict.NOTHING),
    (State.REDEEMED, Event.REDEEM): (State.REDEEMED, Verdict.ALARM),
    (State.REDEEMED, Event.AGAIN): (State.REDEEMED, Verdict.GRANT),
    (State.REDEEMED, Event.UNFIT): (State.REDEEMED, Verdict.ALARM),
    (State.REDEEMED, Event.EXPIRE): (State.REDEEMED, Verdict.NOTHING),
    (State.REDEEMED, Event.REVOKE): (State.REVOKED, Verdict.NOTHING),
    (State.EXPIRED, Event.REDEEM): (State.EXPIRED, Verdict.REFUSE),
    (State.EXPIRED, Event.AGAIN): (State.EXPIRED, Verdict.REFUSE),
    (State.EXPIRED, Event.UNFIT): (State.EXPIRED, Verdict.REFUSE),
    (State.EXPIRED, Event.EXPIRE): (State.EXPIRED, Verdict.NOTHING),
    (State.EXPIRED, Event.REVOKE): (State.REVOKED, Verdict.NOTHING),
    (State.REVOKED, Event.REDEEM): (State.REVOKED, Verdict.ALARM),
    (State.REVOKED, Event.AGAIN): (State.REVOKED, Verdict.ALARM),
    (State.REVOKED, Event.UNFIT): (State.REVOKED, Verdict.ALARM),
    (State.REVOKED, Event.EXPIRE): (State.REVOKED, Verdict.NOTHING),
    (State.REVOKED, Event.REVOKE): (State.REVOKED, Verdict.NOTHING),
}


@dataclass(frozen=True, slots=True)
class Grant:
    """One token, as the database has it.  Times are unix seconds of the wall clock."""

    token_id: bytes
    key: bytes = field(repr=False)  # ``token.key_of_secret``
    node: str  # the only name it is good for; "": any
    issued: int
    expires: int
    state: State = State.ISSUED
    redeemed: int = 0
    redeemed_by: bytes = b""  # the instance
    redeemed_node: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for the database."""
        return {
            "token_id": self.token_id,
            "key": self.key,
            "node": self.node,
            "issued": self.issued,
            "expires": self.expires,
            "state": self.state.value,
            "redeemed": self.redeemed,
            "redeemed_by": self.redeemed_by,
            "redeemed_node": self.redeemed_node,
        }

    @classmethod
    def from_dict_untrusted(cls, data: object) -> Grant:
        """The grant in plain data.  Raises BadMessage."""
        if not isinstance(data, dict) or set(data) != set(cls.__slots__):
            raise BadMessage("join token record: fields are missing or unknown")
        sizes = {"token_id": (ID_BYTES,), "key": (KEY_BYTES,), "redeemed_by": (0, ID_BYTES)}
        if any(not isinstance(data[name], bytes) or len(data[name]) not in size for name, size in sizes.items()):
            raise BadMessage("join token record: bytes of a wrong size")
        times = ("issued", "expires", "redeemed")
        if any(type(data[name]) is not int or not 0 <= data[name] <= EXPIRY_MAX for name in times):
            raise BadMessage("join token record: a time out of range")
        names = ("node", "redeemed_node")
        if any(not isinstance(data[name], str) or len(data[name]) > NODE_CHARACTERS_MAX for name in names):
            raise BadMessage("join token record: no node name")
        try:
            return cls(**{**data, "state": State(data["state"])})
        except ValueError:
            raise BadMessage("join token record: unknown state") from None


def grant_to_json(grant: Grant) -> dict[str, Any]:
    """As ``to_dict``, with bytes as hex digits."""
    return {name: value.hex() if isinstance(value, bytes) else value for name, value in grant.to_dict().items()}


def grant_of_json_untrusted(data: object) -> Grant:
    """The reverse.  Raises BadMessage."""
    if not isinstance(data, dict):
        raise BadMessage("join token record: no map")
    try:
        plain = {name: bytes.fromhex(value) if name in _BYTES else value for name, value in data.items()}
    except (ValueError, TypeError):
        raise BadMessage("join token record: no hex digits") from None
    return Grant.from_dict_untrusted(plain)


class Decision(NamedTuple):
    """What to answer to who wants to join, and what is to be done before (G3)."""

    verdict: Verdict
    reason: str  # for a refusal
    changed: Grant | None  # make this durable, then answer
    alert: str  # for people; "": none


class Grants:
    """All tokens, on the administrator.  Made anew from the database whenever a node becomes it."""

    def __init__(self, grants: Iterable[Grant], wall: int, now: float) -> None:
        """Args: wall: unix seconds; now: monotonic seconds."""
        self._grants = {grant.token_id: grant for grant in grants}
        self._deadlines = {grant.token_id: _deadline(grant, wall, now) for grant in self._grants.values()}

    def all(self) -> tuple[Grant, ...]:
        """Oldest first."""
        return tuple(sorted(self._grants.values(), key=lambda grant: (grant.issued, grant.token_id)))

    def key_of(self, token_id: bytes) -> bytes | None:
        """The key of the conversation with who holds this token, good or not: he is told the reason of a refusal."""
        grant = self._grants.get(token_id)
        return None if grant is None else grant.key

    def issue(
        self, cluster: bytes, node: str, lifetime: int, contacts: Sequence[Contact], rng: Rng, wall: int, now: float
    ) -> tuple[Token, Grant, tuple[Grant, ...]]:
        """Make a token.

        Args:
            cluster: uuid.
            node: the name that the new server must have; "": any.
            lifetime: seconds.
            contacts: where members listen, 1 to 4.
            rng: for id and secret.
            wall: unix seconds.
            now: monotonic seconds.

        Returns:
            The token, to be shown once; its grant, to be made durable before; old ones to be dropped with that.

        Raises:
            OperatorError: lifetime or name out of range, or too many tokens are open.
        """
        if not 1 <= lifetime <= LIFETIME_SECONDS_MAX:
            raise OperatorError(f"a join token lives 1 second to {LIFETIME_SECONDS_MAX // 86400} days")
        if len(node) > NODE_CHARACTERS_MAX:
            raise OperatorError(f"a node name has at most {NODE_CHARACTERS_MAX} characters")
        dropped = self._make_room(wall, now)
        token_id, secret = rng.randbytes(ID_BYTES), rng.randbytes(SECRET_BYTES)
        assert token_id not in self._grants
        token = Token(cluster, token_id, secret, wall + lifetime, tuple(contacts))
        grant = Grant(token_id, key_of_secret(secret, cluster, token_id), node, wall, wall + lifetime)
        self._grants[token_id] = grant
        self._deadlines[token_id] = _deadline(grant, wall, now)
        return token, grant, dropped

    def redeem(
        self, token_id: bytes, node: str, instance: bytes, wall: int, now: float, objection: str = ""
    ) -> Decision:
        """A server that proved that it has this token wants to join.

        Args:
            token_id: proven by the handshake.
            node: its name.
            instance: the id that it made for this attempt.
            wall: unix seconds.
            now: monotonic seconds.
            objection: why it can't though the token may be good; that uses no token up.
        """
        grant = self._grants.get(token_id)
        if grant is None:
            return Decision(Verdict.REFUSE, "this join token is not known any more", None, "")
        if wall < grant.issued - SKEW_SECONDS:
            reason = "the administrator's clock is before the time at which this token was issued: set it right"
            return Decision(Verdict.REFUSE, reason, None, reason)
        before = grant
        if self._is_over(grant, wall, now):
            grant = self._apply(grant, Event.EXPIRE)[0]
        after, verdict = self._apply(grant, _event(grant, node, instance, wall, objection))
        if verdict is Verdict.GRANT and grant.state is State.ISSUED:
            after = replace(after, redeemed=wall, redeemed_by=instance, redeemed_node=node)
        self._grants[token_id] = after
        reason = "" if verdict is Verdict.GRANT else _refusal(grant, node, objection)
        alert = f"join token {token_id.hex()[:8]}: node {node!r} was refused: {reason}"
        changed = after if after != before or verdict is Verdict.GRANT else None
        return Decision(verdict, reason, changed, alert if verdict is Verdict.ALARM else "")

    def revoke(self, token_id: bytes) -> Grant:
        """End a token; make the result durable.  Raises OperatorError when it is not known."""
        grant = self._grants.get(token_id)
        if grant is None:
            raise OperatorError(f"no join token {token_id.hex()[:8]} is known")
        self._grants[token_id] = self._apply(grant, Event.REVOKE)[0]
        return self._grants[token_id]

    def expire(self, wall: int, now: float) -> tuple[Grant, ...]:
        """Those whose time is over since the last call, to be made durable."""
        over = [g for g in self._grants.values() if g.state is State.ISSUED and self._is_over(g, wall, now)]
        changed = tuple(self._apply(grant, Event.EXPIRE)[0] for grant in over)
        self._grants.update({grant.token_id: grant for grant in changed})
        return changed

    # -- internals ---------------------------------------------------------------------------------------------

    def _apply(self, grant: Grant, event: Event) -> tuple[Grant, Verdict]:
        state, verdict = TABLE[grant.state, event]
        return (grant if state is grant.state else replace(grant, state=state)), verdict

    def _is_over(self, grant: Grant, wall: int, now: float) -> bool:
        return wall > grant.expires + SKEW_SECONDS or now > self._deadlines[grant.token_id]

    def _make_room(self, wall: int, now: float) -> tuple[Grant, ...]:
        """Drop the oldest that are over, until there is room for one more."""
        excess = len(self._grants) + 1 - GRANTS_MAX
        ended = [g for g in self.all() if g.state is not State.ISSUED or self._is_over(g, wall, now)]
        if excess > len(ended):
            raise OperatorError(f"{GRANTS_MAX} join tokens are open: revoke one, or wait until one expires")
        dropped = tuple(ended[: max(excess, 0)])
        for grant in dropped:
            del self._grants[grant.token_id], self._deadlines[grant.token_id]
        return dropped


def _deadline(grant: Grant, wall: int, now: float) -> float:
    """Monotonic; never later than its whole lifetime from now, though the wall clock was set back."""
    left = min(grant.expires - wall, grant.expires - grant.issued)
    return now + max(left, 0) + SKEW_SECONDS


def _event(grant: Grant, node: str, instance: bytes, wall: int, objection: str) -> Event:
    if grant.state is State.REDEEMED and grant.redeemed_by == instance and grant.redeemed_node == node:
        return Event.AGAIN if abs(wall - grant.redeemed) <= AGAIN_SECONDS else Event.REDEEM
    return Event.UNFIT if objection or grant.node not in ("", node) else Event.REDEEM


def _refusal(grant: Grant, node: str, objection: str) -> str:
    """For the one who holds the token."""
    if grant.state is State.REDEEMED:
        return "this join token was used already; ask for a new one, and say so if it was not you"
    if grant.state is State.REVOKED:
        return "this join token was revoked"
    if grant.state is State.EXPIRED:
        return "this join token has expired; ask for a new one"
    return objection or f"this join token is for node {grant.node}, this server is {node}"
