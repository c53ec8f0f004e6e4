"""How often the store is asked, operation by operation: counts, so that a change that costs I/O is seen (costs.py)."""

from __future__ import annotations

import trio.testing

from tests.matrixfs.costs import measured


async def test_what_operations_ask_of_the_store(autojump_clock: trio.testing.MockClock) -> None:
    rows = await measured()
    for name, reads, writes, written_kib in (
        ("create", 0.01, 1.1, 8.5),  # an image in the journal, and the same in place
        ("lookup, cached", 0, 0, 0),
        ("getattr", 0, 0, 0),
        ("lookup, cold", 1, 0, 0),
        ("append 4 KiB and fsync", 0.1, 2.1, 16.5),  # the data, then one frame: head, inode, group
        ("overwrite 4 KiB and fsync", 0.1, 2.1, 12.5),
        ("append 4 KiB and fsync, data=journal", 0.1, 2.1, 20.5),  # one frame; its place later
        ("overwrite 4 KiB and fsync, data=journal", 0.1, 2.1, 16.5),
        ("append 4 KiB", 0.1, 0.1, 4.3),
        ("rename", 0.05, 1.1, 8.7),
        ("unlink", 0.05, 1.2, 10),
        ("write 1 MiB", 1.5, 9, 1100),
        ("read 1 MiB", 1.5, 0, 0),
    ):
        row = rows[name]
        assert row.reads <= reads, name
        assert row.writes <= writes, name
        assert row.written_bytes <= written_kib * 1024, name
        assert row.flushes < 0.1 or "journal" not in name, name
