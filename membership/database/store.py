"""The membership database in memory: SQLite through SQLAlchemy, serialised to an image for the shared disk."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Self

from sqlalchemy import create_engine, delete, func, insert, select
from sqlalchemy.dialects.sqlite import insert as upsert
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import StaticPool

from membership.database.schema import SCHEMA_VERSION, events, filesystems, metadata, nodes
from membership.errors import CorruptRecord

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

EVENTS_KEPT = 1500  # of at most some 200 bytes each: the image stays well below its 1 MiB slot
TEXT_MAX = 240
SQLITE_MAGIC = b"SQLite format 3\0"


class MembershipDatabase:
    """One copy of the database.  Calls don't block: everything is in memory."""

    def __init__(self, image: bytes | None = None) -> None:
        self._raw = sqlite3.connect(":memory:", check_same_thread=False)
        if image is not None:
            self._raw.deserialize(image)
        self._engine = create_engine("sqlite://", creator=lambda: self._raw, poolclass=StaticPool)
        if image is None:
            metadata.create_all(self._engine)
            self._raw.execute(f"PRAGMA user_version = {SCHEMA_VERSION:d}")

    @classmethod
    def from_image_untrusted(cls, image: bytes, where: str) -> Self:
        """Open an image from the disk.  Raises CorruptRecord, nothing else (R11)."""
        if not image.startswith(SQLITE_MAGIC):
            raise CorruptRecord(where, "magic", SQLITE_MAGIC, image[: len(SQLITE_MAGIC)])
        database: Self | None = None
        try:
            database = cls(image)
            found = database._raw.execute("PRAGMA user_version").fetchone()[0]
            if found != SCHEMA_VERSION:
                raise CorruptRecord(where, "schema version", SCHEMA_VERSION, found)
            check = database._raw.execute("PRAGMA integrity_check").fetchone()[0]
            if check != "ok":
                raise CorruptRecord(where, "integrity", "ok", str(check)[:80])
            database.events(1)
            database.rows()
        except CorruptRecord:
            _close(database)
            raise
        except (sqlite3.Error, SQLAlchemyError, ValueError, TypeError, OverflowError, MemoryError) as error:
            _close(database)
            raise CorruptRecord(where, "database", "a membership database", type(error).__name__) from None
        return database

    def image(self) -> bytes:
        """The whole database as bytes."""
        return self._raw.serialize()

    def close(self) -> None:
        """Let go of the memory."""
        self._engine.dispose()
        self._raw.close()

    def put_node(self, row: Mapping[str, object]) -> None:
        """Insert or replace a row of ``nodes``."""
        with self._engine.begin() as connection:
            values = dict(row)
            connection.execute(upsert(nodes).values(values).on_conflict_do_update(index_elements=["id"], set_=values))

    def put_filesystem(self, row: Mapping[str, object]) -> None:
        """Insert or replace a row of ``filesystems``."""
        with self._engine.begin() as connection:
            values = dict(row)
            connection.execute(
                upsert(filesystems).values(values).on_conflict_do_update(index_elements=["uuid"], set_=values)
            )

    def add_events(self, rows: Iterable[Mapping[str, object]]) -> None:
        """Append to the event log; the oldest make room."""
        values = [{**row, "text": str(row["text"])[:TEXT_MAX]} for row in rows]
        if not values:
            return
        with self._engine.begin() as connection:
            connection.execute(insert(events), values)
            newest = connection.execute(select(func.max(events.c.id))).scalar_one()
            connection.execute(delete(events).where(events.c.id <= newest - EVENTS_KEPT))

    def events(self, count: int) -> list[dict[str, object]]:
        """The newest events, newest last."""
        with self._engine.connect() as connection:
            rows = connection.execute(select(events).order_by(events.c.id.desc()).limit(count)).mappings().all()
        return [dict(row) for row in reversed(rows)]

    def rows(self) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
        """(nodes, filesystems)."""
        with self._engine.connect() as connection:
            first = connection.execute(select(nodes).order_by(nodes.c.id)).mappings().all()
            second = connection.execute(select(filesystems).order_by(filesystems.c.uuid)).mappings().all()
        return [dict(row) for row in first], [dict(row) for row in second]


def _close(database: MembershipDatabase | None) -> None:
    if database is not None:
        database.close()
