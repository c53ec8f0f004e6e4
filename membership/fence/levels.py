"""Fence devices and levels as the operator configures them, and what may be shown of them (pure; 002-20, 002-38).

A *device* is one fence agent with its options, for example the IPMI of one server.  A *level* is a list of devices
that must all be off at once, such as both outlets of a server with two power supplies.  A node has several levels,
tried in order.

Invariants:

F1. No option decides what an agent does: ``action`` (and what else could replace it) is not the operator's to give.
F2. One option is one line: names are plain words, values hold no control character, so none can add another line.
F3. A secret is in ``options`` and ``to_dict`` only: never in ``repr``, ``described`` or ``without_secrets``.
"""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from membership.errors import BadMessage, OperatorError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

TIMEOUT_SECONDS: Final = 60.0  # of one call of an agent
TIMEOUT_SECONDS_MAX: Final = 600.0
RETRIES: Final = 2
RETRIES_MAX: Final = 10
OPTIONS_MAX: Final = 64
NAME_CHARACTERS_MAX: Final = 64
VALUE_CHARACTERS_MAX: Final = 1024
DEVICES_MAX: Final = 8
LEVELS_MAX: Final = 8
HIDDEN: Final = "***"

_AGENT = re.compile(r"fence_[A-Za-z0-9_]{1,58}")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_SECRET = re.compile(r"passw|secret|key|token", re.IGNORECASE)
_OURS = ("action", "option", "help", "version")  # "option" is how old agents spell it; the last two replace the action


@dataclass(frozen=True, slots=True)
class Device:
    """One fence agent with its options.  Raises OperatorError when made of what no agent can be given (F1, F2)."""

    agent: str  # name (``fence_ipmilan``, in /usr/sbin) or absolute path
    options: tuple[tuple[str, str], ...] = field(default=(), repr=False)  # name, value
    timeout: float = TIMEOUT_SECONDS  # of one call, seconds
    retries: int = RETRIES  # of one call that failed

    def __post_init__(self) -> None:
        _check_agent(self.agent)
        if not 1 <= self.timeout <= TIMEOUT_SECONDS_MAX:
            raise OperatorError(f"call_timeout: {self.timeout:g} is not from 1 to {TIMEOUT_SECONDS_MAX:g} seconds")
        if not 0 <= self.retries <= RETRIES_MAX:
            raise OperatorError(f"call_retries: {self.retries} is not from 0 to {RETRIES_MAX}")
        if len(self.options) > OPTIONS_MAX:
            raise OperatorError(f"{self.agent}: {len(self.options)} options, at most {OPTIONS_MAX}")
        names: set[str] = set()
        for name, value in self.options:
            _check_option(name, value)
            same = name.replace("-", "_").lower()
            if same in names:
                raise OperatorError(f"{name}: given twice")
            names.add(same)

    def described(self) -> str:
        """One line for people; secrets hidden (F3)."""
        shown = [f"{name}={HIDDEN if _SECRET.search(name) else value}" for name, value in self.options]
        return " ".join([self.agent, *shown])

    def without_secrets(self, text: str) -> str:
        """``text`` of the agent without our secrets: agents repeat options that they don't know (F3)."""
        secrets = {value for name, value in self.options if value and _SECRET.search(name)}
        for secret in sorted(secrets, key=len, reverse=True):
            text = text.replace(secret, HIDDEN)
        return text

    def to_dict(self) -> dict[str, Any]:
        """Plain data for the database and messages: **with** secrets."""
        options = [[name, value] for name, value in self.options]
        return {"agent": self.agent, "options": options, "timeout": self.timeout, "retries": self.retries}

    @classmethod
    def from_dict_untrusted(cls, data: object) -> Device:
        """The device in plain data.  Raises BadMessage."""
        fields = _fields(data, {"agent", "options", "timeout", "retries"})
        agent, timeout, retries = fields["agent"], fields["timeout"], fields["retries"]
        if isinstance(timeout, bool) or not isinstance(timeout, int | float):
            raise BadMessage("fence device: the time-out is no number")
        if not isinstance(agent, str) or type(retries) is not int:
            raise BadMessage("fence device: agent or retries of a wrong kind")
        options: list[tuple[str, str]] = []
        for pair in _list(fields["options"], OPTIONS_MAX):
            if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
                raise BadMessage("fence device: an option is no pair of texts")
            options.append((pair[0], pair[1]))
        try:
            return cls(agent, tuple(options), float(timeout), retries)
        except (OperatorError, OverflowError) as error:
            raise BadMessage(f"fence device: {error}") from None


