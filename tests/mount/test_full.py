"""A full filesystem on real mounts: what fits is written, and what one node frees another has at once (issue 5)."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest

from tests.mount.conftest import Tree, left_clean, new_lab

pytestmark = [pytest.mark.usefixtures("watched"), pytest.mark.seed("002-09")]

MIB = 1 << 20
LEFT = 3 * MIB  # for the tests
PIECE = os.urandom(8 * MIB)


@pytest.fixture(scope="module")
def full(base: tuple[Path, TextIO]) -> Iterator[Tree]:
    """Two nodes; a file of the first takes all but some."""
    with left_clean(new_lab(base, "full", nodes=2, size="96M")) as lab:
        lab.up()
        tree = Tree(lab, "")
        with (tree.a / "ballast").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, os.statvfs(tree.a).f_bavail * 4096 - LEFT)
        yield tree


def until_refused(fd: int) -> list[int]:
    """How much each write of ``PIECE`` took, until one says that there is no space."""
    taken = []
    while True:
        at = sum(taken)
        try:
            taken.append(os.write(fd, PIECE[at:]))
        except OSError as error:
            assert error.errno == errno.ENOSPC
            return taken
        assert taken[-1], "a write that takes nothing says why"


@pytest.mark.parametrize("flags", [0, os.O_APPEND, os.O_DSYNC], ids=["plain", "append", "sync"])
def test_a_write_takes_what_fits(full: Tree, flags: int) -> None:
    fd = os.open(full.a / "large", os.O_CREAT | os.O_TRUNC | os.O_WRONLY | flags)
    try:
        taken = until_refused(fd)
        os.fsync(fd)
    finally:
        os.close(fd)
    assert taken[0] > LEFT - MIB, "one write took nearly all"
    assert sum(taken) % 4096 == 0
    assert (full.b / "large").read_bytes() == PIECE[: sum(taken)]
    os.unlink(full.b / "large")
    (full.a / "after").write_bytes(PIECE[: LEFT - MIB])  # though the other node frees it, and in the background
    assert (full.b / "after").stat().st_size == LEFT - MIB
    (full.b / "after").unlink()


def test_a_direct_write_is_refused_whole(full: Tree) -> None:
    """Its pieces are under way together: a short one is EIO to the kernel."""
    fd = os.open(full.a / "large", os.O_CREAT | os.O_WRONLY | os.O_DIRECT)
    try:
        with pytest.raises(OSError) as refused:
            os.write(fd, PIECE)
        assert refused.value.errno == errno.ENOSPC
        assert os.write(fd, PIECE[: LEFT - MIB]) == LEFT - MIB
        with pytest.raises(OSError) as refused:
            os.write(fd, PIECE[:MIB])
        assert refused.value.errno == errno.ENOSPC
    finally:
        os.close(fd)
    assert (full.b / "large").read_bytes() == PIECE[: LEFT - MIB]
    (full.b / "large").unlink()


def test_what_was_there_can_be_written_over(full: Tree) -> None:
    fd = os.open(full.b / "large", os.O_CREAT | os.O_RDWR)
    try:
        size = sum(until_refused(fd))
        os.pwrite(fd, PIECE[-MIB:], 0)
        os.fsync(fd)
        assert os.pread(fd, MIB, 0) == PIECE[-MIB:]
        assert os.pread(fd, 4096, size - 4096) == PIECE[size - 4096 : size]
        with pytest.raises(OSError) as refused:
            os.pwrite(fd, PIECE[:MIB], size)
        assert refused.value.errno == errno.ENOSPC
        assert os.fstat(fd).st_size == size
    finally:
        os.close(fd)
    (full.a / "large").unlink()
