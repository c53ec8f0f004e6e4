"""Fence agents as real processes: small ones written here, and Debian's ``fence_dummy`` (002-20, 002-38)."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import pytest
import trio

from membership.clock import SystemClock
from membership.fence.agent import AgentExit, AgentFence
from membership.fence.agent_process import OUTPUT_BYTES_MAX, ProcessRunner
from membership.fence.levels import Level, device_of
from tests.membership.test_fence_agent import slot

pytestmark = pytest.mark.seed("002-20", "002-38")


def agent(directory: Path, body: str) -> str:
    path = directory / "fence_test"
    path.write_text("#!/bin/sh\n" + body)
    path.chmod(0o755)
    return str(path)


async def run(directory: Path, body: str, *options: tuple[str, str], timeout: float = 30) -> AgentExit:
    return await ProcessRunner().run(agent(directory, body), options, timeout)


async def test_options_go_by_standard_input_and_no_argument_ever(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FENCE_LEAK", "x")
    body = 'echo "argc=$#"; cat; echo "$PATH"; echo "leak=$FENCE_LEAK"; pwd; exit 0'
    exit_ = await run(tmp_path, body, ("action", "off"), ("passwd", "a=b \u00e9"))
    lines = exit_.output.split("\n")
    assert exit_.code == 0
    assert lines == ["argc=0", "action=off", "passwd=a=b \u00e9", "/usr/sbin:/usr/bin:/sbin:/bin", "leak=", "/"]


@pytest.mark.parametrize("code", [0, 1, 2, 7, 255])
async def test_exit_codes_and_both_outputs(tmp_path, code: int) -> None:
    assert await run(tmp_path, f"echo out; echo err >&2; exit {code}") == AgentExit(code, "out\nerr")


async def test_ended_by_a_signal(tmp_path) -> None:
    assert (await run(tmp_path, "kill -9 $$")).code == -9


async def test_one_that_does_not_read_its_input(tmp_path) -> None:
    many = tuple((f"option{n}", "v" * 1000) for n in range(200))  # more than a pipe holds
    assert (await run(tmp_path, "exec <&-; exit 2", *many)).code == 2


async def test_one_that_hangs_is_killed_with_its_children(tmp_path) -> None:
    pids = tmp_path / "pids"
    body = f"sleep 600 & echo $! $$ > {pids}; echo before; trap '' TERM; wait; sleep 600"
    exit_ = await run(tmp_path, body, timeout=1)
    assert exit_ == AgentExit(None, "before", timed_out=True)
    for pid in pids.read_text().split():
        await gone(int(pid))


async def test_what_it_leaves_behind_is_killed(tmp_path) -> None:
    pids = tmp_path / "pids"
    exit_ = await run(tmp_path, f"sleep 600 & echo $! > {pids}; exit 0")
    assert exit_ == AgentExit(0, "")
    await gone(int(pids.read_text()))


async def test_a_child_in_a_session_of_its_own_delays_nobody(tmp_path) -> None:
    pids = tmp_path / "pids"
    began = time.monotonic()
    exit_ = await run(tmp_path, f"setsid sh -c 'echo $$ > {pids}; exec sleep 600' & while [ ! -s {pids} ]; do :; done")
    os.kill(int(pids.read_text()), 9)
    assert exit_.code == 0
    assert time.monotonic() - began < 20


async def test_cancelled_means_killed(tmp_path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, tmp_path, f"echo $$ > {fifo}; sleep 600")
        pid = int(await trio.to_thread.run_sync(fifo.read_text))
        nursery.cancel_scope.cancel()
    await gone(pid)


async def test_huge_output_is_read_and_cut(tmp_path) -> None:
    exit_ = await run(tmp_path, "head -c 3000000 /dev/zero | tr '\\0' x; exit 2")
    assert exit_.code == 2
    assert exit_.output == "x" * OUTPUT_BYTES_MAX


async def test_garbage_is_made_printable(tmp_path) -> None:
    exit_ = await run(tmp_path, r"printf 'a\033[31m\000\377\r\nb\t'; exit 1")
    assert (exit_.code, exit_.output) == (1, "a?[31m?\ufffd?\nb?")


async def test_what_can_not_be_run_says_why(tmp_path) -> None:
    missing = await ProcessRunner().run("fence_no_such_agent", (), 5)
    assert missing == AgentExit(None, "/usr/sbin/fence_no_such_agent: No such file or directory")
    path = agent(tmp_path, "exit 0")
    os.chmod(path, 0o644)
    assert await ProcessRunner().run(path, (), 5) == AgentExit(None, f"{path}: Permission denied")


async def test_a_name_is_never_looked_up_in_our_path(tmp_path, monkeypatch) -> None:
    agent(tmp_path, "exit 0")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert (await ProcessRunner().run("fence_test", (), 5)).code is None


async def gone(pid: int) -> None:
    """SIGKILL was sent: it ends, though not at the same moment."""
    with trio.fail_after(20):
        fd = None
        with contextlib.suppress(ProcessLookupError):
            fd = os.pidfd_open(pid)
        if fd is not None:
            await trio.lowlevel.wait_readable(fd)
            os.close(fd)


# --- Debian's agent -----------------------------------------------------------------------------------------


def dummies(directory: Path, *names: str, kind: str = "file") -> Level:
    for name in names:
        (directory / name).write_text("on")
    return Level(
        tuple(
            device_of("fence_dummy", [f"type={kind}", f"status_file={directory / name}", "call_retries=0"])
            for name in names
        )
    )


async def test_fence_dummy_off_and_on(tmp_path) -> None:
    level = dummies(tmp_path, "left", "right")
    fence = AgentFence(lambda _name: (level,), ProcessRunner(), SystemClock())
    assert [(c.monitor, c.power) for c in await fence.check(level)] == [(True, "on"), (True, "on")]
    result = await fence.fence(slot(), 0.0)
    assert result.confirmed
    assert result.detail == "fence_dummy and fence_dummy (level 1): off, and status says so"
    assert [(tmp_path / name).read_text() for name in ("left", "right")] == ["off", "off"]
    assert [c.power for c in await fence.check(level)] == ["off", "off"]
    assert (await fence.unfence("n1")).confirmed
    assert [(tmp_path / name).read_text() for name in ("left", "right")] == ["on", "on"]


async def test_fence_dummy_that_fails_and_the_next_level(tmp_path) -> None:
    """type=fail says that the power is in an unknown state; the second level works."""
    failing = Level((device_of("fence_dummy", ["type=fail", "plug=1", "power_timeout=1", "call_retries=0"]),))
    works = dummies(tmp_path, "one")
    fence = AgentFence(lambda _name: (failing, works), ProcessRunner(), SystemClock())
    result = await fence.fence(slot(), 0.0)
    assert result.confirmed, result.detail
    assert "(level 2)" in result.detail
    alone = await AgentFence(lambda _name: (failing,), ProcessRunner(), SystemClock()).fence(slot(), 0.0)
    assert not alone.confirmed


async def test_fence_dummy_repeats_what_it_does_not_know_and_the_secret_is_hidden(tmp_path) -> None:
    device = device_of("fence_dummy", ["type=nonsense", "secret_word=hunter2", "plug=1", "call_retries=0"])
    raw = await ProcessRunner().run(device.agent, (("action", "status"), *device.options), 30)
    assert "secret_word=hunter2" in raw.output
    assert "hunter2" not in device.without_secrets(raw.output)
