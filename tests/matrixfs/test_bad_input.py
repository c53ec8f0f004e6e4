"""Every command given every kind of wrong store, name, place and right (issue 2, "Bad input").

Each must print exactly one line that says what is wrong, end with its documented exit code, show no traceback, and
leave the store as it was.  Exit codes: membership/errors.py (matrixd, matrixctl, mkfs.matrixfs), fsck(8), mount(8).
Addresses are this file's own (127.1.1.x), so that it can run beside others.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from matrixfs.cli.host import PID_NAME
from matrixfs.fuse import registry
from tests.matrixfs.bad_stores import (
    SIZE,
    Damage,
    a_dangling_link,
    a_directory,
    a_fifo,
    a_small_file,
    an_empty_file,
    an_ext4_image,
    both_labels_damaged,
    content,
    cut_short,
    data_area,
    journal_header_damaged,
    label_of_the_future,
    label_that_promises_more,
    label_with_timing_that_contradicts_itself,
    make_store,
    nothing,
    orphan_directory_damaged,
    random_bytes,
    san_header_damaged,
    superblock_damaged,
    superblock_of_the_future,
    superblock_with_an_unknown_feature,
    superblock_with_impossible_numbers,
    unchanged,
)
from tests.mount.guard import guarded_run, watched_for

BIN = Path(sys.executable).parent
COMMAND_SECONDS_MAX = 60
WORK_SECONDS_MAX = 3600.0  # each command has a time of its own
OPERATOR, PEER, DEVICE, CORRUPT = 2, 3, 4, 5  # membership/errors.py
FSCK_OPERATIONAL = 8
MOUNT_USAGE, MOUNT_SYSTEM, MOUNT_FAILED = 1, 2, 32

pytestmark = pytest.mark.seed("002-21", "002-31")


@pytest.fixture(scope="module")
def work() -> Iterator[Path]:
    """A directory that does direct I/O."""
    with guarded_run("input") as (path, ear), watched_for(WORK_SECONDS_MAX, ear):
        yield path


@pytest.fixture(scope="module")
def formatted(work: Path) -> Path:
    """A good store, never to be changed."""
    path = work / "formatted"
    done = run("mkfs.matrixfs", "-n", "web", "-j", "2", "--journal-size", "256K", "--size", str(SIZE), path)
    assert done.returncode == 0, done.stderr
    return path


# --- commands -----------------------------------------------------------------------------------------------


def run(program: str, *arguments: str | Path, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*prefix, str(BIN / program) if (BIN / program).exists() else program, *map(str, arguments)],
        check=False, capture_output=True, text=True, timeout=COMMAND_SECONDS_MAX, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def assert_refused(done: subprocess.CompletedProcess[str], program: str, code: int, says: str) -> None:
    lines = done.stderr.splitlines()
    assert len(lines) == 1, (done.returncode, done.stdout, done.stderr)
    assert lines[0].startswith(f"{program}: "), lines
    assert says in lines[0], lines
    assert done.returncode == code, (done.returncode, lines)
    assert done.stdout == ""


@dataclass(frozen=True)
class Bad:
    """A command on a store, and what must come of it."""

    damage: Damage
    code: int
    says: str


MKFS = [
    Bad(nothing, OPERATOR, "does not exist"),
    Bad(a_directory, OPERATOR, "give a block device or a file"),
    Bad(a_fifo, OPERATOR, "give a block device or a file"),
    Bad(an_empty_file, OPERATOR, "too small"),
    Bad(a_small_file, OPERATOR, "too small"),
    Bad(random_bytes, OPERATOR, "--force overwrites it"),
    Bad(an_ext4_image, OPERATOR, "ext"),
    Bad(unchanged, OPERATOR, "already holds the cluster 'web'"),
    Bad(both_labels_damaged, OPERATOR, "once a cluster disk of MatrixFS"),
    Bad(label_of_the_future, OPERATOR, "--force overwrites it"),
]

MATRIXD = [
    Bad(nothing, OPERATOR, "no such store"),
    Bad(a_directory, OPERATOR, "give a block device or a file"),
    Bad(a_fifo, OPERATOR, "give a block device or a file"),
    Bad(a_dangling_link, OPERATOR, "no such store"),
    Bad(an_empty_file, OPERATOR, "too small for a cluster disk"),
    Bad(a_small_file, OPERATOR, "too small for a cluster disk"),
    Bad(random_bytes, OPERATOR, "no MatrixFS cluster disk (make one with mkfs.matrixfs)"),
    Bad(an_ext4_image, OPERATOR, "no MatrixFS cluster disk"),
    Bad(both_labels_damaged, CORRUPT, "label in block 0: bad checksum"),
    Bad(label_of_the_future, OPERATOR, "upgrade this node"),
    Bad(cut_short, OPERATOR, "it was cut short"),
    Bad(label_that_promises_more, OPERATOR, "it was cut short"),
    Bad(label_with_timing_that_contradicts_itself, OPERATOR, "timing contradicts itself"),
    Bad(san_header_damaged, CORRUPT, "SAN header (block 1, copy at 0): bad checksum"),
]

FSCK = [
    Bad(nothing, FSCK_OPERATIONAL, "does not exist"),
    Bad(a_directory, FSCK_OPERATIONAL, "give a block device or a file"),
    Bad(a_fifo, FSCK_OPERATIONAL, "give a block device or a file"),
    Bad(an_empty_file, FSCK_OPERATIONAL, "too small"),
    Bad(random_bytes, FSCK_OPERATIONAL, "no MatrixFS cluster disk"),
    Bad(an_ext4_image, FSCK_OPERATIONAL, "no MatrixFS cluster disk"),
    Bad(both_labels_damaged, FSCK_OPERATIONAL, "label in block 0: bad checksum"),
    Bad(label_of_the_future, FSCK_OPERATIONAL, "upgrade this node"),
    Bad(cut_short, FSCK_OPERATIONAL, "it was cut short"),
    Bad(label_that_promises_more, FSCK_OPERATIONAL, "it was cut short"),
    Bad(superblock_of_the_future, FSCK_OPERATIONAL, "use that version's fsck"),
    Bad(superblock_with_an_unknown_feature, FSCK_OPERATIONAL, "use that version's fsck"),
]


def named(bad: Bad) -> str:
    return bad.damage.__name__


@pytest.mark.parametrize("bad", MKFS, ids=named)
def test_mkfs(work: Path, formatted: Path, bad: Bad) -> None:
    store = make_store(work, formatted, bad.damage)
    before = content(store)
    assert_refused(run("mkfs.matrixfs", "-n", "web", store), "mkfs.matrixfs", bad.code, bad.says)
    assert content(store) == before


@pytest.mark.parametrize("bad", MATRIXD, ids=named)
def test_matrixd(work: Path, formatted: Path, bad: Bad) -> None:
    store = make_store(work, formatted, bad.damage)
    before = content(store)
    state = work / f"state-{bad.damage.__name__}"
    done = run("matrixd", "--daemon", "--store", store, "--address", "127.1.1.1", "--name", "n1", "--state", state)
    left = (state / PID_NAME).read_text() if (state / PID_NAME).exists() else ""
    if left:
        os.kill(int(left), 9)
    assert_refused(done, "matrixd", bad.code, bad.says)
    assert content(store) == before
    assert left == "", "nothing is left running"


@pytest.mark.parametrize("option", ["-n", "-y"])
@pytest.mark.parametrize("bad", FSCK, ids=named)
def test_fsck(work: Path, formatted: Path, bad: Bad, option: str) -> None:
    store = make_store(work, formatted, bad.damage)
    before = content(store)
    assert_refused(run("fsck.matrixfs", option, store), "fsck.matrixfs", bad.code, bad.says)
    assert content(store) == before


# --- a running node -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Node:
    """A matrixd in the background."""

    store: Path
    state: Path
    mountpoint: Path

    def mount(self, *words: str | Path, options: str = "") -> subprocess.CompletedProcess[str]:
        words = words or ("web", self.mountpoint)
        return run("mount.matrixfs", *words, "-o", f"state={self.state}{options}")


@contextlib.contextmanager
def running(work: Path, store: Path, name: str, address: str) -> Iterator[Node]:
    state, mountpoint = work / f"run-{name}", work / f"mnt-{name}"
    mountpoint.mkdir(exist_ok=True)
    done = run("matrixd", "--daemon", "--store", store, "--address", address, "--name", name, "--state", state)
    assert done.returncode == 0, done.stderr
    pid = int((state / PID_NAME).read_text())
    try:
        yield Node(store, state, mountpoint)
        assert run("matrixctl", "--state", state, "stop").returncode == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 9)
        shutil.rmtree(state)


@pytest.fixture(scope="module")
def node(work: Path, formatted: Path) -> Iterator[Node]:
    store = work / "served"
    shutil.copyfile(formatted, store)
    with running(work, store, "served", "127.1.1.2") as node:
        yield node


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (superblock_damaged, "superblock: bad checksum"),
        (superblock_of_the_future, "made by a newer MatrixFS: upgrade this node to mount it"),
        (superblock_with_an_unknown_feature, "made by a newer MatrixFS: upgrade this node to mount it"),
        (superblock_with_impossible_numbers, "superblock: bad size"),
        (journal_header_damaged, "journal 0"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_mount_of_a_bad_filesystem(work: Path, formatted: Path, damage: Damage, says: str) -> None:
    store = make_store(work, formatted, damage)
    before = data_area(store)
    with running(work, store, "bad", "127.1.1.3") as bad:
        assert_refused(bad.mount(), "mount.matrixfs", MOUNT_FAILED, says)
        assert registry.mount_at(str(bad.mountpoint)) is None
        assert run("matrixctl", "--state", bad.state, "status").returncode == 0, "the node goes on"
    assert data_area(store) == before


def test_a_damaged_orphan_directory_forbids_only_deleting(work: Path, formatted: Path) -> None:
    store = make_store(work, formatted, orphan_directory_damaged)
    with running(work, store, "orphans", "127.1.1.3") as bad:
        assert bad.mount().returncode == 0
        file = bad.mountpoint / "f"
        file.write_text("f")
        with pytest.raises(OSError, match="Input/output error"):
            file.unlink()
        assert file.read_text() == "f"
        assert run("umount.matrixfs", bad.mountpoint).returncode == 0
        log = (bad.state / "mount-web.log").read_text()
        assert "block 2 (inode): bad checksum" in log
        assert "Traceback" not in log


def test_mount_in_wrong_places(work: Path, node: Node) -> None:
    before = data_area(node.store)
    file = work / "file"
    file.touch()
    busy = work / "busy"
    busy.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "thing", str(busy)], check=True)
    cases = [
        (("other", node.mountpoint), MOUNT_FAILED, "no filesystem 'other' in this cluster (it has: web)"),
        (("web", work / "absent"), MOUNT_FAILED, "no such directory (mkdir it)"),
        (("web", file), MOUNT_FAILED, "not a directory"),
        (("web", busy), MOUNT_FAILED, "is busy: thing (tmpfs) is mounted there"),
        (("a/b", node.mountpoint), MOUNT_USAGE, "is no name of a filesystem"),
    ]
    for words, code, says in cases:
        assert_refused(node.mount(*words), "mount.matrixfs", code, says)
    assert_refused(node.mount(options=",strange"), "mount.matrixfs", MOUNT_USAGE, "unknown mount option 'strange'")
    subprocess.run(["umount", str(busy)], check=True)
    assert data_area(node.store) == before


def test_mount_without_a_matrixd(work: Path, node: Node) -> None:
    for state in (work / "no-state", work):
        done = run("mount.matrixfs", "web", node.mountpoint, "-o", f"state={state}")
        assert_refused(done, "mount.matrixfs", MOUNT_FAILED, "matrixd is not running here")


def test_mount_without_dev_fuse(work: Path, node: Node) -> None:
    script = f"mount -t tmpfs none /dev && exec {BIN}/mount.matrixfs web {node.mountpoint} -o state={node.state}"
    done = run("unshare", "-m", "sh", "-c", script)
    assert_refused(done, "mount.matrixfs", MOUNT_SYSTEM, "no /dev/fuse")


def test_umount_of_what_is_not_mounted(work: Path, node: Node) -> None:
    for place in (node.mountpoint, work / "absent"):
        done = run("umount.matrixfs", place)
        assert done.returncode == 32
        assert len(done.stderr.splitlines()) == 1
        assert done.stderr.startswith("umount: ")
    assert_refused(run("umount.matrixfs"), "usage", 1, "umount.fuse.matrixfs DIR")


AS_NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all")


def test_no_permission(work: Path, formatted: Path, node: Node) -> None:
    before = content(formatted)
    state = work / "nobody"
    matrixd = ("matrixd", "--daemon", "--store", formatted, "--address", "127.1.1.4", "--name", "n", "--state")
    cases = [
        (("mkfs.matrixfs", "-n", "web", "-f", formatted), OPERATOR, "no permission"),
        ((*matrixd, state), OPERATOR, "can't use the state directory"),
        (("fsck.matrixfs", "-n", formatted), FSCK_OPERATIONAL, "no permission"),
        (("mount.matrixfs", "web", node.mountpoint), MOUNT_USAGE, "only root may mount"),
        (("matrixctl", "--state", node.state, "status"), OPERATOR, "no permission to talk to matrixd"),
    ]
    for words, code, says in cases:
        assert_refused(run(*map(str, words), prefix=AS_NOBODY), str(words[0]), code, says)
    state.mkdir(mode=0o777)
    os.chown(state, 65534, 65534)
    assert_refused(run(*map(str, (*matrixd, state)), prefix=AS_NOBODY), "matrixd", OPERATOR, "no permission")
    assert content(formatted) == before


def test_a_store_in_use(node: Node) -> None:
    before = data_area(node.store)
    for force in ((), ("-f",)):
        done = run("mkfs.matrixfs", "-n", "web", *force, node.store)
        assert_refused(done, "mkfs.matrixfs", OPERATOR, "has it open")
    for option in ("-n", "-y"):
        done = run("fsck.matrixfs", option, node.store)
        assert_refused(done, "fsck.matrixfs", FSCK_OPERATIONAL, "stop matrixd on all nodes first")
    assert data_area(node.store) == before


def test_a_second_node_of_the_same_name(work: Path, node: Node) -> None:
    arguments = ("--daemon", "--store", node.store, "--name", "served", "--address")
    done = run("matrixd", *arguments, "127.1.1.5", "--state", work / "twin")
    assert_refused(done, "matrixd", OPERATOR, "served")
    done = run("matrixd", *arguments, "127.1.1.5", "--state", node.state)
    assert_refused(done, "matrixd", OPERATOR, "already running here")
    assert run("matrixctl", "--state", node.state, "status").returncode == 0, "the first one goes on"


def test_addresses_that_are_not_ours(work: Path, node: Node) -> None:
    with socket.socket() as taken:
        taken.bind(("127.1.1.6", 0))
        taken.listen()
        port = taken.getsockname()[1]
        wrong = {"192.0.2.1": "192.0.2.1", f"127.1.1.6:{port}": str(port), "host": "is no IP address"}
        for address, says in wrong.items():
            arguments = ("--daemon", "--store", node.store, "--name", "x", "--address", address, "--state", work / "x")
            done = run("matrixd", *arguments)
            assert_refused(done, "matrixd", OPERATOR, says)


def test_matrixctl_and_whoever_answers(work: Path) -> None:
    assert_refused(run("matrixctl", "--state", work / "none", "status"), "matrixctl", OPERATOR, "not running here")
    assert_refused(run("matrixctl", "--state", work / "none", "stop"), "matrixctl", OPERATOR, "not running here")
    state = work / "junk"
    state.mkdir()
    (state / "matrixd.sock").write_text("no socket")
    assert_refused(run("matrixctl", "--state", state, "status"), "matrixctl", OPERATOR, "not running here")


@pytest.mark.parametrize(
    "junk",
    [b"", b"\0" * 100, b"\xff" * 100, b"\x10\0\0\0" + b"\xa1" * 16],
    ids=["hangs-up", "empty-message", "too-long", "no-cbor"],
)
def test_matrixctl_meets_junk_on_the_socket(work: Path, junk: bytes) -> None:
    state = work / f"junk-{len(junk)}-{junk[:1].hex()}"
    state.mkdir(exist_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(state / "matrixd.sock"))
        listener.listen()
        process = subprocess.Popen(
            [BIN / "matrixctl", "--state", state, "status"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        connection, _ = listener.accept()
        connection.recv(100)
        connection.sendall(junk)
        connection.close()
        out, error = process.communicate(timeout=COMMAND_SECONDS_MAX)
    done = subprocess.CompletedProcess([], process.returncode, out, error)
    assert_refused(done, "matrixctl", PEER, "")


WRONG_WORDS = [
    (["lock", "job"], "Missing argument 'COMMAND...': see matrixctl lock --help"),
    (["lock", "job", "--"], "no command after --"),
    (["lock", "--try", "--wait", "3", "job", "--", "true"], "--try and --wait exclude each other"),
    (["lock", "--wait", "-1", "job", "--", "true"], "-1.0 is not in the range"),
    (["lock", "--wait", "nan", "job", "--", "true"], "'nan' is no number"),
    (["lock", "--wait", "inf", "job", "--", "true"], "inf is not in the range"),
    (["lock", "--strange", "job", "--", "true"], "No such option"),
    (["lock", "job", "--", "true"], "no filesystem is mounted on this node"),
    (["lock", "--fs", "other", "job", "--", "true"], "other is not mounted on this node"),
    (["locks", ""], "neither a path nor a lock's name"),
    (["locks", "/absent/of/this/tree"], "is in no tree that is mounted on this node"),
    (["locks", "a", "b"], "unexpected extra argument"),
    (["locks", "--strange"], "No such option"),
    (["top", "--interval", "0"], "0.0 is not in the range"),
    (["top", "--interval", "nan"], "'nan' is no number"),
    (["trace", "--count", "0"], "0 is not in the range"),
    (["trace", "--node", "nobody\x1b[2J"], "no member of the cluster is called"),
    (["metrics", "x"], "unexpected extra argument"),
]


@pytest.mark.seed("004-33", "002-26")
@pytest.mark.parametrize(("words", "says"), WRONG_WORDS, ids=str)
def test_matrixctl_with_wrong_words(node: Node, words: list[str], says: str) -> None:
    done = run("matrixctl", words[0], "--state", node.state, *words[1:])
    assert_refused(done, "matrixctl", OPERATOR, says)
    assert done.stderr.rstrip("\n").isprintable()


@pytest.mark.parametrize(
    "words", [["locks"], ["locks", "/x"], ["locks", "x"], ["top", "--once"], ["trace"], ["metrics"], ["lock", "x", "y"]]
)
def test_matrixctl_asks_nobody(work: Path, words: list[str]) -> None:
    assert_refused(run("matrixctl", "--state", work / "none", *words), "matrixctl", OPERATOR, "not running here")


@pytest.mark.seed("004-33")
def test_application_locks_on_a_mount(node: Node) -> None:
    assert node.mount().returncode == 0
    try:
        lock = ["matrixctl", "lock", "--state", node.state]
        for name in ("", "n" * 1025):
            assert_refused(run(*lock, name, "--", "true"), "matrixctl", OPERATOR, "a lock's name has 1 to 1024 bytes")
        assert_refused(run(*lock, "job", "--", "/no/such/program"), "matrixctl", 127, "No such file or directory")
        assert_refused(run(*lock, "job", "--", "/etc/passwd"), "matrixctl", 126, "Permission denied")
        done = run(*lock, "\udcff\n/ä ", "--", "sh", "-c", "exit 9")
        assert (done.returncode, done.stderr) == (9, ""), "any bytes are a name"
        absent = run("matrixctl", "locks", "--state", node.state, node.mountpoint / "absent")
        assert_refused(absent, "matrixctl", OPERATOR, f"{node.mountpoint}/absent: no such file or directory")
    finally:
        assert run("umount.matrixfs", node.mountpoint).returncode == 0


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("nonsense", "is no IP address with an optional port"), ("9.9.9.9:1", "Cannot assign requested address"),
        ("127.0.0.1:99999", "over 65535"),
    ],
)  # fmt: skip
def test_metrics_at_a_wrong_address(work: Path, formatted: Path, address: str, says: str) -> None:
    store = make_store(work, formatted, unchanged)
    words = ["--store", store, "--address", "127.1.1.4", "--state", work / "metrics", "--metrics", address]
    done = run("matrixd", *words)
    assert done.returncode == OPERATOR
    assert says in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
