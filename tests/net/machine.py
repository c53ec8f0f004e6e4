"""A node's machine: a network namespace of its own and, if wanted, an identity of its own; no trace in the product.

matrixd tells machines apart by the kernel's boot id and /etc/machine-id (``membership/fence/process.py``).  So a mount
namespace in which other files lie over these two makes a machine: its peers can't look up or kill its processes, and
fence it as they would a server at the other end of the hall.  Below the lab's directory, which is a shared mount, what
is mounted in one of these namespaces appears in all of them, so a test uses every node's tree through plain paths.

A process holds the namespaces open and waits for the end of its standard input, so they go when their owner does,
however it ends.  No namespace has a name.
"""

from __future__ import annotations

import os
import subprocess
import uuid
from pathlib import Path

IDENTITIES = ("/proc/sys/kernel/random/boot_id", "/etc/machine-id")

_HOLDER = """
set -e
mount --make-private /
mount --make-private /proc
while [ $# -ge 2 ]; do
  mount --bind "$1" "$2"
  shift 2
done
ip link set lo up
echo ready
exec cat
"""


class Machine:
    """See the module.

    Args:
        directory: of the lab, a shared mount.
        name: of the node.
        own: whether it has an identity of its own; else it is the machine that the test runs on.
        net: whether it has a network of its own.
    """

    def __init__(self, directory: Path, name: str, *, own: bool, net: bool = True) -> None:
        binds: list[str] = []
        for path in IDENTITIES if own else ():
            if os.path.exists(path):
                file = directory / f"{name}-{os.path.basename(path)}"
                file.write_text(f"{uuid.uuid4() if 'boot' in path else uuid.uuid4().hex}\n")
                binds += [str(file), path]
        command = ["unshare", *(["--net"] if net else []), "--mount", "--propagation", "unchanged", "sh", "-c", _HOLDER]
        self.holder = subprocess.Popen(
            [*command, f"machine of {directory}", *binds], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self.holder.stdout is not None
        if self.holder.stdout.readline() != b"ready\n":
            raise RuntimeError(f"no namespaces for {name}")

    @property
    def pid(self) -> int:
        return self.holder.pid

    def inside(self, *command: str | Path) -> list[str]:
        """A command line that runs there; nsenter becomes the command, so its process is the command's."""
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net", f"--mount=/proc/{self.pid}/ns/mnt", *map(str, command)]

    def close(self) -> None:
        assert self.holder.stdin is not None
        assert self.holder.stdout is not None
        self.holder.stdin.close()
        self.holder.stdout.close()
        self.holder.wait()


def share(directory: Path) -> None:
    """Make a directory a shared mount; ``unshare`` it in the end (``tests/mount/guard.py`` does, too)."""
    subprocess.run(["mount", "--bind", str(directory), str(directory)], check=True)
    subprocess.run(["mount", "--make-shared", str(directory)], check=True)


def unshare(directory: Path) -> None:
    """Undo ``share``."""
    subprocess.run(["umount", "-l", str(directory)], check=False, capture_output=True)
