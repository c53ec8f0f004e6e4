"""``matrixctl cluster | node | disk | fence`` on real matrixds: made, joined, changed while mounted, taken apart."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest

from membership.label import BLOCK_BYTES
from tests.mount.conftest import new_lab
from tests.mount.lab import Lab, LabNode, wait_gone, wait_until

SIZE = "600M"
PORT = 20000 + os.getpid() % 10000  # several runs on one machine; below the ports that the kernel gives out


class JoinedLab:
    """A cluster made by ``cluster init``; its nodes join by token and start without options."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.first, self.second = lab.nodes[:2]

    def ctl(self, node: LabNode, *words: str | Path, code: int = 0) -> str:
        """What ``matrixctl`` prints on that node; with a refusal, its one line."""
        done = self.lab.run("matrixctl", "--state", node.state, *words, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        if code:
            assert done.stderr.count("\n") == 1, done.stderr
            return done.stderr
        return done.stdout

    def json(self, node: LabNode, *words: str) -> Any:
        return json.loads(self.ctl(node, *words, "--json"))

    def path(self, name: str) -> Path:
        return self.lab.directory / name

    def init(self, *stores: str) -> str:
        paths = [
            f"{fs}={self.path(name)}" if fs else self.path(name)
            for fs, name in (s.rsplit("=", 1) if "=" in s else ("", s) for s in stores)
        ]
        where = ("--address", f"{self.first.address}:{PORT}", "--node", self.first.name)
        return self.ctl(self.first, "cluster", "init", self.lab.name, *paths, "--size", SIZE, *where)

    def start(self, node: LabNode, *options: str) -> None:
        self.lab.run("matrixd", "--daemon", "--state", node.state, *options)
        node.pids.append(node.daemon_pid)

    def token(self, name: str, via: LabNode) -> str:
        return str(self.json(via, "node", "add", name)["token"])

    def join(self, node: LabNode, token: str, *, code: int = 0) -> str:
        return self.ctl(
            node, "node", "join", "--name", node.name, "--address", f"{node.address}:{PORT}", token, code=code
        )

    def both(self) -> None:
        self.start(self.first)
        self.join(self.second, self.token(self.second.name, self.first))
        self.start(self.second)

    def mounted(self, node: LabNode, filesystem: str, at: str) -> Path:
        place = self.path(f"{node.name}-{at}")
        place.mkdir()
        self.lab.run("mount", "-t", "fuse.matrixfs", filesystem, place, "-o", f"state={node.state}")
        return place


@pytest.fixture
def joined(base: tuple[Path, TextIO], request: pytest.FixtureRequest, watched: None) -> Iterator[JoinedLab]:
    lab = new_lab(base, "c" + re.sub(r"\W", "", request.node.name)[-12:], nodes=3)
    lab.directory.mkdir()
    try:
        yield JoinedLab(lab)
    finally:
        lab.remove()


def has_label(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(8) == b"MXFSLABL"


@pytest.mark.seed("002-42", "002-44", "002-46")
def test_a_cluster_on_three_disks_starts_with_any_two_of_them(joined: JoinedLab) -> None:
    said = joined.init("a", "b", "c")
    assert f"matrixd --daemon --state {joined.first.state}" in said
    joined.both()
    one, two = (joined.mounted(node, joined.lab.name, "tree") for node in (joined.first, joined.second))
    (one / "file").write_text("from n1")
    assert (two / "file").read_text() == "from n1"
    shown = joined.json(joined.second, "cluster", "show")
    assert [(disk["name"], disk["area"], disk["state"]) for disk in shown["disks"]] == [
        (f"d{i}", "yes", "present") for i in (1, 2, 3)
    ]
    assert (shown["links"], shown["nodes"]) == ("encrypted", sorted(shown["nodes"]))
    for place in (one, two):
        joined.lab.run("umount", place)
    for node in (joined.first, joined.second):
        joined.lab.stop(node)
    joined.path("b").rename(joined.path("away"))
    joined.start(joined.first)
    assert (joined.mounted(joined.first, joined.lab.name, "again") / "file").read_text() == "from n1"
    disks = {disk["name"]: disk for disk in joined.json(joined.first, "disk", "list")["disks"]}
    assert disks["d2"]["state"] == "not found"
    joined.lab.run("umount", joined.path(f"{joined.first.name}-again"))


@pytest.mark.seed("002-46")
def test_a_token_works_once_and_the_key_is_on_no_disk(joined: JoinedLab) -> None:
    joined.init("a")
    key = bytes.fromhex(json.loads((joined.first.state / "credentials").read_text())["cluster_key"])
    assert (joined.first.state / "credentials").stat().st_mode & 0o777 == 0o600
    assert key not in joined.path("a").read_bytes()[: 1024 * BLOCK_BYTES]
    stranger = joined.lab.nodes[2]
    refused = joined.lab.run(
        "matrixd", "--store", joined.path("a"), "--address", stranger.address, "--state", stranger.state, check=False
    )
    assert refused.returncode == 2
    assert "has not joined cluster" in refused.stderr
    joined.start(joined.first)
    token = joined.token(joined.second.name, joined.first)
    assert "is for node n2" in joined.join(stranger, token, code=2)
    joined.join(joined.second, token)
    joined.join(joined.second, token)  # its answer was lost, perhaps
    (joined.second.state / "credentials").rename(joined.second.state / "kept")
    assert "used already" in joined.ctl(
        joined.second, "node", "join", "--name", joined.second.name, "--address", "127.0.0.9",
        "--state", joined.path("elsewhere"), token, code=2,
    )  # fmt: skip
    assert "mistyped" in joined.join(stranger, token[:-1] + ("a" if token[-1] != "a" else "b"), code=2)
    (joined.second.state / "kept").rename(joined.second.state / "credentials")
    joined.start(joined.second)
    assert not (stranger.state / "credentials").exists()


@pytest.mark.seed("002-25", "002-43", "002-46", "002-47")
def test_disks_come_and_go_while_trees_are_mounted(joined: JoinedLab) -> None:
    joined.init("a")
    joined.both()
    tree = joined.mounted(joined.second, joined.lab.name, "tree")
    (tree / "stays").write_text("here")
    joined.ctl(joined.second, "disk", "add", "more", joined.path("b"), "--size", SIZE, "--fs", "music")
    for node in (joined.first, joined.second):
        link = node.state / "disk" / "more"
        wait_until(link.is_symlink, f"{node.name} shows the disk")
        assert link.readlink() == joined.path("b")
    assert "called more already" in joined.ctl(
        joined.first, "disk", "add", "more", joined.path("c"), "--size", SIZE, code=2
    )
    assert not joined.path("c").exists()
    joined.ctl(joined.first, "disk", "add", "third", joined.path("c"), "--size", SIZE)
    music = [joined.mounted(node, "music", "music") for node in (joined.first, joined.second)]
    (music[0] / "song").write_text("la")
    assert (music[1] / "song").read_text() == "la"
    joined.ctl(joined.first, "disk", "areas", "d1", "more", "third")
    assert "membership area" in joined.ctl(joined.first, "disk", "remove", "third", code=2)
    joined.ctl(joined.second, "disk", "areas", "d1")
    assert "is mounted" in joined.ctl(joined.first, "disk", "remove", "more", code=2)
    for place in music:
        joined.lab.run("umount", place)
    joined.ctl(joined.first, "disk", "remove", "more")
    assert not has_label(joined.path("b"))
    wait_until(lambda: not link.is_symlink(), "the last of them shows it no more")
    assert [disk["name"] for disk in joined.json(joined.second, "disk", "list")["disks"]] == ["d1", "third"]
    assert (tree / "stays").read_text() == "here"
    joined.lab.run("umount", tree)


@pytest.mark.seed("002-44")
def test_a_node_finds_its_cluster_when_all_disks_of_the_day_it_joined_are_gone(joined: JoinedLab) -> None:
    joined.init("a")
    joined.start(joined.first)
    joined.ctl(joined.first, "disk", "add", "new", joined.path("b"), "--size", SIZE, "--fs", "music")
    joined.ctl(joined.first, "disk", "areas", "new")
    joined.ctl(joined.first, "disk", "remove", "d1")
    assert not has_label(joined.path("a"))
    joined.lab.stop(joined.first)
    joined.start(joined.first)
    assert [disk["name"] for disk in joined.json(joined.first, "disk", "list")["disks"]] == ["new"]


@pytest.mark.seed("002-31", "002-38", "002-47")
def test_nodes_are_fenced_let_in_and_removed(joined: JoinedLab) -> None:
    joined.init("a")
    joined.both()
    first, second = joined.first, joined.second
    assert "n1 is this node" in joined.ctl(first, "node", "fence", "n1", code=2)
    pid = second.daemon_pid
    assert "n2 is fenced: by process: killed" in joined.ctl(first, "node", "fence", "n2")
    wait_gone([pid])
    kept_out = joined.lab.run("matrixd", "--daemon", "--state", second.state, check=False)
    assert kept_out.returncode == 2
    assert "fenced by the operator" in kept_out.stderr
    rows = {row["name"]: row for row in joined.json(first, "node", "list")}
    assert rows["n2"]["operator"] == "fenced"
    power = joined.path("power")
    power.write_text("off")
    assert "still kept out: no fence agent" in joined.ctl(first, "node", "unfence", "n2", "--power-on", code=3)
    joined.ctl(first, "fence", "set", "n2", "1", "fence_dummy", f"status_file={power}")
    joined.ctl(first, "node", "unfence", "n2", "--power-on")
    assert power.read_text().strip() == "on"
    joined.start(second)
    assert "is a member" in joined.ctl(first, "node", "remove", "n2", code=2)
    joined.lab.stop(second)
    joined.ctl(first, "node", "remove", "n2")
    gone = joined.lab.run("matrixd", "--daemon", "--state", second.state, check=False)
    assert "removed from the cluster" in gone.stderr
    joined.join(second, joined.token("n2", first))
    joined.start(second)


@pytest.mark.seed("002-20", "002-38")
def test_fence_agents_are_configured_shown_without_secrets_and_asked(joined: JoinedLab) -> None:
    joined.init("a")
    joined.both()
    power = joined.path("power")
    power.write_text("on")
    said = joined.ctl(
        joined.second, "fence", "set", "n1", "1", "fence_dummy", f"status_file={power}", "passwd=hush",
        "and", "fence_dummy", f"status_file={power}",
    )  # fmt: skip
    assert "passwd=***" in said
    assert "hush" not in said
    assert "hush" not in joined.ctl(joined.first, "fence", "list")
    asked = joined.json(joined.first, "fence", "test", "n1")
    assert [(each["level"], each["power"]) for each in asked] == [(1, "on"), (1, "on")]
    joined.ctl(joined.first, "fence", "clear", "n1")
    assert joined.json(joined.first, "fence", "list") == {}
    assert "no fence agent" in joined.ctl(joined.first, "fence", "test", "n1", code=2)
    assert "fence agent" in joined.ctl(joined.first, "fence", "set", "n1", "1", "rm", code=2)


@pytest.mark.seed("002-46")
def test_a_cluster_is_taken_apart_when_nobody_uses_it(joined: JoinedLab) -> None:
    joined.init("a", "b", "c")
    joined.start(joined.first)
    name = joined.lab.name
    assert "matrixd runs here" in joined.ctl(joined.first, "cluster", "destroy", name, code=2)
    in_use = joined.ctl(joined.second, "cluster", "destroy", name, "--store", joined.path("a"), code=2)
    assert "has it open" in in_use
    assert "has joined a cluster already" in joined.ctl(
        joined.first, "cluster", "init", "other", joined.path("d"), "--size", SIZE, "--address", "127.0.0.1", code=2
    )
    joined.lab.stop(joined.first)
    assert "nothing was done" in joined.ctl(joined.first, "cluster", "destroy", "another", code=2)
    assert all(has_label(joined.path(disk)) for disk in "abc")
    joined.ctl(joined.first, "cluster", "destroy", name)
    assert not any(has_label(joined.path(disk)) for disk in "abc")
    assert not (joined.first.state / "credentials").exists()
    assert "2 stores" in joined.ctl(
        joined.first, "cluster", "init", name, joined.path("x"), joined.path("y"), "--size", SIZE,
        "--address", "127.0.0.1", code=2,
    )  # fmt: skip
    assert not joined.path("x").exists()
