"""What matrixd does with its host: state directory, one-per-directory lock, background, log, service manager.

An edge module (R1): fork, file locks and the service manager's datagram socket live here.

Invariants:
- H1. One matrixd per state directory: it holds an flock on STATE/matrixd.pid for its whole life.  The lock
  decides, not the number in the file, so a killed matrixd leaves nothing to clean up.
- H2. ``matrixd --daemon`` returns 0 only when the node is a member; else it prints the one line the
  background process failed with, and returns its code.  The background process never outlives that line.

Source: issue 2 ("a second node of the same name", "one clear line"), ecosystem 6 (sd_notify on a datagram socket).
"""

from __future__ import annotations

import fcntl
import json
import logging
import logging.handlers
import os
import signal
import socket
import sys
from dataclasses import dataclass
from typing import Final, NoReturn

from membership.errors import MatrixError, OperatorError

LOG_NAME: Final = "matrixd.log"
PID_NAME: Final = "matrixd.pid"
_LOG_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_REPORT_BYTES_MAX: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class StateLock:
    """The hold on a state directory (H1); the kernel lets go of it when the last process that has it ends."""

    directory: str
    fd: int

    def write_pid(self) -> None:
        """Put this process's number into the pid file: for people and service managers."""
        os.ftruncate(self.fd, 0)
        os.pwrite(self.fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let go, leaving an empty pid file: removing it would let two processes lock two files of one name."""
        os.ftruncate(self.fd, 0)
        os.close(self.fd)


def lock_state(directory: str) -> StateLock:
    """Make ``directory`` if need be, private, and take its lock.

    Raises:
        OperatorError: it can't be made or written, or another matrixd runs there.
    """
    path = os.path.join(directory, PID_NAME)
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise OperatorError(f"can't use the state directory {directory}: {error.strerror} (see --state)") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        pid = os.read(fd, 32).decode(errors="replace").strip() or "unknown"
        os.close(fd)
        raise OperatorError(
            f"matrixd is already running here (process {pid}, {directory}): a second node needs its own --state"
        ) from None
    return StateLock(directory, fd)


def start_logging(level: str, path: str | None) -> None:
    """Log to ``path``, which may be rotated away under us, or to stderr."""
    handler: logging.Handler = logging.handlers.WatchedFileHandler(path) if path else logging.StreamHandler()
    handler.setFormatter(logging.Formatter(_LOG_FORMAT))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(level.upper())


class Readiness:
    """Who waits to hear that the node is a member: the service manager, and the foreground of ``--daemon``."""

    def __init__(self, report_fd: int = -1) -> None:
        self._report_fd = report_fd
        self.is_background = report_fd >= 0

    def ready(self) -> None:
        """The node is a member."""
        notify("READY=1")
        self._report({})

    def failed(self, error: MatrixError) -> None:
        """It never became one.  Nothing is told twice: after ``ready`` only the log gets it."""
        self._report({"text": str(error), "exit_code": error.exit_code})

    def _report(self, report: dict[str, str | int]) -> None:
        if self._report_fd >= 0:
            os.write(self._report_fd, json.dumps(report).encode())
            os.close(self._report_fd)
            self._report_fd = -1


def go_background(log_path: str) -> Readiness:
    """Fork: return in the background process, and end the foreground one as H2 says.

    Args:
        log_path: what is printed in the background goes there too.

    Raises:
        OperatorError: ``log_path`` can't be written.
        MatrixError: in the foreground: what the background process failed with.
    """
    try:
        log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
    except OSError as error:
        raise OperatorError(f"can't write the log {log_path}: {error.strerror}") from None
    read_end, write_end = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        os.close(write_end)
        _wait_report(read_end, child, log_path)
    os.close(read_end)
    os.setsid()
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.close(null)
    os.close(log)
    return Readiness(write_end)


def _wait_report(read_end: int, child: int, log_path: str) -> NoReturn:
    """The foreground process: wait for the word of the background one and end with it."""
    try:
        report = os.read(read_end, _REPORT_BYTES_MAX)
    except KeyboardInterrupt:
        os.kill(child, signal.SIGTERM)
        raise
    failure = json.loads(report or b"null")
    if failure == {}:
        os._exit(0)  # what Python would run at exit belongs to the background process too
    os.waitpid(child, 0)  # H2; and the lock is free for the next try
    if failure is None:
        raise MatrixError(f"matrixd ended before it was a member: see {log_path}")
    error = MatrixError(failure["text"])
    error.exit_code = failure["exit_code"]
    raise error


def notify(state: str) -> None:
    """Tell the service manager that started us, if one did (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager:
        try:
            manager.sendto(state.encode(), address)
        except OSError as error:
            logging.getLogger(__name__).warning("can't notify the service manager: %s", error)
