"""Keeps the membership database while this node is administrator (002-42, 002-44).

A new administrator loads the newest image, appends what its own book of events says, and writes the image when
something changed, at most every SAVE_SECONDS.  It holds no decision: an error is an event, nothing more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from membership.database.image import DatabaseImage
from membership.database.store import MembershipDatabase
from membership.errors import CorruptRecord, DeviceError, OperatorError

if TYPE_CHECKING:
    from membership.areas.quorum import Areas
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
    """One per node; idle while another node is administrator."""

    def __init__(self, areas: Areas, clock: Clock, node: Kept) -> None:
        self._areas = areas
        self._clock = clock
        self._node = node
        self._database: MembershipDatabase | None = None
        self._sequence = 0
        self._saved = 0  # events of the book that are in the database
        self._rows: dict[tuple[str, object], dict[str, object]] = {}  # as last written

    async def run(self) -> None:
        """Serve until cancelled."""
        while True:
            await self._clock.sleep(SAVE_SECONDS)
            try:
                await self._round()
            except (DeviceError, OperatorError) as error:
                self._node.book.log("alert", f"membership database not saved: {error}")

    async def _round(self) -> None:
        if not self._node.may_write():
            if self._database is not None:
                self._database.close()
                self._database = None
            return
        if self._database is None:
            self._database = await self._load()
        if self._update(self._database) and self._node.may_write():
            self._sequence += 1
            generation, now = self._node.status()["generation"], self._clock.wall_ns()
            await self._areas.write_image(DatabaseImage(self._sequence, generation, self._database.image(), now))

    async def _load(self) -> MembershipDatabase:
        self._rows.clear()
        found = await self._areas.read_image()
        if found is None:
            return MembershipDatabase()
        self._sequence = found.sequence
        try:
            return MembershipDatabase.from_image_untrusted(found.content, "membership database")
        except CorruptRecord as error:
            self._node.book.log("alert", f"{error}: starting an empty one")
            return MembershipDatabase()

    def _update(self, database: MembershipDatabase) -> bool:
        """Bring the rows up to date; True when anything changed."""
        status, book = self._node.status(), self._node.book
        fresh = book.total - self._saved
        events = list(book.events)[-fresh:] if fresh else []
        database.add_events({**event, "node": status["name"]} for event in events)
        self._saved = book.total
        changed = bool(events)
        for node in status["nodes"]:
            row: dict[str, object] = {
                "id": node["id"], "name": node["name"], "host": node["host"], "port": node["port"],
                "state": node["state"],
            }  # fmt: skip
            if self._is_news("node", node["id"], row):
                database.put_node({**row, "changed_ns": self._clock.wall_ns()})
                changed = True
        for fs in status["filesystems"]:
            values: dict[str, object] = {
                "uuid": fs["uuid"], "name": fs["name"], "attempt": str(fs["attempt"]), "error": fs["error"],
            }  # fmt: skip
            if self._is_news("filesystem", fs["uuid"], values):
                database.put_filesystem({**values, "changed_ns": self._clock.wall_ns()})
                changed = True
        return changed

    def _is_news(self, table: str, key: object, row: dict[str, object]) -> bool:
        news = self._rows.get((table, key)) != row
        self._rows[table, key] = row
        return news
