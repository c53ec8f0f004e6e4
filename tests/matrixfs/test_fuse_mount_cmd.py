"""The mount helpers: arguments, refusals, background (ecosystem.md 6; issue 2, bad input)."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from matrixfs.cli import mount_cmd, remount
from matrixfs.fuse import registry
from membership.processes import process_start

REPOSITORY = Path(__file__).resolve().parents[2]
STUB = """
import sys, types
from membership.errors import OperatorError
stub = types.ModuleType("matrixfs.node")
def run_mount(options, ready):
    print("mount process", options.source)
    {body}
stub.run_mount = run_mount
sys.modules["matrixfs.node"] = stub
from matrixfs.cli.mount_cmd import main
main()
"""


@pytest.mark.parametrize(
    ("arguments", "read_only", "kernel"),
    [
        (["web", "/tmp"], False, ("dev", "suid")),
        (["web", "/tmp", "-o", "rw,dev,suid"], False, ("dev", "suid")),
        (["web", "/tmp", "-n", "-v", "-s", "-t", "fuse.matrixfs", "-o", "ro,nosuid"], True, ("dev", "nosuid")),
        (["web", "/tmp", "-o", "_netdev,nofail,user,uhelper=hal,x-systemd.a=b,nodev,noexec"], False,
         ("nodev", "noexec", "suid")),
        (["-o", "ro", "web", "/tmp", "-o", "rw"], False, ("dev", "suid")),
        (["web", "/tmp", "-s", "-o", "strange"], False, ("dev", "suid")),
    ],
)  # fmt: skip
def test_arguments(arguments: list[str], read_only: bool, kernel: tuple[str, ...]) -> None:
    options, _flags = mount_cmd.parse(arguments)
    assert (options.source, options.mountpoint) == ("web", "/tmp")
    assert (options.read_only, options.kernel_options) == (read_only, kernel)


def test_localflocks_is_an_option() -> None:
    assert mount_cmd.parse(["web", "/tmp", "-o", "ro,localflocks"])[0].local_locks
    assert not mount_cmd.parse(["web", "/tmp"])[0].local_locks


def test_data_journal_is_an_option() -> None:
    assert mount_cmd.parse(["web", "/tmp", "-o", "data=journal"])[0].journal_data
    assert not mount_cmd.parse(["web", "/tmp", "-o", "data=journal,data=ordered"])[0].journal_data
    assert not mount_cmd.parse(["web", "/tmp"])[0].journal_data


def test_discard_is_an_option() -> None:
    assert mount_cmd.parse(["web", "/tmp", "-o", "nodiscard,discard"])[0].discard
    assert not mount_cmd.parse(["web", "/tmp", "-o", "discard,nodiscard"])[0].discard


def test_state_directory_names_the_log() -> None:
    options, _flags = mount_cmd.parse(["web", "/tmp", "-o", "state=/srv/n1"])
    assert (options.state_dir, options.log_path) == ("/srv/n1", "/srv/n1/mount-web.log")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "usage"),
        (["web"], "usage"),
        (["web", "/tmp", "more"], "usage"),
        (["web", "/tmp", "-x"], "usage"),
        (["", "/tmp"], "name"),
        (["a/b", "/tmp"], "name"),
        (["x" * 65, "/tmp"], "name"),
        (["a\x1bb", "/tmp"], "name"),
        (["web", "/tmp", "-o", "data=writeback"], "choose data=ordered"),
        (["web", "/tmp", "-o", "strange"], "unknown mount option 'strange'"),
    ],
)
def test_wrong_arguments_are_refused_with_1(arguments: list[str], says: str) -> None:
    with pytest.raises(mount_cmd.Refused, match=says) as caught:
        mount_cmd.parse(arguments)
    assert caught.value.code == 1


def test_remount_takes_the_options_that_hold_already() -> None:
    told = "ro,relatime,remount,user_id=0,group_id=0,max_read=1048576"
    options, flags = mount_cmd.parse(["web", "/tmp", "-o", told])
    assert (options.read_only, flags[mount_cmd.REMOUNT]) == (True, told)


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        ("remount", 0), ("remount,ro", 1), ("ro,relatime,remount,rw", 0), ("rw,noexec,remount,nosuid,nodev", 2 | 4 | 8),
        ("nosuid,nodev,noexec,sync,remount,suid,dev,exec,async", 0), ("ro,nosuid,remount,defaults", 0),
        ("sync,dirsync,remount", 16 | 128),
    ],
)  # fmt: skip
def test_the_last_word_counts(options: str, flags: int) -> None:
    assert remount.flags_of(options.split(",")) == flags


@pytest.mark.parametrize(
    ("mounted", "wanted", "says"),
    [
        ("rw", "remount,ro", ""), ("rw", "ro,remount,rw", ""), ("ro", "ro,remount,rw", "read-only"),
        ("ro", "ro,remount,noexec", ""), ("rw", "remount,noatime", "access times"),
        ("rw", "noatime,remount,relatime", ""),
        ("noatime", "noatime,remount,relatime", "noatime"), ("noatime", "noatime,remount,ro", ""),
        ("rw", "remount,localflocks", "localflocks"), ("localflocks", "remount,localflocks", ""),
        ("rw", "remount,discard", "without discard"), ("discard", "remount,discard", ""),
        ("discard", "remount,nodiscard", "with discard"), ("rw", "remount,data=journal", "data=ordered"),
        ("data=journal", "remount,data=journal,ro", ""), ("data=journal", "remount,data=ordered", "data=journal"),
    ],
)  # fmt: skip
def test_what_the_mount_process_goes_by_stays(mounted: str, wanted: str, says: str) -> None:
    """R1, R2."""
    serving, _flags = mount_cmd.parse(["web", "/tmp", "-o", mounted])
    reason = remount.problem(wanted.split(","), serving)
    assert says in reason if says else not reason


def run(tmp_path: Path, *arguments: str, body: str = "ready(None)") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", STUB.format(body=body), *arguments, "-o", f"state={tmp_path}"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("directory", "says"),
    [("missing", "no such directory"), ("file", "not a directory"), ("/proc", "busy: proc")],
)
def test_unusable_mount_points_are_32(tmp_path: Path, directory: str, says: str) -> None:
    (tmp_path / "file").touch()
    done = run(tmp_path, "web", str(tmp_path / directory))
    assert done.returncode == 32
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


def test_no_matrixd_here(tmp_path: Path) -> None:
    done = run(tmp_path / "nowhere", "web", str(tmp_path))
    assert done.returncode == 32
    assert "matrixd is not running here" in done.stderr


def test_no_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options, _flags = mount_cmd.parse(["web", str(tmp_path), "-o", f"state={tmp_path}"])
    lexists = os.path.lexists
    monkeypatch.setattr(os.path, "lexists", lambda path: path != "/dev/fuse" and lexists(path))
    with pytest.raises(mount_cmd.Refused, match="no /dev/fuse") as caught:
        mount_cmd.check(options)
    assert caught.value.code == 2


def test_not_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options, _flags = mount_cmd.parse(["web", str(tmp_path)])
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(mount_cmd.Refused, match="only root") as caught:
        mount_cmd.check(options)
    assert caught.value.code == 1


def test_fake_mount_checks_and_starts_nothing(tmp_path: Path) -> None:
    done = run(tmp_path, "-f", "-v", "web", str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert not list(tmp_path.glob("mount-*.log"))


def test_returns_when_the_tree_is_live_and_stays_in_the_background(tmp_path: Path) -> None:
    """The process outlives the helper, holds none of its descriptors, and logs."""
    release = tmp_path / "release"
    body = f"""
    import os, time
    ready(None)
    while not os.path.exists({str(release)!r}):
        time.sleep(0.01)
    open({str(tmp_path / "ended")!r}, "w").write(os.getcwd())
    """
    done = run(tmp_path, "web", str(tmp_path), body=body)  # capture_output would wait for a process that holds the pipe
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not (tmp_path / "ended").exists()
    release.touch()
    while not (tmp_path / "ended").exists() or not (tmp_path / "ended").read_text():
        time.sleep(0.01)
    assert (tmp_path / "ended").read_text() == "/"
    assert "mount process web" in (tmp_path / "mount-web.log").read_text()


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ('ready("no such filesystem")', "no such filesystem"),
        ('raise OperatorError("web is already mounted on this node")', "web is already mounted on this node"),
        ('raise ExceptionGroup("nursery", [OperatorError("wrapped")])', "wrapped"),
        ('raise KeyError("our bug")', "the mount process failed: see"),
        ("pass", "ended before the tree was mounted"),
        ("import os; os._exit(9)", "the mount process died: see"),
    ],
)
def test_a_failed_mount_is_one_line_and_32(tmp_path: Path, body: str, says: str) -> None:
    done = run(tmp_path, "web", str(tmp_path), body=body)
    assert done.returncode == 32
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


def test_registry_round_trip_and_nonsense(tmp_path: Path) -> None:
    pid = os.getpid()
    server = registry.Server(pid, process_start(pid) or 0, "/mnt", "web")
    directory = str(tmp_path / "r")
    assert registry.read("0:5", directory=directory) is None
    registry.write("0:5", server, directory=directory)
    assert registry.read("0:5", directory=directory) == server
    assert registry.read_of("0:5", pid, directory=directory) == server
    negative = b'{"pid":-1,"start_ticks":1,"mountpoint":"","source":""}'
    for nonsense in (b"", b"[]", b"{}", b'{"pid": "x"}', b"\xff", negative):
        (tmp_path / "r" / f"0_5.{pid}.json").write_bytes(nonsense)
        assert registry.read("0:5", directory=directory) is None
        assert registry.read_of("0:5", pid, directory=directory) is None
    registry.remove("0:5", pid, directory=directory)
    registry.remove("0:5", pid, directory=directory)
    assert registry.read_of("0:5", pid, directory=directory) is None


def test_registry_of_a_device_number_given_out_again(tmp_path: Path) -> None:
    """The kernel does that at the unmount, while the first process still flushes: neither may lose its record."""
    directory = str(tmp_path)
    first, second = registry.Server(77, 1, "/mnt", "web"), registry.Server(66, 2, "/other", "mail")
    registry.write("0:5", first, directory=directory)
    os.utime(tmp_path / "0_5.77.json", ns=(0, 0))  # as if long ago
    registry.write("0:5", second, directory=directory)
    registry.write("0:50", registry.Server(55, 3, "/third", "db"), directory=directory)
    assert registry.read("0:5", directory=directory) == second
    failed = registry.Server(77, 1, "/mnt", "web", "no space")
    registry.write("0:5", failed, directory=directory)  # newer now, but not who serves
    assert registry.read("0:5", directory=directory) == second
    assert registry.read_of("0:5", 77, directory=directory) == failed
    registry.remove("0:5", 77, directory=directory)
    assert registry.read("0:5", directory=directory) == second
    registry.remove("0:5", 66, directory=directory)
    assert registry.read("0:5", directory=directory) is None


def test_mountinfo_is_read_without_touching_mounts() -> None:
    proc = registry.mount_at("/proc")
    assert proc is not None
    assert proc.fs_type == "proc"
    assert registry.mount_at("/no/such/place") is None


def test_start_ticks_tell_processes_apart() -> None:
    assert process_start(os.getpid())
    assert process_start(2**22 + 1) is None