@dataclass(frozen=True, slots=True)
class Level:
    """Devices that must all be off for the node to be off.  Raises OperatorError when there is none, or too many."""

    devices: tuple[Device, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.devices) <= DEVICES_MAX:
            raise OperatorError(f"a fence level has 1 to {DEVICES_MAX} devices, not {len(self.devices)}")

    def described(self) -> str:
        """One line for people; secrets hidden."""
        return " and ".join(device.described() for device in self.devices)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, **with** secrets."""
        return {"devices": [device.to_dict() for device in self.devices]}

    @classmethod
    def from_dict_untrusted(cls, data: object) -> Level:
        """The level in plain data.  Raises BadMessage."""
        devices = _list(_fields(data, {"devices"})["devices"], DEVICES_MAX)
        if not devices:
            raise BadMessage("fence level: no device")
        return cls(tuple(Device.from_dict_untrusted(device) for device in devices))


def levels_from_list_untrusted(data: object) -> tuple[Level, ...]:
    """All levels of a node, in order.  Raises BadMessage."""
    return tuple(Level.from_dict_untrusted(level) for level in _list(data, LEVELS_MAX))


def device_of(agent: str, settings: Sequence[str]) -> Device:
    """The device that an operator describes.

    Args:
        agent: name (``fence_ipmilan``) or absolute path.
        settings: ``name=value`` each; ``call_timeout`` (seconds) and ``call_retries`` are ours, others the agent's.

    Raises:
        OperatorError: one line that names the mistake.
    """
    options: list[tuple[str, str]] = []
    ours: dict[str, str] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name:
            raise OperatorError(f"{_shown(name or setting)}: not NAME=VALUE")
        if name in ("call_timeout", "call_retries"):
            if name in ours:
                raise OperatorError(f"{name}: given twice")
            ours[name] = value
        else:
            options.append((name, value))
    timeout = _number("call_timeout", ours.get("call_timeout", f"{TIMEOUT_SECONDS:g}"))
    retries = _number("call_retries", ours.get("call_retries", f"{RETRIES}"))
    if retries != int(retries):
        raise OperatorError(f"call_retries: {retries:g} is no whole number")
    return Device(agent, tuple(options), timeout, int(retries))


def _number(name: str, text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,3})?", text):
        raise OperatorError(f"{name}: {_shown(text)} is no number")
    return float(text)


def _check_agent(agent: str) -> None:
    if agent.startswith("/"):
        if not agent.isprintable() or len(agent) > VALUE_CHARACTERS_MAX or posixpath.normpath(agent) != agent:
            raise OperatorError(f"{_shown(agent)}: write the plain absolute path of a fence agent")
    elif not _AGENT.fullmatch(agent):
        raise OperatorError(f"{_shown(agent)}: no fence agent; give a name like fence_ipmilan, or an absolute path")


def _check_option(name: str, value: str) -> None:
    if not _NAME.fullmatch(name) or len(name) > NAME_CHARACTERS_MAX:
        raise OperatorError(f"{_shown(name)}: no option name (letters, digits, _ and -)")
    if name.lower() in _OURS:
        raise OperatorError(f"{name}: what an agent does is not configured; leave this option out")
    if any(not (character.isprintable() or character == " ") for character in value):
        raise OperatorError(f"{name}: the value holds a line end or another control character")
    if len(value) > VALUE_CHARACTERS_MAX:
        raise OperatorError(f"{name}: the value has {len(value)} characters, at most {VALUE_CHARACTERS_MAX}")
    if value != value.strip():
        raise OperatorError(f"{name}: the value begins or ends with a space, which agents drop")


def _shown(text: str) -> str:
    """What the operator wrote, as one short printable word."""
    return repr(text[:80])


def _fields(data: object, names: set[str]) -> Mapping[str, object]:
    if not isinstance(data, dict) or set(data) != names:
        raise BadMessage(f"fence configuration: no map of {', '.join(sorted(names))}")
    return data


def _list(data: object, length_max: int) -> Sequence[object]:
    if not isinstance(data, list | tuple) or len(data) > length_max:
        raise BadMessage(f"fence configuration: no list of at most {length_max}")
    return data
