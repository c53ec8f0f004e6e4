"""The command: exit codes of fsck(8), one line for every refusal, and what it prints."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from matrixfs.blockstore import data_window, initialize_disk, open_store, write_label
from matrixfs.cli import fsck_cmd
from matrixfs.fs.mkfs import format_volume
from matrixfs.fsck.context import STAGES
from matrixfs.fsck.fixes import SetBits, SetInode
from matrixfs.fsck.problems import EXTENT_PAST_EOF, GROUP_FREE, INODE_DAMAGED, ORPHAN, Findings
from matrixfs.fsck.report import LINES_PER_CODE, TextReporter, progress_line, summary
from matrixfs.fsck.run import Outcome
from matrixfs.ondisk.group import GroupRecord
from matrixfs.ondisk.superblock import Superblock
from membership.label import BLOCK_BYTES, DATA_BLOCK, DEFAULT_TIMING
from tests.damage.volume import FixedClock

ROOM = 2304


@pytest.fixture
def store(tmp_path: Path) -> Iterator[tuple[Path, Superblock]]:
    """A file store with an empty filesystem."""
    path = tmp_path / "store"
    path.touch()
    os.truncate(path, (DATA_BLOCK + ROOM + 1) * BLOCK_BYTES)

    async def make() -> Superblock:
        device = open_store(str(path))
        rng = random.Random(1)
        label = await initialize_disk(device, "web", DEFAULT_TIMING, rng, FixedClock())
        superblock = await format_volume(
            data_window(device, label), name="web", journals=2, journal_blocks=None, clock=FixedClock(), rng=rng
        )
        await write_label(device, label)
        await device.aclose()
        return superblock

    yield path, trio.run(make)


def spoil_group(path: Path, superblock: Superblock) -> None:
    block = superblock.group_block(1)
    at = (DATA_BLOCK + block) * BLOCK_BYTES
    with path.open("r+b") as file:
        file.seek(at)
        group = GroupRecord.decode_untrusted(file.read(BLOCK_BYTES), "t", address=block)
        group.free -= 1
        file.seek(at)
        file.write(group.encode())


def spoil_root(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek((DATA_BLOCK + 1) * BLOCK_BYTES + 70)
        file.write(b"\xff")


def run(*arguments: str | Path) -> int:
    return fsck_cmd.run([str(argument) for argument in arguments])


def test_clean(store: tuple[Path, Superblock], capsys: pytest.CaptureFixture[str]) -> None:
    path, superblock = store
    content = path.read_bytes()
    for options in ([], ["-n"], ["-y"], ["-p"], ["-a", "-f"], ["-nv"]):
        assert run(*options, path) == 0
        captured = capsys.readouterr()
        assert captured.err == ""
        used = superblock.group_start + 1 + superblock.groups
        assert captured.out == f"web: clean, 0 files, 1 directory, {used}/{ROOM} blocks used\n"
    assert path.read_bytes() == content


def test_corrected(store: tuple[Path, Superblock], capsys: pytest.CaptureFixture[str]) -> None:
    path, superblock = store
    spoil_group(path, superblock)
    content = path.read_bytes()
    assert run("-n", path) == 4
    assert capsys.readouterr().out.splitlines() == [
        "group 1 says 254 blocks are free, its bitmap says 255 [group-free]; repair: corrected",
        "web: 1 problem left (repair with -y), 0 files, 1 directory, 775/2304 blocks used",
    ]
    assert path.read_bytes() == content
    assert run(path) == 4, "no terminal: nobody can be asked, nothing is repaired"
    assert path.read_bytes() == content
    assert run("-y", path) == 1
    assert "web: clean after 1 repaired problem, " in capsys.readouterr().out
    assert run("-y", path) == 0


def test_uncorrected(store: tuple[Path, Superblock], capsys: pytest.CaptureFixture[str]) -> None:
    path, _ = store
    spoil_root(path)
    assert run("-y", path) == 4
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("inode 1 (a directory of the filesystem itself) is damaged (bad checksum")
    assert lines[0].endswith("[inode-damaged]; this version can't repair it")
    assert lines[-1].startswith("web: 1 problem left, ")


def test_json(store: tuple[Path, Superblock], capsys: pytest.CaptureFixture[str]) -> None:
    path, superblock = store
    spoil_group(path, superblock)
    assert run("--json", path) == 4
    found = json.loads(capsys.readouterr().out)
    assert found["filesystem"] == "web"
    assert found["problems"] == [
        {
            "code": "group-free",
            "note": False,
            "text": "group 1 says 254 blocks are free, its bitmap says 255",
            "repair": "corrected",
            "group": 1,
            "found": 254,
            "expected": 255,
        }
    ]
    assert run("--json", "-y", path) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["exit_code"], found["repaired"], found["problems_left"]) == (1, 1, [])


@pytest.mark.parametrize("what", ["missing", "directory", "small", "foreign", "unlabelled"])
def test_what_is_no_store_is_refused_in_one_line(what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "thing"
    if what == "directory":
        path.mkdir()
    elif what != "missing":
        path.write_bytes(b"foreign data" if what == "foreign" else b"")
        os.truncate(path, 4096 if what == "small" else 1 << 23)
    assert run(path) == 8
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("fsck.matrixfs: ") and captured.err.count("\n") == 1


def test_a_store_of_the_future_is_left_alone(
    store: tuple[Path, Superblock], capsys: pytest.CaptureFixture[str]
) -> None:
    path, superblock = store
    with path.open("r+b") as file:
        superblock.features_compatible = 4
        file.seek(DATA_BLOCK * BLOCK_BYTES)
        file.write(superblock.encode())
    content = path.read_bytes()
    assert run("-y", path) == 8
    assert "uses features 0x4 of a newer version" in capsys.readouterr().err
    assert path.read_bytes() == content


def test_progress_is_one_line_of_a_terminal() -> None:
    assert progress_line("lost", 1, 3) == "2/3 lost   [#####...........]  33 %  1 of 3 blocks"
    assert progress_line("names", 9, 0) == "1/3 names  [................]   0 %  0 of 0 blocks"
    assert all(len(progress_line(stage, 1 << 38, 1 << 38)) < 80 for stage in STAGES)


def test_upgrade(store: tuple[Path, Superblock], capsys: pytest.CaptureFixture[str]) -> None:
    """mkfs sets all features; tests/matrixfs/test_fsck_modes.py upgrades filesystems of older versions."""
    path, superblock = store
    assert run("--upgrade", path) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "web: not upgraded: it has everything that this version can do"
    assert run("--upgrade", "--json", path) == 0
    assert json.loads(capsys.readouterr().out)["features_new"] == []
    spoil_group(path, superblock)
    assert run("--upgrade", path) == 4, "no terminal: nobody can be asked whether to repair"
    assert "not upgraded: only a clean filesystem is" in capsys.readouterr().out
    assert run("--upgrade", "-p", path) == 1


@pytest.mark.parametrize(
    "arguments",
    [[], ["-n", "-y", "x"], ["-y", "-p", "x"], ["-n", "--upgrade", "x"], ["--what", "x"], ["a", "b"]],
)
def test_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == 16
    assert "Usage: fsck.matrixfs" in capsys.readouterr().err


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    assert run("--version") == 0
    assert "fsck.matrixfs" in capsys.readouterr().out


def test_cancelled(
    store: tuple[Path, Superblock], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def cancelled(*arguments: object, **options: object) -> None:
        signal.raise_signal(signal.SIGINT)
        await trio.sleep_forever()

    monkeypatch.setattr("matrixfs.fsck.run.run_fsck", cancelled)
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        assert run(store[0]) == 32
    finally:
        signal.signal(signal.SIGINT, inherited)
    assert capsys.readouterr().err.strip() == "fsck.matrixfs: cancelled; run it again to finish"


def test_the_entry_point_exits_with_the_code(store: tuple[Path, Superblock]) -> None:
    code = "from matrixfs.cli.fsck_cmd import main; main()"
    path, superblock = store
    spoil_group(path, superblock)
    done = subprocess.run([sys.executable, "-c", code, "-n", str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (4, "")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Ticking(FixedClock):
    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 0.15
        return self.now


def reporter(*, verbose: bool = False) -> tuple[TextReporter, io.StringIO, Terminal]:
    out, terminal = io.StringIO(), Terminal()
    return (
        TextReporter(out, terminal, Ticking(), lambda question: question == "Repair 3 problems?", verbose=verbose),
        out,
        terminal,
    )


def test_progress_is_paced_and_cleared() -> None:
    text, out, terminal = reporter()
    for done in range(10):
        text.report("names", done, 9)
    shown = terminal.getvalue().split("\r\x1b[K")[1:]
    assert len(shown) == 5
    assert shown[-1] == "1/3 names  [################] 100 %  9 of 9 blocks"
    text.say("line")
    assert terminal.getvalue().endswith("\r\x1b[K")
    assert out.getvalue() == "line\n"
    assert text.ask(3)
    text.report("empty", 0, 0)


def test_a_hostile_filesystem_name_reaches_no_terminal() -> None:
    assert summary(Outcome(name="a\x1b[2J")).startswith("a\\x1b[2J: clean, 0 files")
    assert summary(Outcome()).startswith("no filesystem: clean")


def test_many_findings_of_a_kind_are_cut_short() -> None:
    findings = Findings()
    for group in range(LINES_PER_CODE + 5):
        findings.add(GROUP_FREE, SetBits(group, 0), group=group, found=1, expected=2)
    findings.add(ORPHAN, inode=5, journal=0)
    findings.add(EXTENT_PAST_EOF, SetInode(5, ()), inode=5)
    text, out, _ = reporter()
    text.found(findings)
    lines = out.getvalue().splitlines()
    assert len(lines) == LINES_PER_CODE + 3
    assert lines[-1] == "... and 5 more [group-free]"
    assert lines[-3].startswith("note: inode 5 has no name")
    text, out, _ = reporter(verbose=True)
    text.found(findings)
    assert len(out.getvalue().splitlines()) == LINES_PER_CODE + 7
    findings.add(INODE_DAMAGED, inode=1, name="x", reason="y")
    assert findings.errors == LINES_PER_CODE + 6
