"""Application locks: the mount's side, the command against a fake matrixd, and who stands in whose way."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from matrixfs.cli.asking import Answers, MountValue
from matrixfs.cli.file_locks_format import END_MAX, combine_files, format_files
from matrixfs.lock_names import BUSY, NAME_BYTES_MAX, object_of
from matrixfs.locks.file_locks import Conflict
from matrixfs.named_locks import LEASES_MAX, NamedLocks
from membership.control_wire import FrameBuffer, encode_frame, error_message
from membership.errors import BadMessage, OperatorError, PeerError
from tests.matrixfs.test_cli_locks import mount, result
from tests.matrixfs.test_cli_matrixctl import matrixd_that_answers, run

pytestmark = pytest.mark.seed("004-33", "002-24")


class FakeLocks:
    """One exclusive lock for each object; ``free`` wakes who waits."""

    def __init__(self) -> None:
        self.owner: dict[int, int] = {}
        self.free = trio.Event()
        self.crossing = False  # the grant crosses the cancellation

    async def set(self, kind, object_, owner_id, pid, start, end, exclusive, *, wait) -> None:
        try:
            while self.owner.get(object_, owner_id) != owner_id:
                if not wait:
                    raise OSError(errno.EAGAIN, "busy")
                await self.free.wait()
        except trio.Cancelled:
            if not self.crossing:
                raise
        self.owner[object_] = owner_id

    async def test(self, *_: object) -> Conflict:
        await trio.lowlevel.checkpoint()
        return Conflict(3, 4711, 0, END_MAX, True)

    async def drop(self, kind, object_, owner_id) -> None:
        await trio.lowlevel.checkpoint()
        assert self.owner.pop(object_) == owner_id
        self.free.set()
        self.free = trio.Event()

    def dump(self) -> list[dict[str, Any]]:
        return [
            {"kind": "NAMED", "object": object_, "owner": owner, "pid": 1, "waiting": None}
            for object_, owner in self.owner.items()
        ]


def ask(lease: int, **more: Any) -> dict[str, Any]:
    return {"id": lease, "name": b"job", "exclusive": True, "wait": True, "pid": 7, **more}


async def test_held_until_given_up() -> None:
    fake = FakeLocks()
    named = NamedLocks(fake)
    await named.lock(ask(1))
    assert fake.owner == {object_of(b"job"): 1}
    assert named.rows({("NAMED", object_of(b"job"))})[0]["name"] == b"job"
    assert named.rows(None) == []
    with pytest.raises(OperatorError, match="job is locked by process 4711 on node 3") as caught:
        await named.lock(ask(2, wait=False))
    assert caught.value.exit_code == BUSY
    async with trio.open_nursery() as nursery:
        nursery.start_soon(named.lock, ask(3))
        await trio.testing.wait_all_tasks_blocked()
        await named.unlock({"id": 1})
    assert fake.owner == {object_of(b"job"): 3}
    await named.unlock({"id": 3})
    await named.unlock({"id": 3})  # idempotent
    assert not fake.owner
    assert named.name_of(3) == b""


@pytest.mark.parametrize("crossing", [False, True])
async def test_given_up_while_it_waits(crossing: bool) -> None:
    fake = FakeLocks()
    named = NamedLocks(fake)
    await named.lock(ask(1))
    fake.crossing = crossing
    gone = False

    async def waits() -> None:
        nonlocal gone
        try:
            await named.lock(ask(2))
        except PeerError:
            gone = True

    if crossing:  # as if it had been freed at that moment
        del fake.owner[object_of(b"job")]
        fake.owner[object_of(b"job")] = 9
    async with trio.open_nursery() as nursery:
        nursery.start_soon(waits)
        await trio.testing.wait_all_tasks_blocked()
        await named.unlock({"id": 2})
    assert gone is not crossing
    assert 2 not in fake.owner.values(), "nothing stays locked"


async def test_bad_requests() -> None:
    named = NamedLocks(FakeLocks())
    for bad in ({"name": b""}, {"name": b"x" * (NAME_BYTES_MAX + 1)}):
        with pytest.raises(OperatorError, match="1 to 1024 bytes"):
            await named.lock(ask(1, **bad))
    for bad in ({"name": "text"}, {"id": -1}, {"pid": 1 << 31}, {"wait": 1}, {"exclusive": None}):
        with pytest.raises(BadMessage):
            await named.lock(ask(1, **bad))
    for lease in range(LEASES_MAX):
        await named.lock(ask(lease, name=b"%d" % lease))
    with pytest.raises(OperatorError, match="are in use on this node"):
        await named.lock(ask(LEASES_MAX + 1))


# --- the command -------------------------------------------------------------------------------------------------


@contextmanager
def matrixd_that_holds(directory: Path, hang_up_after: Path | None = None) -> Iterator[list[Any]]:
    """Grants one lock, notes when its connection ends, or ends it itself once a file is there."""
    seen: list[Any] = []

    def serve(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        with connection:
            frames = FrameBuffer()
            while (question := frames.next_untrusted()) is None:
                frames.feed(connection.recv(4096))
            seen.append(question)
            connection.sendall(encode_frame({"kind": "result", "value": {}}))
            if hang_up_after is None:
                seen.append(connection.recv(1))
            else:
                with open(hang_up_after, "rb") as fifo:
                    fifo.read(1)

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(directory / "matrixd.sock"))
        listening.listen()
        thread = threading.Thread(target=serve, args=(listening,))
        thread.start()
        yield seen
        thread.join()


def command(state: Path, *arguments: str) -> list[str]:
    code = "from matrixfs.cli.matrixctl_cmd import main; main(prog_name='matrixctl')"
    return [sys.executable, "-c", code, "--state", str(state), "lock", *arguments]


@pytest.mark.parametrize(
    ("script", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -KILL $$", 128 + signal.SIGKILL)]
)
def test_the_exit_code_is_the_commands(tmp_path: Path, script: str, code: int) -> None:
    with matrixd_that_holds(tmp_path) as seen:
        done = subprocess.run(command(tmp_path, "--shared", "a\udcffb", "--", "sh", "-c", script), check=False)
    assert done.returncode == code
    assert seen[0] | {"pid": 0} == {
        "kind": "lock", "filesystem": "", "name": b"a\xffb", "exclusive": False, "wait": True, "pid": 0,
    }  # fmt: skip
    assert seen[1] == b"", "the connection ended with the command"


def test_a_command_that_does_not_exist(tmp_path: Path) -> None:
    with matrixd_that_holds(tmp_path):
        done = subprocess.run(command(tmp_path, "n", "/none/x"), check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (127, "matrixctl: /none/x: No such file or directory\n")


def test_a_lost_lock_ends_the_command(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    script = f"trap 'echo ended; exit 3' TERM; echo x > {fifo}; while :; do sleep 0.01; done"
    with matrixd_that_holds(tmp_path, fifo):
        done = subprocess.run(command(tmp_path, "n", "--", "sh", "-c", script), check=False, capture_output=True)
    assert done.returncode == 125
    assert done.stdout == b"ended\n"
    assert done.stderr == b"matrixctl: the lock n is lost: ending the command\n"


def test_signals_are_passed_on(tmp_path: Path) -> None:
    script = "trap 'exit 9' USR1; echo ready; while :; do sleep 0.01; done"
    with (
        matrixd_that_holds(tmp_path),
        subprocess.Popen(
            command(tmp_path, "n", "--", "sh", "-c", script), stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
        ) as process,
    ):
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGUSR1)  # a shell can't trap what it was started with as ignored: HUP, under nohup
        assert process.wait() == 9


def test_refusals_are_one_line(tmp_path: Path) -> None:
    busy = OperatorError("n is locked by process 5 on node 2")
    busy.exit_code = BUSY
    with matrixd_that_answers(tmp_path, error_message(busy)) as asked:
        done = run("lock", "--try", "n", "--", "true", "--state", tmp_path, MATRIXFS_STATE=str(tmp_path))
    assert (done.exit_code, done.stderr) == (BUSY, "matrixctl: n is locked by process 5 on node 2\n")
    assert asked[0]["wait"] is False
    both = run("--state", tmp_path, "lock", "--try", "--wait", "3", "n", "true")
    assert (both.exit_code, both.stderr.count("\n")) == (2, 1)
    nothing = run("--state", tmp_path, "lock", "n", "--")
    assert nothing.exit_code == 2


def test_a_wait_that_takes_too_long(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "matrixd.sock"))
        listening.listen()
        done = run("--state", tmp_path, "lock", "--wait", "0.05", "n", "--", "true")
    assert (done.exit_code, done.stderr) == (BUSY, "matrixctl: n was not free within 0.05 s: see matrixctl locks n\n")


# --- who stands in whose way ------------------------------------------------------------------------------------------


def row(owner: int, start: int, end: int, waiting: float | None, **more: Any) -> dict[str, Any]:
    about = {"kind": "POSIX", "object": 7, "owner": owner, "pid": 100 + owner, "command": "rsync", "path": b"/f"}
    return {**about, "sure": True, "start": start, "end": end, "exclusive": True, "waiting": waiting, **more}


FILES = """\
  LOCK      KIND   MODE       BYTES   NODE  PROCESS      STATE
  /mnt/2/f  fcntl  exclusive  0-9     n1    101 (rsync)  held
  /mnt/2/f  fcntl  exclusive  10-end  n1    101 (rsync)  held
  /mnt/2/f  fcntl  shared     0-4     n2    102 (rsync)  waits 1.5 s for n1 process 101
"""


def test_the_table_of_file_locks(tmp_path: Path) -> None:
    one = [row(1, 0, 9, None), row(1, 10, END_MAX, None)]
    other = [row(2, 0, 4, 1.5, exclusive=False), {"kind": "nonsense"}, 5]
    answer = result(mount(1, 5, one), mount(2, 6, other))
    with matrixd_that_answers(tmp_path, answer) as asked:
        done = run("locks", "job", "--state", tmp_path)
    assert done.stdout == "File and application locks\n" + FILES
    assert asked[0]["arguments"] == {"objects": [["NAMED", object_of(b"job")]]}


JUNK = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.binary(max_size=3)


@given(rows=st.lists(JUNK | st.dictionaries(st.sampled_from(list(row(1, 0, 9, None))), JUNK), max_size=4))
def test_hostile_rows(rows: list[Any]) -> None:
    rows += [{**row(1, 0, 9, None), **each} for each in rows if isinstance(each, dict)]
    answers = Answers(1, {1: "n1"}, [MountValue(1, "n1", "web", "/m", 5, rows)])
    assert all(line.isprintable() for line in format_files(combine_files(answers), answers))
