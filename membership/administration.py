"""What the administrator does for people: commands, one after the other, and Figure 12 (trio; 002-43, 002-46, 002-47).

A command may be given to any node; that node's ``commander.py`` brings it here, again and again until it is answered.

Invariants:

F1. One command at a time; a repetition of one that was carried out is answered with what came of it then.  The next
    administrator does not know what came of it and carries it out again: so each command names what shall be so
    (a disk by its uuid), and is a success with nothing done where it is so already.
F2. A change of the naming is in the database on a majority before a header names it (1602 before 1604), and is seen
    through to the end by whoever is administrator: old or new, never a mix (``san/changes.py``).
F3. Nobody is admitted before the database was read: it says who must stay out.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Protocol

import trio

from membership.control_wire import Message, decode_untrusted, encode_map, error_message
from membership.database.schema import fence_levels, roster
from membership.errors import BadMessage, Fenced, MatrixError, OperatorError, PeerError
from membership.fence.levels import Level
from membership.lease.records import FLAG_LEFT
from membership.messages import COMMAND_BYTES_MAX
from membership.san.events import Log

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from membership.areas.quorum import Areas
    from membership.database.keeper import DatabaseKeeper
    from membership.database.store import MembershipDatabase
    from membership.disks import ClusterDisks
    from membership.enrol.grants import Grants
    from membership.fence.agent import AgentFence
    from membership.label import Label
    from membership.messages import JoinRequest
    from membership.naming import Naming
    from membership.node_core import NodeCore
    from membership.node_events import EventBook
    from membership.node_naming import NodeNaming
    from membership.san.filesystems import Filesystems
    from membership.seams import Clock, Rng

ANSWERS_KEPT = 64  # F1
QUEUED_MAX = 64
BARRED = {
    "fenced": "it was fenced by the operator: matrixctl node unfence lets it in",
    "removed": "it was removed from the cluster: matrixctl node add lets it in again",
}


class Administrated(Protocol):
    """What the administration needs of the node."""

    areas: Areas
    disks: ClusterDisks
    book: EventBook
    clock: Clock

    @property
    def membership(self) -> NodeCore:
        """The core.  Raises PeerError before there is one."""
        ...

    def apply(self, step: Callable[[float], None]) -> None:
        """Run a core step and carry out its effects, with no checkpoint."""
        ...

    def may_write(self) -> bool:
        """Whether this node is administrator and its lease holds."""
        ...

    @property
    def naming(self) -> NodeNaming:
        """Its part in the naming."""
        ...

    label: Label  # with the cluster's key, wherever that came from
    rng: Rng
    agents: AgentFence


@dataclasses.dataclass(slots=True, eq=False)
class Request:
    """One command on its way."""

    key: tuple[int, int, int]  # node, incarnation, serial
    what: str
    arguments: bytes
    answer: bytes = b""
    done: trio.Event = dataclasses.field(default_factory=trio.Event)


class Administration:
    """Of one node; idle while another is administrator.

    Args:
        node: the node.
        keeper: its database.
        handlers: by name of the command.
        pause: where tests stop it (``membership/pauses.py``).
    """

    def __init__(
        self,
        node: Administrated,
        keeper: DatabaseKeeper,
        handlers: dict[str, Callable[[Administration, Message], Awaitable[Any]]],
        pause: Callable[[str], Awaitable[None]],
    ) -> None:
        self.node = node
        self.keeper = keeper
        self._handlers = handlers
        self._pause = pause
        self._queue_in, self._queue = trio.open_memory_channel[Request](QUEUED_MAX)
        self._known: OrderedDict[tuple[int, int, int], Request] = OrderedDict()
        self._roster: dict[str, str] | None = None  # the operator's words, once the database was read (F3)
        self.levels: dict[str, dict[int, Level]] = {}  # of fence agents, by name of node
        self.grants: Grants | None = None  # join tokens, once one was made or redeemed
        self._term: Filesystems | None = None  # its book of mounts, made anew for each term
        self._scope: trio.CancelScope | None = None
        self._changed = trio.Event()  # a header, or a naming taken over by all: look again

    # -- inputs, with no checkpoint ------------------------------------------------------------------------------

    def submit(self, request: Request) -> Request:
        """Queue a command, or find the one that was submitted before (F1).  Raises PeerError: too many wait."""
        known = self._known.get(request.key)
        if known is not None:
            return known
        try:
            self._queue_in.send_nowait(request)
        except trio.WouldBlock:
            raise PeerError("the administrator has too many commands to carry out: try again") from None
        self._known[request.key] = request
        while len(self._known) > ANSWERS_KEPT:
            self._known.popitem(last=False)
        return request

    def look(self) -> None:
        """After each step of the core: is this another term?  Not each begins or ends with a header of its own."""
        term = self.node.membership.filesystems
        if term is self._term:
            return
        self._term = term
        self._roster, self.grants, self.levels = None, None, {}
        self.wake()
        if self._scope is not None:
            self._scope.cancel()  # deposed, and perhaps in office again

    def wake(self) -> None:
        """Something that a command may wait for has changed: a header is in force, or 1606 is over."""
        self._changed.set()
        self._changed = trio.Event()

    def admission(self, join: JoinRequest) -> str | None:
        """AdminCore.admission: "" to admit, why not, None: not known yet (F3)."""
        if self._roster is None:
            return None
        word = self._roster.get(join.name, "")
        if word in BARRED:
            return BARRED[word]
        core = self.node.membership
        for other, incarnation in core.admin.header.members.items():
            sight = core.watch.sights.get(other)
            same = sight is not None and sight.slot.incarnation == incarnation and sight.slot.name == join.name
            if same and incarnation != join.incarnation:
                return f"a node called {join.name} is a member already"
        return ""

    # -- the task ------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve while this node is administrator, for ever."""
        while True:
            while self._term is None:
                await self._changed.wait()
            with trio.CancelScope() as self._scope:
                await self._serve()
            self._scope = None
            await self._fail_queued()

    async def _serve(self) -> None:
        while True:
            try:
                if self.node.may_write():
                    await self._take_over()
                    while await self._carry_out(await self._queue.receive()):
                        pass
            except MatrixError as error:
                self.node.book.log("alert", f"the membership database can't be taken over yet: {error}")
            await self.node.clock.sleep(self.node.membership.timing.heartbeat)

    async def _fail_queued(self) -> None:
        """Not ours to do any more: who asked will ask the new administrator."""
        while True:
            try:
                request = self._queue.receive_nowait()
            except trio.WouldBlock:
                return
            self._known.pop(request.key, None)

    async def _carry_out(self, request: Request) -> bool:
        """False: our right ended in its midst; who asked will ask again, once it is seen through (F2)."""
        try:
            handler = self._handlers.get(request.what)
            if handler is None:
                raise OperatorError(f"the administrator knows no command {request.what[:32]!r}: upgrade its node")
            value = await handler(self, decode_untrusted(request.arguments))
            answer = encode_map({"kind": "value", "value": value})
            if len(answer) > COMMAND_BYTES_MAX:
                raise OperatorError(f"an answer of {len(answer)} bytes, at most {COMMAND_BYTES_MAX}")
        except BadMessage as error:
            answer = encode_map(error_message(error))
        except Fenced:
            self._known.pop(request.key, None)
            return False
        except MatrixError as error:
            answer = encode_map(error_message(error))
        except trio.Cancelled:
            self._known.pop(request.key, None)
            raise
        request.answer = answer
        request.done.set()
        return True

    async def _take_over(self) -> None:
        """What an earlier administrator had begun is seen through (F2)."""
        async with self.keeper.changing() as database:  # storing it settles which of several images counts
            naming, header = database.naming(), self.node.membership.admin.header
            if naming.version < max(1, header.naming):
                naming = self.node.naming.known()
                database.put_naming(naming)
            self._roster = database.roster()
            self.read_levels(database)
            committed = database.committed
        if naming.version > header.naming or committed < naming.version:
            await self._see_through(naming)
        if naming.areas_before:
            await self.finish_areas()

    # -- for commands ----------------------------------------------------------------------------------------------

    def naming(self) -> Naming:
        """As it is."""
        return self.node.membership.naming

    async def change_naming(self, change: Callable[[MembershipDatabase, Naming], Naming]) -> Naming:
        """1602 to 1608.

        Args:
            change: gives the naming as it shall be (its version is set here); may change other tables too.

        Raises:
            OperatorError: what ``change`` raised; nothing is changed then.
            MatrixError: it could not be stored; whether it will be, the next administrator decides.
        """
        async with self.keeper.changing() as database:
            present = database.naming()
            naming = dataclasses.replace(change(database, present), version=present.version + 1)
            database.put_naming(naming)
            await self._pause("Change.1602")
        await self._pause("Change.1604")
        await self._see_through(naming)
        return naming

    async def finish_areas(self) -> None:
        """All members use the old and the new set of areas: from now on the new one is enough."""
        await self.change_naming(lambda _, naming: dataclasses.replace(naming, areas_before=()))

    async def _see_through(self, naming: Naming) -> None:
        node = self.node
        await node.disks.take_over(naming)
        node.apply(lambda now: node.membership.naming_stored(naming, now))
        await self._pause("Change.1606")
        while (wanted := node.membership.admin.change.wanted) is not None and wanted.version <= naming.version:
            await self._changed.wait()
        await self._pause("Change.1608")
        async with self.keeper.changing() as database:
            database.put_committed(naming.version)

    def read_levels(self, database: MembershipDatabase) -> None:
        """The fence levels as they are in the database; one that can't be read is told and left out."""
        self.levels = {}
        for row in database.documents(fence_levels):
            try:
                level = Level.from_dict_untrusted(row["devices"])
            except BadMessage as error:
                self.node.book.log("alert", f"fence level {row['level']} of {row['node']}: {error}")
                continue
            self.levels.setdefault(str(row["node"]), {})[int(str(row["level"]))] = level

    def levels_of(self, name: str) -> list[Level]:
        """Fence levels of a node in their order; none while another node is administrator."""
        return [level for _, level in sorted(self.levels.get(name, {}).items())]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until a header or a naming in force makes it so."""
        while not condition():
            await self._changed.wait()

    def use_areas(self, naming: Naming) -> None:
        """Use the areas of a changed naming from now on: it is stored there too."""
        self.node.naming.use_ahead(naming)

    async def free_slot(self, node: int, incarnation: int) -> None:
        """The slot of a node that is gone for good, and fenced, may be claimed by any other."""
        slot = await self.node.areas.read_slot(node)
        if slot is not None and slot.incarnation == incarnation:
            slot.flags |= FLAG_LEFT
            slot.counter = (slot.counter + 1) % 2**64
            await self.node.areas.write_slot(slot)

    def say(self, name: str, word: str, database: MembershipDatabase) -> None:
        """The operator's word about a node; inside ``keeper.changing``."""
        database.put(roster, {"name": name, "word": word, "changed_ns": self.node.clock.wall_ns()})
        if self._roster is not None:
            self._roster[name] = word

    def roster(self) -> dict[str, str]:
        """The operator's words, by name of node."""
        return dict(self._roster or {})

    def log(self, kind: str, text: str) -> None:
        """For people."""
        self.node.apply(lambda _: self.node.membership.tell(Log(kind, text)))
