"""What the filesystem locks: the resource domains of a lockspace."""

from __future__ import annotations

from dlm.names import Resource

__all__ = ["ATTEMPT", "CHANGE", "GROUP", "INODE", "OPEN", "QUOTA", "RENAME", "SHAPE", "Resource", "describe"]

ATTEMPT = 0  # no lock: what the trace notes of recovery is about
RENAME = 1
INODE = 2
OPEN = 3
GROUP = 4
SHAPE = 5
CHANGE = 6
QUOTA = 7

DOMAIN_NAMES = {
    RENAME: "rename", INODE: "inode", OPEN: "open", GROUP: "group", SHAPE: "shape", CHANGE: "change",
    QUOTA: "quota",
}  # fmt: skip


QUOTA_TYPES = ("user", "group", "project", "?")
_ONLY_ONE = {SHAPE: "leave to grow or freeze", CHANGE: "leave to change anything"}


def describe(resource: Resource) -> str:
    """The resource as ``matrixctl`` prints it, for example ``inode 4711``."""
    if resource[0] in _ONLY_ONE:
        return _ONLY_ONE[resource[0]]
    if resource[0] == QUOTA and resource[2]:
        return "the tree of quotas"
    if resource[0] == QUOTA:
        return f"quota of {QUOTA_TYPES[min(resource[1] >> 32, 3)]} {resource[1] & (1 << 32) - 1}"
    return f"{DOMAIN_NAMES.get(resource[0], resource[0])} {resource[1]}"
