"""matrixctl fs quota against a fake matrixd: words to numbers and back, who is asked for what (issue 5, "Quotas")."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.matrixfs.test_cli_fs import FS
from tests.matrixfs.test_cli_locks import mount, result
from tests.matrixfs.test_cli_matrixctl import matrixd_that_answers, run

NOW = 1_700_000_000 * 10**9
DAY = 86_400 * 10**9


def found(*rows: list[int], count: int | None = None, **fields: Any) -> dict[str, Any]:
    base = {"serial": 3, "done": True, "error": "", "exit_code": 0, "now_ns": NOW}
    return result(mount(2, 200, {**base, "count": len(rows) if count is None else count, "rows": list(rows), **fields}))


BEGUN = result(mount(2, 200, 3))
ROOT = [0, 0, 2560, 9, 0, 0, 0, 0, 0, 0]
NOBODY_KNOWN = [0, 987_654, 256, 12, 512, 128, 20, 10, NOW + 2 * DAY, NOW - 1]
PROJECT = [2, 7, 0, 0, 1 << 18, 0, 0, 0, 0, 0]


def test_report(tmp_path: Path) -> None:
    parts = [found(done=False), found(ROOT, count=3), found(NOBODY_KNOWN, PROJECT, count=3)]
    with matrixd_that_answers(tmp_path, FS, BEGUN, *parts) as asked:
        done = run("fs", "quota", "web", "--state", tmp_path)
    assert done.stdout.splitlines() == [
        "  TYPE     NAME       SPACE     SOFT     HARD  GRACE  FILES  SOFT  HARD  GRACE",
        "  user     root    10.0 MiB        -        -             9     -     -",
        "  user     987654   1.0 MiB  512 KiB  2.0 MiB  2d00h     12    10    20  over",
        "  project  7          0 KiB        -  1.0 GiB             0     -     -",
    ]
    assert [each["what"] for each in asked] == ["fs", "fs.quota", *["fs.quota.result"] * 3]
    assert [each["arguments"].get("from") for each in asked[2:]] == [0, 0, 1]


def test_report_as_json(tmp_path: Path) -> None:
    with matrixd_that_answers(tmp_path, FS, BEGUN, found(NOBODY_KNOWN)):
        done = run("fs", "quota", "web", "--json", "--state", tmp_path)
    assert json.loads(done.stdout) == {
        "filesystem": "web",
        "quotas": [{
            "type": "user", "id": 987_654, "name": "987654", "space": 1 << 20, "files": 12,
            "space_soft": 1 << 19, "space_hard": 1 << 21, "files_soft": 10, "files_hard": 20,
            "space_grace_ends_ns": NOW + 2 * DAY, "files_grace_ends_ns": NOW - 1,
        }],
    }  # fmt: skip


def test_set(tmp_path: Path) -> None:
    with matrixd_that_answers(tmp_path, FS, BEGUN, found(PROJECT)) as asked:
        done = run("fs", "quota", "set", "web", "project:7", "--space", "512M/1G", "--state", tmp_path)
    assert done.exit_code == 0
    assert asked[1]["what"] == "fs.quota.set"
    assert asked[1]["arguments"] == {
        "fs": "web", "type": 2, "id": 7, "blocks_soft": 1 << 17, "blocks_hard": 1 << 18,
        "inodes_soft": -1, "inodes_hard": -1,
    }  # fmt: skip
    (other := tmp_path / "other").mkdir()
    with matrixd_that_answers(other, FS, BEGUN, found(PROJECT)) as asked:
        run("fs", "quota", "set", "web", "group:0042", "--files", "100k", "--space", "0", "--state", other)
    assert asked[1]["arguments"] == {
        "fs": "web", "type": 1, "id": 42, "blocks_soft": 0, "blocks_hard": 0, "inodes_soft": 0, "inodes_hard": 100_000,
    }  # fmt: skip


def test_grace(tmp_path: Path) -> None:
    with matrixd_that_answers(tmp_path, FS, BEGUN, found()) as asked:
        done = run("fs", "quota", "grace", "web", "user", "--space", "12h", "--state", tmp_path)
    assert done.stdout == "web: set; whose grace has begun keeps its end\n"
    assert asked[1]["arguments"] == {"fs": "web", "type": 0, "blocks_ns": 43_200 * 10**9, "inodes_ns": -1}


BAD = [
    (["set", "web", "user:7"], [], 2, "give --space, --files or both"),
    (["set", "web", "alice", "--space", "1G"], [], 2, "write user:NAME, group:NAME or project:NUMBER"),
    (["set", "web", "project:x", "--space", "1G"], [], 2, "projects have numbers, no names"),
    (["set", "web", "user:no such", "--space", "1G"], [], 2, "this node knows no user 'no such'"),
    (["set", "web", "user:root", "--space", "1G"], [], 2, "0 is counted and has no limits"),
    (["set", "web", "user:7", "--space", "2G/1G"], [], 2, "the soft limit comes first"),
    (["set", "web", "user:7", "--space", "much"], [], 2, "write a whole number"),
    (["set", "web", "user:7", "--files", "1T"], [], 2, "write a whole number"),
    (["grace", "web", "user", "--files", "0"], [], 2, "a time of 0 is none"),
    (["web"], [FS, BEGUN, found(error="the disk is full of holes", exit_code=5)], 5, "the disk is full of holes"),
    (["web"], [FS, BEGUN, found(serial=4)], 3, "another command works on the quotas"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "answers", "code", "text"), BAD, ids=[row[3] for row in BAD])
def test_refusals(tmp_path: Path, arguments: list[str], answers: list[Any], code: int, text: str) -> None:
    with matrixd_that_answers(tmp_path, *answers):
        done = run("fs", "quota", *arguments, "--state", tmp_path)
    assert text in done.stderr
    assert (done.exit_code, done.stderr.count("\n")) == (code, 1)
