"""Quotas on a real cluster: three nodes fill one user's, a node dies, files change hands (decision 0023)."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest

from tests.mount.conftest import left_clean, new_lab
from tests.mount.lab import Lab, LabNode, wait_until
from tests.mount.test_filesystem_commands import fs

pytestmark = [pytest.mark.usefixtures("watched"), pytest.mark.long]

NAME = "quotas"
MIB = 1 << 20
USER, GROUP = 23_456, 23_457
FILL = """
import errno, os, sys
os.setgroups([])
os.setgid(int(sys.argv[3]))
os.setuid(int(sys.argv[2]))
written = 0
try:
    for number in range(10**6):
        with open(f"{sys.argv[1]}-{number}", "wb", buffering=0) as file:
            for _ in range(5):
                written += file.write(bytes(100_000))
except OSError as error:
    print(written, errno.errorcode[error.errno])
"""


@pytest.fixture(scope="module")
def lab(base: tuple[Path, TextIO]) -> Iterator[Lab]:
    """Three nodes with quotas; at the end all is counted right."""
    with left_clean(new_lab(base, NAME, size="256M")) as lab:
        lab.format("--journals", "3", "--quota")
        for node in lab.nodes:
            lab.start(node)
        for node in lab.nodes:
            lab.mount(node)
        lab.nodes[0].mountpoint.chmod(0o777)
        yield lab


def quotas(lab: Lab, node: LabNode) -> dict[tuple[str, int], dict[str, Any]]:
    found = json.loads(fs(lab, node, "quota", NAME, "--json"))
    return {(row["type"], row["id"]): row for row in found["quotas"]}


def filling(path: Path, user: int, group: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", FILL, path.name, str(user), str(group)]  # above the mount others may see nothing
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=path.parent)


def test_three_nodes_fill_one_users_quota(lab: Lab) -> None:
    fs(lab, lab.nodes[1], "quota", "set", NAME, f"user:{USER}", "--space", "20M", "--files", "5k")
    fillers = [filling(node.mountpoint / f"full-{node.name}", USER, GROUP) for node in lab.nodes]
    ends = [filler.communicate(timeout=50)[0].split() for filler in fillers]
    assert [end[1] for end in ends] == ["EDQUOT"] * 3
    written = sum(int(end[0]) for end in ends)
    for node in lab.nodes:
        subprocess.run(["sync", "-f", node.mountpoint], check=True)
    row = quotas(lab, lab.nodes[2])["user", USER]
    assert 18 * MIB < written <= row["space"] + 4096 * row["files"]
    assert row["space"] <= 20 * MIB + 3 * (20 * MIB // 64 + 1 * MIB), "what each node may have had buffered (Q5)"
    removed = next(lab.nodes[0].mountpoint.glob("full-n2-0"))
    freed = removed.stat().st_blocks * 512
    removed.unlink()
    wait_until(lambda: quotas(lab, lab.nodes[1])["user", USER]["space"] == row["space"] - freed, "freed by another")


def test_exact_after_a_node_is_killed(lab: Lab) -> None:
    victim, other = lab.nodes[2], lab.nodes[0]
    made = victim.mountpoint / "killed"
    made.mkdir()
    for number in range(20):
        file = made / str(number)
        file.write_bytes(bytes(number * 10_000))
        os.chown(file, USER + 1, -1)
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    lab.kill(victim)
    found = list((other.mountpoint / "killed").iterdir())  # waits for the recovery
    used = sum(path.stat().st_blocks * 512 for path in found if path.stat().st_size > 3840)
    row = quotas(lab, other)["user", USER + 1]
    assert (row["files"], row["space"]) == (20, used)
    lab.start(victim)
    lab.mount(victim)


def test_what_root_gives_away_must_fit(lab: Lab) -> None:
    a, b = (node.mountpoint for node in lab.nodes[:2])
    fs(lab, lab.nodes[0], "quota", "set", NAME, f"group:{GROUP + 5}", "--space", "1M", "--files", "2")
    (a / "large").write_bytes(bytes(2 * MIB))
    with pytest.raises(OSError) as refused:
        os.chown(b / "large", -1, GROUP + 5)
    assert refused.value.errno == errno.EDQUOT
    assert (b / "large").stat().st_gid != GROUP + 5
    os.truncate(b / "large", MIB // 2)
    os.chown(a / "large", -1, GROUP + 5)
    assert quotas(lab, lab.nodes[1])["group", GROUP + 5]["files"] == 1
    shared = b / "shared"
    shared.mkdir()
    os.chown(shared, -1, GROUP + 5)
    shared.chmod(0o2777)
    with pytest.raises(OSError) as refused:
        (a / "shared" / "third").touch()
    assert refused.value.errno == errno.EDQUOT


def test_what_is_said(lab: Lab) -> None:
    node = lab.nodes[0]
    head, *rows = fs(lab, node, "quota", NAME).splitlines()
    assert head.split()[:5] == ["TYPE", "NAME", "SPACE", "SOFT", "HARD"]
    assert any(row.split()[:2] == ["user", "root"] for row in rows)
    fs(lab, node, "quota", "grace", NAME, "user", "--space", "1d")
    fs(lab, node, "quota", "set", NAME, f"user:{USER + 9}", "--space", "4K/1M")
    (node.mountpoint / "over").write_bytes(bytes(8192))
    os.chown(node.mountpoint / "over", USER + 9, -1)
    said = fs(lab, lab.nodes[1], "quota", NAME).splitlines()
    row = next(line.split() for line in said if line.split()[:2] == ["user", str(USER + 9)])
    assert "23h59m" in row or "1d00h" in row


def test_a_project_is_a_directory_with_a_limit(lab: Lab) -> None:
    a, b = (node.mountpoint for node in lab.nodes[:2])
    (a / "project").mkdir()
    fd = os.open(a / "project", os.O_RDONLY)
    try:
        set_attributes, inherits = 0x401C5820, 0x200  # FS_IOC_FSSETXATTR, FS_XFLAG_PROJINHERIT
        fcntl.ioctl(fd, set_attributes, struct.pack("<5I8x", inherits, 0, 0, 77, 0))
    finally:
        os.close(fd)
    fs(lab, lab.nodes[2], "quota", "set", NAME, "project:77", "--space", "1M")
    (b / "project" / "fits").write_bytes(bytes(MIB // 2))
    with pytest.raises(OSError) as refused:
        (a / "project" / "does not").write_bytes(bytes(MIB))
    assert refused.value.errno == errno.EDQUOT
    (a / "outside").write_bytes(bytes(MIB))
    subprocess.run(["sync", "-f", b], check=True)
    row = quotas(lab, lab.nodes[0])["project", 77]
    assert (row["space"], row["files"]) == (MIB, 3)
    assert (b / "project" / "does not").read_bytes() == bytes(MIB // 2), "what fits, to the block"
