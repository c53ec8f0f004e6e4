"""``matrixd --metrics ADDRESS:PORT``: GET /metrics and nothing else, for a Prometheus server.

Off unless asked for.  It asks this matrixd through its own control socket, like ``matrixctl metrics``, so a slow
reader holds up nobody.  Bounded: ``CONNECTIONS_MAX`` at a time, ``HEAD_BYTES_MAX`` of a request, ``SECONDS_MAX`` for
all of it, one request a connection; what it tells is no secret, but it is told to everybody who can connect.
"""

from __future__ import annotations

import logging
from typing import Final

import trio

from matrixfs.cli.metrics_text import CONTENT_TYPE, metrics_text
from membership.control_ask import ask
from membership.errors import MatrixError, OperatorError

CONNECTIONS_MAX: Final = 8
HEAD_BYTES_MAX: Final = 8192
SECONDS_MAX: Final = 10.0
_STATUS: Final = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 503: "Unavailable"}

log = logging.getLogger(__name__)


async def serve_metrics(
    host: str, port: int, state_dir: str, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve until cancelled; started with the port when it can be connected to.

    Args:
        host: IP address to listen on.
        port: 0 for any.
        state_dir: of this matrixd.
        task_status: of trio's ``nursery.start``.

    Raises:
        OperatorError: the address is not this host's, or the port is taken.
    """
    try:
        listeners = await trio.open_tcp_listeners(port, host=host)
    except OSError as error:
        raise OperatorError(f"--metrics {host}:{port}: {error.strerror or error}") from None
    limit = trio.CapacityLimiter(CONNECTIONS_MAX)

    async def serve(stream: trio.SocketStream) -> None:
        if limit.available_tokens < 1:
            await stream.aclose()  # at once: who floods us gets nothing
            return
        with trio.move_on_after(SECONDS_MAX):
            async with limit, stream:
                await _serve_one(stream, state_dir)

    async with trio.open_nursery() as nursery:
        bound: list[trio.SocketListener] = await nursery.start(trio.serve_listeners, serve, listeners)
        task_status.started(bound[0].socket.getsockname()[1])


async def _serve_one(stream: trio.SocketStream, state_dir: str) -> None:
    try:
        code, body = await _answer(await _head(stream), state_dir)
        kind = CONTENT_TYPE if code == 200 else "text/plain"
        allow = "Allow: GET\r\n" if code == 405 else ""
        head = (
            f"HTTP/1.1 {code} {_STATUS[code]}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
            f"{allow}Connection: close\r\n\r\n"
        )
        await stream.send_all(head.encode() + body)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        log.debug("metrics: the reader hung up")


async def _head(stream: trio.SocketStream) -> bytes:
    """The request up to its empty line, or as much as there is or may be."""
    data = b""
    while b"\r\n\r\n" not in data and len(data) < HEAD_BYTES_MAX:
        more = await stream.receive_some(HEAD_BYTES_MAX - len(data))
        if not more:
            break
        data += more
    return data


async def _answer(head: bytes, state_dir: str) -> tuple[int, bytes]:
    words = head.partition(b"\r\n")[0].split(b" ")
    if b"\r\n\r\n" not in head or len(words) != 3 or not words[2].startswith(b"HTTP/1."):
        return 400, b"not a request\n"
    if words[0] != b"GET":
        return 405, b"only GET\n"
    if words[1].partition(b"?")[0] != b"/metrics":
        return 404, b"only /metrics\n"
    try:
        question = {"kind": "status", "local": True}
        status = await trio.to_thread.run_sync(ask, state_dir, question, abandon_on_cancel=True)
        return 200, metrics_text(status).encode()
    except MatrixError as error:
        return 503, f"{error}\n".encode()
