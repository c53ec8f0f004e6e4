"""Runs fence agents as processes: the edge behind ``AgentFence`` (an implementation of a seam to the system; R1).

Invariants:

A1. No argument is ever passed: an agent with any argument ignores its input and reboots by default.
A2. What runs is an absolute path, or a ``fence_*`` in /usr/sbin; PATH of our caller does not count, nor does anything
    else of its environment.
A3. When ``run`` returns, no process of the agent's group is left (but one that hangs in the kernel); the group is
    killed while its leader is not yet reaped, so the number can't be another's.
A4. At most OUTPUT_BYTES_MAX of output are kept; the rest is read and dropped, so that the agent never blocks on it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from typing import TYPE_CHECKING, Final

import trio

from membership.fence.agent import AgentExit

if TYPE_CHECKING:
    from collections.abc import Sequence

AGENT_DIRECTORY: Final = "/usr/sbin"
OUTPUT_BYTES_MAX: Final = 64 * 1024
REAP_SECONDS_MAX: Final = 5.0  # after SIGKILL; a process in an uninterruptible call stays, and is reaped later
ENVIRONMENT: Final = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C", "LC_ALL": "C", "HOME": "/"}
DRAIN_SECONDS_MAX: Final = 1.0  # for output after the exit: a child in a session of its own may hold it open
_READ_BYTES: Final = 64 * 1024


class ProcessRunner:
    """See the module."""

    async def run(self, agent: str, options: Sequence[tuple[str, str]], timeout: float) -> AgentExit:
        """Run it once, with these lines on its input; kill its process group after ``timeout`` seconds."""
        path = agent if agent.startswith("/") else os.path.join(AGENT_DIRECTORY, agent)
        text = "".join(f"{name}={value}\n" for name, value in options)
        try:
            # In a thread: starting a program reads it from a disk, and our caller's lease can't wait for that.
            process = await trio.to_thread.run_sync(_start, path)
        except OSError as error:
            return AgentExit(None, f"{path}: {error.strerror}")
        output = bytearray()
        ended = False
        try:
            with trio.move_on_after(timeout):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_write, process, text.encode())
                    nursery.start_soon(_read, process, output)
                    await _wait(process)
                    ended = True
                    _kill_group(process)  # what it left behind would hold its output open
                    nursery.cancel_scope.deadline = trio.current_time() + DRAIN_SECONDS_MAX
        finally:
            await _end(process)
        said = _printable(output)
        return AgentExit(process.returncode, said) if ended else AgentExit(None, said, timed_out=True)


def _start(path: str) -> subprocess.Popen[bytes]:
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [path], stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, cwd="/", env=ENVIRONMENT, start_new_session=True
    )


async def _write(process: subprocess.Popen[bytes], data: bytes) -> None:
    assert process.stdin is not None
    async with trio.lowlevel.FdStream(os.dup(process.stdin.fileno())) as stream:
        process.stdin.close()
        with contextlib.suppress(trio.BrokenResourceError):  # it does not read what it does not need
            await stream.send_all(data)


async def _read(process: subprocess.Popen[bytes], output: bytearray) -> None:
    assert process.stdout is not None
    async with trio.lowlevel.FdStream(os.dup(process.stdout.fileno())) as stream:
        process.stdout.close()
        while data := await stream.receive_some(_READ_BYTES):
            output += data[: OUTPUT_BYTES_MAX - len(output)]


async def _wait(process: subprocess.Popen[bytes]) -> None:
    """Until it has exited; it stays a zombie, so that its number is not used again (A3)."""
    pidfd = os.pidfd_open(process.pid)
    try:
        await trio.lowlevel.wait_readable(pidfd)
    finally:
        os.close(pidfd)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    # All gone; or what is left runs as somebody else, which only who is not root can meet.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


async def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left, reap it, close the pipes."""
    _kill_group(process)
    with trio.CancelScope(shield=True), trio.move_on_after(REAP_SECONDS_MAX):
        await _wait(process)
        process.wait()
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        pipe.close()


def _printable(output: bytearray) -> str:
    text = output.decode(errors="replace")
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text).strip()
