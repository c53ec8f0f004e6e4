"""What the exit of a killed process proves about its I/O, measured: why the process fence must ask ``is_held_by``.

A store whose writes hang is made of two loop devices and a frozen ext4 between them; it vanishes by itself.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
import trio

from matrixfs.blockstore import open_store
from matrixfs.blockstore.device.direct import DirectDevice
from tests.contract.stores import directory_with_sectors, loop_device, make_file

_FIFREEZE, _FITHAW = 0xC0045877, 0xC0045878
_CHILD = """
import sys, trio
from matrixfs.blockstore import open_store
async def main():
    device = open_store(sys.argv[1])
    await device.read(0, 512)
    print("open", flush=True)
    sys.stdin.readline()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(device.write, 4096, b"LATE" * 1024)
        while device.statistics()["in_flight"] == 0:
            await trio.lowlevel.checkpoint()
        print("submitted", flush=True)
trio.run(main)
"""


@contextlib.contextmanager
def child(path: str, engine: str) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "MATRIXFS_IO": engine}
    process = subprocess.Popen(
        [sys.executable, "-c", _CHILD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        assert process.stdout.readline() == "open\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


async def released(device: DirectDevice, pid: int) -> None:
    with trio.fail_after(30):
        while device.is_held_by(pid):  # noqa: ASYNC110 - the kernel tells nobody when it lets go
            await trio.sleep(0.001)


@pytest.mark.parametrize("engine", ["uring", "threads"])
@pytest.mark.seed("002-20")
async def test_late_write_is_seen_by_the_mark(engine: str, tmp_path) -> None:
    with directory_with_sectors(make_file(str(tmp_path / "outer"), 64 << 20), 512) as directory:
        with loop_device(make_file(f"{directory}/inner", 16 << 20), 512) as path, child(path, engine) as process:
            device = open_store(path)
            frozen = os.open(directory, os.O_RDONLY)
            fcntl.ioctl(frozen, _FIFREEZE, bytes(4))
            try:
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write("\n")
                process.stdin.flush()
                assert process.stdout.readline() == "submitted\n"
                exit_fd = os.pidfd_open(process.pid)
                process.send_signal(signal.SIGKILL)
                if engine == "uring":
                    assert select.select([exit_fd], [], [], 30)[0], "the exit is told while the write hangs"
                    assert device.is_held_by(process.pid), "but the mark stands"
                os.close(exit_fd)
            finally:
                fcntl.ioctl(frozen, _FITHAW, bytes(4))
                os.close(frozen)
            await released(device, process.pid)
            landed = await device.read(4096, 4096)
            # A thread may die before its system call; what io_uring has taken lands, but before the mark goes.
            assert landed == b"LATE" * 1024 or (engine == "threads" and not any(landed))
            await device.aclose()


async def test_mark_of_living_and_gone_processes(tmp_path) -> None:
    path = make_file(str(tmp_path / "store"), 16 << 20)
    device, other = open_store(path), open_store(path)
    assert device.is_held_by(os.getpid()), "the other descriptor is this process's too"
    await other.aclose()
    assert not device.is_held_by(os.getpid()), "its own mark doesn't count"
    assert device.find_holder() is None
    with child(path, "") as process:
        assert device.is_held_by(process.pid)
        assert not device.is_held_by(process.pid + 1)
        assert device.find_holder() == process.pid
        process.kill()
        process.wait()
        await released(device, process.pid)
    await device.aclose()
