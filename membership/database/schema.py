"""Schema of the membership database (002-42, 002-44): what the cluster knows and remembers, each column explained.

Thin: nodes, filesystems and the event log.  It decides nothing yet; who is a member is the SAN header's word alone.
So a lost or damaged image costs history, never safety.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Integer, MetaData, String, Table

SCHEMA_VERSION = 1  # kept in PRAGMA user_version; a greater one than ours is not read

metadata = MetaData()

nodes = Table(
    "nodes",
    metadata,
    # Slot in the membership area, 0 to 63: the node's identity on the wire.
    Column("id", Integer, primary_key=True, autoincrement=False),
    # Name given by --name; unique among slots in use.
    Column("name", String, nullable=False),
    # Where it listened last.  For people: the slot is the truth.
    Column("host", String, nullable=False),
    Column("port", Integer, nullable=False),
    # As in matrixctl status: member, joining, alive, dead, fencing, left.
    Column("state", String, nullable=False),
    # Wall clock of the last change of this row, ns since the epoch.
    Column("changed_ns", BigInteger, nullable=False),
)

filesystems = Table(
    "filesystems",
    metadata,
    # uuid of the superblock as 32 hex digits.
    Column("uuid", String, primary_key=True),
    # Name given at mkfs.
    Column("name", String, nullable=False),
    # Last recovery attempt the administrator began, as text: SQLite integers are signed.
    Column("attempt", String, nullable=False),
    # Empty, or why it is isolated (002-30); fsck.matrixfs and a mount clear it.
    Column("error", String, nullable=False),
    # Wall clock of the last change of this row, ns since the epoch.
    Column("changed_ns", BigInteger, nullable=False),
)

events = Table(
    "events",
    metadata,
    # Grows; old rows are deleted so that the image fits its slot.
    Column("id", Integer, primary_key=True),
    # Wall clock of the administrator that wrote it, ns since the epoch.
    Column("wall_ns", BigInteger, nullable=False),
    # Name of that node.
    Column("node", String, nullable=False),
    # generation, election, fenced, recovery, mount, alert, role.
    Column("kind", String, nullable=False),
    # One line for people; recoveries carry their phase times.
    Column("text", String, nullable=False),
)
