"""The membership database in memory: SQLite through SQLAlchemy, serialised to an image for the shared disk."""

from __future__ import annotations

import json
import sqlite3
from typing import TYPE_CHECKING, Self

from sqlalchemy import create_engine, delete, func, insert, select
from sqlalchemy.dialects.sqlite import insert as upsert
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import StaticPool

from membership.database.schema import (
    SCHEMA_VERSION,
    disks,
    events,
    fence_levels,
    filesystems,
    metadata,
    nodes,
    roster,
    settings,
    tokens,
)
from membership.enrol.grants import Grant, grant_of_json_untrusted, grant_to_json
from membership.errors import BadMessage, CorruptRecord
from membership.naming import Disk, Naming

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sqlalchemy import Table

EVENTS_KEPT = 1500  # of at most some 200 bytes each: the image stays well below its 1 MiB slot
TEXT_MAX = 240
SQLITE_MAGIC = b"SQLite format 3\0"
_JSON = frozenset({"devices", "grant"})  # columns


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
            if found > SCHEMA_VERSION:
                raise CorruptRecord(where, "schema version", f"at most {SCHEMA_VERSION} (upgrade this node)", found)
            check = database._raw.execute("PRAGMA integrity_check").fetchone()[0]
            if check != "ok":
                raise CorruptRecord(where, "integrity", "ok", str(check)[:80])
            metadata.create_all(database._engine)  # the tables that an older version lacks
            database._raw.execute(f"PRAGMA user_version = {SCHEMA_VERSION:d}")
            database.events(1)
            database.rows()
            database.naming()
            database.roster()
            database.documents(fence_levels)
        except CorruptRecord:
            _close(database)
            raise
        except (
            sqlite3.Error, SQLAlchemyError, ValueError, TypeError, OverflowError, MemoryError, RecursionError, KeyError,
            BadMessage,
        ) as error:
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

    # -- the naming --------------------------------------------------------------------------------------------

    def naming(self) -> Naming:
        """As it is in this image."""
        with self._engine.connect() as connection:
            rows = connection.execute(select(disks).order_by(disks.c.name)).mappings().all()
            words = {row.key: row.value for row in connection.execute(select(settings))}
        found = tuple(
            Disk(
                bytes.fromhex(row["uuid"]),
                row["name"],
                row["path"],
                int(row["size_bytes"]),
                bytes.fromhex(row["fs_uuid"]),
                row["fs_name"],
                _three(row["traits"]),
            )
            for row in rows
        )
        areas, before = (_uuids(words.get(key, "")) for key in ("areas", "areas_before"))
        keys = tuple((g.token_id, g.key) for g in self.grants())
        return Naming(int(words.get("naming", "0")), found, areas, before, keys)

    def put_naming(self, naming: Naming) -> None:
        """Replace it."""
        rows = [
            {
                "uuid": disk.uuid.hex(),
                "name": disk.name,
                "path": disk.path,
                "size_bytes": disk.size_bytes,
                "fs_uuid": disk.fs_uuid.hex(),
                "fs_name": disk.fs_name,
                "traits": " ".join(map(str, disk.traits)),
            }
            for disk in naming.disks
        ]
        words = {"naming": str(naming.version)}
        words |= {key: ",".join(uuid.hex() for uuid in getattr(naming, key)) for key in ("areas", "areas_before")}
        with self._engine.begin() as connection:
            connection.execute(delete(disks))
            if rows:
                connection.execute(insert(disks), rows)
        for key, value in words.items():
            self.put(settings, {"key": key, "value": value})

    @property
    def committed(self) -> int:
        """The version of the naming that all members are known to have taken over (1608)."""
        with self._engine.connect() as connection:
            found = connection.execute(select(settings.c.value).where(settings.c.key == "committed")).scalar()
        return int(found or "0")

    def put_committed(self, version: int) -> None:
        """1608."""
        self.put(settings, {"key": "committed", "value": str(version)})

    # -- what the operator said --------------------------------------------------------------------------------

    def roster(self) -> dict[str, str]:
        """The operator's word about each node, by name."""
        with self._engine.connect() as connection:
            return {row.name: row.word for row in connection.execute(select(roster))}

    def grants(self) -> list[Grant]:
        """All join tokens.  Raises BadMessage."""
        return [grant_of_json_untrusted(row["grant"]) for row in self.documents(tokens)]

    def put_grant(self, grant: Grant) -> None:
        """Keep a join token, or what became of it."""
        self.put(tokens, {"id": grant.token_id.hex(), "grant": grant_to_json(grant)})

    def documents(self, table: Table) -> list[dict[str, object]]:
        """All rows of ``fence_levels`` or ``tokens``, with their JSON decoded."""
        with self._engine.connect() as connection:
            rows = connection.execute(select(table)).mappings().all()
        return [{key: _plain(value) if key in _JSON else value for key, value in row.items()} for row in rows]

    def put(self, table: Table, row: Mapping[str, object]) -> None:
        """Insert or replace a row of any table, by its primary key; what is not plain becomes JSON."""
        values = {key: json.dumps(value) if key in _JSON else value for key, value in row.items()}
        keys = [column.name for column in table.primary_key]
        with self._engine.begin() as connection:
            statement = upsert(table).values(values)
            connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=values))

    def remove(self, table: Table, **key: object) -> None:
        """Delete the rows that have these values."""
        statement = delete(table)
        for name, value in key.items():
            statement = statement.where(table.c[name] == value)
        with self._engine.begin() as connection:
            connection.execute(statement)

    def rows(self) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
        """(nodes, filesystems)."""
        with self._engine.connect() as connection:
            first = connection.execute(select(nodes).order_by(nodes.c.id)).mappings().all()
            second = connection.execute(select(filesystems).order_by(filesystems.c.uuid)).mappings().all()
        return [dict(row) for row in first], [dict(row) for row in second]


def _uuids(text: str) -> tuple[bytes, ...]:
    return tuple(bytes.fromhex(part) for part in text.split(",") if part)


def _three(text: str) -> tuple[int, int, int]:
    kind, flags, leaks = map(int, text.split(" "))
    return kind, flags, leaks


def _plain(value: object) -> object:
    return json.loads(str(value))


def _close(database: MembershipDatabase | None) -> None:
    if database is not None:
        database.close()
