"""matrixd's side of the control socket STATE/matrixd.sock: who may talk, what may be asked, one task each.

``matrixctl`` asks one question per connection (control_questions.py), or to stop.  A mount process says hello, learns
where the store is, joins, and keeps its connection for as long as it is mounted (control_mounts.py).

Invariants:
- C1. Only root and matrixd's own user get further than the accept: the socket is 0600 before it has its
  name, and SO_PEERCRED is checked too.
- C2. Nonsense from a client (BadMessage), its death, or a bug in answering it ends that connection only.
- C3. A mount's pid and start time are the kernel's word, not the client's, and the pid can't be reused
  while it is mounted (a pidfd is held).

Source: architecture 2, 5; 002-10, 002-26; R11, R14.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import socket
from typing import TYPE_CHECKING, Any, Final, Protocol

import trio

from membership.control_ask import socket_path
from membership.control_disk_locks import hold_disk_lock
from membership.control_mounts import CutOff, LocalMount
from membership.control_questions import Questions
from membership.control_stream import FrameStream, PeerProcess, peer_of
from membership.control_wire import (
    PROTOCOL_VERSION,
    ClusterInfo,
    Message,
    cluster_to_map,
    error_message,
    take,
    take_natural,
)
from membership.errors import BadMessage, MatrixError, OperatorError
from membership.label import BLOCK_BYTES, PLAIN_LINKS, Label, timing_of
from membership.orders import request_from_dict_untrusted

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from membership.disks import OpenDisk
    from membership.mounts import MountChannel
    from membership.node_disk_locks import NodeDiskLocks
    from membership.orders import MountRequest
    from membership.presence import Lands
    from membership.relay import Relay
    from membership.seams import Clock
    from membership.status import Status

log = logging.getLogger(__name__)

_BACKLOG: Final = 64


class MountStorage(Protocol):
    """What mounts need of ``membership.storage.NodeStorage``."""

    def landing(self, disk: OpenDisk, mount: int) -> Lands:
        """Knows when what a dead mount process had in flight has landed."""
        ...

    async def is_listed(self, mount: int) -> bool:
        """Whether header and slot, read now, list this node and that mount.  Raises MatrixError."""
        ...


class ControlledNode(Protocol):
    """What the control socket needs of ``membership.service.Node``."""

    def status(self) -> Status:
        """A snapshot, CBOR-safe."""
        ...

    def own_answer(self, what: str) -> list[Any] | None:
        """Matrixd's own answer to a question of any node, in pieces; None: it is for the mounts."""
        ...

    async def admit_mount(self, request: MountRequest) -> MountChannel:
        """Raises OperatorError, PeerError, Fenced."""
        ...

    async def stop(self) -> None:
        """Leave cleanly.  Raises OperatorError while mounts exist."""
        ...

    def disk_of(self, filesystem: str) -> OpenDisk:
        """The disk with a filesystem.  Raises OperatorError, PeerError."""
        ...

    async def command(self, what: str, arguments: Message) -> Any:
        """Have the administrator carry out a command.  Raises MatrixError."""
        ...

    def reachable(self) -> Mapping[int, str]:
        """Names of the nodes whose mounts can be asked, by node id."""
        ...

    @property
    def storage(self) -> MountStorage:
        """The cluster disks, for mounts."""
        ...

    @property
    def disk_locks(self) -> NodeDiskLocks:
        """Locks on cluster disks.  Raises PeerError."""
        ...

    @property
    def relay(self) -> Relay:
        """Questions to and from other nodes."""
        ...


