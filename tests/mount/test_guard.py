"""What a killed run left is swept up by the next, and nothing else is."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from matrixfs.fuse import registry
from tests.mount import guard

SLEEP = "import sys, time; print(flush=True); time.sleep(1000)"


@pytest.fixture
def dead() -> int:
    """The number of a process that is no more."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


@pytest.fixture
def alive() -> Iterator[int]:
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process.pid
        process.kill()


def left_behind(path: Path) -> subprocess.Popen[str]:
    """A mount, and a process that names the directory."""
    (path / "mnt").mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "left", str(path / "mnt")], check=True)
    process = subprocess.Popen(["python3", "-c", SLEEP, str(path / "mnt")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_leavings_of_the_dead_are_swept(tmp_path: Path, dead: int, alive: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "RUNS", tmp_path)
    gone = [tmp_path / name for name in (f"mfs-tests-{dead}", f"mfs-tests-san-{dead}-tgt")]
    kept = [tmp_path / name for name in (f"mfs-tests-{alive}", "mfs-tests", f"other-{dead}", f"mfs-tests-{dead}x")]
    processes = [left_behind(path) for path in gone + kept]
    guard.sweep()
    mounts = {mount.path for mount in registry.mounts()}
    for path, process in zip(gone, processes, strict=False):
        assert process.wait() == -9
        assert not path.exists()
        assert str(path / "mnt") not in mounts
    for path, process in zip(kept, processes[len(gone) :], strict=True):
        assert process.poll() is None
        assert (path / "mnt").is_mount()
        guard.clean(str(path))
        assert process.wait() == -9
        assert not (path / "mnt").is_mount()
    for process in processes:
        assert process.stdout is not None
        process.stdout.close()


def test_a_run_is_not_taken_for_another_whose_number_goes_on(tmp_path: Path) -> None:
    short, long = tmp_path / "mfs-tests-12", tmp_path / "mfs-tests-123"
    processes = [left_behind(short), left_behind(long)]
    guard.clean(str(short))
    assert processes[0].wait() == -9
    assert processes[1].poll() is None
    assert (long / "mnt").is_mount()
    guard.clean(str(long))
    for process in processes:
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
