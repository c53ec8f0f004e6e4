"""matrixctl fs on a real cluster: grown when it is full, journals added, frozen for a copy; all while it is in use.

A shorter form of it is in test_seeing_contention.py.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import pytest

from membership.label import BLOCK_BYTES, DATA_BLOCK
from tests.mount.conftest import left_clean, new_lab
from tests.mount.lab import Lab, LabError, LabNode, is_settled, wait_until

pytestmark = [pytest.mark.usefixtures("watched"), pytest.mark.long]

NAME = "fscmd"
MIB = 1 << 20
LOAD = """
import os, sys
number = 0
while True:
    fd = os.open(f"{sys.argv[1]}-{number % 5}", os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, b"%d " % number * 3000, 0)
    os.fsync(fd)
    os.close(fd)
    number += 1
    print(number, flush=True)
"""


class Writer:
    """A process that writes, fsyncs, and counts."""

    def __init__(self, node: LabNode) -> None:
        self.log = node.state / "writer.log"
        with self.log.open("w") as out:
            command = [sys.executable, "-c", LOAD, str(node.mountpoint / node.name)]
            self.process = subprocess.Popen(command, stdout=out, stderr=out)

    def count(self) -> int:
        lines = self.log.read_text().split()
        return int(lines[-1]) if lines else 0

    def goes_on(self) -> None:
        """Returns when it has written three times more."""
        before = self.count()
        wait_until(lambda: self.count() > before + 2, f"{self.log} goes on: {self.log.read_text()[-500:]}")


@contextmanager
def writers(nodes: list[LabNode]) -> Iterator[list[Writer]]:
    """One on each node; they must not fail."""
    started = [Writer(node) for node in nodes]
    try:
        for writer in started:
            writer.goes_on()
        yield started
        for writer in started:
            assert writer.process.poll() is None, writer.log.read_text()[-500:]
    finally:
        for writer in started:
            writer.process.kill()
            writer.process.wait()


@pytest.fixture(scope="module")
def lab(base: tuple[Path, TextIO]) -> Iterator[Lab]:
    """A small store with two journals, mounted on two nodes."""
    with left_clean(new_lab(base, NAME, size="64M")) as lab:
        lab.format("--journals", "2")
        for node in lab.nodes[:2]:
            lab.start(node)
        for node in lab.nodes[:2]:
            lab.mount(node)
        yield lab


def fs(lab: Lab, node: LabNode, *arguments: str, code: int = 0) -> str:
    """Output of matrixctl fs on a node."""
    done = lab.run("matrixctl", "--state", node.state, "fs", *arguments, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    assert code == 0 or done.stderr.count("\n") == 1
    return done.stdout if code == 0 else done.stderr


def fill(path: Path) -> int:
    """Write until there is no space; how many bytes found room."""
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(MIB))
        except OSError:
            return path.stat().st_size


def test_a_full_filesystem_is_grown(lab: Lab) -> None:
    n1, n2, _ = lab.nodes
    before = os.statvfs(n1.mountpoint).f_blocks
    first = fill(n1.mountpoint / "full")
    assert first < 64 * MIB
    os.truncate(n1.mountpoint / "full", first - 2 * MIB)  # for the writers
    with writers([n1, n2]) as load:
        assert f"{NAME} had 55.9 MiB for files and has 151.7 MiB now\n" in fs(lab, n2, "grow", NAME, "--size", "160M")
        assert len({os.statvfs(node.mountpoint).f_blocks for node in (n1, n2)}) == 1
        assert os.statvfs(n2.mountpoint).f_blocks > before + 95 * 256
        (n2.mountpoint / "more").write_bytes(b"m" * 90 * MIB)
        for writer in load:
            writer.goes_on()
    assert (n1.mountpoint / "more").read_bytes() == b"m" * 90 * MIB
    (n2.mountpoint / "more").unlink()
    (n1.mountpoint / "full").unlink()
    assert "has all of its store already" in fs(lab, n1, "grow", NAME)
    assert "160.0 MiB" in lab.run("matrixctl", "--state", n2.state, "disk", "list").stdout


def test_refusals(lab: Lab) -> None:
    n1 = lab.nodes[0]
    assert "can't shrink" in fs(lab, n1, "grow", NAME, "--size", "64M", code=2)
    assert "no filesystem 'nothing' is mounted" in fs(lab, n1, "grow", "nothing", code=2)
    assert "it may get more" in fs(lab, n1, "grow", NAME, "--journals", "1", code=2)
    assert "it may get more, 64 in all" in fs(lab, n1, "grow", NAME, "--journals", "65", code=2)
    assert "is not frozen" in fs(lab, n1, "thaw", NAME, code=2)
    assert "no filesystem 'nothing' is mounted" in fs(lab, n1, "freeze", "nothing", code=2)


def test_a_scrub_finds_a_flipped_bit(lab: Lab) -> None:
    n1, n2, _ = lab.nodes
    rotten = n1.mountpoint / "rotten"
    rotten.write_bytes(b"r" * MIB)
    at = (DATA_BLOCK + rotten.stat().st_ino) * BLOCK_BYTES + 300
    assert len((n2.mountpoint / "rotten").read_bytes()) == MIB  # brings it to the store
    lab.umount(n2)
    assert "MiB of files read" in fs(lab, n1, "scrub", NAME, "--data")
    flip(lab, at)
    lab.mount(n2)
    with writers([n1]) as load:
        found = lab.run("matrixctl", "--state", n2.state, "fs", "scrub", NAME, check=False)
        assert found.returncode == 5, found.stderr
        assert f"/rotten (inode {rotten.stat().st_ino}): " in found.stdout
        assert "bad checksum" in found.stdout
        assert f"{NAME}: 1 damaged of" in found.stdout
        load[0].goes_on()
    flip(lab, at)
    seen = json.loads(fs(lab, n2, "scrub", NAME, "--json"))
    assert (seen["by"], seen["damages"], seen["totals"]["damaged"]) == ("n2", [], 0)
    assert f"{NAME} is not being scrubbed" in fs(lab, n2, "scrub", NAME, "--stop")
    assert "1 damaged; it saw everything" in lab.run("matrixctl", "--state", n1.state, "events").stdout


def flip(lab: Lab, at: int) -> None:
    """One bit on the store."""
    with open(lab.store, "r+b") as store:
        store.seek(at)
        (byte,) = store.read(1)
        store.seek(at)
        store.write(bytes([byte ^ 4]))


@contextmanager
def frozen(lab: Lab, load: list[Writer]) -> Iterator[None]:
    """The second node freezes, the first one thaws; a copy made meanwhile is clean without a replay."""
    n1, n2, _ = lab.nodes
    (n1.mountpoint / "still").write_bytes(b"still")
    assert "is frozen, for 60 s at most" in fs(lab, n2, "freeze", NAME)
    counts = [writer.count() for writer in load]
    yield
    copy = lab.directory / "copy"
    shutil.copyfile(lab.store, copy)
    for node in (n1, n2):
        assert (node.mountpoint / "still").read_bytes() == b"still"
    assert [writer.count() for writer in load] == counts
    assert fs(lab, n1, "thaw", NAME) == f"{NAME} goes on\n"
    for writer in load:
        writer.goes_on()
    found = lab.run("fsck.matrixfs", "-n", copy, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "replay" not in found.stdout
    copy.unlink()


def test_frozen_for_a_copy(lab: Lab) -> None:
    n1, n2, _ = lab.nodes
    with writers([n1, n2]) as load, frozen(lab, load):
        assert "FROZEN by n2 for" in lab.run("matrixctl", "--state", n1.state, "status").stdout
        locks = lab.run("matrixctl", "--state", n1.state, "locks", "--waiters").stdout
        assert "it holds the filesystem frozen" in locks
        assert "waits   n1 to change it" in locks
        assert "is frozen already: by n2" in fs(lab, n1, "freeze", NAME, code=2)
        assert "another mount grows or freezes it" in fs(lab, n1, "grow", NAME, code=2)
    events = lab.run("matrixctl", "--state", n1.state, "events").stdout
    assert f"{NAME}: frozen, for 60 s at most" in events
    assert f"{NAME}: thawed after" in events


def test_a_freeze_ends_by_itself(lab: Lab) -> None:
    n1, n2, _ = lab.nodes
    with writers([n1]) as load:
        fs(lab, n1, "freeze", NAME, "--timeout", "1")
        load[0].goes_on()
    assert "is not frozen" in fs(lab, n2, "thaw", NAME, code=2)


def test_a_third_node_gets_a_journal_and_dies_with_it(lab: Lab) -> None:
    n1, n2, n3 = lab.nodes
    lab.start(n3)
    with pytest.raises(LabError, match=f"all 2 journals .* matrixctl fs grow {NAME} --journals N"):
        lab.mount(n3)
    with writers([n1, n2]) as load:
        assert f"{NAME} had 2 journals and has 3 now" in fs(lab, n3, "grow", NAME, "--journals", "3")
        assert lab.status(n1)["filesystems"][0]["journals"] == 3
        lab.mount(n3)
        for writer in load:
            writer.goes_on()
    with writers([n3]):
        assert (n1.mountpoint / "n3-0").exists()
    assert " 3  n1 n2 n3" in fs(lab, n1, "list")
    lab.kill(n3)  # the new journal is replayed, like any other
    wait_until(lambda: is_settled(lab, n1, [n1, n2]), "n3 is recovered")
    assert (n1.mountpoint / "n3-0").read_bytes()


def test_a_node_dies_while_it_is_frozen(lab: Lab) -> None:
    n1, n2, n3 = lab.nodes
    fs(lab, n1, "grow", NAME, "--journals", "3")
    lab.start(n3)
    lab.mount(n3)
    with writers([n1, n2]) as load, frozen(lab, load):
        lab.kill(n3)
        wait_until(lambda: is_settled(lab, n1, [n1, n2]), "n3 is recovered")
