"""Where CHAP user and password of a target come from, other than from its URL; and the name of this initiator.

The environment, by the names that libiscsi uses, else a file of the same lines, which mounts at boot find too::

    # /etc/matrixfs/iscsi.env, mode 0600
    LIBISCSI_CHAP_USERNAME=node1
    LIBISCSI_CHAP_PASSWORD=secret
    MATRIXFS_INITIATOR=iqn.1993-08.org.debian:01:abc
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from typing import Final

from matrixfs.blockstore.scsi.address import INITIATOR_VARIABLE, PASSWORD_VARIABLE, USER_VARIABLE
from membership.errors import OperatorError

FILE: Final = "/etc/matrixfs/iscsi.env"
_BYTES_MAX: Final = 1 << 16


def environment(path: str = FILE) -> Mapping[str, str]:
    """The environment of this process, completed by the file.

    Raises:
        OperatorError: the file can't be read, or others than its owner and group can.
    """
    found = dict(os.environ)
    wanted = {INITIATOR_VARIABLE} - found.keys()
    if USER_VARIABLE not in found:  # user and password are of one place
        wanted |= {USER_VARIABLE, PASSWORD_VARIABLE}
    if not wanted:
        return found
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o007:
                raise OperatorError(f"{path}: holds a password and everybody may read it: chmod 600 {path}")
            lines = file.read(_BYTES_MAX).splitlines()
    except FileNotFoundError:
        return found
    except OSError as error:
        raise OperatorError(f"{path}: can't be read: {error.strerror}") from None
    for line in lines:
        name, separator, value = line.strip().partition("=")
        if separator and name in wanted:
            found[name] = value.strip().strip("\"'")
    return found