async def serve_control(
    node: ControlledNode,
    label: Label,
    state_dir: str,
    clock: Clock,
    stopped: trio.Event,
    cut_off: CutOff,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve STATE/matrixd.sock until cancelled; started when it can be connected to.

    The caller makes sure that no other matrixd uses ``state_dir``: an old socket there is replaced.

    Args:
        node: whom to ask.
        label: of the cluster disk.
        state_dir: directory of the socket.
        clock: for the waits for mount processes.
        stopped: set when a ``stop`` request has been carried out and answered.
        cut_off: aborts what a mount process that is at its end still serves.
        task_status: of trio's ``nursery.start``.

    Raises:
        OperatorError: the socket can't be made.
    """
    path = socket_path(state_dir)
    listener = await _listen(path)
    server = _Server(node, label, clock, stopped, cut_off)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, server.serve, [listener])
            task_status.started()
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


async def _listen(path: str) -> trio.SocketListener:
    """A listener that has its name only when it is private and ready (C1)."""
    unnamed = f"{path[: -len('.sock')]}.new"  # no longer than ``path``, so short enough too
    listening = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(unnamed)
        await listening.bind(unnamed)
        os.chmod(unnamed, 0o600)
        listening.listen(_BACKLOG)
        os.rename(unnamed, path)
    except OSError as error:
        listening.close()
        raise OperatorError(f"can't make the control socket {path}: {error.strerror or error}") from None
    return trio.SocketListener(listening)


class _Server:
    """The connections of one matrixd."""

    def __init__(
        self, node: ControlledNode, label: Label, clock: Clock, stopped: trio.Event, cut_off: CutOff
    ) -> None:
        self._node = node
        self._label = label
        self._clock = clock
        self._stopped = stopped
        self._cut_off = cut_off
        self._mounts: set[LocalMount] = set()
        questions = Questions(node.status, node.reachable, node.relay, self._mounts, node.own_answer)
        self._hold_lock = questions.hold_lock
        self._questions: dict[str, Callable[[Message], Awaitable[Any]]] = {
            "status": questions.status,
            "events": questions.events,
            "ask": questions.ask,
            "command": self._command,
            "listed": self._listed,
            "stop": self._stop,
        }

    async def serve(self, connected: trio.SocketStream) -> None:
        """One connection, to its end (C2)."""
        connection = connected.socket
        stream = FrameStream(connection)
        try:
            peer = peer_of(connection)
            if peer.uid not in (0, os.geteuid()):
                raise OperatorError("only root may talk to matrixd")
            await self._converse(stream, connection)
        except BadMessage as error:
            log.warning("control socket: %s: connection closed", error)
        except MatrixError as error:
            await _send_last(stream, error)
        except trio.BrokenResourceError:
            log.debug("control socket: the other end hung up before its answer")
        except Exception:
            log.exception("control socket: request failed")
            await _send_last(stream, MatrixError("matrixd could not answer because of a fault of its own: see its log"))
        finally:
            stream.close()

    async def _converse(self, stream: FrameStream, connection: trio.socket.SocketType) -> None:
        message = await stream.receive()
        if message is None:
            return
        kind = message["kind"]
        if kind == "hello":
            await self._serve_mount(stream, connection, message)
        elif kind == "lock":
            await self._hold_lock(message, stream)
        elif kind == "disk-lock":
            name = self._node.status()["name"]
            await hold_disk_lock(self._node.disk_locks, name, timing_of(self._label), message, stream)
        elif kind in self._questions:
            value = await self._questions[kind](message)
            try:
                await stream.send({"kind": "result", "value": value})
            finally:
                if kind == "stop":
                    self._stopped.set()  # only now: it ends this task too
        else:
            raise OperatorError(f"matrixd does not know the request {kind[:32]!r}: are both of one version?")

    async def _stop(self, _message: Message) -> None:
        log.info("asked to stop")
        await self._node.stop()

    async def _listed(self, message: Message) -> bool:
        """A mount process that has registered with its disk asks: do the disks list it now."""
        return await self._node.storage.is_listed(take_natural(message, "incarnation"))

    async def _command(self, message: Message) -> Any:
        return await self._node.command(take(message, "what", str), take(message, "arguments", dict))

    async def _serve_mount(self, stream: FrameStream, connection: trio.socket.SocketType, hello: Message) -> None:
        """Hello, welcome, join, admitted, and then as long as the mount lives."""
        try:
            process = PeerProcess(connection)
        except OSError as error:
            raise OperatorError(
                f"matrixd can't watch the mount process ({error.strerror}): both must run in one pid namespace"
            ) from None
        try:
            _check_hello(hello, process)
            disk = self._disk_for(take(hello, "filesystem", str))
            cluster = self._cluster_info(disk)
            await stream.send({"kind": "welcome", "cluster": cluster_to_map(cluster)})
            message = await stream.receive()
            if message is None:
                return
            if message["kind"] != "join":
                raise BadMessage(f"a mount process sent {message['kind']!r} instead of joining")
            request = request_from_dict_untrusted(message.get("request"))
            request = dataclasses.replace(request, pid=process.pid, start_time=process.started)
            await self._carry_mount(stream, process, await self._node.admit_mount(request), disk)
        finally:
            process.close()

    async def _carry_mount(
        self, stream: FrameStream, process: PeerProcess, channel: MountChannel, disk: OpenDisk
    ) -> None:
        landing = self._node.storage.landing(disk, channel.request.incarnation)
        mount = LocalMount(stream, process, channel, landing, self._clock, timing_of(self._label), self._cut_off)
        admission = {
            "fs_name": channel.request.fs_name,
            "journal": channel.journal,
            "generation": channel.generation,
            "lease_deadline": channel.deadline,
        }
        with contextlib.suppress(trio.BrokenResourceError):  # run() notices, and it must run (L1)
            await stream.send({"kind": "admitted", "admission": admission})
        log.info("%s: admitted with journal %d", mount, channel.journal)
        self._mounts.add(mount)
        try:
            await mount.run()
        finally:
            self._mounts.discard(mount)

    def _disk_for(self, filesystem: str) -> OpenDisk:
        state = self._node.status()["state"]
        if state != "member":
            raise OperatorError(f"matrixd is not a member of the cluster ({state}): see matrixctl status")
        return self._node.disk_of(filesystem)

    def _cluster_info(self, disk: OpenDisk) -> ClusterInfo:
        status, label = self._node.status(), self._label
        return ClusterInfo(
            node_id=status["node"],
            node_name=status["name"],
            node_address=status["host"],
            node_others=tuple(status["others"]),
            cluster_name=label.cluster_name,
            cluster_uuid=label.owner,
            cluster_key=label.cluster_key,
            encrypt=label.links != PLAIN_LINKS,
            store_path=disk.path,
            data_offset=disk.label.data_block * BLOCK_BYTES,
            data_length=disk.label.data_blocks * BLOCK_BYTES,
            traits=(disk.label.pr_kind, disk.label.pr_flags, disk.label.pr_leaks),
            timing=timing_of(label),
        )


def _check_hello(hello: Message, process: PeerProcess) -> None:
    """Refuse another protocol, and a process that is not the one that connected (C3).  Raises OperatorError."""
    if (version := take_natural(hello, "version")) != PROTOCOL_VERSION:
        raise OperatorError(
            f"mount helper and matrixd are of different versions (protocol {version}, {PROTOCOL_VERSION}): "
            "restart matrixd after an upgrade"
        )
    if (take_natural(hello, "pid"), take_natural(hello, "start_ticks")) != (process.pid, process.started):
        raise OperatorError(f"the mount process must connect by itself: process {process.pid} did it for another")


async def _send_last(stream: FrameStream, error: MatrixError) -> None:
    with contextlib.suppress(trio.BrokenResourceError):
        await stream.send(error_message(error))
