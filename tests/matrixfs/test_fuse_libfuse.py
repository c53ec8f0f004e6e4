"""The C extension without a mount: safe to call at any time, and its absence is said in words."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from matrixfs.fuse import libfuse

REPOSITORY = Path(__file__).resolve().parents[2]
extension = libfuse._extension


def test_extension_is_built_and_in_front() -> None:
    assert libfuse.available(), libfuse.missing()
    assert extension.usable()


def test_nothing_else_is_in_front() -> None:
    """The extension is in the global scope: any other name of it would stand in front of other libraries' too."""
    told = subprocess.run(
        ["nm", "-D", "--defined-only", "--format=posix", extension.__file__], capture_output=True, text=True, check=True
    )
    assert {line.split()[0] for line in told.stdout.splitlines()} == {
        "PyInit__libfuse", "fuse_session_new", "fuse_session_receive_buf", "fuse_session_process_buf",
        "fuse_session_destroy",
    }  # fmt: skip


def test_without_a_session_everything_answers() -> None:
    assert libfuse.session_fd() == -1
    assert libfuse.inc_epoch() == errno.EBADF
    assert libfuse.expire_entry(1, b"name") == errno.EBADF
    assert libfuse.kernel_features().max_write == 0
    assert "session was made without" in libfuse.missing()


@pytest.mark.parametrize(
    "arguments", [(), (1,), ("1", b"x"), (1, "text"), (1, b"x", 2), (-1.5, b"x"), (None, None), (1, 5)]
)
def test_wrong_arguments_are_type_errors(arguments: tuple[object, ...]) -> None:
    with pytest.raises(TypeError):
        extension.notify_expire_entry(*arguments)


def test_buffers_are_given_back() -> None:
    name = bytearray(b"name")
    for _ in range(10):
        extension.notify_expire_entry(1, name)
        extension.notify_expire_entry(2**64 - 1, memoryview(bytes(300)))
        name += b"x"  # BufferError if still pinned
    assert len(name) == 14


def test_calls_leak_neither_references_nor_memory() -> None:
    name = bytes(range(1, 200))
    references = sys.getrefcount(name)
    tracemalloc.start()
    try:
        for measured in (False, True):
            before = tracemalloc.get_traced_memory()[0]
            for _ in range(2000):
                extension.notify_expire_entry(1, name)
                extension.kernel_features()
                extension.session_fd()
                extension.notify_inc_epoch()
                extension.usable()
            grown = tracemalloc.get_traced_memory()[0] - before
            assert not measured or grown < 2000  # bytes: less than one per round
    finally:
        tracemalloc.stop()
    assert sys.getrefcount(name) == references


@pytest.mark.parametrize(
    ("prelude", "says"),
    [
        ("import pyfuse3", "pyfuse3 was imported before"),
        ("import sys; sys.modules['matrixfs.fuse._libfuse'] = None", "the C extension is not built"),
    ],
)
def test_absence_is_said_in_words(prelude: str, says: str) -> None:
    program = f"{prelude}\nfrom matrixfs.fuse import libfuse as l\nprint(l.available(), l.inc_epoch(), l.missing())"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.startswith(f"False {errno.ENOSYS} ")
    assert says in done.stdout
