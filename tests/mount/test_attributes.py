"""Extended attributes and access control lists between three nodes: set on one, at once in force on the others.

What they cost is counted; the rules are in tests/matrixfs/test_acl.py, the format in test_xattrs.py.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from matrixfs.ondisk.acl import AclEntry, pack_acl, unpack_acl_untrusted
from tests.matrixfs.acl_rules import rules
from tests.mount.conftest import Tree
from tests.mount.lab import Lab, LabNode
from tests.mount.processes import CAP_FSETID, NOBODY, done_by

ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
CAPABILITY = "security.capability"
CAN_BIND = bytes.fromhex("0100000200040000000000000000000000000000")  # cap_net_bind_service=ep, as setcap(8) writes it
ALICE, BOB, STAFF, GID = 4001, 4002, 4100, 60_000
FOR_ALICE = rules(f"u:rw- u{ALICE}:rw- g:--- m:rw- o:---")


def calls(lab: Lab, node: LabNode, operation: str) -> int:
    found: int = lab.counters(node)["fuse"]["calls"].get(operation, 0)
    return found


def code_of(call: Callable[..., Any], *arguments: Any) -> int:
    with pytest.raises(OSError) as caught:
        call(*arguments)
    assert caught.value.errno is not None
    return caught.value.errno


def listed(path: Path, name: str = ACCESS) -> list[AclEntry]:
    return unpack_acl_untrusted(os.getxattr(path, name), str(path))


def everything(path: Path) -> tuple[int, dict[str, bytes]]:
    return os.stat(path).st_mode, {name: os.getxattr(path, name) for name in os.listxattr(path)}


def capable(path: Path) -> bool:
    return CAPABILITY in os.listxattr(path)


def as_user(uid: int, code: str, path: Path, *, groups: tuple[int, ...] = (), umask: int = 0o22) -> str:
    """What a program of that user prints, or the errno it meets; ``p`` is the path."""
    become = f"os.setgroups({list(groups)}); os.setgid({GID}); os.setuid({uid}); os.umask({umask})"
    program = f"import os, sys\np = sys.argv[1]\n{become}\ntry:\n    {code}\nexcept OSError as e:\n    print(e.errno)"
    command = [sys.executable, "-I", "-S", "-c", program, str(path)]  # others may not look where Python lies
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


READ = "os.read(os.open(p, os.O_RDONLY), 1); print('read')"
WRITE = "os.write(os.open(p, os.O_WRONLY), b'x'); print('wrote')"


def test_set_here_told_there_at_once(tree: Tree) -> None:
    path_a, path_b, path_c = [path / "f" for path in tree.paths]
    path_a.touch()
    assert os.listxattr(path_b) == os.listxattr(path_c) == []
    for number, (setter, reader) in enumerate(((path_a, path_b), (path_b, path_c), (path_c, path_a), (path_a, path_c))):
        value = b"%d" % number * (1, 60, 5000, 65_536)[number]
        os.setxattr(setter, "user.x", value)
        assert os.getxattr(reader, "user.x") == value
        assert os.listxattr(reader) == ["user.x"]
        before = os.stat(reader).st_ctime_ns
        os.setxattr(setter, "trusted.y", b"of this round")
        assert os.stat(reader).st_ctime_ns > before
        assert sorted(os.listxattr(reader)) == ["trusted.y", "user.x"]
        os.removexattr(reader, "trusted.y")
        assert code_of(os.getxattr, setter, "trusted.y") == errno.ENODATA
    assert os.stat(path_b).st_blocks == 17 * 8
    os.removexattr(path_b, "user.x")
    assert os.stat(path_a).st_blocks == 0
    assert os.listxattr(path_c) == []


def test_only_one_of_three_nodes_creates_an_attribute(tree: Tree) -> None:
    """XATTR_CREATE looks and sets under one lock."""
    (tree.a / "f").touch()

    def create(path: Path) -> list[int]:
        won = []
        for number in range(20):
            with contextlib.suppress(FileExistsError):
                os.setxattr(path / "f", f"user.{number}", path.parent.name.encode(), os.XATTR_CREATE)
                won.append(number)
        return won

    with ThreadPoolExecutor(3) as pool:
        wins = list(pool.map(create, tree.paths))
    assert sorted(number for won in wins for number in won) == list(range(20))
    for path, won in zip(tree.paths, wins, strict=True):
        for number in won:
            assert os.getxattr(tree.b / "f", f"user.{number}") == path.parent.name.encode()


def test_errors_are_those_of_a_local_filesystem(tree: Tree) -> None:
    path = tree.a / "f"
    path.touch()
    os.mkfifo(tree.a / "fifo")
    os.symlink("f", tree.a / "link")
    assert code_of(os.getxattr, path, "user.x") == errno.ENODATA
    assert code_of(os.removexattr, path, "user.x") == errno.ENODATA
    assert code_of(os.setxattr, path, "user.x", b"", os.XATTR_REPLACE) == errno.ENODATA
    os.removexattr(path, ACCESS)  # there is none: no error
    os.setxattr(tree.a, DEFAULT, b"")
    os.setxattr(path, "user.x", b"1", os.XATTR_CREATE)
    assert code_of(os.setxattr, path, "user.x", b"2", os.XATTR_CREATE) == errno.EEXIST
    for name in ("other.x", "system.x", "nothing"):
        assert code_of(os.setxattr, path, name, b"") == errno.EOPNOTSUPP
        assert code_of(os.getxattr, path, name) == errno.EOPNOTSUPP
    assert code_of(os.setxattr, path, "user." + "n" * 251, b"") == errno.ERANGE
    assert code_of(os.setxattr, path, "user.x", b"v" * 65_537) == errno.E2BIG
    assert code_of(os.setxattr, tree.a / "fifo", "user.x", b"") == errno.EPERM
    assert code_of(lambda: os.setxattr(tree.a / "link", "user.x", b"", follow_symlinks=False)) == errno.EPERM
    os.setxattr(tree.a / "link", "trusted.x", b"of the link", follow_symlinks=False)
    assert os.getxattr(tree.b / "link", "trusted.x", follow_symlinks=False) == b"of the link"
    os.setxattr(path, "user.y", b"v" * 65_536)
    assert code_of(os.setxattr, path, "user.z", b"v" * 65_536) == errno.ENOSPC
    assert os.getxattr(tree.b / "f", "user.x") == b"1"


def test_trusted_names_are_for_root(tree: Tree) -> None:
    tree.a.chmod(0o755)
    path = tree.a / "f"
    path.touch()
    os.setxattr(path, "trusted.x", b"1")
    os.setxattr(path, "user.x", b"1")
    assert as_user(ALICE, "print(os.listxattr(p))", path) == "['user.x']"
    assert as_user(ALICE, "print(os.getxattr(p, 'trusted.x'))", path) == str(errno.ENODATA)
    assert as_user(ALICE, "os.setxattr(p, 'user.x', b'2')", path) == str(errno.EACCES)


def test_a_thousand_writes_ask_for_no_attributes(tree: Tree) -> None:
    """The kernel leaves it to us what they take away; what it asks once more, is answered without Python (K7)."""
    lab, node = tree.lab, tree.lab.nodes[0]
    (tree.b / "made there").touch()
    before, quick, writes = (calls(lab, node, call) for call in ("getxattr", "xattr_of_bare", "write"))
    for name in ("made here", "made there"):
        with (tree.a / name).open("wb", buffering=0) as file:
            for _ in range(1000):
                file.write(b"x")
    assert calls(lab, node, "getxattr") == before
    assert calls(lab, node, "write") == writes + 2000
    assert calls(lab, node, "xattr_of_bare") <= quick + 4


def test_writing_takes_away_capabilities_that_another_node_gave(tree: Tree) -> None:
    path_a, path_b = tree.a / "f", tree.b / "f"
    path_a.write_bytes(b"x" * 100)

    def write(flags: int) -> None:
        descriptor = os.open(path_a, os.O_WRONLY | flags)
        os.write(descriptor, b"y")
        os.close(descriptor)

    changes: list[Callable[[], None]] = [
        lambda: write(0), lambda: write(os.O_APPEND), lambda: os.truncate(path_a, 5), lambda: write(os.O_TRUNC),
        lambda: os.chown(path_a, ALICE, -1),
    ]  # fmt: skip
    for change in changes:
        os.setxattr(path_b, CAPABILITY, CAN_BIND)
        assert os.getxattr(path_a, CAPABILITY) == CAN_BIND
        change()
        assert not capable(path_b)
    os.setxattr(path_b, CAPABILITY, CAN_BIND)
    path_a.chmod(0o755)
    path_a.read_bytes()
    assert capable(path_a)


WAYS: dict[str, Callable[[Path], object]] = {
    "write": lambda path: os.write(os.open(path, os.O_WRONLY), b"x"),
    "append": lambda path: os.write(os.open(path, os.O_WRONLY | os.O_APPEND), b"x"),
    "direct": lambda path: os.write(os.open(path, os.O_WRONLY | os.O_DIRECT), b"x"),
    "truncate": lambda path: os.truncate(path, 3),
    "open": lambda path: os.open(path, os.O_WRONLY | os.O_TRUNC),
    "create": lambda path: os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CREAT),
}


@pytest.mark.parametrize("way", WAYS)
def test_set_id_bits_that_another_node_gave_go_unless_the_writer_keeps_them(tree: Tree, way: str) -> None:
    """CAP_FSETID tells, not who is root; and set-group-ID alone stays with members of the group."""
    tree.a.chmod(0o777)
    path = tree.a / "f"
    for uid, capability, mode, left in (
        (NOBODY, None, 0o6777, 0o777), (NOBODY, CAP_FSETID, 0o6777, 0o6777), (0, None, 0o6777, 0o777),
        (0, CAP_FSETID, 0o6777, 0o6777), (NOBODY, None, 0o2767, 0o767), (0, None, 0o2767, 0o2767),
    ):  # fmt: skip
        path.write_bytes(b"content")  # the kernel has looked: there is nothing to take away
        os.chmod(tree.b / "f", mode)
        done_by(lambda: WAYS[way](path), uid, capability)
        assert [stat.S_IMODE(os.stat(each / "f").st_mode) for each in tree.paths] == [left] * 3


def test_nobody_runs_what_he_wrote_as_its_owner(tree: Tree) -> None:
    """The kernel is told of the mode after a write, before it executes the file."""
    path = tree.a / "id"
    tree.a.chmod(0o755)
    shutil.copy("/usr/bin/id", path)
    os.chown(path, ALICE, GID)
    path.chmod(0o4777)
    assert as_user(BOB, "os.execl(p, p, '-u')", path) == str(ALICE)
    at = path.stat().st_size
    done_by(lambda: os.pwrite(os.open(path, os.O_WRONLY), b"x", at))
    assert as_user(BOB, "os.execl(p, p, '-u')", path) == str(BOB)


def test_chown_takes_both_from_whoever_does_it(tree: Tree) -> None:
    path = tree.a / "f"
    path.touch()
    for uid, gid in ((ALICE, -1), (-1, STAFF), (-1, -1)):
        for mode, left in ((0o6755, 0o755), (0o2745, 0o2745)):
            os.chmod(tree.b / "f", mode)
            os.setxattr(tree.b / "f", CAPABILITY, CAN_BIND)
            os.chown(path, uid, gid)
            assert [stat.S_IMODE(os.stat(each / "f").st_mode) for each in tree.paths] == [left] * 3
            assert not capable(tree.c / "f")
    os.chmod(path, 0o2745)
    done_by(lambda: os.chown(path, -1, ALICE), ALICE)
    assert stat.S_IMODE(os.stat(tree.b / "f").st_mode) == 0o745, "no member of the group"
    tree.a.chmod(0o2755)
    os.chown(tree.a, ALICE, -1)
    os.chown(tree.a, -1, -1)
    assert stat.S_IMODE(os.stat(tree.b).st_mode) == 0o2755, "a directory keeps it"


def test_a_list_is_in_force_on_every_node_at_once(tree: Tree) -> None:
    tree.a.chmod(0o755)
    path_a, path_b, path_c = [path / "f" for path in tree.paths]
    path_a.write_bytes(b"secret")
    path_a.chmod(0o600)
    for path in (path_a, path_b, path_c):
        assert as_user(ALICE, READ, path) == str(errno.EACCES)
    os.setxattr(path_a, ACCESS, pack_acl(FOR_ALICE))
    assert stat.S_IMODE(os.stat(path_b).st_mode) == 0o660
    for path in (path_b, path_c, path_a):
        assert as_user(ALICE, READ, path) == "read"
        assert as_user(ALICE, WRITE, path) == "wrote"
        assert as_user(BOB, READ, path) == str(errno.EACCES)
    os.chmod(path_c, 0o640)  # the mask
    assert [entry.permissions for entry in listed(path_a)] == [6, 6, 0, 4, 0]
    for path in (path_a, path_b):
        assert as_user(ALICE, READ, path) == "read"
        assert as_user(ALICE, WRITE, path) == str(errno.EACCES)
    os.removexattr(path_b, ACCESS)
    for path in (path_a, path_c):
        assert as_user(ALICE, READ, path) == str(errno.EACCES)
        assert ACCESS not in os.listxattr(path)
    os.setxattr(path_a, ACCESS, pack_acl(rules("u:rw- g:r-- o:r--")))
    assert stat.S_IMODE(os.stat(path_c).st_mode) == 0o644
    assert os.listxattr(path_c) == []


def test_lists_of_groups_and_set_group_id(tree: Tree) -> None:
    tree.a.chmod(0o755)
    path = tree.a / "f"
    path.write_bytes(b"x")
    os.chown(path, BOB, STAFF)
    path.chmod(0o2750)
    value = pack_acl(rules("u:rwx g:r-x g4200:rw- m:rwx o:---"))
    setting = f"os.setxattr(p, '{ACCESS}', {value!r}); print('set')"
    assert as_user(ALICE, setting, path) == str(errno.EPERM)
    assert as_user(BOB, setting, path, groups=(STAFF,)) == "set"
    assert stat.S_IMODE(os.stat(tree.b / "f").st_mode) == 0o2770
    assert as_user(ALICE, WRITE, tree.b / "f", groups=(4200,)) == "wrote"
    assert as_user(ALICE, WRITE, tree.b / "f", groups=(STAFF,)) == str(errno.EACCES)
    path.chmod(0o2750)
    assert as_user(BOB, setting, path) == "set"
    assert stat.S_IMODE(os.stat(tree.b / "f").st_mode) == 0o770, "not a member of the group"


MAKE = (
    "os.mkdir(p + '/d', 0o777); os.close(os.open(p + '/f', os.O_CREAT | os.O_WRONLY, 0o666));"
    " os.mkfifo(p + '/fifo', 0o666); os.symlink('f', p + '/l'); print('made')"
)


def modes(top: Path) -> list[int]:
    return [stat.S_IMODE(os.lstat(top / name).st_mode) for name in ("d", "f", "fifo", "l")]


def test_new_ones_get_the_default_list_before_the_umask(tree: Tree) -> None:
    (tree.a / "plain").mkdir()
    assert as_user(0, MAKE, tree.a / "plain", umask=0o027) == "made"
    assert modes(tree.b / "plain") == [0o750, 0o640, 0o640, 0o777]
    (tree.a / "shared").mkdir()
    default = rules(f"u:rwx u{ALICE}:rwx g:r-x m:rwx o:---")
    os.setxattr(tree.b / "shared", DEFAULT, pack_acl(default))
    assert as_user(0, MAKE, tree.a / "shared", umask=0o077) == "made"
    assert modes(tree.c / "shared") == [0o770, 0o660, 0o660, 0o777]
    assert listed(tree.c / "shared" / "d", DEFAULT) == listed(tree.c / "shared" / "d") == default
    assert [entry.permissions for entry in listed(tree.c / "shared" / "f")] == [6, 7, 5, 6, 0]
    assert os.listxattr(tree.c / "shared" / "l", follow_symlinks=False) == []
    assert as_user(0, MAKE, tree.c / "shared" / "d", umask=0o077) == "made"
    assert listed(tree.a / "shared" / "d" / "d", DEFAULT) == default
    assert code_of(os.setxattr, tree.a / "shared" / "f", DEFAULT, pack_acl(default)) == errno.EACCES
    os.removexattr(tree.a / "shared", DEFAULT)
    (tree.b / "shared" / "later").touch()
    assert os.listxattr(tree.a / "shared" / "later") == []


def test_cp_carries_all_of_it_from_node_to_node(tree: Tree) -> None:
    top = tree.a / "from"
    (top / "sub").mkdir(parents=True)
    (top / "f").write_bytes(b"content")
    os.setxattr(top / "f", "user.x", b"v" * 20_000)
    os.setxattr(top / "f", ACCESS, pack_acl(FOR_ALICE))
    os.setxattr(top / "f", CAPABILITY, CAN_BIND)
    os.setxattr(top / "sub", DEFAULT, pack_acl(rules("u:rwx g:r-x o:---")))
    os.setxattr(top / "sub", "trusted.x", b"1")
    subprocess.run(["cp", "-a", str(tree.b / "from"), str(tree.b / "to")], check=True)
    for name in ("f", "sub"):
        one, other = everything(tree.c / "from" / name), everything(tree.c / "to" / name)
        assert one == other
    assert len(os.listxattr(tree.c / "to" / "f")) == 3
