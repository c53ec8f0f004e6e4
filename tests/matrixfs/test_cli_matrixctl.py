"""matrixctl: its answers, its refusals, how fast it starts (issue 2 "Bad input", 002-26)."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from matrixfs.cli import common
from matrixfs.cli.matrixctl_cmd import main
from membership.control_wire import FrameBuffer, encode_frame, error_message
from membership.errors import DeviceError, Fenced, MatrixError, OperatorError


@contextmanager
def matrixd_that_answers(directory: Path, *answers: dict):
    """A thread that takes one question per answer."""
    asked: list[dict] = []

    def serve(listening: socket.socket) -> None:
        for answer in answers:
            connection, _ = listening.accept()
            with connection:
                frames = FrameBuffer()
                while (question := frames.next_untrusted()) is None:
                    frames.feed(connection.recv(4096))
                asked.append(question)
                connection.sendall(encode_frame(answer))

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(directory / "matrixd.sock"))
        listening.listen()
        thread = threading.Thread(target=serve, args=(listening,))
        thread.start()
        yield asked
        thread.join()


def run(*arguments: object, **env: str) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments], env=env, prog_name="matrixctl")


def test_status_for_programs(tmp_path: Path) -> None:
    value = {"generation": 2**64 - 1, "local_mounts": [{"counters": {"dlm": {"messages": 0}}, "uuid": b"\x01\xff"}]}
    with matrixd_that_answers(tmp_path, {"kind": "result", "value": value}) as asked:
        result = run("status", "--json", "--state", tmp_path)
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {
        "generation": 2**64 - 1,
        "local_mounts": [{"counters": {"dlm": {"messages": 0}}, "uuid": "01ff"}],
    }
    assert asked == [{"kind": "status"}]


def test_status_of_another_version_is_one_line(tmp_path: Path) -> None:
    with matrixd_that_answers(tmp_path, {"kind": "result", "value": {"nodes": []}}):
        result = run("status", "--state", tmp_path)
    assert result.exit_code == 3
    assert result.stderr.startswith("matrixctl: matrixd answers in another version's format")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "error", [OperatorError("trees are mounted here: /mnt/a"), Fenced("evicted"), DeviceError("/dev/sdb: read at 0")]
)
def test_what_matrixd_refuses_is_one_line_with_its_exit_code(tmp_path: Path, error: MatrixError) -> None:
    with matrixd_that_answers(tmp_path, error_message(error)):
        result = run("stop", "--state", tmp_path)
    assert (result.exit_code, result.stderr, result.stdout) == (error.exit_code, f"matrixctl: {error}\n", "")


def test_a_matrixd_that_dies_before_it_answers(tmp_path: Path) -> None:
    with matrixd_that_answers(tmp_path, {"kind": "result"}):
        assert run("status", "--json", "--state", tmp_path).stdout == "null\n"
    with socket.socket(socket.AF_UNIX) as listening:
        (tmp_path / "matrixd.sock").unlink()
        listening.bind(str(tmp_path / "matrixd.sock"))
        listening.listen()
        thread = threading.Thread(target=lambda: listening.accept()[0].close())  # noqa: PLW0108 - not before it runs
        thread.start()
        result = run("status", "--state", tmp_path)
        thread.join()
    assert result.exit_code == 3
    assert "matrixd " in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["status", "events", "stop"])
def test_no_matrixd_here(tmp_path: Path, command: str) -> None:
    result = run(command, "--state", tmp_path)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"matrixctl: matrixd is not running here, nobody listens on {tmp_path}/")
    assert "start it: systemctl start matrixd" in result.stderr


def test_which_state_directory(tmp_path: Path) -> None:
    def named(*arguments: object, **env: str) -> str:
        return run(*arguments, **env).stderr.split("listens on ")[1].split("/matrixd.sock")[0]

    default = common.STATE_DIR_DEFAULT
    assert named("status", MATRIXFS_STATE="/e") == "/e"
    assert named("--state", "/g", "status", MATRIXFS_STATE="/e") == "/g"
    assert named("--state", "/g", "status", "--state", "/c", MATRIXFS_STATE="/e") == "/c"
    assert run("--help").stdout.count(default) == 1


def test_unexpected_errors_keep_their_traceback() -> None:
    bug = ExceptionGroup("", [OperatorError("a"), ExceptionGroup("", [ZeroDivisionError()])])
    with pytest.raises(ExceptionGroup) as caught:
        common.worst_of(bug)
    assert caught.value is bug
    nested = ExceptionGroup("", [OperatorError("a"), ExceptionGroup("", [Fenced("b"), DeviceError("c")])])
    assert str(common.worst_of(nested)) == "b"


def test_it_starts_without_what_takes_long_to_import() -> None:
    code = (
        "import sys; sys.argv[1:] = ['--state', '/none', 'status']\n"
        "from matrixfs.cli.matrixctl_cmd import main\n"
        "try: main()\n"
        "except SystemExit: print(sorted({'trio', 'sqlalchemy', 'msgspec', 'pyfuse3'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
