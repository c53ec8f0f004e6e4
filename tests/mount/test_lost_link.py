"""The link between living mounts is cut for good, packets vanish, their matrixds hear each other: one of them goes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TextIO

import pytest

pytestmark = pytest.mark.seed("002-10", "002-28", "003-33")


def test_one_mount_goes_and_the_larger_part_goes_on(base: tuple[Path, TextIO], watched: None) -> None:
    """One link of three; all links of one mount (ALL) end the same way, and take another 20 s of the suite."""
    directory = base[0] / "lost-link"
    command = ["unshare", "--net", sys.executable, "-m", "tests.mount.lost_link", str(directory), "PAIR"]
    top = Path(__file__).parents[2]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=top, timeout=58)
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)
