"""Hazards of coherence.md: pages that the kernel uses without asking, also under contention; more waiters than tasks.

docs/testing.md lists which test stands for which line of coherence.md.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.conftest import Tree
from tests.mount.crowd import Crowd
from tests.mount.lab import wait_until

pytestmark = pytest.mark.seed("002-08", "002-09")

PAGE = 4096
PAGES = 4
ROUNDS = 60
WAITERS = 120  # more than pyfuse3's 99 tasks for requests


def page(number: int) -> bytes:
    return b"%08d" % number * (PAGE // 8)


def sent(source: int) -> bytes:
    """The first page by way of splice(2), which doesn't ask for attributes."""
    target = os.memfd_create("copy")
    try:
        return os.pread(target, os.sendfile(target, source, 0, PAGE), 0)
    finally:
        os.close(target)


@contextlib.contextmanager
def held_open(tree: Tree) -> Iterator[tuple[int, mmap.mmap, int]]:
    """Of one file of pages: a descriptor and a mapping on B, a descriptor on A."""
    (tree.a / "f").write_bytes(page(0) * PAGES)
    writer = os.open(tree.a / "f", os.O_WRONLY)
    reader = os.open(tree.b / "f", os.O_RDWR)
    try:
        with mmap.mmap(reader, PAGE * PAGES, prot=mmap.PROT_READ) as mapped:
            yield reader, mapped, writer
    finally:
        os.close(reader)
        os.close(writer)


def test_a_held_mapping_and_sendfile_are_fresh_at_once_where_nothing_local_is_pending(tree: Tree) -> None:
    """coherence.md 2: the acknowledgement waits for the pages to be dropped."""
    with held_open(tree) as (reader, mapped, writer):
        for i in range(1, ROUNDS + 1):
            assert mapped[:PAGE] == sent(reader) == page(i - 1)
            os.pwrite(writer, page(i), 0)
            assert (mapped[:PAGE], sent(reader)) == (page(i), page(i))


def test_a_held_mapping_and_sendfile_are_fresh_in_the_end_under_contention(tree: Tree) -> None:
    """K5: local writes to the file may let them see old pages for a while, not for good."""
    enough = threading.Event()

    def rewrite(descriptor: int) -> None:
        while not enough.is_set():
            os.pwrite(descriptor, page(9), PAGE)

    with held_open(tree) as (reader, mapped, writer):
        local = threading.Thread(target=rewrite, args=(reader,))
        local.start()
        try:
            for i in range(1, 11):
                os.pwrite(writer, page(i), 0)
                wait_until(lambda i=i: mapped[:PAGE] == page(i), "the mapping shows what another node wrote")
                wait_until(lambda i=i: sent(reader) == page(i), "sendfile shows what another node wrote")
                assert os.pread(reader, PAGE, 0) == page(i)
        finally:
            enough.set()
            local.join()


def in_fuse(pid: int) -> bool:
    """Whether a process waits for the answer to a request."""
    with contextlib.suppress(OSError):
        return "fuse" in Path(f"/proc/{pid}/stack").read_text()
    return False


def lock_and_go(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR)
    fcntl.lockf(descriptor, fcntl.LOCK_EX)


def test_blocked_lock_waiters_leave_room_for_the_call_that_frees_them(tree: Tree) -> None:
    """coherence.md 11: on one mount more processes wait than it handles requests at a time; the holder is on it too."""
    (tree.b / "f").touch()
    holder = os.open(tree.b / "f", os.O_RDWR)
    fcntl.lockf(holder, fcntl.LOCK_EX)
    crowd = Crowd()
    try:
        pids = [crowd.start(lock_and_go, tree.b / "f") for _ in range(WAITERS)]
        wait_until(lambda: all(map(in_fuse, pids)), "all wait for the lock")
        (tree.b / "g").write_bytes(b"room")
        assert (tree.b / "g").read_bytes() == b"room"
    finally:
        os.close(holder)
    crowd.wait()
