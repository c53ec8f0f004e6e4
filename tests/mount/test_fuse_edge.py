"""The FUSE layer through a real mount of a tree in memory (coherence.md; tests count calls, they don't time)."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from matrixfs.cli import umount_cmd
from matrixfs.fuse import connection, registry
from membership.processes import process_start
from tests.mount.by_handle import handle_of, open_handle
from tests.mount.edge_tree import ANSWER_SECONDS, REPOSITORY, ROOT, SERVER, Tree, in_thread


@pytest.fixture
def tree(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Tree]:
    mounted = Tree(tmp_path, getattr(request, "param", "epoch"))
    try:
        yield mounted
    finally:
        mounted.close()


@pytest.mark.seed("002-13")
def test_extension_raises_sizes_and_sets_capabilities(tree: Tree) -> None:
    (tree.path / "big").write_bytes(os.urandom(4 << 20))
    descriptor = os.open(tree.path / "big", os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.read(descriptor, 4 << 20)
    os.close(descriptor)
    counters = tree.ask("counters")
    assert counters["sizes"] == {"read": 1 << 20, "write": 1 << 20}
    wanted = set(counters["capabilities"])
    assert {"auto_inval_data", "parallel_dirops", "atomic_o_trunc", "readdirplus", "cache_symlinks"} <= wanted
    assert "handle_killpriv_v2" in wanted
    assert not {"writeback_cache", "handle_killpriv"} & wanted
    assert os.statvfs(tree.path).f_namemax == 255


def test_one_of_everything(tree: Tree) -> None:
    (tree.path / "d").mkdir(mode=0o750)
    (tree.path / "d" / "f").write_text("hello")
    os.symlink("d/f", tree.path / "s")
    os.link(tree.path / "d" / "f", tree.path / "hard")
    os.mkfifo(tree.path / "fifo", 0o640)
    os.utime(tree.path / "hard", ns=(1, 2))
    os.chmod(tree.path / "hard", 0o4600)
    os.chown(tree.path / "s", 5, 6, follow_symlinks=False)
    found = os.stat(tree.path / "d" / "f")
    assert (found.st_atime_ns, found.st_mtime_ns, found.st_mode & 0o7777, found.st_nlink) == (1, 2, 0o4600, 2)
    assert (tree.path / "s").read_text() == "hello"
    assert os.lstat(tree.path / "s").st_uid == 5
    os.rename(tree.path / "d" / "f", tree.path / "g")
    assert sorted(os.listdir(tree.path)) == ["d", "fifo", "g", "hard", "s"]
    assert os.listdir(tree.path / "d") == []
    (tree.path / "g").unlink()
    (tree.path / "d").rmdir()
    assert os.stat(tree.path / "hard").st_nlink == 1
    with (tree.path / "hard").open("r+") as file:
        file.truncate(2)
        os.fsync(file.fileno())
    assert (tree.path / "hard").read_text() == "he"
    assert tree.ask("counters")["failures"] == 0
    assert tree.ask("counters")["open_handles"] == 0


def test_who_asked_last_is_known(tree: Tree) -> None:
    """By threads: what one of them has taken in tells nothing of another (kernel_caches K2)."""
    me = threading.get_native_id()
    before = tree.ask("requests")
    assert not tree.ask("asked_since", pid=me, requests=before)
    thread = threading.Thread(target=lambda: os.path.exists(tree.path / "nothing"))
    thread.start()
    other = thread.native_id
    thread.join()
    assert tree.ask("asked_since", pid=other, requests=before)
    assert not tree.ask("asked_since", pid=me, requests=before)
    (tree.path / "something").touch()
    assert tree.ask("asked_since", pid=me, requests=before)
    assert not tree.ask("asked_since", pid=me, requests=tree.ask("requests"))


def test_names_longer_than_255_are_refused(tree: Tree) -> None:
    with pytest.raises(OSError) as caught:
        (tree.path / ("x" * 256)).touch()
    assert caught.value.errno == errno.ENAMETOOLONG
    (tree.path / ("x" * 255)).touch()


def test_large_directory_lists_every_name_once_and_counts_references(tree: Tree) -> None:
    names = {f"name-{number:04}" for number in range(700)}
    for name in names:
        tree.ask("remote_create", parent=ROOT, name=name)
    listing = os.listdir(tree.path)
    assert len(listing) == 700
    assert set(listing) == names
    assert tree.ask("state")["nodes"] == 700  # "." and ".." aren't counted
    listings = tree.calls("readdir")
    subprocess.run(["sync"], check=True)
    Path("/proc/sys/vm/drop_caches").write_text("2")  # dentries go, so do the references
    while tree.ask("state")["nodes"]:
        Path("/proc/sys/vm/drop_caches").write_text("2")
    assert len(set(tree.ask("state")["forgot"])) == 700
    assert listings < 700 / 8  # replies carry many entries


def test_an_exception_in_a_handler_is_eio_and_the_mount_lives(tree: Tree) -> None:
    for name in ("boom-key", "boom-corrupt"):
        with pytest.raises(OSError) as caught:
            os.stat(tree.path / name)
        assert caught.value.errno == errno.EIO
    (tree.path / "after").write_text("alive")
    assert (tree.path / "after").read_text() == "alive"
    assert tree.ask("counters")["failures"] == 2
    assert "KeyError" in tree.log()
    assert "boom-key" in tree.log()
    assert "block 9 (inode): bad checksum" in tree.log()


@pytest.mark.parametrize("name", ["boom-fenced", "boom-assert"])
def test_a_lost_right_or_broken_invariant_withdraws(tree: Tree, name: str) -> None:
    with pytest.raises(OSError) as caught:
        os.stat(tree.path / name)
    assert caught.value.errno in (errno.ENOTCONN, errno.EIO, errno.ECONNABORTED)
    assert tree._process.wait(ANSWER_SECONDS) == 0
    assert registry.mount_at(str(tree.path)) is not None  # programs must not fall through to the directory below
    with pytest.raises(OSError, match="not connected"):
        os.listdir(tree.path)
    assert "withdrawing" in tree.log()


def test_warm_stat_makes_no_upcall(tree: Tree) -> None:
    (tree.path / "f").write_text("x")
    os.stat(tree.path / "f")
    os.path.lexists(tree.path / "absent")
    before = tree.ask("counters")["calls"]
    for _ in range(100):
        os.stat(tree.path / "f")
        assert not os.path.lexists(tree.path / "absent")
    assert tree.ask("counters")["calls"] == before


def test_attribute_purge_shows_what_another_node_wrote(tree: Tree) -> None:
    (tree.path / "f").write_text("old")
    ino = os.stat(tree.path / "f").st_ino
    with (tree.path / "f").open() as held:
        assert held.read() == "old"
        os.stat(tree.path / "f")  # the kernel lets go of its attributes after a READ, for the access time
        tree.ask("remote_write", ino=ino, text="newer")
        assert os.stat(tree.path / "f").st_size == 3  # the kernel still trusts what it has: our locks say it may
        tree.ask("purge_inode", ino=ino)
        assert os.stat(tree.path / "f").st_size == 5
        held.seek(0)
        assert held.read() == "newer"


def test_purge_drops_the_pages_of_a_mapping(tree: Tree) -> None:
    (tree.path / "f").write_bytes(b"a" * 4096)
    ino = os.stat(tree.path / "f").st_ino
    with (tree.path / "f").open("rb") as file, mmap.mmap(file.fileno(), 4096, prot=mmap.PROT_READ) as mapping:
        assert mapping[0] == ord("a")
        tree.ask("remote_write", ino=ino, text="b" * 4096)
        tree.ask("purge_inode", ino=ino)
        assert mapping[0] == ord("b")


def test_reopening_keeps_pages_until_the_data_changes(tree: Tree) -> None:
    (tree.path / "f").write_text("x" * 4096)
    (tree.path / "f").read_text()
    reads = tree.calls("read")
    (tree.path / "f").read_text()
    assert tree.calls("read") == reads
    ino = os.stat(tree.path / "f").st_ino
    tree.ask("remote_write", ino=ino, text="y" * 4096)
    tree.ask("purge_inode", ino=ino)
    assert (tree.path / "f").read_text() == "y" * 4096
    assert tree.calls("read") > reads


def test_what_was_written_here_is_read_and_dated_without_dropping_it(tree: Tree) -> None:
    """As tar, rsync and cp -p write; pages that were read beside the writes are not trusted (handles.py, H5)."""
    (tree.path / "f").write_bytes(b"x" * 8192)
    before = tree.ask("counters")
    os.utime(tree.path / "f", ns=(1, 2))
    assert (tree.path / "f").read_bytes() == b"x" * 8192
    after = tree.ask("counters")
    assert after["calls"].get("read", 0) == before["calls"].get("read", 0)
    assert after["caches"]["pages"] == before["caches"]["pages"] == 0
    with (tree.path / "f").open("r+b") as file:
        file.seek(1)
        assert file.read(1) == b"x"
        tree.ask("remote_write", ino=os.fstat(file.fileno()).st_ino, text="y" * 8192)
        tree.ask("purge_inode", ino=os.fstat(file.fileno()).st_ino)
        assert os.pread(file.fileno(), 1, 5000) == b"y"
        os.pwrite(file.fileno(), b"z", 0)
    os.utime(tree.path / "f", ns=(3, 4))
    assert tree.ask("counters")["caches"]["pages"] == 2, "dropped by the purge, and when the time was set"
    assert (tree.path / "f").read_bytes() == b"z" + b"y" * 8191


@pytest.mark.parametrize("many", [False, True])
def test_purged_names_are_looked_up_again(tree: Tree, many: bool) -> None:
    for number in range(100 if many else 1):
        (tree.path / f"f{number}").touch()
    assert not (tree.path / "absent").exists()
    tree.ask("remote_create", parent=ROOT, name="absent")
    assert not (tree.path / "absent").exists()  # a negative name is a cached answer too
    epochs = tree.caches()["epochs"]
    tree.ask("purge_names", ino=ROOT)
    lookups = tree.calls("lookup")
    assert (tree.path / "absent").exists()
    assert tree.calls("lookup") > lookups
    assert (tree.caches()["epochs"] > epochs) == many


def test_purging_a_directory_nobody_asked_about_does_nothing(tree: Tree) -> None:
    tree.ask("purge_names", ino=ROOT)
    tree.ask("purge_inode", ino=12345)
    caches = tree.caches()
    assert caches["names"] == caches["inodes"] == caches["epochs"] == 0


def test_a_working_directory_keeps_its_path_through_a_purge(tree: Tree) -> None:
    (tree.path / "d").mkdir()
    here = os.getcwd()
    os.chdir(tree.path / "d")
    try:
        tree.ask("purge_names", ino=ROOT)
        assert os.getcwd() == str(tree.path / "d")
        tree.ask("gate", operation="lookup")
        with in_thread(lambda: os.stat(tree.path / "d")):
            tree.wait_for_gate("lookup")
            assert os.getcwd() == str(tree.path / "d")  # while the name is being looked up again, too
            tree.ask("open_gate", operation="lookup")
    finally:
        os.chdir(here)
    caches = tree.caches()
    assert (caches["names_dropped"], caches["epochs"]) == (1, 0)


def test_names_purge_under_a_pending_create_uses_the_epoch_and_returns(tree: Tree) -> None:
    """coherence.md 1: the create waits for the lock that is being demoted."""
    (tree.path / "f").touch()
    tree.ask("gate", operation="create")
    with in_thread((tree.path / "blocked").touch) as result:
        tree.wait_for_gate("create")
        tree.ask("purge_names", ino=ROOT)  # returns while the create still waits
        assert "create" in tree.ask("waiting")
        assert tree.caches()["epochs"] == 1
        tree.ask("open_gate", operation="create")
    assert result == [None]
    lookups = tree.calls("lookup")
    os.stat(tree.path / "f")
    assert tree.calls("lookup") == lookups + 1


def test_inode_purge_under_a_pending_read_returns(tree: Tree) -> None:
    (tree.path / "f").write_text("old")
    ino = os.stat(tree.path / "f").st_ino
    with (tree.path / "f").open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        tree.ask("gate", operation="read")
        with in_thread(lambda: file.read(3)) as result:
            tree.wait_for_gate("read")
            tree.ask("purge_inode", ino=ino)
            assert "read" in tree.ask("waiting")
            assert tree.caches()["pages_left_behind"] == 1
            tree.ask("remote_write", ino=ino, text="new")
            tree.ask("open_gate", operation="read")
        assert result == [b"new"]


def test_a_killed_process_with_a_thread_in_the_kernel_is_cut_off(tree: Tree) -> None:
    """Seen in tests/mount/test_death.py: it waited for the application that waited for it, and neither ever ended."""
    (tree.path / "f").write_text("old")
    ino = os.stat(tree.path / "f").st_ino
    pid = tree._process.pid
    start = process_start(pid)
    assert start is not None
    file = (tree.path / "f").open("rb", buffering=0)
    with contextlib.suppress(OSError), file:  # nobody is left to hear of the close
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        tree.ask("gate", operation="read")
        with in_thread(lambda: file.read(3)) as result:
            tree.wait_for_gate("read")
            tree.ask("purge_inode", ino=ino)  # leaves a thread behind, in notify_inval_inode
            tree._process.kill()
            assert process_start(pid) == start  # dead, but not gone
            connection.cut_off(pid, start, directory=str(tree.registry))
    assert isinstance(result[0], OSError)
    assert result[0].errno in {errno.ENOTCONN, errno.ECONNABORTED}
    tree._process.wait()
    assert process_start(pid) is None


def test_attributes_are_not_brought_back_by_a_reply_under_way(tree: Tree) -> None:
    (tree.path / "f").write_text("old")
    ino = os.stat(tree.path / "f").st_ino
    tree.ask("purge_inode", ino=ino)
    tree.ask("gate", operation="getattr")
    with in_thread(lambda: os.stat(tree.path / "f").st_size) as result:
        tree.wait_for_gate("getattr")
        tree.ask("purge_inode", ino=ino)
        tree.ask("open_gate", operation="getattr")
    assert result == [3]
    asked = tree.calls("getattr")
    os.stat(tree.path / "f")
    assert tree.calls("getattr") == asked + 1  # the reply was given before the purge was over: not cached


@pytest.mark.parametrize("tree", ["timeouts"], indirect=True)
def test_without_epochs_names_run_out_before_the_purge_returns(tree: Tree) -> None:
    (tree.path / "f").touch()
    assert not (tree.path / "absent").exists()
    tree.ask("remote_create", parent=ROOT, name="absent")
    tree.ask("purge_names", ino=ROOT)
    assert (tree.path / "absent").exists()
    caches = tree.caches()
    assert caches["waited_out"] == 1
    assert caches["epochs"] == 0


@pytest.mark.parametrize("tree", ["no-extension"], indirect=True)
def test_without_the_extension_mounts_work_slower_and_say_so(tree: Tree) -> None:
    (tree.path / "f").write_bytes(b"x" * (1 << 20))
    assert len((tree.path / "f").read_bytes()) == 1 << 20
    assert not (tree.path / "absent").exists()
    tree.ask("remote_create", parent=ROOT, name="absent")
    tree.ask("purge_names", ino=ROOT)
    assert (tree.path / "absent").exists()
    assert "slower mount, and file locks hold on this node only: the C extension is not built" in tree.log()
    assert os.statvfs(tree.path).f_flag & os.ST_NOSUID


@pytest.mark.parametrize("tree", ["epoch", "old-kernel"], indirect=True)
def test_a_write_clears_the_set_id_bit(tree: Tree) -> None:
    (tree.path / "f").write_text("x")
    os.chown(tree.path / "f", 65534, 65534)
    os.chmod(tree.path / "f", 0o4755)
    with (tree.path / "f").open("w") as file:
        subprocess.run(
            [sys.executable, "-c", "import os; os.setuid(65534); os.write(1, b'y')"], stdout=file, check=True
        )
    assert os.stat(tree.path / "f").st_mode & 0o7777 == 0o755
    assert not os.statvfs(tree.path).f_flag & os.ST_NOSUID


def test_appends_go_to_the_true_end(tree: Tree) -> None:
    """coherence.md 7: the kernel sends its own idea of the end."""
    (tree.path / "f").write_text("0123456789")
    ino = os.stat(tree.path / "f").st_ino
    descriptor = os.open(tree.path / "f", os.O_WRONLY | os.O_APPEND)
    tree.ask("remote_write", ino=ino, text="0123456789remote-line")
    tree.ask("purge_inode", ino=ino)
    os.write(descriptor, b"mine")
    assert (tree.path / "f").read_text() == "0123456789remote-linemine"
    os.write(descriptor, b"more")
    assert (tree.path / "f").read_text() == "0123456789remote-lineminemore"
    os.close(descriptor)


def test_create_of_a_name_that_another_node_made(tree: Tree) -> None:
    assert not (tree.path / "f").exists()  # cached as absent
    ino = tree.ask("remote_create", parent=ROOT, name="f")
    tree.ask("remote_write", ino=ino, text="theirs")
    descriptor = os.open(tree.path / "f", os.O_CREAT | os.O_RDWR, 0o600)
    assert os.read(descriptor, 10) == b"theirs"
    os.close(descriptor)
    assert not (tree.path / "g").exists()
    tree.ask("remote_create", parent=ROOT, name="g")
    with pytest.raises(FileExistsError):
        os.open(tree.path / "g", os.O_CREAT | os.O_EXCL | os.O_RDWR)


def test_a_reused_inode_number_is_stale_to_who_holds_the_old_one(tree: Tree) -> None:
    (tree.path / "f").write_text("x")
    ino = os.stat(tree.path / "f").st_ino
    with (tree.path / "f").open() as held:
        tree.ask("remote_reuse", ino=ino)
        tree.ask("purge_inode", ino=ino)
        with pytest.raises(OSError) as caught:
            os.fstat(held.fileno())
        assert caught.value.errno == errno.ESTALE


def test_truncating_open_is_one_call(tree: Tree) -> None:
    (tree.path / "f").write_text("long text")
    before = tree.ask("counters")["calls"].get("setattr", 0)
    os.close(os.open(tree.path / "f", os.O_WRONLY | os.O_TRUNC))
    assert os.stat(tree.path / "f").st_size == 0
    assert tree.ask("counters")["calls"].get("setattr", 0) == before


def test_a_handle_of_a_number_that_was_used_again_is_stale(tree: Tree) -> None:
    (tree.path / "f").write_text("x")
    handle, ino = handle_of(tree.path / "f"), os.stat(tree.path / "f").st_ino
    os.close(open_handle(tree.path, handle))
    while tree.ask("state")["nodes"]:
        Path("/proc/sys/vm/drop_caches").write_text("2")
    lookups = tree.calls("lookup")
    os.close(open_handle(tree.path, handle))
    assert tree.calls("lookup") == lookups + 1
    while tree.ask("state")["nodes"]:
        Path("/proc/sys/vm/drop_caches").write_text("2")
    tree.ask("remote_reuse", ino=ino)
    with pytest.raises(OSError) as caught:
        open_handle(tree.path, handle)
    assert caught.value.errno == errno.ESTALE


def asked(tree: Tree, operation: str = "getxattr") -> int:
    calls: dict[str, int] = tree.ask("counters")["calls"]
    return calls.get(operation, 0)


@pytest.mark.parametrize(("tree", "questions"), [("epoch", 1), ("old-kernel", 1000)], indirect=["tree"])
def test_writes_to_a_file_without_attributes_never_ask_for_them(tree: Tree, questions: int) -> None:
    """K7: without FUSE_HANDLE_KILLPRIV_V2 the kernel wants to know security.capability before every one."""
    with (tree.path / "f").open("wb", buffering=0) as file:
        for _ in range(1000):
            file.write(b"x")
    assert (asked(tree), asked(tree, "write")) == (0, 1000)
    assert asked(tree, "xattr_of_bare") == questions


def test_a_storm_of_questions_leaves_room_for_the_event_loop(tree: Tree) -> None:
    """They are answered before it, a few at once: the lock manager and the lease live there."""
    (tree.path / "f").touch()
    asking = "import os, sys\nwhile True:\n    try: os.getxattr(sys.argv[1], 'user.x')\n    except OSError: pass"
    command = [sys.executable, "-I", "-S", "-c", asking, str(tree.path / "f")]
    with contextlib.ExitStack() as storm:
        for _ in range(4):  # so that the next question is there when one is answered
            storm.callback(storm.enter_context(subprocess.Popen(command)).kill)
        start = asked(tree, "xattr_of_bare")
        while asked(tree, "xattr_of_bare") < start + 1000:
            pass


def test_attributes_set_here_and_elsewhere_are_told(tree: Tree) -> None:
    path = tree.path / "f"
    path.touch()
    assert os.listxattr(path) == []
    with pytest.raises(OSError) as caught:
        os.getxattr(path, "user.x")
    assert caught.value.errno == errno.ENODATA
    assert asked(tree) == asked(tree, "listxattr") == 0
    os.setxattr(path, "user.x", b"1", os.XATTR_CREATE)
    assert (os.getxattr(path, "user.x"), os.listxattr(path)) == (b"1", ["user.x"])
    for flags, name, code in ((os.XATTR_CREATE, "user.x", errno.EEXIST), (os.XATTR_REPLACE, "user.y", errno.ENODATA)):
        with pytest.raises(OSError) as caught:
            os.setxattr(path, name, b"2", flags)
        assert caught.value.errno == code
    os.setxattr(path, "user.x", b"3" * 65_536, os.XATTR_REPLACE)
    assert os.getxattr(path, "user.x") == b"3" * 65_536
    os.removexattr(path, "user.x")
    assert os.listxattr(path) == []


def test_errors_of_extended_attributes(tree: Tree) -> None:
    path = tree.path / "f"
    path.touch()
    for name, code in (("user." + "n" * 251, errno.ERANGE), ("", errno.ERANGE)):
        with pytest.raises(OSError) as caught:
            os.setxattr(path, name, b"")
        assert caught.value.errno == code
    with pytest.raises(OSError) as caught:
        os.setxattr(path, "user.x", b"v" * 65_537)
    assert caught.value.errno == errno.E2BIG


def test_references_and_opens_balance(tree: Tree) -> None:
    for round_ in range(3):
        (tree.path / "f").write_text(str(round_))
        (tree.path / "f").read_text()
    (tree.path / "f").unlink()
    state = tree.ask("state")
    while state["nodes"]:
        state = tree.ask("state")
    assert state["opens"] == {}
    assert len(state["forgot"]) == 1


def test_registry_names_the_process_until_all_is_flushed(tree: Tree) -> None:
    record = registry.read(tree.device, directory=str(tree.registry))
    assert record is not None
    assert record.pid == tree._process.pid
    assert record.mountpoint == str(tree.path)
    tree.unmount()
    assert list(tree.registry.iterdir()) == []


def test_umount_helper_waits_for_the_last_flush(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """ecosystem.md finding 4: umount(8) alone doesn't."""
    monkeypatch.setattr(registry, "RUN_DIRECTORY", str(tree.registry))
    tree.ask("gate", operation="last_flush")
    with in_thread(lambda: umount_cmd.unmount(str(tree.path), [])) as result:
        tree.wait_for_gate("last_flush")
        assert registry.mount_at(str(tree.path)) is None  # unmounted
        assert result == []  # and still waiting
        tree.ask("open_gate", operation="last_flush")
    assert result == [0]
    assert tree._process.wait(ANSWER_SECONDS) == 0


