"""One question to the local matrixd, with a blocking socket and without trio.

``matrixctl`` and the umount helper live for one answer; importing trio would cost them more than
everything else they do.  An edge module: besides ``control_stream.py`` the only one of the control
socket that touches ``socket`` (R1).

Source: architecture 2; ecosystem 6 (commands start in less than 100 ms).
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from membership.control_wire import SOCKET_NAME, FrameBuffer, Message, encode_frame, error_of_untrusted, take
from membership.errors import BadMessage, MatrixError, OperatorError, PeerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ANSWER_SECONDS_MAX: Final = 15.0  # a clean stop ends one renewal; status waits 1 s for a hung mount
_LAST_WORDS_SECONDS: Final = 0.1  # they are there already, and whoever asks is in a hurry
_RECEIVE_BYTES: Final = 1 << 16
_UCRED: Final = struct.Struct("3i")  # pid, uid, gid
_PATH_BYTES_MAX: Final = 107  # sockaddr_un, less its final zero


def socket_path(state_dir: str) -> str:
    """Path of the control socket.  Raises OperatorError when the kernel can't take one that long."""
    path = os.path.join(os.path.abspath(state_dir), SOCKET_NAME)
    if len(os.fsencode(path)) > _PATH_BYTES_MAX:
        raise OperatorError(f"{path}: too long for a unix socket ({_PATH_BYTES_MAX} bytes): take a shorter --state")
    return path


def explain_connect_error(path: str, error: OSError) -> MatrixError:
    """What an administrator should read when ``path`` can't be connected to."""
    if isinstance(error, PermissionError):
        return OperatorError(f"no permission to talk to matrixd ({path}): run this as root")
    if isinstance(error, (FileNotFoundError, ConnectionRefusedError, NotADirectoryError)):
        return OperatorError(
            f"matrixd is not running here, nobody listens on {path} "
            "(start it: systemctl start matrixd, or matrixd --daemon; or name its directory with --state)"
        )
    return PeerError(f"can't talk to matrixd ({path}): {error.strerror or error}")


def ask(state_dir: str, message: Message, timeout: float = ANSWER_SECONDS_MAX) -> Any:
    """Send one request and return the value of its ``result``.

    Args:
        state_dir: directory of the matrixd to ask.
        message: for example ``{"kind": "status"}``.
        timeout: seconds without a byte before matrixd counts as stuck.

    Raises:
        OperatorError: no matrixd there, or no permission.
        PeerError: it does not answer, or nonsense (BadMessage).
        MatrixError: what matrixd answered, with its exit code.
    """
    with _connected(socket_path(state_dir), timeout) as connection:
        return _answer(connection, message)


class Held:
    """A request that lasts as long as its connection, which is ready to be read when it ends."""

    def __init__(self, connection: socket.socket) -> None:
        self.value: Any = None  # of the ``result``
        self._connection = connection
        self._frames = FrameBuffer()

    def fileno(self) -> int:
        """For select and poll."""
        return self._connection.fileno()

    def begin(self, message: Message, timeout: float | None, waits: Callable[[str], None]) -> None:
        """Send the request and wait for ``result``.  Raises as ``hold``."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with suppress(BrokenPipeError):  # hung up already: why is waiting to be read
            self._connection.sendall(encode_frame(message))
        while True:
            if deadline is not None:
                self._connection.settimeout(max(deadline - time.monotonic(), 1e-3))
            else:
                self._connection.settimeout(None)
            answer = _checked(_next(self._connection, self._frames))
            if answer["kind"] != "waiting":
                break
            waits(take(answer, "reason", str))
        self.value = answer.get("value")
        self._connection.settimeout(None)

    def why_ended(self) -> str:
        """When it can be read: what matrixd says of the end; "" when it just hung up."""
        self._connection.settimeout(_LAST_WORDS_SECONDS)
        try:
            answer = _next(self._connection, self._frames)
            return str(error_of_untrusted(answer)) if answer is not None else ""
        except (OSError, BadMessage):
            return ""


@contextmanager
def hold(
    state_dir: str, message: Message, timeout: float | None, waits: Callable[[str], None] = lambda _: None
) -> Iterator[Held]:
    """Send a request that lasts as long as its connection; it, once it was answered with ``result``.

    Args:
        state_dir: directory of the matrixd to ask.
        message: for example ``{"kind": "lock", ...}``.
        timeout: seconds for the answer; None waits for ever.
        waits: told why it must wait, if matrixd says so.

    Raises:
        TimeoutError: no answer in time; the request is withdrawn with the connection.
        OperatorError, PeerError, MatrixError: as ``ask``.
    """
    late = False
    with _connected(socket_path(state_dir), ANSWER_SECONDS_MAX) as connection:
        held = Held(connection)
        try:
            held.begin(message, timeout, waits)
        except TimeoutError:
            late = True
        else:
            try:
                yield held
            finally:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)  # a child may have it, too
    if late:
        raise TimeoutError


def stop_matrixd(state_dir: str, timeout: float = ANSWER_SECONDS_MAX) -> None:
    """Stop the matrixd of ``state_dir`` cleanly; return when its process is gone.

    Raises:
        OperatorError: none there, no permission, or trees are mounted on this node.
        PeerError: it does not answer, or does not end.
    """
    with _connected(socket_path(state_dir), timeout) as connection:
        pid, *_ = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        with _process(pid) as pidfd:  # taken before the request: afterwards the pid may be another's
            _answer(connection, {"kind": "stop"})
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            if not poll.poll(timeout * 1000):
                raise PeerError(f"matrixd (process {pid}) left the cluster but does not end: see its log")


@contextmanager
def _connected(path: str, timeout: float) -> Iterator[socket.socket]:
    """A connection to ``path``; what goes wrong with it inside the block becomes a MatrixError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout)
        try:
            connection.connect(path)
        except TimeoutError:
            raise PeerError(f"matrixd does not answer within {timeout:g} s ({path})") from None
        except OSError as error:
            raise explain_connect_error(path, error) from None
        try:
            yield connection
        except TimeoutError:
            raise PeerError(f"matrixd does not answer within {timeout:g} s ({path})") from None
        except OSError as error:
            raise PeerError(f"matrixd hung up ({path}): {error.strerror or error}") from None


@contextmanager
def _process(pid: int) -> Iterator[int]:
    pidfd = os.pidfd_open(pid)
    try:
        yield pidfd
    finally:
        os.close(pidfd)


def _answer(connection: socket.socket, message: Message) -> Any:
    with suppress(BrokenPipeError):  # hung up already: why is waiting to be read
        connection.sendall(encode_frame(message))
    return _checked(_next(connection, FrameBuffer())).get("value")


def _checked(answer: Message | None) -> Message:
    """An answer that is no error.  Raises MatrixError: the error."""
    if answer is None:
        raise PeerError("matrixd ended before it answered: see its log")
    if answer["kind"] == "error":
        raise error_of_untrusted(answer)
    return answer


def _next(connection: socket.socket, frames: FrameBuffer) -> Message | None:
    """The next message, or None at the end of the stream."""
    while True:
        answer = frames.next_untrusted()
        if answer is not None:
            return answer
        data = connection.recv(_RECEIVE_BYTES)
        if not data:
            return None
        frames.feed(data)
