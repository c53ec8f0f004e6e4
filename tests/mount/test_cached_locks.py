"""A cached lock costs no message, a cached name no call; and the store is only ever opened around the page cache."""

from __future__ import annotations

import os
from typing import Any

import pytest

from tests.mount.conftest import Tree
from tests.mount.lab import Lab, LabNode

REPEATS = 100


def traffic(lab: Lab, node: LabNode) -> dict[str, Any]:
    """What the mount process has said to others, asked of its lock manager, and was called for by the kernel.

    Without what it said as arbiter: that is for the background work of others.
    """
    counters = lab.counters(node)
    sent = {name: count for name, count in counters["dlm"].items() if name.startswith("sent_")}
    as_arbiter = sum(sent.pop(name, 0) for name in ("sent_Granted", "sent_Revoke"))
    return {
        "links": counters["links"]["messages_sent"] - as_arbiter,
        "requests": counters["locks"]["requests"],
        "dlm": sent,
        "calls": sum(counters["fuse"]["calls"].values()),
    }


@pytest.mark.seed("002-06")
def test_repeated_use_sends_no_message(tree: Tree) -> None:
    lab, node = tree.lab, tree.lab.nodes[1]
    (tree.a / "f").write_bytes(b"x" * 50_000)
    os.stat(tree.b / "f")
    assert (tree.b / "f").read_bytes() == b"x" * 50_000
    before = traffic(lab, node)
    for _ in range(REPEATS):
        os.stat(tree.b / "f")
        assert (tree.b / "f").read_bytes() == b"x" * 50_000
        assert not (tree.b / "absent").exists()
    after = traffic(lab, node)
    assert after["links"] - before["links"] <= 1, "one for the lock of the absent name's directory, at most"
    assert after["requests"] - before["requests"] <= 1
    sent = []
    for _ in range(3):  # one message may be of background work, or come of another test's dropping of all caches
        before = traffic(lab, node)
        for _ in range(REPEATS):
            assert (tree.b / "f").read_bytes() == b"x" * 50_000
        sent.append((before, traffic(lab, node)))
    assert any({**after, "calls": 0} == {**before, "calls": 0} for before, after in sent), sent


@pytest.mark.seed("002-06")
def test_a_warm_stat_makes_no_call_at_all(tree: Tree) -> None:
    lab, node = tree.lab, tree.lab.nodes[2]
    (tree.a / "f").touch()
    for name in ("f", "absent"):
        (tree.c / name).exists()
    before = traffic(lab, node)
    for _ in range(REPEATS):
        assert (tree.c / "f").exists()
        assert not (tree.c / "absent").exists()
    assert traffic(lab, node) == before


@pytest.mark.seed("002-06", "002-35")
def test_writing_on_stays_local(tree: Tree) -> None:
    """Who holds the exclusive lock writes without a message, and without a write to the store for each."""
    lab, node = tree.lab, tree.lab.nodes[0]
    fd = os.open(tree.a / "f", os.O_CREAT | os.O_WRONLY)
    os.write(fd, b"x" * 5000)
    before = traffic(lab, node)
    for _ in range(REPEATS):
        os.write(fd, b"y" * 5000)
    after = traffic(lab, node)
    os.close(fd)
    assert {**after, "calls": 0} == {**before, "calls": 0}
    assert after["calls"] - before["calls"] >= REPEATS


@pytest.mark.seed("002-01")
def test_every_descriptor_that_moves_data_is_direct(lab: Lab) -> None:
    """R13: a host's buffer cache over a shared disk is a stale cache.

    matrixd also has one, read-only, that it only tests file locks with (membership/presence.py).
    """
    wanted = os.stat(lab.store)
    daemons, mounts = [[getattr(node, pid) for node in lab.nodes] for pid in ("daemon_pid", "mount_pid")]
    direct, buffered = set(), []
    for pid in daemons + mounts:
        for name in os.listdir(f"/proc/{pid}/fd"):
            status = os.stat(f"/proc/{pid}/fd/{name}")
            if (status.st_dev, status.st_ino) != (wanted.st_dev, wanted.st_ino):
                continue
            with open(f"/proc/{pid}/fdinfo/{name}") as file:
                flags = int(next(line for line in file if line.startswith("flags:")).split()[1], 8)
            if flags & os.O_DIRECT:
                direct.add(pid)
            else:
                buffered.append((pid, flags & os.O_ACCMODE))
    assert direct == {*daemons, *mounts}
    assert all(pid in daemons and mode == os.O_RDONLY for pid, mode in buffered), buffered
