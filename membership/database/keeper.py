"""The membership database in the hands of one node (002-42, 002-44).

Every node reads the naming from it when the SAN header names a later version than it holds.  A candidate reads all of
it before it becomes administrator (1722): one that can't, does not.  The administrator has it in memory, changes it,
writes images, and keeps in it what happened.

Invariants:

K1. Only the administrator writes, only while its lease holds, and each image has a greater sequence than the one read.
K2. Between a change in memory and its image nothing else is written (``changing``); what could not be stored is
    forgotten, by reading again.
K3. With no good copy on any area it is made anew from what this node knows: the naming in memory, or the labels of the
    disks it has open.  That is told: history, fence configuration and tokens are lost then.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Protocol

import trio

from membership.database.image import DatabaseImage
from membership.database.schema import filesystems, nodes
from membership.database.store import MembershipDatabase
from membership.errors import CorruptRecord, DeviceError, Fenced, OperatorError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from membership.areas.quorum import Areas
    from membership.naming import Naming
    from membership.node_events import EventBook
    from membership.seams import Clock
    from membership.status import Status

SAVE_SECONDS = 2.0


class Kept(Protocol):
    """What the keeper needs of the node."""

    book: EventBook

    def status(self) -> Status:
        """The node's status."""
        ...

    def may_write(self) -> bool:
        """Whether this node is administrator and its lease holds (R3)."""
        ...


class DatabaseKeeper:
    """One per node.

    Args:
        areas: where it lies.
        clock: for the interval of saving and the time of images.
        node: whose events are kept.
        known: the naming as this node knows it without the database (K3).
    """

    def __init__(self, areas: Areas, clock: Clock, node: Kept, known: Callable[[], Naming]) -> None:
        self.database: MembershipDatabase | None = None
        self.newest: DatabaseImage | None = None  # as read or written last: what areas that fell behind get
        self._areas = areas
        self._clock = clock
        self._node = node
        self._known = known
        self._changing = trio.Lock()
        self._saved = 0  # events of the book that are in the database
        self._rows: dict[tuple[str, object], dict[str, object]] = {}  # as last written

    # -- reading -----------------------------------------------------------------------------------------------

    async def read_naming(self) -> Naming | None:
        """The naming of the newest image; None when there is no good one.  Raises DeviceError, CorruptRecord."""
        image = await self._areas.read_image()
        if image is None:
            return None
        database = MembershipDatabase.from_image_untrusted(image.content, "membership database")
        try:
            return database.naming()
        finally:
            database.close()

    async def open(self) -> MembershipDatabase:
        """The database, read anew (1722).

        Raises:
            DeviceError: no majority of the areas answers.
            CorruptRecord: it was written by a newer version: this node may not be administrator.
        """
        self.close()
        image = await self._areas.read_image()
        self.newest = image
        if image is not None:
            try:
                self.database = MembershipDatabase.from_image_untrusted(image.content, "membership database")
            except CorruptRecord as error:
                if error.check == "schema version":
                    raise
                self._node.book.log("alert", f"{error}: made anew, its history and fence configuration are lost")
        if self.database is None:
            self.database = MembershipDatabase()
            self.database.put_naming(self._known())
        return self.database

    def close(self) -> None:
        """Forget it: another node is administrator, or what was changed could not be stored (K2)."""
        self._rows.clear()
        if self.database is not None:
            self.database.close()
            self.database = None

    # -- writing -----------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def changing(self) -> AsyncIterator[MembershipDatabase]:
        """Change it inside; it is stored when the block ends without an error, else forgotten (K2).

        Raises:
            Fenced: this node is not administrator, or its lease has ended.
            DeviceError, OperatorError: it could not be stored; on a minority of the areas it may be.
        """
        async with self._changing:
            database = self.database or await self.open()
            try:
                yield database
                await self._store(database)
            except BaseException:
                self.close()
                raise

    async def _store(self, database: MembershipDatabase) -> None:
        if not self._node.may_write():
            raise Fenced("this node is not administrator any more")
        sequence = (self.newest.sequence if self.newest is not None else 0) + 1
        generation, now = self._node.status()["generation"], self._clock.wall_ns()
        image = DatabaseImage(sequence, generation, database.image(), now)
        await self._areas.write_image(image)
        self.newest = image

    async def run(self) -> None:
        """Keep what happens, until cancelled."""
        while True:
            await self._clock.sleep(SAVE_SECONDS)
            try:
                await self._round()
            except (DeviceError, OperatorError, Fenced, CorruptRecord) as error:
                self._node.book.log("alert", f"membership database not saved: {error}")

    async def _round(self) -> None:
        if not self._node.may_write():
            if self.database is not None and not self._changing.locked():
                self.close()
            return
        if self._is_news():
            async with self.changing() as database:
                self._update(database)

    def _is_news(self) -> bool:
        return self._node.book.total != self._saved or any(self._rows.get(key) != row for key, row in self._present())

    def _present(self) -> list[tuple[tuple[str, object], dict[str, object]]]:
        """Rows of nodes and filesystems as they are now, with what they are told apart by."""
        status = self._node.status()
        found: list[tuple[tuple[str, object], dict[str, object]]] = []
        for node in status["nodes"]:
            row: dict[str, object] = {
                "id": node["id"], "name": node["name"], "host": node["host"], "port": node["port"],
                "state": node["state"],
            }  # fmt: skip
            found.append((("node", node["id"]), row))
        for fs in status["filesystems"]:
            values: dict[str, object] = {
                "uuid": fs["uuid"], "name": fs["name"], "attempt": str(fs["attempt"]), "error": fs["error"],
            }  # fmt: skip
            found.append((("filesystem", fs["uuid"]), values))
        return found

    def _update(self, database: MembershipDatabase) -> None:
        """Bring the rows up to date."""
        book = self._node.book
        fresh = book.total - self._saved
        events = list(book.events)[-fresh:] if fresh else []
        name = self._node.status()["name"]
        database.add_events({**event, "node": name} for event in events)
        self._saved = book.total
        for key, row in self._present():
            if self._rows.get(key) != row:
                table = nodes if key[0] == "node" else filesystems
                database.put(table, {**row, "changed_ns": self._clock.wall_ns()})
                self._rows[key] = row
