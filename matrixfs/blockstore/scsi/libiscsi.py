"""The binding to libiscsi, a user-space iSCSI initiator in C (LGPL-2.1+; Debian: libiscsi7), through ctypes.

A ``Context`` is one connection: it never reconnects and never sends a command twice, for that would be the library's
decision about writes of unknown outcome, and it is ours.  It knows nothing of trio: the owner waits on ``fd`` for
``events`` and calls ``service``, in which the callbacks come.

Invariants:
    L1  One thread.  ``destroy`` is never called inside a callback.
    L2  Memory given to ``scsi`` is touched by the library until the callback came or ``destroy`` returned, not longer.
        A command that fails while data waits to be sent is called back when that is out: the data may be its own, and
        the library would go on sending it.
    L3  Every operation started is called back exactly once: by the library, or by ``destroy`` with LOST.
    L4  Only versions whose functions and whose ``struct scsi_task`` fit are used: ``load`` tries both.

Source: libiscsi 1.19, include/iscsi.h, scsi-lowlevel.h; ecosystem.md 1 (what goes wrong with the defaults).
"""

from __future__ import annotations

import ctypes as c
import functools
import itertools
from collections.abc import Callable
from enum import IntEnum
from typing import Any, Final, NamedTuple

from matrixfs.blockstore.scsi.address import Identity
from matrixfs.blockstore.scsi.status import CHECK_CONDITION, GOOD, Sense
from membership.errors import DeviceError, OperatorError

_SONAMES: Final = ("libiscsi.so.7", "libiscsi.so.8", "libiscsi.so.9", "libiscsi.so.10", "libiscsi.so.11")
_INSTALL: Final = "stores on iSCSI need libiscsi 1.19 or later: apt install libiscsi7"

LOST: Final = 0x0F000000  # what the library says to operations of a connection that ended, and what we say
_NORMAL_SESSION: Final = 2
_DIGEST_NONE, _DIGEST_CRC32C = 0, 3
_NO_RETRIES: Final = 1
_RESIDUAL_UNDERFLOW: Final = 1


class Direction(IntEnum):
    """Which way the data of a command goes."""

    NONE = 0
    READ = 1
    WRITE = 2


class Answer(NamedTuple):
    """How an operation ended: of a command status, sense and bytes that did not come; else status alone."""

    status: int
    sense: Sense = Sense()
    missing: int = 0
    response: int = 0  # of a task management function


Done = Callable[[Answer], None]


class _Sense(c.Structure):
    _fields_ = [("error_type", c.c_ubyte), ("key", c.c_int), ("ascq", c.c_int), ("rest", c.c_ubyte * 52)]


class _Task(c.Structure):
    """The beginning of struct scsi_task, the same from 1.12 to 1.20."""

    _fields_ = [
        ("status", c.c_int),
        ("cdb_size", c.c_int),
        ("direction", c.c_int),
        ("expected", c.c_int),
        ("cdb", c.c_ubyte * 16),
        ("residual_status", c.c_int),
        ("residual", c.c_size_t),
    ]


_Callback = c.CFUNCTYPE(None, c.c_void_p, c.c_int, c.c_void_p, c.c_void_p)
_SIGNATURES: Final[dict[str, tuple[Any, ...]]] = {  # result, arguments
    "iscsi_create_context": (c.c_void_p, c.c_char_p),
    "iscsi_destroy_context": (c.c_int, c.c_void_p),
    "iscsi_set_targetname": (c.c_int, c.c_void_p, c.c_char_p),
    "iscsi_set_session_type": (c.c_int, c.c_void_p, c.c_int),
    "iscsi_set_header_digest": (c.c_int, c.c_void_p, c.c_int),
    "iscsi_set_noautoreconnect": (None, c.c_void_p, c.c_int),
    "iscsi_set_isid_random": (c.c_int, c.c_void_p, c.c_uint32, c.c_uint32),
    "iscsi_set_initiator_username_pwd": (c.c_int, c.c_void_p, c.c_char_p, c.c_char_p),
    "iscsi_connect_async": (c.c_int, c.c_void_p, c.c_char_p, _Callback, c.c_void_p),
    "iscsi_login_async": (c.c_int, c.c_void_p, _Callback, c.c_void_p),
    "iscsi_logout_async": (c.c_int, c.c_void_p, _Callback, c.c_void_p),
    "iscsi_get_error": (c.c_char_p, c.c_void_p),
    "iscsi_get_fd": (c.c_int, c.c_void_p),
    "iscsi_which_events": (c.c_int, c.c_void_p),
    "iscsi_service": (c.c_int, c.c_void_p, c.c_int),
    "iscsi_out_queue_length": (c.c_int, c.c_void_p),
    "iscsi_scsi_command_async": (c.c_int, c.c_void_p, c.c_int, c.c_void_p, _Callback, c.c_void_p, c.c_void_p),
    "iscsi_task_mgmt_abort_task_set_async": (c.c_int, c.c_void_p, c.c_uint32, _Callback, c.c_void_p),
    "iscsi_task_mgmt_lun_reset_async": (c.c_int, c.c_void_p, c.c_uint32, _Callback, c.c_void_p),
    "scsi_create_task": (c.c_void_p, c.c_int, c.c_char_p, c.c_int, c.c_int),
    "scsi_free_scsi_task": (None, c.c_void_p),
    "scsi_task_add_data_in_buffer": (c.c_int, c.c_void_p, c.c_int, c.c_void_p),
    "scsi_task_add_data_out_buffer": (c.c_int, c.c_void_p, c.c_int, c.c_void_p),
    "scsi_task_get_status": (c.c_int, c.c_void_p, c.c_void_p),
}


