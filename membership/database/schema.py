"""Schema of the membership database (002-42, 002-44): what the cluster knows and remembers, each column explained.

Who is a member is the SAN header's word alone; the database says how things are called, what the operator wants, and
what happened.  ``settings`` has the version of the naming (naming.py), which the header puts into force.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Integer, MetaData, String, Table

SCHEMA_VERSION = 2  # kept in PRAGMA user_version; a greater one than ours is not read; 1 lacks the last five tables

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

settings = Table(
    "settings",
    metadata,
    # naming: version of the naming; committed: the version that all members are known to have taken over (1608);
    # areas, areas_before: uuids of the disks with membership areas, hex, comma-separated.
    Column("key", String, primary_key=True),
    Column("value", String, nullable=False),
)

disks = Table(
    "disks",
    metadata,
    # uuid of the label as 32 hex digits.
    Column("uuid", String, primary_key=True),
    # What people and the directory STATE/disk call it; unique.
    Column("name", String, nullable=False, unique=True),
    # Where the node that added it found it: the first place where others look.
    Column("path", String, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    # Filesystem on its data area; both empty when there is none.
    Column("fs_uuid", String, nullable=False),
    Column("fs_name", String, nullable=False),
    # What the probe proved, as in the label: kind, flags and leaks, in decimal with spaces.
    Column("traits", String, nullable=False),
)

roster = Table(
    "roster",
    metadata,
    # Node name: what the operator said of it.
    Column("name", String, primary_key=True),
    # expected (added, has not come yet), known, fenced (must stay out until unfenced), removed.
    Column("word", String, nullable=False),
    # Wall clock of the last change, ns since the epoch.
    Column("changed_ns", BigInteger, nullable=False),
)

fence_levels = Table(
    "fence_levels",
    metadata,
    # Node that is fenced by it.
    Column("node", String, primary_key=True),
    # Tried in this order, from 1.
    Column("level", Integer, primary_key=True, autoincrement=False),
    # Plain data of membership/fence/agent.py, as JSON; holds passwords: whoever reads the disk reads them.
    Column("devices", String, nullable=False),
)

tokens = Table(
    "tokens",
    metadata,
    # Token id as hex digits.
    Column("id", String, primary_key=True),
    # Plain data of membership/enrol/grants.py, as JSON; no secret that would show the token again.
    Column("grant", String, nullable=False),
)
