"""The rules of POSIX access control lists (acl(5), and what Linux does): pure.

The mode's group bits are the mask where there is one, else the group's entry; owner and others are the same in both.
A list that says no more than a mode is not stored.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable

from matrixfs.ondisk.acl import GROUP, GROUP_OBJ, MASK, OTHER, USER, USER_OBJ, AclEntry, unpack_acl_untrusted
from matrixfs.ondisk.xattr import ACL_DEFAULT
from membership.errors import CorruptRecord

_SHIFT = {USER_OBJ: 6, GROUP_OBJ: 3, MASK: 3, OTHER: 0}
PERMISSIONS = 0o777


def _in_mode(entries: list[AclEntry]) -> tuple[int, ...]:
    """The tags whose permissions are those of the mode."""
    return (USER_OBJ, MASK if any(entry.tag == MASK for entry in entries) else GROUP_OBJ, OTHER)


def permissions_of(entries: list[AclEntry]) -> int:
    """The mode's permission bits that go with a list."""
    tags = _in_mode(entries)
    return sum(entry.permissions << _SHIFT[entry.tag] for entry in entries if entry.tag in tags)


def is_minimal(entries: list[AclEntry]) -> bool:
    """Whether it says no more than a mode."""
    return len(entries) == len(_in_mode(entries)) == 3 and all(entry.tag != MASK for entry in entries)


def after_chmod(entries: list[AclEntry], mode: int) -> list[AclEntry]:
    """The list after chmod(2)."""
    tags = _in_mode(entries)
    return [
        entry._replace(permissions=mode >> _SHIFT[entry.tag] & 7) if entry.tag in tags else entry for entry in entries
    ]


def take(attributes: dict[bytes, bytes], name: bytes, mode: int, keeps_sgid: bool) -> int:
    """Check the list that was put into an inode's attributes by this name; return the mode that goes with it.

    One that says no more than a mode is taken out again.  ``keeps_sgid``: the caller is in the inode's group, or may do
    as if.

    Raises:
        OSError: EINVAL; EACCES for a default list of a file; EOPNOTSUPP for a symbolic link.
    """
    if stat.S_ISLNK(mode):
        raise OSError(errno.EOPNOTSUPP, "a symbolic link has no access control list")
    try:
        entries = unpack_acl_untrusted(attributes[name], "access control list")
    except CorruptRecord as error:
        raise OSError(errno.EINVAL, str(error)) from error
    if name == ACL_DEFAULT:
        if not stat.S_ISDIR(mode):
            raise OSError(errno.EACCES, "only a directory has a default access control list")
        return mode
    if is_minimal(entries):
        del attributes[name]
    mode = mode & ~PERMISSIONS | permissions_of(entries)
    return mode if keeps_sgid else mode & ~stat.S_ISGID


def inherited(default: list[AclEntry], mode: int) -> list[AclEntry]:
    """The list of a new object of ``mode`` in a directory with this default list; its mode goes with it."""
    return after_chmod(default, permissions_of(default) & mode)


def permits(
    entries: list[AclEntry], wanted: int, uid: int, is_member: Callable[[int], bool], owner: int, group: int
) -> bool:
    """Whether a caller may do all that is ``wanted`` (4 read, 2 write, 1 execute).

    Args:
        entries: the file's list.
        wanted: permission bits.
        uid: the caller.
        is_member: whether the caller is in a group.
        owner: of the file.
        group: of the file.
    """
    mask = next((entry.permissions for entry in entries if entry.tag == MASK), 7)
    in_a_group = False
    for tag, permissions, id_ in entries:
        if tag == USER_OBJ and uid == owner:
            return permissions & wanted == wanted
        if tag == USER and uid == id_:
            return permissions & mask & wanted == wanted
        if (tag == GROUP_OBJ and is_member(group)) or (tag == GROUP and is_member(id_)):
            in_a_group = True
            if permissions & wanted == wanted:
                return mask & wanted == wanted
        if tag == OTHER:
            return not in_a_group and permissions & wanted == wanted
    raise AssertionError("every list ends with the others")
