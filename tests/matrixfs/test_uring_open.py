"""Opening a store: what is refused, in which words, and how sectors and sizes are found (R13; issue 2, bad input)."""

from __future__ import annotations

import errno
import os

import pytest

from matrixfs.blockstore.device.store import STORE_BYTES_MIN, open_store
from membership.errors import DeviceError, OperatorError
from tests.contract.stores import loop_device, make_file

SIZE = 32 << 20


@pytest.fixture
def store(tmp_path) -> str:
    return make_file(str(tmp_path / "store"), SIZE)


def refusal(path: str) -> str:
    with pytest.raises(OperatorError) as caught:
        open_store(path)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_refusals_are_one_clear_line(tmp_path, store: str) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    assert "does not exist" in refusal(str(tmp_path / "nothing"))
    assert "does not exist" in refusal(f"{store}/below")
    assert "a directory" in refusal(str(tmp_path))
    assert "neither a block device nor a file" in refusal("/dev/null")
    os.mkfifo(tmp_path / "fifo")
    assert "neither" in refusal(str(tmp_path / "fifo"))
    assert "too small" in refusal(make_file(str(tmp_path / "empty"), 0))
    assert "too small" in refusal(make_file(str(tmp_path / "small"), STORE_BYTES_MIN - 1))
    assert "no path" in refusal("a\0b")
    os.symlink("loop", tmp_path / "loop")
    assert "symbolic links" in refusal(str(tmp_path / "loop"))
    assert len(os.listdir("/proc/self/fd")) == descriptors


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.EACCES, "no permission"),
        (errno.EPERM, "no permission"),
        (errno.EROFS, "read-only"),
        (errno.EINVAL, "no direct I/O"),
        (errno.ENXIO, "no device behind it"),
        (errno.EBUSY, "in use"),
        (errno.EIO, "can't be opened: Input/output error"),
    ],
)
def test_refused_by_the_kernel(store: str, code: int, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "open", refuse)
    assert words in refusal(store)


def test_filesystem_that_only_pretends_direct_io(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("matrixfs.blockstore.device.file._announced_alignment", lambda fd: 0)
    descriptors = len(os.listdir("/proc/self/fd"))
    assert "does no direct I/O" in refusal(store)
    assert len(os.listdir("/proc/self/fd")) == descriptors


@pytest.mark.parametrize("announced", [None, 1, 512, 4096])
def test_sector_size_of_files(store: str, announced: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("matrixfs.blockstore.device.file._announced_alignment", lambda fd: announced)
    device = open_store(store)
    assert device.sector_bytes == (4096 if announced == 4096 else 512)
    device.close_unused()


def test_ragged_end_is_left_out(tmp_path) -> None:
    device = open_store(make_file(str(tmp_path / "ragged"), STORE_BYTES_MIN + 777))
    assert device.size_bytes == STORE_BYTES_MIN + 512
    device.close_unused()


@pytest.mark.seed("002-01")
async def test_block_device_is_shared_and_read_only_works(tmp_path) -> None:
    with loop_device(make_file(str(tmp_path / "backing"), SIZE), 512) as path:
        one, two, reader = open_store(path), open_store(path), open_store(path, read_only=True)
        await one.write(0, b"1" * 512)
        assert await two.read(0, 512) == await reader.read(0, 512) == b"1" * 512
        with pytest.raises(DeviceError) as caught:
            await reader.write(0, bytes(512))
        assert caught.value.errno == errno.EBADF
        for device in (one, two, reader):
            await device.aclose()
