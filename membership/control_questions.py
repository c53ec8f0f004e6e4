"""What may be asked on the control socket, and who answers: this node, its mounts, or the mounts of all nodes.

``status`` and ``events`` are this node's own.  ``ask`` goes to mount processes, or to the matrixds (own_answers.py):
{what, arguments, node}, where node is a name or number, "" for this node, or None for every member of the SAN (R14).
Its answer, where a matrixd that answers itself stands like mounts without a name::

    {"node": our id, "answers": [{"node": id, "name": text, "mounts": None | [
        {"filesystem": text, "mountpoint": text, "pid": number, "value": bytes | None}]}]}

``mounts`` is None for a node that did not answer in time, ``value`` for a mount process that did not; else it is a
CBOR map of kind ``value`` or ``error``, which matrixd has not looked into (relay.py, A3).

``lock`` holds an application lock for as long as its connection lasts (004-33): the request goes to the mount
process as ``lock``, the end of the connection, whatever the reason, as ``unlock``.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

import trio

from membership.control_stream import cancel_at_end
from membership.control_wire import Message, encode_map, take, take_natural, value_of_untrusted
from membership.errors import BadMessage, MatrixError, OperatorError
from membership.messages import ARGUMENT_BYTES_MAX
from membership.relay import MountAnswer

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from membership.control_mounts import LocalMount
    from membership.control_stream import FrameStream
    from membership.relay import Relay
    from membership.status import Status

WHAT_MAX: Final = 32  # characters
_ARGUMENTS: Final[Message] = {"kind": "arguments"}


class Questions:
    """The questions of one matrixd.

    Args:
        status: a snapshot of the node.
        reachable: names of the SAN's members, by node id.
        relay: to the other nodes; answers their questions through ``answer``.
        mounts: the mounts of this node, as they come and go.
        own_answer: what matrixd answers itself (own_answers.py).
    """

    def __init__(
        self,
        status: Callable[[], Status],
        reachable: Callable[[], Mapping[int, str]],
        relay: Relay,
        mounts: Collection[LocalMount],
        own_answer: Callable[[str], list[Any] | None],
    ) -> None:
        self._node_status = status
        self._reachable = reachable
        self._relay = relay
        self._mounts = mounts
        self._own_answer = own_answer
        self._locks = 0
        relay.answerer = self.answer

    async def status(self, message: Message) -> Message:
        """The node's status plus ``local_mounts`` with their own counters; unless ``local``, also ``remote_mounts``."""
        status, arguments = self._node_status(), encode_map(_ARGUMENTS)
        local = [mount.status(_shown(value)) for mount, value in await self._ask_mounts("counters", arguments)]
        others = [node["id"] for node in status["nodes"] if node["link"] == "up" and not message.get("local")]
        found = await self._relay.ask(status["node"], others, "counters", arguments)
        remote = [
            {"node": node, "filesystem": each.filesystem, "mountpoint": each.mountpoint, "pid": each.pid}
            | {"counters": _shown(each.value)}
            for node, answers in sorted(found.items())
            for each in answers or ()
        ]
        return {**status, "local_mounts": local, "remote_mounts": remote}

    async def events(self, _message: Message) -> list[Any]:
        """What happened on this node."""
        await trio.lowlevel.checkpoint()
        return [event for piece in self._own_answer("node.events") or () for event in piece]

    async def ask(self, message: Message) -> Message:
        """Ask mount processes.  Raises BadMessage, OperatorError."""
        what = take(message, "what", str)
        arguments = encode_map({**take(message, "arguments", dict), **_ARGUMENTS})
        if len(what) > WHAT_MAX or len(arguments) > ARGUMENT_BYTES_MAX:
            raise BadMessage("a question that is too long")
        me, names = self._node_status()["node"], self._reachable()
        found = await self._relay.ask(me, self._which(message.get("node"), me, names), what, arguments)
        answers = [
            {"node": node, "name": names.get(node, ""), "mounts": _plain(found[node])} for node in sorted(found)
        ]
        return {"node": me, "answers": answers}

    def _which(self, wanted: object, me: int, names: Mapping[int, str]) -> list[int]:
        if wanted is None:
            return list(names)
        if wanted == "":
            return [me]
        found = [node for node, name in names.items() if wanted in (name, str(node), node)]
        if not found:
            raise OperatorError(f"no member of the cluster is called {wanted!r}: see matrixctl status")
        return found[:1]

    async def answer(self, what: str, arguments: bytes) -> list[MountAnswer]:
        """Ask all mounts of this node, each for a second at most; some questions matrixd answers itself."""
        own = self._own_answer(what)
        if own is not None:
            values = [encode_map({"kind": "value", "value": value}) for value in own]
            return [MountAnswer("", "", os.getpid(), value) for value in values]
        answers = []
        for mount, value in await self._ask_mounts(what, arguments):
            answers.append(MountAnswer(mount.filesystem, mount.mountpoint, mount.pid, value))
        return answers

    async def _ask_mounts(self, what: str, arguments: bytes) -> list[tuple[LocalMount, bytes | None]]:
        found: dict[LocalMount, bytes | None] = {}

        async def one(mount: LocalMount) -> None:
            found[mount] = await mount.ask_for_a_second(what, arguments)

        async with trio.open_nursery() as nursery:
            for mount in sorted(self._mounts, key=str):
                nursery.start_soon(one, mount)
        return sorted(found.items(), key=lambda each: str(each[0]))

    # --- application locks -----------------------------------------------------------------------------------

    async def hold_lock(self, message: Message, stream: FrameStream) -> None:
        """Hold a lock until the connection ends, or the mount does: then the connection is closed from here.

        Raises:
            OperatorError: nothing is mounted here, or it is not clear which.
            MatrixError: what the mount process refused it with.
        """
        mount = self._mount_called(take(message, "filesystem", str))
        self._locks += 1
        arguments = {**_ARGUMENTS, "id": self._locks, "name": take(message, "name", bytes)}
        arguments |= {"exclusive": take(message, "exclusive", bool), "wait": take(message, "wait", bool)}
        arguments["pid"] = take_natural(message, "pid", 31)
        refused: MatrixError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancel_at_end, stream, nursery.cancel_scope)
            nursery.start_soon(_cancel_with, mount, nursery.cancel_scope)
            try:
                value_of_untrusted(await mount.ask("lock", encode_map(arguments)))
                await stream.send({"kind": "result", "value": {"mountpoint": mount.mountpoint, "pid": mount.pid}})
                await trio.sleep_forever()
            except MatrixError as error:
                refused = error
            except trio.BrokenResourceError:
                pass  # the other end is gone
            finally:
                with trio.CancelScope(shield=True):
                    await mount.ask_for_a_second("unlock", encode_map({**_ARGUMENTS, "id": arguments["id"]}))
            nursery.cancel_scope.cancel()
        if refused is not None:
            raise refused

    def _mount_called(self, filesystem: str) -> LocalMount:
        found = [mount for mount in self._mounts if filesystem in ("", mount.filesystem)]
        if not found:
            what = f"{filesystem} is not" if filesystem else "no filesystem is"
            raise OperatorError(f"{what} mounted on this node: an application lock is kept by a mount, mount it first")
        if len(found) > 1:
            raise OperatorError("several filesystems are mounted here: name the one that keeps the lock with --fs")
        return found[0]


async def _cancel_with(mount: LocalMount, scope: trio.CancelScope) -> None:
    await mount.ended.wait()
    scope.cancel()


def _shown(answer: bytes | None) -> Any:
    """What a mount process answered, for status: None for no answer, {"error": line} for an error."""
    try:
        return None if answer is None else value_of_untrusted(answer)
    except MatrixError as error:
        return {"error": str(error)}


def _plain(answers: list[MountAnswer] | None) -> list[Message] | None:
    if answers is None:
        return None
    return [
        {"filesystem": a.filesystem, "mountpoint": a.mountpoint, "pid": a.pid, "value": a.value} for a in answers
    ]

