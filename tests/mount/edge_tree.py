"""A mount of a tree in memory, in a process of its own, and the pipe to it: for the tests of the FUSE layer."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SERVER = Path(__file__).with_name("fuse_edge_server.py")
ROOT = 64
ANSWER_SECONDS = 30  # not a bound under test: only so that a broken server fails instead of hanging


class Tree:
    """The mounted tree and the pipe to its process."""

    def __init__(self, base: Path, mode: str, **environment: str) -> None:
        self.path = base / "mnt"
        self.path.mkdir()
        self.registry = base / "registry"
        self._number = 0
        self._answers: dict[int, queue.Queue[Any]] = {0: queue.Queue()}
        self._log = (base / "log").open("w+")
        self._process = subprocess.Popen(
            [sys.executable, str(SERVER), str(self.path), str(self.registry), mode],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.device = self.result(0)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            answer = json.loads(line)
            self._answers[answer["number"]].put(answer["result"])

    def send(self, do: str, **arguments: Any) -> int:
        assert self._process.stdin is not None
        self._number += 1
        self._answers[self._number] = queue.Queue()
        self._process.stdin.write(json.dumps({"number": self._number, "do": do, **arguments}) + "\n")
        self._process.stdin.flush()
        return self._number

    def result(self, number: int) -> Any:
        try:
            return self._answers[number].get(timeout=ANSWER_SECONDS)
        except queue.Empty:
            pytest.fail(f"no answer from the mount process: {self.log()}")

    def ask(self, do: str, **arguments: Any) -> Any:
        return self.result(self.send(do, **arguments))

    def calls(self, operation: str) -> int:
        return self.ask("counters")["calls"].get(operation, 0)

    def caches(self) -> dict[str, int]:
        return self.ask("counters")["caches"]

    def wait_for_gate(self, operation: str) -> None:
        while operation not in self.ask("waiting"):
            pass  # each question is a round trip to the process, which serves the request meanwhile

    def log(self) -> str:
        self._log.flush()
        return Path(self._log.name).read_text()

    def unmount(self) -> None:
        subprocess.run(["umount", "-i", str(self.path)], check=True, capture_output=True)
        assert self._process.wait(ANSWER_SECONDS) == 0, self.log()

    def close(self) -> None:
        subprocess.run(["umount", "-i", "-l", str(self.path)], check=False, capture_output=True)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(3)
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._reader.join()
        self._process.stdin.close()
        self._process.stdout.close()
        self._log.close()
        subprocess.run(["umount", "-i", "-l", str(self.path)], check=False, capture_output=True)


@contextlib.contextmanager
def in_thread(call: Any) -> Iterator[list[Any]]:
    """Run a system call that will block; its result, or OSError, is in the list after the block."""
    result: list[Any] = []

    def run() -> None:
        try:
            result.append(call())
        except OSError as error:
            result.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield result
    finally:
        thread.join(ANSWER_SECONDS)
        assert not thread.is_alive()