@functools.cache
def load() -> Any:
    """The library.  Raises OperatorError when this host has none that fits (L4)."""
    unfit = ""
    for soname in _SONAMES:
        try:
            library = c.CDLL(soname)
        except OSError:
            continue
        unfit = _prepare(library)
        if not unfit:
            return library
    raise OperatorError(f"{_INSTALL} ({unfit})" if unfit else _INSTALL)


def _prepare(library: Any) -> str:
    """Declare the functions and try the layout; what does not fit, or an empty text."""
    for name, (result, *arguments) in _SIGNATURES.items():
        try:
            function = getattr(library, name)
        except AttributeError:
            return f"this one has no {name}"
        function.restype, function.argtypes = result, arguments
    cdb = bytes(range(16))
    task = library.scsi_create_task(16, cdb, Direction.READ, 0x12345)
    found = c.cast(task, c.POINTER(_Task)).contents
    fits = (found.cdb_size, found.direction, found.expected, bytes(found.cdb), found.residual_status, found.residual)
    library.scsi_free_scsi_task(task)
    return "" if fits == (16, Direction.READ, 0x12345, cdb, 0, 0) else "this one's struct scsi_task is another"


_keys = itertools.count(1)
_waiting: dict[int, Done] = {}  # by the number that goes through C


def _call_back(key: int, answer: Answer) -> None:
    done = _waiting.pop(key, None)
    if done is not None:  # a connect may call back twice
        done(answer)


@_Callback  # type: ignore[untyped-decorator]
def _on_plain(_context: int, status: int, _data: int, key: int) -> None:
    _call_back(key, Answer(status))


@_Callback  # type: ignore[untyped-decorator]
def _on_management(_context: int, status: int, data: int, key: int) -> None:
    response = c.cast(data, c.POINTER(c.c_uint32)).contents.value if data and status == GOOD else 0
    _call_back(key, Answer(status, response=response))


