"""PERSISTENT RESERVE IN and OUT as bytes, and what the target answers (SPC-4 5.13, 6.15, 6.16).  Pure.

Only layouts stand here; what a cluster does with them does not.  Parsers raise BadMessage, and nothing else.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from matrixfs.blockstore.scsi.commands import Command
from membership.errors import BadMessage

_IN: Final = 0x5E
_OUT: Final = 0x5F
_APTPL: Final = 0x01
_KEYS_BYTES: Final = 8 + 8 * 1024  # so many keys are asked for; the answer says when there are more
_RESERVATION_BYTES: Final = 24
_CAPABILITIES_BYTES: Final = 8
_PARAMETERS: Final = struct.Struct(">QQ4xBxxx")  # key, service action's key, flags
_HEAD: Final = struct.Struct(">II")  # generation, bytes that follow


class Action(IntEnum):
    """Service actions of PERSISTENT RESERVE OUT."""

    REGISTER = 0
    RESERVE = 1
    RELEASE = 2
    CLEAR = 3
    PREEMPT = 4
    PREEMPT_AND_ABORT = 5
    REGISTER_AND_IGNORE = 6


class Type(IntEnum):
    """Who may do what while a reservation stands."""

    WRITE_EXCLUSIVE = 1
    EXCLUSIVE_ACCESS = 3
    WRITE_EXCLUSIVE_REGISTRANTS = 5
    EXCLUSIVE_ACCESS_REGISTRANTS = 6
    WRITE_EXCLUSIVE_ALL_REGISTRANTS = 7
    EXCLUSIVE_ACCESS_ALL_REGISTRANTS = 8


@dataclass(frozen=True, slots=True)
class Keys:
    """Answer to READ KEYS; one entry per registered nexus, so a key may stand there several times."""

    generation: int
    keys: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Reservation:
    """The reservation that stands; of an all-registrants type, ``key`` means nothing."""

    key: int
    type: int


@dataclass(frozen=True, slots=True)
class Capabilities:
    """Answer to REPORT CAPABILITIES."""

    persists_power_loss: bool  # it can
    power_loss_active: bool  # it does
    types: frozenset[int] | None  # reservation types it has; None: it doesn't say


def read_keys() -> Command:
    """PERSISTENT RESERVE IN, READ KEYS; see ``keys_untrusted``."""
    return _in(0, "READ KEYS", _KEYS_BYTES)


def read_reservation() -> Command:
    """PERSISTENT RESERVE IN, READ RESERVATION; see ``reservation_untrusted``."""
    return _in(1, "READ RESERVATION", _RESERVATION_BYTES)


def report_capabilities() -> Command:
    """PERSISTENT RESERVE IN, REPORT CAPABILITIES; see ``capabilities_untrusted``."""
    return _in(2, "REPORT CAPABILITIES", _CAPABILITIES_BYTES)


def _in(action: int, name: str, length: int) -> Command:
    return Command(f"PERSISTENT RESERVE IN {name}", struct.pack(">BB5xHB", _IN, action, length, 0), receives=length)


def reserve_out(action: Action, key: int = 0, action_key: int = 0, type_: int = 0, *, aptpl: bool = False) -> Command:
    """PERSISTENT RESERVE OUT.

    Args:
        action: what to do.
        key: the key this nexus is registered with; 0 when it is not, or for REGISTER_AND_IGNORE.
        action_key: the key to register (0: unregister), or that of the victims to preempt.
        type_: of the reservation, where the action has one (``Type``).
        aptpl: registrations are to survive a loss of power (REGISTER only; not every target can).
    """
    data = _PARAMETERS.pack(key, action_key, _APTPL if aptpl else 0)
    cdb = struct.pack(">BBBxxIB", _OUT, action, type_, len(data), 0)
    return Command(f"PERSISTENT RESERVE OUT {Action(action).name}", cdb, data)


def keys_untrusted(answer: bytes) -> Keys:
    """Parse READ KEYS.  Raises BadMessage, also when there are more keys than were asked for."""
    generation, length = _head(answer, "READ KEYS")
    if length % 8:
        raise BadMessage(f"READ KEYS: {length} bytes of keys of 8 bytes each")
    if length > len(answer) - _HEAD.size:
        raise BadMessage(f"READ KEYS: {length // 8} keys are more than a cluster disk has")
    return Keys(generation, struct.unpack_from(f">{length // 8}Q", answer, _HEAD.size))


def reservation_untrusted(answer: bytes) -> Reservation | None:
    """Parse READ RESERVATION; None when no reservation stands.  Raises BadMessage."""
    _, length = _head(answer, "READ RESERVATION")
    if length == 0:
        return None
    if length < 16 or len(answer) < _RESERVATION_BYTES:
        raise BadMessage(f"READ RESERVATION: a descriptor of {length} bytes")
    key, scope_and_type = struct.unpack_from(">Q5xB", answer, _HEAD.size)
    return Reservation(key, scope_and_type & 0x0F)


def capabilities_untrusted(answer: bytes) -> Capabilities:
    """Parse REPORT CAPABILITIES.  Raises BadMessage."""
    if len(answer) < _CAPABILITIES_BYTES or struct.unpack_from(">H", answer)[0] < _CAPABILITIES_BYTES:
        raise BadMessage("REPORT CAPABILITIES: too short")
    types = None
    if answer[3] & 0x80:
        mask = answer[4] | answer[5] << 8
        types = frozenset(kind.value for kind in Type if mask & _MASK[kind])
    return Capabilities(bool(answer[2] & 1), bool(answer[3] & 1), types)


_MASK: Final = {
    Type.WRITE_EXCLUSIVE: 0x02,
    Type.EXCLUSIVE_ACCESS: 0x08,
    Type.WRITE_EXCLUSIVE_REGISTRANTS: 0x20,
    Type.EXCLUSIVE_ACCESS_REGISTRANTS: 0x40,
    Type.WRITE_EXCLUSIVE_ALL_REGISTRANTS: 0x80,
    Type.EXCLUSIVE_ACCESS_ALL_REGISTRANTS: 0x0100,
}


def _head(answer: bytes, what: str) -> tuple[int, int]:
    if len(answer) < _HEAD.size:
        raise BadMessage(f"{what}: an answer of {len(answer)} bytes")
    generation, length = _HEAD.unpack_from(answer)
    return generation, length
