"""What fsck takes for filesystems of many files: reads by runs of neighbours, memory that hardly grows (issue 5)."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from matrixfs.fsck.area import AHEAD_MAX
from membership.label import BLOCK_BYTES
from tests.matrixfs.big_image import check, make

SEEN = re.compile(r"exit code 0, (\d+) inodes, .* (\d+) reads of \d+ MiB, (\d+) MiB resident at most\Z")


@pytest.fixture
def store() -> Iterator[Path]:
    """Where direct I/O works."""
    with tempfile.TemporaryDirectory(prefix="mfs-big-", dir="/var/tmp") as directory:
        yield Path(directory) / "store"


async def test_files_of_a_directory_are_read_together(store: Path) -> None:
    """Their names lie in leaves in the order of hashes, their inodes in that of making: a read of 64 blocks for 64."""
    make(store, 2400, 1200, 0, 0)
    outcome, device = await check(store)
    assert (outcome.exit_code, outcome.found.kept) == (0, [])
    assert (outcome.counts.files, outcome.counts.directories) == (2400, 3)
    assert device.reads < 200, "one for nearly every file, when each leaf was read for itself"


async def test_a_half_full_store_is_its_metadata(store: Path) -> None:
    """Data is not read."""
    make(store, 100, 100, 5000, 4 << 30)
    outcome, device = await check(store)
    assert outcome.exit_code == 0
    assert outcome.counts.blocks_used > outcome.blocks_total / 3
    assert device.bytes < 4 << 20


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_memory_of_fsck(store: Path) -> None:
    """Ten times as many files: two bits more for each block, and what is read ahead."""
    resident = []
    for files in (30_000, 300_000):
        make(store, files, 1000, 0, 0)
        command = [sys.executable, "-m", "tests.matrixfs.big_image", "check", str(store)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        seen = SEEN.match(done.stdout.strip())
        assert seen is not None, done.stdout
        inodes, reads, mebibytes = map(int, seen.groups())
        assert inodes == files + files // 1000 + 1
        assert reads < inodes / 20
        resident.append(mebibytes)
        store.unlink()
    ahead = AHEAD_MAX * BLOCK_BYTES >> 20
    assert resident[1] <= resident[0] + 2 * ahead, resident
