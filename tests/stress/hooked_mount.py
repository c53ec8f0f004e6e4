"""mount.matrixfs with something changed in the mount process: ``hooked_mount.py HOOK SOURCE DIRECTORY -o OPTIONS``.

``no-epoch``   as on a kernel that lacks the epoch notification (before 6.16)
``no-names``   broken on purpose: names that the kernel caches are not purged when the lock on them goes
``no-inodes``  broken on purpose: attributes and pages are not
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from matrixfs.cli import mount_cmd  # noqa: E402
from matrixfs.fuse.kernel_caches import KernelCaches  # noqa: E402


async def _nothing(self: KernelCaches, ino: int) -> None:
    """A purge that lies."""


def hook(name: str) -> None:
    """Change what is to be changed."""
    match name:
        case "no-epoch":
            attach = KernelCaches.attach

            def attach_without(self: KernelCaches, *arguments: object, **options: object) -> None:
                attach(self, *arguments, **options)  # type: ignore[arg-type]
                self._epoch = False

            KernelCaches.attach = attach_without  # type: ignore[method-assign]
        case "no-names":
            KernelCaches.purge_names = _nothing  # type: ignore[method-assign]
        case "no-inodes":
            KernelCaches.purge_inode = _nothing  # type: ignore[method-assign]
        case _:
            raise SystemExit(f"no hook {name!r}")


if __name__ == "__main__":
    hook(sys.argv[1])
    mount_cmd.main(sys.argv[2:])
