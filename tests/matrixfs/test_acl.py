"""acl.py: the rules of acl(5), by tables.  What the kernel makes of the same lists is in tests/mount."""

from __future__ import annotations

import errno
import stat

import pytest

from matrixfs.fs import acl
from matrixfs.ondisk.acl import pack_acl
from matrixfs.ondisk.xattr import ACL_ACCESS, ACL_DEFAULT
from tests.matrixfs.acl_rules import rules

MINIMAL = rules("u:rw- g:r-- o:---")
NAMED = rules("u:rwx u5:rwx g:r-x g9:rwx m:rw- o:r--")


def test_the_mode_shows_the_mask_where_there_is_one() -> None:
    assert acl.permissions_of(MINIMAL) == 0o640
    assert acl.permissions_of(NAMED) == 0o764
    assert acl.is_minimal(MINIMAL)
    assert not acl.is_minimal(NAMED)
    assert not acl.is_minimal(rules("u:rw- g:r-- m:r-- o:---"))


def test_chmod_changes_the_mask_and_else_the_group() -> None:
    assert acl.after_chmod(NAMED, 0o4510) == rules("u:r-x u5:rwx g:r-x g9:rwx m:--x o:---")
    assert acl.after_chmod(MINIMAL, 0o755) == rules("u:rwx g:r-x o:r-x")


@pytest.mark.parametrize(
    ("default", "mode", "expected"),
    [
        ("u:rwx g:r-x o:---", 0o666, "u:rw- g:r-- o:---"),
        ("u:rwx g:rwx o:rwx", 0o640, "u:rw- g:r-- o:---"),
        ("u:rwx u5:rwx g:r-x m:rwx o:r-x", 0o644, "u:rw- u5:rwx g:r-x m:r-- o:r--"),
        ("u:r-- u5:rwx g:r-x m:r-x o:---", 0o777, "u:r-- u5:rwx g:r-x m:r-x o:---"),
    ],
)
def test_a_new_object_gets_the_default_list_within_its_mode(default: str, mode: int, expected: str) -> None:
    assert acl.inherited(rules(default), mode) == rules(expected)


@pytest.mark.parametrize(
    ("uid", "groups", "wanted", "allowed"),
    [
        (1000, set(), 7, True),  # the owner, not held by the mask
        (5, set(), 6, True),
        (5, set(), 1, False),  # the mask
        (5, {9}, 1, False),
        (7, {100}, 4, True),  # the group
        (7, {100}, 2, False),
        (7, {9}, 2, True),
        (7, {9, 100}, 2, True),  # any of one's groups may grant it
        (7, {9}, 1, False),
        (7, set(), 4, True),
        (7, set(), 2, False),
    ],
)
def test_who_may_do_what(uid: int, groups: set[int], wanted: int, allowed: bool) -> None:
    assert acl.permits(NAMED, wanted, uid, groups.__contains__, 1000, 100) == allowed


def test_a_member_of_a_group_that_may_not_is_not_one_of_the_others() -> None:
    assert not acl.permits(rules("u:rw- g:--- o:rw-"), 4, 7, {100}.__contains__, 1000, 100)
    assert acl.permits(rules("u:rw- g:--- o:rw-"), 4, 7, set[int]().__contains__, 1000, 100)


def test_taking_a_list_sets_the_mode_and_drops_what_a_mode_can_say() -> None:
    attributes = {ACL_ACCESS: pack_acl(MINIMAL), b"user.x": b""}
    assert acl.take(attributes, ACL_ACCESS, stat.S_IFREG | 0o4777, keeps_sgid=True) == stat.S_IFREG | 0o4640
    assert attributes == {b"user.x": b""}
    attributes = {ACL_ACCESS: pack_acl(NAMED)}
    assert acl.take(attributes, ACL_ACCESS, stat.S_IFREG | 0o2777, keeps_sgid=False) == stat.S_IFREG | 0o764
    assert acl.take(attributes, ACL_ACCESS, stat.S_IFREG | 0o2777, keeps_sgid=True) == stat.S_IFREG | 0o2764
    assert attributes == {ACL_ACCESS: pack_acl(NAMED)}
    attributes = {ACL_DEFAULT: pack_acl(MINIMAL)}
    assert acl.take(attributes, ACL_DEFAULT, stat.S_IFDIR | 0o2777, keeps_sgid=False) == stat.S_IFDIR | 0o2777
    assert attributes == {ACL_DEFAULT: pack_acl(MINIMAL)}


@pytest.mark.parametrize(
    ("name", "kind", "value", "code"),
    [
        (ACL_ACCESS, stat.S_IFREG, b"nonsense", errno.EINVAL),
        (ACL_DEFAULT, stat.S_IFDIR, pack_acl([]), errno.EINVAL),
        (ACL_DEFAULT, stat.S_IFREG, pack_acl(NAMED), errno.EACCES),
        (ACL_ACCESS, stat.S_IFLNK, pack_acl(NAMED), errno.EOPNOTSUPP),
    ],
)
def test_lists_that_are_refused(name: bytes, kind: int, value: bytes, code: int) -> None:
    with pytest.raises(OSError) as caught:
        acl.take({name: value}, name, kind | 0o644, keeps_sgid=True)
    assert caught.value.errno == code
