"""A cluster of three mounts, and a local ext4 beside it: what Linux does is the reference, not our opinion."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest

from tests.mount.conftest import lab, tree
from tests.mount.guard import guarded_run, watched_for

__all__ = ["base", "lab", "reference", "tree", "watched"]

IMAGE_BYTES = 1 << 30  # sparse
TEST_SECONDS = 110  # for a broken product; of one that is marked long, ten times that


@pytest.fixture(scope="session")
def base() -> Iterator[tuple[Path, TextIO]]:
    """This run's directory, and the guard's ear."""
    with guarded_run("posix") as found:
        yield found


@pytest.fixture
def watched(base: tuple[Path, TextIO], request: pytest.FixtureRequest) -> Iterator[None]:
    """Whoever hangs longer loses his cluster."""
    with watched_for(TEST_SECONDS * (10 if request.node.get_closest_marker("long") else 1), base[1]):
        yield


@pytest.fixture(scope="module")
def reference(base: tuple[Path, TextIO]) -> Iterator[Path]:
    """An empty ext4, loop-mounted: the same whatever the machine's own disks are."""
    image, top = base[0] / "ext4.img", base[0] / "ext4"
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    top.mkdir()
    subprocess.run(["mkfs.ext4", "-q", "-b", "4096", "-I", "256", "-m", "0", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(top)], check=True)
    try:
        yield top
    finally:
        subprocess.run(["umount", str(top)], check=True)
        image.unlink()
        top.rmdir()
