"""matrixctl disk lock and disk locks against a fake matrixd: exit codes, lost locks, hostile answers (002-24)."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from matrixfs.cli.asking import Answers, MountValue
from matrixfs.cli.matrixctl_disk_lock import grace_untrusted, known_untrusted
from matrixfs.lock_names import BUSY
from membership.control_disk_locks import NOT_FREE
from membership.control_wire import FrameBuffer, encode_frame, error_message
from membership.errors import BadMessage, Fenced, OperatorError
from tests.matrixfs.test_cli_locks import mount, result
from tests.matrixfs.test_cli_matrixctl import matrixd_that_answers, run

pytestmark = pytest.mark.seed("002-24")

HELD = {"kind": "result", "value": {"grace": 30.0}}
LOST = error_message(Fenced("evicted\x1b by n2"))


@contextmanager
def matrixd_that_holds(
    directory: Path, *last: dict, first: tuple[dict, ...] = (HELD,), fifo: bool = False
) -> Iterator[list[Any]]:
    """Says ``first``; when it was hung up on, or with ``fifo`` when the command wrote to that, ``last``; hangs up."""
    seen: list[Any] = []
    os.mkfifo(directory / "fifo")

    def serve() -> None:
        connection, _ = listening.accept()
        with connection:
            frames = FrameBuffer()
            while (question := frames.next_untrusted()) is None:
                frames.feed(connection.recv(4096))
            seen.append(question)
            for message in first:
                connection.sendall(encode_frame(message))
            if fifo:
                with open(directory / "fifo", "rb") as file:
                    file.read(1)
            else:
                seen.append(connection.recv(1))
            for message in last:
                connection.sendall(encode_frame(message))

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(directory / "matrixd.sock"))
        listening.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        yield seen
        thread.join()


def lock(state: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    code = "from matrixfs.cli.matrixctl_cmd import main; main(prog_name='matrixctl')"
    command = [sys.executable, "-c", code, "--state", str(state), "disk", "lock", *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def test_the_exit_code_is_the_commands(tmp_path: Path) -> None:
    with matrixd_that_holds(tmp_path) as seen:
        done = lock(tmp_path, "--shared", "d1", "--", "sh", "-c", "exit 7")
    assert (done.returncode, done.stderr) == (7, "")
    assert seen[0] | {"pid": 0} == {
        "kind": "disk-lock", "disk": "d1", "exclusive": False, "wait": True, "command": "sh", "pid": 0,
    }  # fmt: skip
    assert seen[1] == b"", "the connection ended with the command"


@pytest.mark.parametrize(("last", "said"), [((LOST,), " (evicted? by n2)"), ((), "")])
def test_a_lost_lock_ends_the_command(tmp_path: Path, last: tuple[dict, ...], said: str) -> None:
    script = f"trap 'echo ended; exit 3' TERM; echo x > {tmp_path}/fifo; while :; do sleep 0.01; done"
    with matrixd_that_holds(tmp_path, *last, fifo=True):
        done = lock(tmp_path, "d1", "sh", "-c", script)
    assert done.returncode == Fenced.exit_code
    assert done.stderr == f"matrixctl: the lock on the disk d1 is lost{said}: ending the command\n"
    if last:
        assert done.stdout == "ended\n", "it has its time"


@pytest.mark.parametrize("grace", [0.05, 30.0])
def test_a_command_that_will_not_end_is_killed(tmp_path: Path, grace: float) -> None:
    """After its time when matrixd said so; at once when matrixd died, for then its locks may be free already."""
    script = f"trap '' TERM; echo $$; echo x > {tmp_path}/fifo; while :; do sleep 0.01; done"
    held = {"kind": "result", "value": {"grace": grace}}
    with matrixd_that_holds(tmp_path, *((LOST,) if grace < 1 else ()), first=(held,), fifo=True):
        done = lock(tmp_path, "d1", "sh", "-c", script)
    assert done.returncode == Fenced.exit_code
    with pytest.raises(ProcessLookupError):
        os.kill(int(done.stdout), 0)


def test_who_stands_against_it_is_said(tmp_path: Path) -> None:
    waiting = {"kind": "waiting", "reason": "the disk is held by n2\x07"}
    busy = OperatorError("the disk is held by n2")
    busy.exit_code = NOT_FREE
    with matrixd_that_holds(tmp_path, first=(waiting, error_message(busy))):
        done = lock(tmp_path, "d1", "true")
    assert done.stderr == "matrixctl: d1: the disk is held by n2?: waiting\nmatrixctl: the disk is held by n2\n"
    assert done.returncode == NOT_FREE == BUSY


def test_a_wait_that_takes_too_long(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "matrixd.sock"))
        listening.listen()
        done = run("--state", tmp_path, "disk", "lock", "--timeout", "0.05", "d1", "--", "true")
    assert (done.exit_code, done.stderr) == (
        BUSY, "matrixctl: d1 was not free within 0.05 s: see matrixctl disk locks\n",
    )  # fmt: skip


def test_at_once_or_not_at_all(tmp_path: Path) -> None:
    with matrixd_that_answers(tmp_path, error_message(OperatorError("held"))) as asked:
        done = run("--state", tmp_path, "disk", "lock", "--timeout", "0", "d1", "/usr/bin/secret-job", "--password=x")
    assert (done.exit_code, done.stderr) == (2, "matrixctl: held\n")
    assert asked[0]["wait"] is False
    assert asked[0]["command"] == "secret-job"
    nothing = run("--state", tmp_path, "disk", "lock", "d1", "--")
    assert (nothing.exit_code, nothing.stderr.count("\n")) == (2, 1)


@pytest.mark.parametrize("value", [None, {}, {"grace": 1}, {"grace": -1.0}, {"grace": float("nan")}, {"grace": 1e9}])
def test_no_command_without_its_grace(tmp_path: Path, value: object) -> None:
    with pytest.raises(BadMessage):
        grace_untrusted(value)


# --- disk locks ------------------------------------------------------------------------------------------------------


def table(node: int, *rows: tuple, administrator: bool = True, generation: int = 5, unknown: tuple = ()) -> dict:
    fields = ("disk", "node", "owner", "exclusive", "state")
    value = {"administrator": administrator, "generation": generation, "unknown": list(unknown)}
    return mount(node, 9, value | {"rows": [dict(zip(fields, row, strict=True)) for row in rows]})


ROWS = (("d1", 2, "rsync, process 7 on n2", True, "held"), ("d1", 1, "dd\x1b, process 8 on n1", False, "waiting"))
SHOWN = """\
  DISK  STATE    HOW     WHO
  d1    held     alone   rsync, process 7 on n2
  d1    waiting  shared  dd?, process 8 on n1