def test_umount_helper_reports_a_failed_flush(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(registry, "RUN_DIRECTORY", str(tree.registry))
    tree.ask("fail_flush")
    assert umount_cmd.unmount(str(tree.path), []) == 32
    assert "the last flush failed: no space" in capsys.readouterr().err


def test_umount_helper_reports_a_dead_process(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(registry, "RUN_DIRECTORY", str(tree.registry))
    tree._process.kill()
    tree._process.wait()
    assert umount_cmd.unmount(str(tree.path), []) == 32
    assert "died before its last flush" in capsys.readouterr().err
    assert registry.mount_at(str(tree.path)) is None
    assert list(tree.registry.iterdir()) == []


def test_umount_helper_of_a_busy_tree_leaves_it(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "RUN_DIRECTORY", str(tree.registry))
    (tree.path / "f").write_text("x")
    with (tree.path / "f").open():
        assert umount_cmd.unmount(str(tree.path), []) == 32
    assert (tree.path / "f").read_text() == "x"


def test_stop_unmounts_unless_busy(tree: Tree) -> None:
    with (tree.path / "f").open("w"):
        tree.ask("stop")
        while "not unmounted" not in tree.log():
            tree.ask("waiting")
    assert (tree.path / "f").exists()
    tree.ask("stop")
    assert tree._process.wait(ANSWER_SECONDS) == 0
    assert registry.mount_at(str(tree.path)) is None


def test_a_mount_point_that_vanished_is_one_error_and_no_crash(tmp_path: Path) -> None:
    program = (
        "import trio; from fuse_edge_server import Server\n"
        "async def main():\n"
        f"    server = Server({str(tmp_path / 'gone')!r}, {str(tmp_path)!r}, 'epoch')\n"
        "    try: server.session.start()\n"
        "    finally: server.session.withdraw('never began'); server.session.close()\n"
        "trio.run(main)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": f"{REPOSITORY}:{SERVER.parent}"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "OperatorError: can't mount on" in done.stderr
