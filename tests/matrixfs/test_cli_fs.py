"""matrixctl fs against a fake matrixd: who is asked for what, and what goes wrong on the way (issue 5, "Scale")."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from matrixfs.cli import fs_mounts
from membership.control_wire import encode_map, error_message
from membership.errors import OperatorError
from tests.matrixfs.test_cli_locks import SILENT, mount, result
from tests.matrixfs.test_cli_matrixctl import matrixd_that_answers, run

DISK = b"D" * 16
DONE = {
    "serial": 4, "step": "", "error": "", "exit_code": 0, "blocks_before": 1 << 16, "blocks": 1 << 17, "journals": 8,
}  # fmt: skip
FACTS = {
    "disk": DISK, "file": True, "store_bytes": 1 << 30, "data_block": 1024, "blocks_total": 1 << 18,
    "blocks": 1 << 16, "groups": 16, "journals": 8, "progress": DONE | {"serial": 3},
}  # fmt: skip


def disks(node: int, size: int, disk: bytes = DISK) -> dict[str, Any]:
    return mount(node, 1, [{"uuid": disk, "size_bytes": size, "data_blocks": 5}])


FS = result(mount(1, 100, FACTS), mount(2, 200, FACTS))
SEEN = result(disks(1, 1 << 30), disks(2, 1 << 30))
AFTER = result(mount(2, 200, FACTS | {"progress": DONE}))


def test_list(tmp_path: Path) -> None:
    with matrixd_that_answers(tmp_path, FS):
        done = run("fs", "list", "--state", tmp_path)
    assert done.stdout.splitlines() == [
        "  FILESYSTEM  FOR FILES  STORE    JOURNALS  MOUNTED BY",
        "  web         256.0 MiB  1.0 GiB         8  n1 n2",
    ]
    (other := tmp_path / "other").mkdir()
    with matrixd_that_answers(other, result(SILENT)):
        done = run("fs", "list", "--state", other)
    assert (done.stdout, done.exit_code) == ("No filesystem is mounted.\n", 3)


def test_grow_asks_the_mount_here(tmp_path: Path) -> None:
    own = result(mount(2, 200, FACTS))
    steps = [result(mount(2, 200, FACTS | {"progress": DONE | {"step": step}})) for step in ("one", "two")]
    enlarged = result(mount(2, 200, encode_map({"kind": "value", "value": None})))
    answers = [FS, enlarged, own, SEEN, result(mount(2, 200, 4)), *steps, AFTER]
    with matrixd_that_answers(tmp_path, *answers) as asked:
        done = run("fs", "grow", "web", "--size", "1G", "--state", tmp_path)
    assert done.stdout.splitlines() == ["one ...", "two ...", "web had 256.0 MiB for files and has 512.0 MiB now"]
    assert done.exit_code == 0
    assert [(each["what"], each["node"]) for each in asked] == [
        ("fs", None), ("fs.enlarge", "2"), ("fs", "2"), ("node.disks", None), ("fs.grow", "2"),
        *[("fs", "2")] * 3,
    ]  # fmt: skip
    assert asked[1]["arguments"] == {"fs": "web", "size": 1 << 30}


def test_nothing_to_gain(tmp_path: Path) -> None:
    same = result(mount(2, 200, FACTS | {"progress": DONE | {"blocks": 1 << 16}}))
    with matrixd_that_answers(tmp_path, FS, result(mount(2, 200, FACTS)), SEEN, result(mount(2, 200, 4)), same):
        done = run("fs", "grow", "web", "--state", tmp_path)
    assert done.stdout == "web has all of its store already: 256.0 MiB for files; enlarge the store first\n"
    (other := tmp_path / "other").mkdir()
    with matrixd_that_answers(other, FS, result(mount(2, 200, FACTS)), SEEN, result(mount(2, 200, 4)), same):
        done = run("fs", "grow", "web", "--json", "--state", other)
    assert json.loads(done.stdout) == {
        "filesystem": "web", "bytes_before": 1 << 28, "bytes": 1 << 28, "journals": 8, "by": "n2",
    }  # fmt: skip


FAILED = result(mount(2, 2, FACTS | {"progress": DONE | {"error": "the store is full of holes", "exit_code": 5}}))
BAD = [
    ("of another name", ["mail"], [FS], 2, "no filesystem 'mail' is mounted in the cluster (mounted: web)"),
    ("none mounted", ["web"], [result()], 2, "no filesystem 'web' is mounted in the cluster (mounted: none is)"),
    ("a node is silent", ["web"], [result(*FS["value"]["answers"], SILENT)], 3, "all mounts must take part: n3 does"),
    ("an older mount", ["web"], [result(mount(1, 1, 7))], 3, "another version's format"),
    ("a smaller disk", ["web"], [FS, FS, result(disks(1, 1 << 29), disks(2, 1 << 30))], 2,
     "n1 sees only 536870912 of its 1073741824 bytes: rescan the disk there"),
    ("no such disk", ["web"], [FS, FS, result(disks(1, 1 << 30), disks(2, 1, b"E" * 16))], 2,
     "n2 does not have the disk, or is older"),
    ("failed", ["web"], [FS, FS, SEEN, result(mount(2, 2, 4)), FAILED], 5, "the store is full of holes"),
    ("somebody else", ["web"], [FS, FS, SEEN, result(mount(2, 2, 4)), FS], 3, "another command has begun meanwhile"),
    ("gone", ["web"], [FS, FS, SEEN, result()], 3, "n2 does not have web mounted any more"),
    ("no size", ["web", "--size", "much"], [], 2, "'much' is no size"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "answers", "code", "text"), [row[1:] for row in BAD], ids=[r[0] for r in BAD])
def test_refusals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], answers: list[Any], code: int, text: str
) -> None:
    monkeypatch.setattr(fs_mounts, "SEEN_SECONDS", 0.0)
    with matrixd_that_answers(tmp_path, *answers):
        done = run("fs", "grow", *arguments, "--state", tmp_path)
    assert text in done.stderr
    assert (done.exit_code, done.stderr.count("\n")) == (code, 1)


def test_a_file_that_is_not_made_shorter(tmp_path: Path) -> None:
    refused = encode_map(error_message(OperatorError("store has 9 bytes: a filesystem can't shrink")))
    with matrixd_that_answers(tmp_path, FS, result(mount(2, 200, refused))):
        done = run("fs", "grow", "web", "--size", "1M", "--state", tmp_path)
    assert done.stderr == "matrixctl: store has 9 bytes: a filesystem can't shrink\n"
    assert done.exit_code == 2



# --- freeze and thaw -------------------------------------------------------------------------------------------


def state(node: int, **fields: Any) -> dict[str, Any]:
    found = {"frozen": True, "seconds": 3.4, "left": 56.6, "error": "", **fields}
    return mount(node, 100 * node, found if fields != {"none": 1} else encode_map({"kind": "value", "value": None}))


NOT_FROZEN = result(state(1, none=1), state(2, none=1))
DONE_NOTHING = result(mount(2, 200, encode_map({"kind": "value", "value": None})))


def test_freeze_waits_until_it_is_frozen(tmp_path: Path) -> None:
    answers = [FS, NOT_FROZEN, DONE_NOTHING, result(state(2, frozen=False)), result(state(2))]
    with matrixd_that_answers(tmp_path, *answers) as asked:
        done = run("fs", "freeze", "web", "--timeout", "90", "--state", tmp_path)
    assert done.stdout == "web is frozen, for 90 s at most; go on with: matrixctl fs thaw web\n"
    assert asked[2]["arguments"] == {"fs": "web", "seconds": 90.0}
    assert [(each["what"], each["node"]) for each in asked] == [
        ("fs", None), ("fs.frozen", None), ("fs.freeze", "2"), ("fs.frozen", "2"), ("fs.frozen", "2"),
    ]  # fmt: skip


UNFROZEN = [
    ("already", [FS, result(state(1), state(2, none=1))], 2, "web is frozen already: by n1, for 3 s; it thaws in 57 s"),
    ("in vain", [FS, NOT_FROZEN, DONE_NOTHING, result(state(2, frozen=False, error="no rest"))], 3, "no rest"),
    ("thawed", [FS, NOT_FROZEN, DONE_NOTHING, result(state(2, none=1))], 3, "thawed at once by somebody else"),
    ("silent", [result(SILENT)], 3, "all mounts must take part"),
]


@pytest.mark.parametrize(("answers", "code", "text"), [row[1:] for row in UNFROZEN], ids=[row[0] for row in UNFROZEN])
def test_freeze_fails(tmp_path: Path, answers: list[Any], code: int, text: str) -> None:
    with matrixd_that_answers(tmp_path, *answers):
        done = run("fs", "freeze", "web", "--state", tmp_path)
    assert (done.exit_code, done.stderr.count("\n")) == (code, 1)
    assert text in done.stderr


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "1e9", "soon"])
def test_a_time_limit_that_is_none(tmp_path: Path, seconds: str) -> None:
    done = run("fs", "freeze", "web", "--timeout", seconds, "--state", tmp_path)
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)


THAWS = [
    ("one held it", [mount(1, 100, False), mount(2, 200, True)], 0, ""),
    ("nobody held it", [mount(1, 100, False)], 2, "web is not frozen, or no longer"),
    ("unknown", [], 2, "no filesystem 'web' is mounted"),
    ("who held it may be silent", [mount(1, 100, False), SILENT], 3, "nobody who answers holds it frozen: n3"),
]


@pytest.mark.parametrize(("answers", "code", "text"), [row[1:] for row in THAWS], ids=[row[0] for row in THAWS])
def test_thaw(tmp_path: Path, answers: list[Any], code: int, text: str) -> None:
    with matrixd_that_answers(tmp_path, result(*answers)):
        done = run("fs", "thaw", "web", "--state", tmp_path)
    assert done.exit_code == code
    assert done.stdout == ("web goes on\n" if not code else "")
    assert text in done.stderr
