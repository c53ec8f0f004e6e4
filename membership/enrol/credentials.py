"""STATE/credentials: what a matrixd needs to start without any option (R11).

JSON, so that people can look; it holds the cluster's key, so they can't unless they are root::

    {"version": 1, "cluster_name": ..., "cluster": UUID in hex, "cluster_key": hex, "encrypt": true,
     "node": ..., "stores": [...], "addresses": [[ADDRESS, PORT], ...], "check": hex}

``check`` is a checksum of the rest: a damaged key would else look like a foreign cluster.

Invariants:

C1. The file is a plain file of ours with mode 0600, or it is not used: others could have read the key or chosen it.
C2. It is replaced whole: written beside, made durable, renamed, and the directory made durable.

An edge (R1): it calls ``os.fsync``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from membership.enrol.exchange import ADDRESSES_MAX, STORE_CHARACTERS_MAX, STORES_MAX
from membership.enrol.token import Contact, contact_of_untrusted
from membership.errors import BadMessage, OperatorError
from membership.label import NAME_BYTES_MAX

if TYPE_CHECKING:
    from collections.abc import Mapping

    from membership.enrol.exchange import Enrolled

FILE_NAME: Final = "credentials"
VERSION: Final = 1
FILE_BYTES_MAX: Final = 64 * 1024
_AGAIN: Final = "join the cluster again with a new token"


@dataclass(frozen=True, slots=True)
class NodeCredentials:
    """Of one node of one cluster."""

    cluster_name: str
    cluster: bytes  # uuid
    cluster_key: bytes = field(repr=False)
    encrypt: bool
    node: str
    stores: tuple[str, ...]  # of the membership areas
    addresses: tuple[Contact, ...]  # where matrixd listens

    @classmethod
    def of(cls, answer: Enrolled, addresses: tuple[Contact, ...]) -> NodeCredentials:
        """Of what the administrator answered."""
        a = answer
        return cls(a.cluster_name, a.cluster, a.cluster_key, a.encrypt, a.node, a.stores, addresses)


def save(directory: str, credentials: NodeCredentials) -> None:
    """Write the file durably, in place of one that is there (C2).

    Raises:
        OperatorError: the directory can't be written.
    """
    path = os.path.join(directory, FILE_NAME)
    beside = f"{path}.new.{os.getpid()}"
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(beside)  # of a process that had our number and died
        fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(fd, "wb") as file:
                os.fchmod(fd, 0o600)  # whatever the umask
                file.write(_encode(credentials))
                file.flush()
                os.fsync(fd)
            os.rename(beside, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(beside)
            raise
        _sync_directory(directory)
    except OSError as error:
        raise OperatorError(f"{path}: can't be written: {error.strerror}") from None


def load(directory: str, cluster: bytes | None = None) -> NodeCredentials:
    """Read the file.

    Args:
        directory: STATE.
        cluster: uuid that it must have; None: any.

    Raises:
        OperatorError: one line for each defect.
    """
    path = os.path.join(directory, FILE_NAME)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise OperatorError(f"{path}: there is none: this server has not joined a cluster") from None
    except OSError as error:
        raise OperatorError(f"{path}: can't be opened: {error.strerror}") from None
    try:
        _check_safe(path, os.fstat(fd))
        data = _read(fd)
    except OSError as error:
        raise OperatorError(f"{path}: can't be read: {error.strerror}") from None
    finally:
        os.close(fd)
    try:
        credentials = decode_untrusted(data)
    except BadMessage as error:
        raise OperatorError(f"{path}: {error}; {_AGAIN}") from None
    if cluster is not None and credentials.cluster != cluster:
        found = f"{credentials.cluster_name} ({credentials.cluster.hex()})"
        raise OperatorError(f"{path}: is for cluster {found}, not for {cluster.hex()}")
    return credentials


def wipe(directory: str) -> bool:
    """Overwrite and remove the file; False when there was none.  Raises OperatorError."""
    path = os.path.join(directory, FILE_NAME)
    try:
        fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise OperatorError(f"{path}: can't be opened: {error.strerror}") from None
    try:
        status = os.fstat(fd)
        if stat.S_ISREG(status.st_mode):
            os.write(fd, bytes(min(status.st_size, FILE_BYTES_MAX)))  # helps where the file system writes in place
            os.fsync(fd)
        os.unlink(path)
        _sync_directory(directory)
    except OSError as error:
        raise OperatorError(f"{path}: can't be removed: {error.strerror}") from None
    finally:
        os.close(fd)
    return True


def decode_untrusted(data: bytes) -> NodeCredentials:
    """The credentials in the bytes of a file.  Raises BadMessage."""
    if len(data) > FILE_BYTES_MAX:
        raise BadMessage(f"has more than {FILE_BYTES_MAX} bytes")
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError):
        raise BadMessage("is damaged (no JSON)") from None
    if not isinstance(fields, dict) or type(fields.get("version")) is not int:
        raise BadMessage("is damaged (no version)")
    if fields["version"] != VERSION:
        raise BadMessage(f"has version {fields['version']}, this MatrixFS knows {VERSION}")
    check = fields.pop("check", None)
    try:
        good = check == _check(fields)
    except (ValueError, RecursionError):  # half a surrogate pair: no text
        good = False
    if not good:
        raise BadMessage("is damaged or was edited (its checksum is wrong)")
    return _fields_untrusted(fields)


def _encode(credentials: NodeCredentials) -> bytes:
    c = credentials
    fields = {
        "version": VERSION,
        "cluster_name": c.cluster_name,
        "cluster": c.cluster.hex(),
        "cluster_key": c.cluster_key.hex(),
        "encrypt": c.encrypt,
        "node": c.node,
        "stores": list(c.stores),
        "addresses": [list(contact) for contact in c.addresses],
    }
    return json.dumps({**fields, "check": _check(fields)}, indent=1).encode() + b"\n"


def _check(fields: Mapping[str, object]) -> str:
    canonical = json.dumps(fields, sort_keys=True, ensure_ascii=False).encode()
    return hashlib.blake2b(canonical, digest_size=8, person=b"matrixfs creds").hexdigest()


def _fields_untrusted(fields: Mapping[str, Any]) -> NodeCredentials:
    names = {"version", "cluster_name", "cluster", "cluster_key", "encrypt", "node", "stores", "addresses"}
    if set(fields) != names or type(fields["encrypt"]) is not bool:
        raise BadMessage("is damaged (fields are missing or unknown)")
    stores, addresses = fields["stores"], fields["addresses"]
    if not isinstance(stores, list) or not 1 <= len(stores) <= STORES_MAX:
        raise BadMessage("is damaged (stores)")
    if not isinstance(addresses, list) or not 1 <= len(addresses) <= ADDRESSES_MAX:
        raise BadMessage("is damaged (addresses)")
    if any(not isinstance(pair, list) or len(pair) != 2 for pair in addresses):
        raise BadMessage("is damaged (an address)")
    return NodeCredentials(
        _text(fields["cluster_name"], NAME_BYTES_MAX),
        _hex(fields["cluster"], 16),
        _hex(fields["cluster_key"], 32),
        fields["encrypt"],
        _text(fields["node"], NAME_BYTES_MAX),
        tuple(_text(store, STORE_CHARACTERS_MAX) for store in stores),
        tuple(contact_of_untrusted(host, port) for host, port in addresses),
    )


def _text(value: object, length_max: int) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= length_max or not value.isprintable():
        raise BadMessage("is damaged (a text)")
    return value


def _hex(value: object, size: int) -> bytes:
    try:
        data = bytes.fromhex(value) if isinstance(value, str) else b""
    except ValueError:
        data = b""
    if len(data) != size:
        raise BadMessage("is damaged (the cluster's uuid or key)")
    return data


def _check_safe(path: str, status: os.stat_result) -> None:
    """C1."""
    if not stat.S_ISREG(status.st_mode):
        raise OperatorError(f"{path}: is no plain file")
    if status.st_uid != os.geteuid():
        raise OperatorError(
            f"{path}: belongs to user {status.st_uid}, not to {os.geteuid()} who runs this: "
            "its owner knows the cluster's key, or chose it"
        )
    if stat.S_IMODE(status.st_mode) & 0o077:
        mode = stat.S_IMODE(status.st_mode)
        raise OperatorError(f"{path}: has mode {mode:04o}, others may use it: chmod 600 it, and think who may have")


def _read(fd: int) -> bytes:
    data = b""
    while len(data) <= FILE_BYTES_MAX and (more := os.read(fd, FILE_BYTES_MAX + 1 - len(data))):
        data += more
    return data


def _sync_directory(directory: str) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
