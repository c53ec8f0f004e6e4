"""Questions that matrixds pass on to each other's mount processes: whoever looks for a cause sees the whole cluster
from any node (R14).

Invariants:
- A1. Nobody is waited for longer than ``ASK_SECONDS_MAX``; who did not answer is in the result, as None.
- A2. A peer's questions and answers are bounded: at most ``ASKED_MAX`` of its questions are worked on at a time,
  those beyond are dropped (the asker's time runs out), and answers nobody waits for are dropped.
- A3. matrixd does not look into arguments and values: both ends of a question check them.

A question carries no view: it is asked in the middle of trouble, changes nothing, and is answered by what is.

Source: R14; anchors.md 8 ("Who blocks me in one command"), 6.14.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

import trio

from membership.messages import Answer, Ask, Body
from membership.seams import Clock

ASK_SECONDS_MAX: Final = 2.5  # for the answer of another node, which gives its mounts a second
ASKED_MAX: Final = 8
_ANSWERS_MAX: Final = 64  # mounts of one node


@dataclass(frozen=True, slots=True)
class MountAnswer:
    """What one mount process answered."""

    filesystem: str
    mountpoint: str
    pid: int
    value: bytes | None  # a CBOR map, ``value`` or ``error``; None: it does not answer


Answerer: TypeAlias = Callable[[str, bytes], Awaitable[list[MountAnswer]]]


class RelayShell(Protocol):
    """What the relay needs of the node."""

    def post(self, node: int, body: Body) -> None:
        """Send to another matrixd, or nowhere."""
        ...

    def start(self, task: Callable[[], Awaitable[None]]) -> None:
        """Run a task beside; not at all when the node has ended."""
        ...


async def _nobody(_what: str, _arguments: bytes) -> list[MountAnswer]:
    await trio.lowlevel.checkpoint()
    return []


class _Pending:
    """One node's answers to one question."""

    def __init__(self) -> None:
        self.answers: list[MountAnswer] = []
        self.complete = trio.Event()


class Relay:
    """See the module.

    Args:
        shell: the node.
        clock: for the time limit.
    """

    def __init__(self, shell: RelayShell, clock: Clock) -> None:
        self.answerer: Answerer = _nobody  # who asks our own mounts: the control socket's server
        self.dropped = 0
        self._shell = shell
        self._clock = clock
        self._serial = 0
        self._pending: dict[tuple[int, int], _Pending] = {}  # by (node, serial)
        self._asked: Counter[int] = Counter()  # questions under way, by asking node

    async def ask(
        self, me: int, nodes: Collection[int], what: str, arguments: bytes
    ) -> dict[int, list[MountAnswer] | None]:
        """Ask the mounts of ``nodes``, all at once.

        Args:
            me: this node's id, whose mounts are asked without a message.
            nodes: whom; those that can't be reached are waited for like those that don't answer.
            what: the question's name.
            arguments: a CBOR map.

        Returns:
            For each node what its mounts answered; None for a node that did not.
        """
        found: dict[int, list[MountAnswer] | None] = {}

        async def one(node: int) -> None:
            found[node] = await (self.answerer(what, arguments) if node == me else self._ask(node, what, arguments))

        async with trio.open_nursery() as nursery:
            for node in nodes:
                nursery.start_soon(one, node)
        return found

    async def _ask(self, node: int, what: str, arguments: bytes) -> list[MountAnswer] | None:
        self._serial += 1
        serial = self._serial
        pending = self._pending[node, serial] = _Pending()
        try:
            self._shell.post(node, Ask(serial, what, arguments))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._cancel_late, nursery.cancel_scope)
                await pending.complete.wait()
                nursery.cancel_scope.cancel()
            return pending.answers if pending.complete.is_set() else None
        finally:
            del self._pending[node, serial]

    async def _cancel_late(self, scope: trio.CancelScope) -> None:
        await self._clock.sleep(ASK_SECONDS_MAX)
        scope.cancel()

    def receive(self, node: int, body: Ask | Answer) -> None:
        """A message of another matrixd.  No checkpoint."""
        if isinstance(body, Answer):
            self._take(node, body)
        elif self._asked[node] >= ASKED_MAX:
            self.dropped += 1
        else:
            self._asked[node] += 1
            self._shell.start(lambda: self._answer(node, body))

    def _take(self, node: int, answer: Answer) -> None:
        pending = self._pending.get((node, answer.serial))
        if pending is None or pending.complete.is_set():
            self.dropped += 1
            return
        if answer.pid:
            pending.answers.append(MountAnswer(answer.filesystem, answer.mountpoint, answer.pid, answer.value))
        if not answer.more or len(pending.answers) > _ANSWERS_MAX:
            pending.complete.set()

    async def _answer(self, node: int, ask: Ask) -> None:
        try:
            answers = await self.answerer(ask.what, ask.arguments) or [MountAnswer("", "", 0, None)]
            for more, each in zip(reversed(range(len(answers))), answers, strict=True):
                self._shell.post(
                    node, Answer(ask.serial, more, each.pid, each.filesystem, each.mountpoint, each.value)
                )
        finally:
            self._asked[node] -= 1