class Context:
    """One connection to a target.

    Args:
        identity: initiator port.
        target: iSCSI name.
        credentials: CHAP user and password; None: no authentication is offered.
        header_digest: demand CRC-32C of every header.

    Raises:
        OperatorError: no library.
    """

    def __init__(
        self, identity: Identity, target: str, credentials: tuple[str, str] | None, *, header_digest: bool
    ) -> None:
        self._library = library = load()
        self._context = library.iscsi_create_context(identity.initiator.encode())
        if not self._context:
            raise MemoryError
        self._tasks: dict[int, int] = {}  # commands not called back: number, struct scsi_task
        self._plain: set[int] = set()
        self._late: list[tuple[int, int, Answer]] = []  # number, task, answer of commands that failed (L2)
        self._on_scsi = _Callback(self._command_done)
        library.iscsi_set_targetname(self._context, target.encode())
        library.iscsi_set_session_type(self._context, _NORMAL_SESSION)
        library.iscsi_set_header_digest(self._context, _DIGEST_CRC32C if header_digest else _DIGEST_NONE)
        library.iscsi_set_noautoreconnect(self._context, _NO_RETRIES)
        library.iscsi_set_isid_random(self._context, identity.isid_random, identity.isid_qualifier)
        if credentials is not None:
            user, password = credentials
            library.iscsi_set_initiator_username_pwd(self._context, user.encode(), password.encode())

    @property
    def fd(self) -> int:
        """The socket, or -1."""
        return int(self._library.iscsi_get_fd(self._context)) if self._context else -1

    @property
    def events(self) -> int:
        """What the library waits for, as poll(2) says it."""
        return int(self._library.iscsi_which_events(self._context)) if self._context else 0

    @property
    def error(self) -> str:
        """What went wrong last, in the library's words."""
        said = self._library.iscsi_get_error(self._context) if self._context else None
        return said.decode(errors="replace").strip() if said else ""

    def service(self, events: int) -> bool:
        """Do what ``events`` allow; False when the connection is over."""
        going = int(self._library.iscsi_service(self._context, events)) == 0
        if self._late and self._library.iscsi_out_queue_length(self._context) == 0:
            self._settle()
        return going

    def connect(self, portal: str, done: Done) -> None:
        """Connect to ``IP:PORT``.  Raises DeviceError when that fails at once."""
        self._start(self._library.iscsi_connect_async, done, portal.encode())

    def login(self, done: Done) -> None:
        """Log in, on a connection."""
        self._start(self._library.iscsi_login_async, done)

    def logout(self, done: Done) -> None:
        """End the session in good order."""
        self._start(self._library.iscsi_logout_async, done)

    def abort_task_set(self, lun: int, done: Done) -> None:
        """Task management: ABORT TASK SET, of this nexus."""
        self._start(self._library.iscsi_task_mgmt_abort_task_set_async, done, lun, callback=_on_management)

    def lun_reset(self, lun: int, done: Done) -> None:
        """Task management: LOGICAL UNIT RESET, of all nexuses."""
        self._start(self._library.iscsi_task_mgmt_lun_reset_async, done, lun, callback=_on_management)

    def _start(self, function: Any, done: Done, *arguments: object, callback: Any = _on_plain) -> None:
        key = next(_keys)
        _waiting[key] = done
        self._plain.add(key)
        if function(self._context, *arguments, callback, key) < 0:
            _waiting.pop(key, None)
            raise DeviceError(self.error)

    def scsi(self, lun: int, cdb: bytes, direction: Direction, address: int, length: int, done: Done) -> None:
        """Queue one command whose data lies at ``address`` (L2).  Raises DeviceError when it was not queued."""
        library = self._library
        task = library.scsi_create_task(len(cdb), cdb, direction, length)
        if not task:
            raise MemoryError
        if direction is Direction.READ:
            library.scsi_task_add_data_in_buffer(task, length, address)
        elif direction is Direction.WRITE:
            library.scsi_task_add_data_out_buffer(task, length, address)
        key = next(_keys)
        _waiting[key] = done
        self._tasks[key] = task
        if library.iscsi_scsi_command_async(self._context, lun, task, self._on_scsi, None, key) != 0:
            del _waiting[key], self._tasks[key]
            library.scsi_free_scsi_task(task)
            raise DeviceError(self.error)

    def _command_done(self, _context: int, status: int, _data: int, key: int) -> None:
        task = self._tasks.pop(key)
        if status == GOOD:
            fields = c.cast(task, c.POINTER(_Task)).contents
            missing = fields.residual if fields.residual_status == _RESIDUAL_UNDERFLOW else 0
            self._library.scsi_free_scsi_task(task)
            _call_back(key, Answer(GOOD, missing=missing))
            return
        sense = _Sense()
        if status == CHECK_CONDITION:
            self._library.scsi_task_get_status(task, c.byref(sense))
        self._late.append((key, task, Answer(status, Sense(sense.key, sense.ascq))))

    def _settle(self) -> None:
        late, self._late = self._late, []
        for key, task, answer in late:
            self._library.scsi_free_scsi_task(task)
            _call_back(key, answer)

    def destroy(self) -> None:
        """Close the connection and forget what is in flight (L3); idempotent."""
        if not self._context:
            return
        self._library.iscsi_destroy_context(self._context)
        self._context = None
        self._settle()
        for key in (*self._plain, *self._tasks):
            _call_back(key, Answer(LOST))
        for task in self._tasks.values():
            self._library.scsi_free_scsi_task(task)
        self._tasks.clear()
        self._plain.clear()
