"""A whole cluster on a SAN: three nodes, each with its own nexus per process, on each kind of target."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.mount.guard import guarded
from tests.mount.lab import Lab, LabNode
from tests.san.lab import KINDS, MIB, Target, san

TEST_SECONDS = 300  # of the module on one target, for a broken product; each test has pytest's own time-out
HANG_SECONDS = 1.0  # shorter than a lease


@pytest.fixture(scope="module", params=KINDS)
def cluster(request: pytest.FixtureRequest) -> Iterator[tuple[Lab, Target]]:
    """Three mounts on one LUN."""
    directory = Path(f"/var/tmp/mfs-tests-san-{os.getpid()}-{request.param}")
    with san(request.param, size=512 * MIB) as target, guarded(directory) as ear:
        ear.write(f"{TEST_SECONDS}\n")
        ear.flush()
        lab = Lab(directory, store=target.url())
        try:
            lab.up()
            yield lab, target
        finally:
            lab.close()
            shutil.rmtree(directory, ignore_errors=True)


def seen_by(nodes: list[LabNode], name: str) -> list[bytes]:
    return [(node.mountpoint / name).read_bytes() for node in nodes]


@pytest.mark.seed("002-21")
def test_three_nodes_share_a_tree_on_a_lun(cluster: tuple[Lab, Target]) -> None:
    lab, target = cluster
    a, b, c = (node.mountpoint for node in lab.nodes)
    (a / "small").write_bytes(b"from a")
    (b / "large").write_bytes(os.urandom(3 * MIB))
    (c / "dir").mkdir()
    (a / "dir" / "x").write_bytes(b"x")
    (b / "dir" / "x").rename(c.parent / b.name / "dir" / "y")
    assert seen_by(lab.nodes, "small") == 3 * [b"from a"]
    assert len(set(seen_by(lab.nodes, "large"))) == 1
    assert [os.listdir(top / "dir") for top in (a, b, c)] == 3 * [["y"]]
    with (a / "small").open("r+b") as file:
        file.write(b"FROM")
        os.fsync(file.fileno())
    assert seen_by(lab.nodes, "small") == 3 * [b"FROM a"]
    status = lab.status(lab.nodes[0])
    assert lab.counters(lab.nodes[0])["store"]["engine"] == "iscsi"
    assert status["store"] == target.url()


@pytest.mark.parametrize("cluster", ["tgt"], indirect=True)
@pytest.mark.seed("002-21")
def test_it_goes_on_when_the_target_was_restarted(cluster: tuple[Lab, Target]) -> None:
    """istgt takes one login a second: the last of six would come back when its node has been given up already."""
    lab, target = cluster
    a, b, _ = (node.mountpoint for node in lab.nodes)
    (a / "before").write_bytes(b"1")
    target.restart()
    (b / "after").write_bytes(b"2")
    (a / "before").write_bytes(b"3")
    os.sync()
    assert seen_by(lab.nodes, "before") == 3 * [b"3"]
    assert seen_by(lab.nodes, "after") == 3 * [b"2"]
    counters = [lab.counters(node)["store"] for node in lab.nodes]
    assert [each["reconnects"] for each in counters] == [1, 1, 1]
    assert [each["errors"] for each in counters] == [0, 0, 0]


def test_it_goes_on_when_the_target_hung(cluster: tuple[Lab, Target]) -> None:
    lab, target = cluster
    before = [lab.counters(node)["store"]["reconnects"] for node in lab.nodes]
    target.freeze()
    try:
        with ThreadPoolExecutor(3) as pool:
            writes = [pool.submit((node.mountpoint / f"hang {node.name}").write_bytes, b"4") for node in lab.nodes]
            time.sleep(HANG_SECONDS)
            target.thaw()
            assert [write.result() for write in writes] == [1, 1, 1]
    finally:
        target.thaw()
    os.sync()
    for node in lab.nodes:
        assert seen_by(lab.nodes, f"hang {node.name}") == 3 * [b"4"]
    assert [lab.counters(node)["store"]["reconnects"] for node in lab.nodes] == before


def test_a_disk_in_use_is_not_formatted(cluster: tuple[Lab, Target]) -> None:
    lab, _ = cluster
    refused = lab.run("mkfs.matrixfs", "-n", "other", "--force", lab.store, check=False)
    assert refused.returncode == 2
    assert "a node is working on it now" in refused.stderr
    refused = lab.run("mkfs.matrixfs", "-n", "other", "--size", "1G", lab.store, check=False)
    assert "leave --size out" in refused.stderr


def test_it_is_clean_after_all_left(cluster: tuple[Lab, Target]) -> None:
    lab, _ = cluster
    lab.down()
    checked = lab.fsck()
    assert (checked.returncode, checked.stderr) == (0, "")
    assert "clean" in checked.stdout
