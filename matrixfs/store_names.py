"""Names of stores, as people type them: a path, or a LUN (``blockstore/scsi/address.py``).  Light, for commands."""

from __future__ import annotations

import os
from typing import Final

ISCSI: Final = "iscsi://"


def is_iscsi(name: str) -> bool:
    """Whether the name means a LUN, and not a path."""
    return name.startswith(ISCSI)


def public_name(name: str) -> str:
    """The name for messages: absolute, and without user and password."""
    return ISCSI + name.removeprefix(ISCSI).rpartition("@")[2] if is_iscsi(name) else os.path.abspath(name)
