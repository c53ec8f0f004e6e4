"""``matrixctl disk lock`` on the control socket: a request that lasts for as long as its lock (trio; 002-24).

matrixd says ``waiting`` (once, who stands against it), then ``result`` when the lock is held, then nothing; or
``error`` when it is refused or lost, and hangs up.  The end of the connection, whatever the reason, gives the lock up.

The command that runs under the lock writes past every gate of ours.  When the lock is lost it must be dead before the
others may act, which is io_bound and margin after our lease; ``grace`` in the result is what it has between SIGTERM and
SIGKILL: half the margin, so that its last write has io_bound and the other half.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

import trio

from membership.control_stream import cancel_at_end
from membership.control_wire import error_message, take, take_natural
from membership.errors import Fenced, OperatorError
from membership.san.disk_lock_agent import DiskLockGranted, DiskLockQueued, DiskLockRefused

if TYPE_CHECKING:
    from membership.control_stream import FrameStream
    from membership.control_wire import Message
    from membership.label import Timing
    from membership.node_disk_locks import NodeDiskLocks
    from membership.san.disk_lock_agent import DiskLockEvent

NOT_FREE: Final = 124  # exit code of who did not get a lock, as timeout(1) has it
_COMMAND_MAX: Final = 100  # characters of it that others are shown


async def hold_disk_lock(
    locks: NodeDiskLocks, node: str, timing: Timing, message: Message, stream: FrameStream
) -> None:
    """Serve one request ``disk-lock``.

    Args:
        locks: those of this node.
        node: its name.
        timing: of its cluster.
        message: the request.
        stream: its connection.

    Raises:
        OperatorError: no such disk; not free (exit code ``NOT_FREE``).
        PeerError: this node is no member.
    """
    command, pid = take(message, "command", str), take_natural(message, "pid", 31)
    owner = f"{command[:_COMMAND_MAX]}, process {pid} on {node}"
    disk, exclusive, wait = take(message, "disk", str), take(message, "exclusive", bool), take(message, "wait", bool)
    refused: OperatorError | None = None
    with locks.asked(disk, owner, exclusive=exclusive, wait=wait) as events:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancel_at_end, stream, nursery.cancel_scope)
            with contextlib.suppress(trio.BrokenResourceError):  # the other end is gone
                refused = await _tell(events, stream, timing)
            nursery.cancel_scope.cancel()
    if refused is not None:
        raise refused


async def _tell(
    events: trio.MemoryReceiveChannel[DiskLockEvent], stream: FrameStream, timing: Timing
) -> OperatorError | None:
    """Pass on what happens, until the lock is lost, or refused: the refusal."""
    async for event in events:
        if isinstance(event, DiskLockQueued):
            await stream.send({"kind": "waiting", "reason": event.reason})
        elif isinstance(event, DiskLockGranted):
            await stream.send({"kind": "result", "value": {"grace": timing.margin / 2}})
        elif isinstance(event, DiskLockRefused):
            refused = OperatorError(event.reason)
            refused.exit_code = NOT_FREE
            return refused
        else:
            with trio.CancelScope(shield=True):  # this matrixd may be ending because of the same
                await stream.send(error_message(Fenced(event.reason)))
            return None
    raise AssertionError("the channel is open for as long as the block")
