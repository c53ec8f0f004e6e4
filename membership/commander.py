"""Commands from any node to the administrator and back (trio; 002-47: no single management station).

A command is sent again every second until it is answered, to whoever is administrator then; the administrator carries
each out once (F1 of ``administration.py``).  So an administrator that dies in the middle costs a moment, no more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

import trio

from membership.administration import Request
from membership.control_wire import Message, encode_map, value_of_untrusted
from membership.errors import MatrixError, OperatorError, PeerError
from membership.messages import COMMAND_BYTES_MAX, Command, CommandDone

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from membership.administration import Administration
    from membership.messages import Body
    from membership.node_core import NodeCore
    from membership.seams import Clock

SEND_AGAIN_SECONDS: Final = 1.0
COMMAND_SECONDS_MAX: Final = 120.0  # a fence that is not confirmed, or a member that does not answer, takes its time
ANSWERING_MAX: Final = 64


class Shell(Protocol):
    """What commands need of the node."""

    @property
    def membership(self) -> NodeCore:
        """The core.  Raises PeerError before there is one."""
        ...

    def post(self, node: int, body: Body) -> None:
        """Send to another matrixd, or nowhere."""
        ...

    def start(self, task: Callable[[], Awaitable[None]]) -> None:
        """Run a task beside; not at all when the node has ended."""
        ...


class Commander:
    """Both ends of one node."""

    def __init__(self, shell: Shell, administration: Administration, clock: Clock) -> None:
        self._shell = shell
        self._administration = administration
        self._clock = clock
        self._serial = 0
        self._pending: dict[int, Request] = {}
        self._answering: set[tuple[int, int, int]] = set()

    async def command(self, what: str, arguments: Message) -> Any:
        """Have the administrator carry out a command, wherever it is.

        Raises:
            MatrixError: what it refused it with; PeerError when nobody answers in COMMAND_SECONDS_MAX.
        """
        packed = encode_map({**arguments, "kind": "arguments"})
        if len(packed) > COMMAND_BYTES_MAX:
            raise OperatorError("the command's arguments are too long")
        core = self._shell.membership
        self._serial += 1
        key = (core.me.node, core.me.incarnation, self._serial)
        request = self._pending[self._serial] = Request(key, what, packed)
        try:
            return value_of_untrusted(await self._until_answered(core, request))
        finally:
            del self._pending[key[2]]

    async def _until_answered(self, core: NodeCore, request: Request) -> bytes:
        end = self._clock.monotonic() + COMMAND_SECONDS_MAX
        while self._clock.monotonic() < end:
            administrator = core.admin.administrator()
            if administrator == core.me.node:
                own = self._administration.submit(Request(request.key, request.what, request.arguments))
                await self._wait(own.done)
                if own.done.is_set():
                    return own.answer
                continue
            if administrator is not None:
                self._shell.post(administrator, Command(request.key[2], request.what, request.arguments))
            await self._wait(request.done)
            if request.done.is_set():
                return request.answer
        raise PeerError("no administrator has answered; it may still be carried out: see matrixctl events")

    async def _wait(self, done: trio.Event) -> None:
        """Until it is answered or time to ask again."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._cancel_late, nursery.cancel_scope)
            await done.wait()
            nursery.cancel_scope.cancel()

    async def _cancel_late(self, scope: trio.CancelScope) -> None:
        await self._clock.sleep(SEND_AGAIN_SECONDS)
        scope.cancel()

    def receive(self, node: int, body: Command | CommandDone) -> None:
        """A message of another matrixd; no checkpoint."""
        if isinstance(body, CommandDone):
            pending = self._pending.get(body.serial)
            if pending is not None and not pending.done.is_set():
                pending.answer = body.answer
                pending.done.set()
            return
        core = self._shell.membership
        member = core.group.view.members.get(node)
        if member is None or core.filesystems is None or len(self._answering) >= ANSWERING_MAX:
            return
        key = (node, member.incarnation, body.serial)
        try:
            request = self._administration.submit(Request(key, body.what, body.arguments))
        except MatrixError:
            return  # sent again
        if key not in self._answering:
            self._answering.add(key)
            self._shell.start(lambda: self._answer(node, request))

    async def _answer(self, node: int, request: Request) -> None:
        try:
            await self._wait(request.done)
            if request.done.is_set():
                self._shell.post(node, CommandDone(request.key[2], request.answer))
        finally:
            self._answering.discard(request.key)