"""


def test_holders_and_waiters(tmp_path: Path) -> None:
    stale = table(3, ("d1", 3, "stale", True, "held"), generation=4)
    answer = result(table(1, administrator=False), table(2, *ROWS), stale)
    with matrixd_that_answers(tmp_path, answer, answer) as asked:
        people = run("--state", tmp_path, "disk", "locks")
        programs = run("--state", tmp_path, "disk", "locks", "--json")
    assert (people.exit_code, people.stdout, people.stderr) == (0, SHOWN, "")
    found = json.loads(programs.stdout)
    assert found["locks"][0] == {
        "disk": "d1", "node": "n2", "owner": "rsync, process 7 on n2", "exclusive": True, "state": "held",
    }  # fmt: skip
    assert (len(found["locks"]), found["unknown"], found["silent"]) == (2, [], [])
    assert asked[0] == {"kind": "ask", "what": "node.disk-locks", "arguments": {}, "node": None}


def test_a_new_administrator_that_does_not_know_all(tmp_path: Path) -> None:
    with matrixd_that_answers(tmp_path, result(table(1, administrator=False), table(2, unknown=(1, 7)))):
        done = run("--state", tmp_path, "disk", "locks")
    assert done.stdout == (
        "No cluster disk is locked.\n"
        "n1 has not yet said what it holds; nothing is granted before\n"
        "node 7 has not yet said what it holds; nothing is granted before\n"
    )


def test_no_administrator(tmp_path: Path) -> None:
    silent = {"node": 2, "name": "n2", "mounts": None}
    with matrixd_that_answers(tmp_path, *2 * [result(table(1, administrator=False), silent)]):
        people, programs = (run("--state", tmp_path, "disk", "locks", *more) for more in ((), ("--json",)))
    assert (people.exit_code, people.stdout) == (3, "")
    assert people.stderr == (
        "matrixctl: n2 does not answer: what it knows of disk locks is missing here\n"
        "matrixctl: no administrator answers: who holds what is not known\n"
    )
    assert programs.exit_code == 3
    assert json.loads(programs.stdout)["locks"] is None


def test_a_matrixd_without_a_slot(tmp_path: Path) -> None:
    with matrixd_that_answers(tmp_path, {"kind": "result", "value": {"node": -1, "answers": []}}):
        done = run("--state", tmp_path, "disk", "locks")
    assert (done.exit_code, done.stderr) == (
        3, "matrixctl: matrixd is still claiming its slot: try again in a second\n",
    )  # fmt: skip


def test_hostile_answers() -> None:
    rng = random.Random(24)
    good = {"administrator": True, "generation": 5, "unknown": [1], "rows": [
        {"disk": "d1", "node": 2, "owner": "x", "exclusive": True, "state": "held"},
    ]}  # fmt: skip
    junk = [None, True, False, -1, 64, 2**70, 1.5, "x", b"x", [], {}, [[]], [None], {"node": "x"}, [1, "x"]]
    outcomes = set()
    for _ in range(2000):
        value: Any = json.loads(json.dumps(good))
        for _ in range(rng.randrange(3)):
            where = rng.choice([value, *(value["rows"] if isinstance(value["rows"], list) else [])])
            if isinstance(where, dict):
                where[rng.choice(["administrator", "disk", "exclusive", *where])] = rng.choice(junk)
        if rng.random() < 0.05:
            value = rng.choice(junk)
        answers = Answers(1, mounts=[MountValue(2, "n2", "", "", 9, value)])
        try:
            outcomes.add(type(known_untrusted(answers)).__name__)
        except BadMessage:
            outcomes.add("refused")
    assert outcomes == {"Known", "NoneType", "refused"}
