"""Records of mounts: who may drop which, and when."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from matrixfs.fuse import registry
from matrixfs.fuse.registry import Mount, Server
from membership.processes import process_start

DEAD = Server(os.getpid(), 1, "/srv/www", "web")  # our pid, but of another start: its process is gone


def test_the_record_of_a_dead_mount_stays_while_its_tree_is_mounted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another mount's start prunes; umount(8) of the dead one needs the record to tell that its process died."""
    mounted = [Mount("0:50", "/srv/www", "fuse.matrixfs", "web")]
    monkeypatch.setattr(registry, "mounts", lambda: mounted)
    alive = Server(os.getpid(), process_start(os.getpid()) or 0, "/srv/other", "other")
    registry.write("0:50", DEAD, directory=str(tmp_path))
    registry.write("0:51", alive, directory=str(tmp_path))
    registry.prune(directory=str(tmp_path))
    assert registry.read("0:50", directory=str(tmp_path)) == DEAD
    mounted.clear()
    registry.prune(directory=str(tmp_path))
    assert registry.read("0:50", directory=str(tmp_path)) is None
    assert registry.read("0:51", directory=str(tmp_path)) == alive, "a living process keeps its record, mounted or not"


def test_a_record_of_the_same_path_but_of_another_kind_of_mount_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "mounts", lambda: [Mount("0:50", "/srv/www", "ext4", "/dev/sda1")])
    registry.write("0:50", DEAD, directory=str(tmp_path))
    registry.prune(directory=str(tmp_path))
    assert registry.servers(directory=str(tmp_path)) == []


def test_what_makes_no_sense_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "mounts", list)
    (tmp_path / "0_50.1.json").write_text("{")
    registry.prune(directory=str(tmp_path))
    assert list(tmp_path.iterdir()) == []
