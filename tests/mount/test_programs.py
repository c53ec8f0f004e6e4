"""Real programs across nodes: git, SQLite, tar and rsync (issue 2, "Shown by")."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import stat
import subprocess
from pathlib import Path

import pytest

from tests.mount.conftest import Tree

pytestmark = pytest.mark.seed("002-09")
SOURCE = Path(json.__file__).resolve().parents[1]  # the standard library
PACKAGES = ("asyncio", "email", "json", "logging", "xml", "unittest")


def git(top: Path, *arguments: str) -> str:
    """git, with nobody's settings."""
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(top), "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b",
    }  # fmt: skip
    done = subprocess.run(
        ["git", "-C", str(top), *arguments], env=environment, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def copy_packages(target: Path) -> int:
    for package in PACKAGES:
        shutil.copytree(SOURCE / package, target / package, ignore=shutil.ignore_patterns("__pycache__"))
    return sum(len(files) for _, _, files in os.walk(target))


def test_git_in_one_node_checked_in_another(tree: Tree) -> None:
    (tree.a / "repo").mkdir()
    git(tree.a / "repo", "init", "-q")
    files = copy_packages(tree.a / "repo")
    git(tree.a / "repo", "add", "-A")
    git(tree.a / "repo", "commit", "-q", "-m", "first, on a")
    assert files > 100
    git(tree.b / "repo", "fsck", "--full", "--strict")
    assert git(tree.b / "repo", "log", "--format=%s").split("\n")[:-1] == ["first, on a"]
    assert git(tree.b / "repo", "status", "--porcelain") == ""
    (tree.b / "repo" / "new").write_text("from b")
    git(tree.b / "repo", "add", "new")
    git(tree.b / "repo", "commit", "-q", "-m", "second, on b")
    git(tree.c / "repo", "gc", "-q")
    assert git(tree.a / "repo", "log", "--format=%s").split("\n")[:-1] == ["second, on b", "first, on a"]
    git(tree.a / "repo", "fsck", "--full", "--strict")


def test_sqlite_made_in_one_node_read_in_another(tree: Tree) -> None:
    rows = [(i, hashlib.sha256(b"%d" % i).hexdigest()) for i in range(5000)]
    made = sqlite3.connect(tree.a / "db")
    with made:
        made.execute("create table t (k integer primary key, v text unique)")
        made.executemany("insert into t values (?, ?)", rows)
    made.close()
    read = sqlite3.connect(tree.c / "db")
    assert read.execute("pragma integrity_check").fetchall() == [("ok",)]
    assert read.execute("select k, v from t order by k").fetchall() == rows
    with read:
        read.execute("update t set v = v || 'x' where k % 2")
    read.close()
    again = sqlite3.connect(tree.b / "db")
    assert again.execute("select count(*) from t where v like '%x'").fetchone() == (2500,)
    assert again.execute("pragma integrity_check").fetchall() == [("ok",)]
    again.close()


def fingerprint(top: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(top.rglob("*")):
        seen = path.lstat()
        what = path.read_bytes() if stat.S_ISREG(seen.st_mode) else os.readlink(path) if path.is_symlink() else ""
        links = 0 if stat.S_ISDIR(seen.st_mode) else seen.st_nlink
        seconds = seen.st_mtime_ns // 10**9  # tar keeps no more
        found[str(path.relative_to(top))] = (seen.st_mode, seen.st_uid, seen.st_gid, seconds, links, what)
    return found


def test_tar_in_and_out(tree: Tree, tmp_path: Path) -> None:
    origin = tmp_path / "origin"
    origin.mkdir()
    copy_packages(origin)
    os.link(origin / "json" / "__init__.py", origin / "second name")
    os.symlink("json/decoder.py", origin / "link")
    os.symlink("/nowhere", origin / "dangling")
    os.mkfifo(origin / "fifo", 0o640)
    os.chmod(origin / "json", 0o2750)
    os.chown(origin / "json" / "scanner.py", 1000, 1001)
    archive = tmp_path / "t.tar"
    subprocess.run(["tar", "-C", str(origin), "-cf", str(archive), "."], check=True)
    (tree.a / "out").mkdir()
    subprocess.run(["tar", "-C", str(tree.a / "out"), "-xpf", str(archive)], check=True)
    wanted = fingerprint(origin)
    assert [fingerprint(path / "out") for path in tree.paths] == [wanted] * 3
    back = tmp_path / "back"
    back.mkdir()
    with subprocess.Popen(["tar", "-C", str(tree.c / "out"), "-cf", "-", "."], stdout=subprocess.PIPE) as packing:
        subprocess.run(["tar", "-C", str(back), "-xpf", "-"], stdin=packing.stdout, check=True)
    assert packing.returncode == 0
    assert fingerprint(back) == wanted


def test_rsync_or_cp_finds_nothing_to_do_on_another_node(tree: Tree) -> None:
    """``rsync -a`` writes under temporary names and renames; where there is no rsync, ``cp -a`` and ``diff -r`` do."""
    copy_packages(tree.a / "from")
    source, target = f"{tree.a}/from/", f"{tree.b}/to/"
    if shutil.which("rsync"):
        subprocess.run(["rsync", "-a", source, target], check=True)
        told = subprocess.run(["rsync", "-aic", f"{tree.c}/from/", f"{tree.c}/to/"], check=True, capture_output=True)
    else:
        subprocess.run(["cp", "-a", source, target], check=True)
        told = subprocess.run(["diff", "-r", f"{tree.c}/from/", f"{tree.c}/to/"], check=True, capture_output=True)
    assert told.stdout == b""
    assert fingerprint(tree.c / "to") == fingerprint(tree.b / "from")
