"""Where a LUN is, and who we are to it: the URL of a store, the initiator's name, the session's ISID.  Pure.

    iscsi://[USER[%PASSWORD]@]HOST[:PORT]/IQN/LUN[?header_digest=crc32c]

is what libiscsi's own tools take (libiscsi README).  A password on a command line is seen by ``ps``, so it may also
come from the environment, by the names that libiscsi uses.

Invariants:
    A1  ``str`` and ``repr`` of an address never show the password, nor does any error.
    A2  An I_T nexus is (initiator name, ISID) and (target, portal group).  All processes of a node have the node's
        initiator name, so an array's access list needs one entry per node; each *identity* (matrixd, or a mount
        process, on one LUN) has its own ISID, for two sessions of one ISID at one target throw each other out.
        The same identity has the same ISID for ever: who comes back reinstates his old session (RFC 7143 6.3.5).
"""

from __future__ import annotations

import hashlib
import re
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from matrixfs.store_names import ISCSI
from membership.errors import OperatorError

PORT_DEFAULT: Final = 3260
LUN_MAX: Final = 16383  # flat addressing, SAM-5 4.7.7.3
INITIATOR_VARIABLE: Final = "MATRIXFS_INITIATOR"
USER_VARIABLE: Final = "LIBISCSI_CHAP_USERNAME"
PASSWORD_VARIABLE: Final = "LIBISCSI_CHAP_PASSWORD"  # noqa: S105 - the name of one
_NAME_PREFIX: Final = "iqn.2026-11.org.matrixfs:"
_NAME_BYTES_MAX: Final = 223  # RFC 7143 4.2.7.1
_TARGET: Final = re.compile(r"(iqn\.\d{4}-\d{2}\.[^\s/]+|eui\.[0-9A-Fa-f]{16}|naa\.[0-9A-Fa-f]{16,32})")
_AUTHORITY: Final = re.compile(
    r"((?P<user>[^%@]*)(%(?P<password>.*))?@)?(\[(?P<v6>[^]@]+)\]|(?P<host>[^]@:\[]+))(:(?P<port>\d{1,5}))?"
)
_USAGE: Final = "write iscsi://HOST[:PORT]/TARGET/LUN, for example iscsi://10.0.0.9/iqn.2026-11.com.example:san/1"


@dataclass(frozen=True, slots=True)
class Address:
    """One logical unit, and how to log in to its target."""

    host: str  # name or IP address
    port: int
    target: str
    lun: int
    user: str = ""
    password: str = field(default="", repr=False)
    header_digest: bool = False

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == PORT_DEFAULT else f":{self.port}"
        digest = "?header_digest=crc32c" if self.header_digest else ""
        return f"{ISCSI}{host}{port}/{self.target}/{self.lun}{digest}"


class Identity(NamedTuple):
    """One initiator port: with a target's it makes a nexus."""

    initiator: str  # iSCSI name
    isid_random: int  # 24 bits
    isid_qualifier: int  # 16 bits


def parse_address(url: str, environment: Mapping[str, str]) -> Address:
    """The address that ``url`` means; user and password from ``environment`` where it has none.

    Raises:
        OperatorError: it means none; the line says how to write one, and shows no password.
    """
    rest = url.removeprefix(ISCSI)
    shown = ISCSI + rest.rpartition("@")[2]
    before, at, after = rest.rpartition("@")  # a password may hold anything
    after, _, query = after.partition("?")
    authority, _, path = after.partition("/")
    found = _AUTHORITY.fullmatch(before + at + authority)
    target, slash, lun = path.rpartition("/")
    if found is None or not slash or not re.fullmatch(r"\d{1,5}", lun, re.ASCII):
        raise OperatorError(f"{shown}: is no address of a LUN; {_USAGE}")
    if not _TARGET.fullmatch(target) or len(target.encode()) > _NAME_BYTES_MAX:
        raise OperatorError(f"{shown}: {target!r} is no target name (iqn..., eui... or naa...); {_USAGE}")
    if int(lun) > LUN_MAX:
        raise OperatorError(f"{shown}: LUN {lun} is over {LUN_MAX}")
    port = int(found["port"] or PORT_DEFAULT)
    if not 0 < port < 1 << 16:
        raise OperatorError(f"{shown}: port {port} is not between 1 and 65535")
    user = found["user"] or environment.get(USER_VARIABLE, "")
    password = (found["password"] or environment.get(PASSWORD_VARIABLE, "")) if user else ""
    if user and not password:
        raise OperatorError(f"{shown}: user {user!r} has no password; set {PASSWORD_VARIABLE}")
    digest = _header_digest(query, shown)
    return Address(found["v6"] or found["host"], port, target, int(lun), user, password, digest)


def _header_digest(query: str, shown: str) -> bool:
    options = urllib.parse.parse_qsl(query, keep_blank_values=True)
    for name, value in options:
        if name != "header_digest" or value not in {"crc32c", "none"}:
            raise OperatorError(f"{shown}: unknown option {name}={value}; there is header_digest=crc32c")
    return bool(options) and options[-1][1] == "crc32c"


def identity_of(identity: str, host: str, environment: Mapping[str, str]) -> Identity:
    """The initiator port of one process (A2).

    Args:
        identity: what tells this nexus from all others of the node.
        host: name of this node; its initiator is named after it, unless ``MATRIXFS_INITIATOR`` names another.
        environment: of the process.

    Raises:
        OperatorError: the variable holds no iSCSI name.
    """
    name = environment.get(INITIATOR_VARIABLE, "")
    if name and (not _TARGET.fullmatch(name) or len(name.encode()) > _NAME_BYTES_MAX):
        raise OperatorError(f"{INITIATOR_VARIABLE}={name}: is no iSCSI name; write iqn.2026-11.com.example:node1")
    if not name:
        name = _NAME_PREFIX + (re.sub(r"[^a-z0-9.-]", "-", host.lower())[:64] or "node")
    digest = hashlib.sha256(f"{host}\0{identity}".encode()).digest()
    return Identity(name, int.from_bytes(digest[:3], "big"), int.from_bytes(digest[3:5], "big"))
