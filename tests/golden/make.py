"""Makes the golden images of the present format: run once per format version, never again for an old one.

    .venv/bin/python -m tests.golden.make 1
    .venv/bin/python -m tests.golden.make 3-quotas --quota

What follows the name are options of mkfs.matrixfs.
``v1-clean`` is a store after a clean unmount of its only node, ``v1-crashed`` the same after SIGKILL of matrixd and the
mount process, with changes that only the journal holds.
"""

from __future__ import annotations

import lzma
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.mount.lab import Lab

HERE = Path(__file__).parent
NAMES = 400  # in one directory: its tree gets an index
SPARSE_AT = 3 << 20
OLD, NEW = b"what was there " * 1000, b"what only the journal has " * 300


def fill(top: Path) -> None:
    """One of each thing that the format can hold."""
    (top / "small").write_bytes(b"lies in its inode\n")
    with (top / "sparse").open("wb") as file:
        for i in range(200):  # so many extents that they need a leaf of their own
            file.seek(i * 8192)
            file.write(b"%04d" % i * 1024)
        file.seek(SPARSE_AT)
        file.write(b"the end")
    with (top / "reserved").open("wb") as file:  # from version 2 on
        os.posix_fallocate(file.fileno(), 0, SPARSE_AT)
        file.seek(8192)
        file.write(b"in the middle")
    (top / "many").mkdir()
    for i in range(NAMES):
        (top / "many" / f"a rather long name so that few fit a block {i:06}").touch()
    os.link(top / "small", top / "second name")
    os.symlink("small", top / "short link")
    os.symlink("x" * 4000, top / "long link")
    os.mkfifo(top / "fifo", 0o640)
    os.mknod(top / "device", 0o020600, os.makedev(1, 3))
    os.chown(top / "small", 12, 34)
    os.chmod(top / "small", 0o4751)  # after chown, which takes the set-user-ID bit away
    os.setxattr(top / "small", "user.small", b"in the inode")  # from version 2 on, as what follows
    os.setxattr(top / "sparse", "user.large", b"in a chain" * 2000)
    subprocess.run(["chattr", "+dA", top / "second name"], check=True)  # from version 3 on, as what follows
    subprocess.run(["chattr", "-p", "77", "+P", top / "many"], check=True)
    (top / "overwritten").write_bytes(OLD)  # from version 3 on
    os.utime(top / "small", ns=(1_000_000_001, 2_000_000_002))


def main(version: str, *options: str) -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as scratch:
        lab = Lab(Path(scratch) / "lab", nodes=1, size="40M", name="golden")
        with lab:
            lab.format("--journals", "2", "--journal-size", "1M", *options)
            node = lab.nodes[0]
            lab.start(node)
            lab.mount(node)
            fill(node.mountpoint)
            if "--quota" in options:
                limit = ("user:12", "--space", "1M/2M", "--files", "100")
                lab.run("matrixctl", "--state", node.state, "fs", "quota", "set", "golden", *limit)
            lab.down()
            save(lab.store, f"v{version}-clean")
            lab.start(node)
            lab.mount(node, "data=journal")
            top = node.mountpoint
            (top / "only in the journal").write_bytes(b"synced\n")
            (top / "fifo").unlink()
            with (top / "only in the journal").open() as file:
                os.fsync(file.fileno())
            with (top / "overwritten").open("r+b") as file:
                file.write(NEW)
                os.fsync(file.fileno())
            lab.kill(node)
            save(lab.store, f"v{version}-crashed")


def save(store: Path, name: str) -> None:
    (HERE / f"{name}.img.xz").write_bytes(lzma.compress(store.read_bytes(), preset=9))


if __name__ == "__main__":
    main(*sys.argv[1:])
