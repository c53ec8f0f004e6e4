"""matrixctl locks against a fake matrixd: the chain, the list, who is silent, hostile answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from matrixfs.cli.asking import Answers, MountValue, split_path
from matrixfs.cli.locks_chain import combine
from matrixfs.cli.locks_format import format_locks
from membership.control_wire import encode_map, error_message
from membership.errors import OperatorError
from tests.matrixfs.test_cli_matrixctl import matrixd_that_answers, run

FILE = {"domain": 2, "object": 77, "master": 2, "text": "inode 77"}
HOLDER = {
    "node": 1,
    "resources": [
        FILE
        | {"path": b"/dir/f", "sure": True, "held": "EX", "doing": "flushing and purging for a peer"}
        | {"waiting": 0, "waiters": []}
    ],
    "users": [{"pid": 4242, "command": "rs\x1bync", "doing": "sleeping in poll"}],
}
MASTER = {
    "node": 2,
    "resources": [
        FILE | {"held": "NL", "doing": "nothing", "waiting": 2, "waiters": [["PR", 1.25], ["EX", 0.5]]}
        | {"granted": [[1, "EX"]], "queue": [[2, "EX", 1.3], [3, "PR", 0.75]], "ghosts": []}
        | {"revokes": [[1, "NL", 0.4]]}
    ],
}  # fmt: skip


def mount(node: int, pid: int, value: Any) -> dict[str, Any]:
    answer = value if isinstance(value, bytes) or value is None else encode_map({"kind": "value", "value": value})
    shown = {"filesystem": "web", "mountpoint": f"/mnt/{node}", "pid": pid, "value": answer}
    return {"node": node, "name": f"n{node}", "mounts": [shown]}


def result(*answers: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "result", "value": {"node": 2, "answers": list(answers)}}


RESOLVED = result(mount(2, 200, {"object": 77, "rest": b""}))
SILENT = {"node": 3, "name": "n3", "mounts": None}

CHAIN = """\
/mnt/2/dir/f   (domain 2, number 77)
  waits   n2 to change it (EX), for 1.2 s, 2 operations, mount process 200
  waits   n3 to read it (PR), for 0.8 s
  master  n2
  held    EX by n1, mount process 100, asked 0.4 s ago: flushing and purging for a peer
            open in process 4242 (rs?ync), sleeping in poll
"""


@pytest.mark.seed("002-26")
def test_the_chain_of_a_file(tmp_path: Path) -> None:
    answers = (RESOLVED, RESOLVED, result(mount(1, 100, HOLDER), mount(2, 200, MASTER), SILENT), result())
    with matrixd_that_answers(tmp_path, *answers) as asked:
        done = run("locks", "/mnt/2/dir/f", "--waiters", "--state", tmp_path)
    assert done.stdout == CHAIN
    assert done.stderr == "matrixctl: n3 does not answer: what it holds or waits for is missing here\n"
    assert done.exit_code == 3
    assert asked[1] == {"kind": "ask", "what": "resolve", "arguments": {"path": b"dir/f"}, "node": ""}
    assert asked[2] == {"kind": "ask", "what": "locks", "arguments": {"object": 77}, "node": None}


def test_the_list_of_all_waits(tmp_path: Path) -> None:
    quiet = mount(3, 300, {"node": 3, "resources": []})
    with matrixd_that_answers(tmp_path, result(mount(1, 100, HOLDER), mount(2, 200, MASTER), quiet), result()):
        done = run("locks", "--state", tmp_path)
    assert done.exit_code == 0
    head, line = done.stdout.splitlines()
    assert head.split() == ["LOCK", "HELD", "BY", "MASTER", "WAITING", "LONGEST"]
    assert line.split() == ["/mnt/2/dir/f", "n1", "(EX)", "n2", "n2", "n3", "1.2", "s"]
    (tmp_path / "matrixd.sock").unlink()
    with matrixd_that_answers(tmp_path, result(quiet), result()):
        assert run("locks", "--state", tmp_path).stdout == "Nobody waits for a lock.\n"


def test_for_programs(tmp_path: Path) -> None:
    with matrixd_that_answers(tmp_path, result(mount(2, 200, MASTER)), result()):
        done = run("locks", "--json", "--state", tmp_path)
    (lock,) = json.loads(done.stdout)["locks"]
    assert (lock["name"], lock["master"], lock["waiters"]["2"]["seconds"]) == ("inode 77", 2, 1.25)
    assert lock["holders"]["1"]["mode"] == "EX"


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    with matrixd_that_answers(tmp_path, result(mount(2, 200, {"object": 1, "rest": b""}))):
        outside = run("locks", "/somewhere/else", "--state", tmp_path)
    assert (outside.exit_code, outside.stderr.count("\n")) == (2, 1)
    absent = mount(2, 200, encode_map(error_message(OperatorError("/x: no such file or directory in this tree"))))
    (tmp_path / "matrixd.sock").unlink()
    with matrixd_that_answers(tmp_path, RESOLVED, result(absent)):
        missing = run("locks", "/mnt/2/x", "--state", tmp_path)
    assert missing.stderr == "matrixctl: /mnt/2/x: no such file or directory in this tree\n"
    assert missing.exit_code == 2
    (tmp_path / "matrixd.sock").unlink()
    with matrixd_that_answers(tmp_path, {"kind": "result", "value": 5}):
        nonsense = run("locks", "--state", tmp_path)
    assert (nonsense.exit_code, nonsense.stderr.count("\n")) == (3, 1)


KEYS = [*FILE, *HOLDER["resources"][0], "queue", "granted", "ghosts", "revokes", "users"]
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.binary(max_size=5) | st.floats(),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(KEYS), inner),
    max_leaves=12,
)


@given(rows=st.lists(PLAIN, max_size=3), users=PLAIN)
@example([{"domain": None, "object": None, "held": "\x1f"}], None)
def test_hostile_rows_never_break_it(rows: list[Any], users: Any) -> None:
    value = {"node": 1, "resources": rows, "users": users}
    answers = Answers(2, {1: "n1"}, [MountValue(1, "n1", "web", "/mnt", 5, value)])
    for chains in (True, False):
        for line in format_locks(combine(answers), answers.name, chains=chains):
            assert line.isprintable()


def test_paths_are_split_without_touching_the_tree(tmp_path: Path) -> None:
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "up").symlink_to("../" + tmp_path.name + "/real/deep")
    (tmp_path / "loop").symlink_to("loop")
    place = str(tmp_path.resolve() / "real" / "deep")
    assert split_path(str(tmp_path / "link/deep/a/b"), {place}) == (place, "a/b")
    assert split_path(str(tmp_path / "up/a"), {place}) == (place, "a")
    assert split_path(place, {place}) == (place, "")
    assert split_path(str(tmp_path / "loop/a"), {place}) == ("", "")
    assert split_path("/", {place}) == ("", "")
