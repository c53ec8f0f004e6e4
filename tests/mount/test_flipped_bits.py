"""One flipped bit in a metadata block: EIO on that object, a line in the log that names block and check, and no more.

A tree with every kind of metadata block is built, the cluster goes down, bits are flipped on the cold store, and a node
mounts it again: all damage at once, so that each object is looked at beside all the others.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import pytest

from membership.label import BLOCK_BYTES, DATA_BLOCK
from tests.mount.conftest import new_lab
from tests.mount.lab import Lab, wait_gone

pytestmark = pytest.mark.seed("002-33", "002-34")

LONG_NAMES = 3300  # of 250 bytes: so many leaves that index blocks are needed between them and the inode
HOLES = 400  # extents: more than an inode holds
BITS = (3, 8 * 8 + 1, 12 * 8, 20 * 8 + 7, 33 * 8, 41 * 8 + 2, 52 * 8, 70 * 8 + 5, 2000 * 8 + 4, 4095 * 8 + 7)
"""One in each field of the common header, then some in the body."""

INODE, LEAF, INDEX, EXTENTS, GROUP = (b"MXFSINOD", b"MXFSDIRL", b"MXFSINDX", b"MXFSEXTL", b"MXFSGRUP")


@dataclass(frozen=True)
class Flip:
    """A bit of a block of the filesystem, and the check that must find it."""

    block: int
    bit: int

    @property
    def check(self) -> str:
        return "magic" if self.bit < 64 else "checksum"


class Store:
    """The cold store as bytes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._blocks: dict[bytes, dict[int, int]] = {}
        with path.open("rb") as file:
            file.seek(DATA_BLOCK * BLOCK_BYTES)
            block = 0
            while data := file.read(BLOCK_BYTES):
                if data[:4] == b"MXFS" and struct.unpack_from("<Q", data, 32) == (block,):  # else an image in a journal
                    self._blocks.setdefault(data[:8], {})[block] = struct.unpack_from("<Q", data, 48)[0]
                block += 1

    def of(self, kind: bytes, inode: int) -> list[int]:
        """The blocks of a kind that belong to an inode."""
        return [block for block, owner in self._blocks[kind].items() if owner == inode]

    def all(self, kind: bytes) -> list[int]:
        return list(self._blocks[kind])

    def flip(self, flip: Flip) -> None:
        """Flip the bit; twice is not at all."""
        at = (DATA_BLOCK + flip.block) * BLOCK_BYTES + flip.bit // 8
        with self._path.open("r+b") as file:
            file.seek(at)
            (byte,) = file.read(1)
            file.seek(at)
            file.write(bytes([byte ^ 1 << flip.bit % 8]))


def long_name(i: int) -> str:
    return f"{i:04d}" + "n" * 246


def build(top: Path) -> dict[str, int]:
    """A tree with every kind of metadata block; the inode number of each of its objects."""
    for i in range(len(BITS)):
        (top / f"victim-{i}").write_text(f"victim {i}")
    (top / "directory-victim").mkdir()
    (top / "directory-victim" / "in").write_text("in")
    os.symlink("somewhere", top / "link-victim")
    for name in ("leaf-victim", "index-victim"):
        (top / name).mkdir()
    for i in range(LONG_NAMES):
        os.mknod(top / "index-victim" / long_name(i))
    for i in range(300):
        os.mknod(top / "leaf-victim" / long_name(i))
    fd = os.open(top / "extent-victim", os.O_CREAT | os.O_WRONLY)
    for i in range(HOLES):
        os.pwrite(fd, b"%08d" % i, 2 * i * BLOCK_BYTES)
    os.close(fd)
    (top / "healthy").mkdir()
    for i in range(50):
        (top / "healthy" / f"{i}").write_text(f"healthy {i}" * 500)
    return {path.name: path.lstat().st_ino for path in top.iterdir()}


@dataclass(frozen=True)
class Damaged:
    """The tree after the damage, mounted on one node."""

    lab: Lab
    store: Store
    top: Path
    inodes: dict[str, int]
    flips: dict[str, Flip]

    def log(self) -> str:
        return (self.lab.nodes[0].state / f"mount-{self.lab.name}.log").read_text()


@pytest.fixture(scope="module")
def damaged(base: tuple[Path, TextIO]) -> Iterator[Damaged]:
    lab = new_lab(base, "flips", nodes=1, size="256M")
    (node,) = lab.nodes
    try:
        lab.up()
        inodes = build(node.mountpoint)
        lab.down()
        store = Store(lab.store)
        flips = {f"victim-{i}": Flip(inodes[f"victim-{i}"], bit) for i, bit in enumerate(BITS)}
        flips["directory-victim"] = Flip(inodes["directory-victim"], 900)
        flips["link-victim"] = Flip(inodes["link-victim"], 900)
        flips["leaf-victim"] = Flip(store.of(LEAF, inodes["leaf-victim"])[3], 5000)
        flips["index-victim"] = Flip(store.of(INDEX, inodes["index-victim"])[1], 5000)
        flips["extent-victim"] = Flip(store.of(EXTENTS, inodes["extent-victim"])[1], 5000)
        flips["group"] = Flip(store.all(GROUP)[-1], 1500)  # the last group: nothing lies in it
        for flip in flips.values():
            store.flip(flip)
        lab.start(node)
        lab.mount(node)
        yield Damaged(lab, store, node.mountpoint, inodes, flips)
        pid = node.mount_pid
        lab.umount(node)
        wait_gone([pid])
        lab.down()
        for flip in flips.values():
            store.flip(flip)
        found = lab.fsck("-n")
        assert found.returncode == 0, found.stdout
    finally:
        lab.remove()


def assert_eio(call: Callable[..., Any], *arguments: Any) -> None:
    with pytest.raises(OSError) as caught:
        call(*arguments)
    assert caught.value.errno == errno.EIO, caught.value


def assert_logged(damaged: Damaged, name: str) -> None:
    flip = damaged.flips[name]
    lines = [line for line in damaged.log().splitlines() if f"block {flip.block} " in line]
    assert any(f"bad {flip.check}" in line for line in lines), (flip, lines)


@pytest.fixture(autouse=True)
def healthy_after_all(damaged: Damaged, watched: None) -> Iterator[None]:
    """Whatever a test provokes, the rest of the tree goes on, for reading and writing."""
    yield
    for i in range(50):
        assert (damaged.top / "healthy" / f"{i}").read_text() == f"healthy {i}" * 500
    (damaged.top / "healthy" / "new").write_text("new")
    os.unlink(damaged.top / "healthy" / "new")
    assert "Traceback" not in damaged.log()
    assert "withdraw" not in damaged.log()


@pytest.mark.parametrize("i", range(len(BITS)), ids=[f"byte-{bit // 8}" for bit in BITS])
def test_an_inode(damaged: Damaged, i: int) -> None:
    path = damaged.top / f"victim-{i}"
    for call in (os.stat, os.unlink, Path.read_text, lambda p: os.truncate(p, 0)):
        assert_eio(call, path)
    assert_eio(os.rename, path, path.with_name("renamed"))
    assert_logged(damaged, path.name)


def test_an_inode_is_still_a_name(damaged: Damaged) -> None:
    """The directory that holds it is whole: its listing must not end at the damage."""
    names = set(os.listdir(damaged.top))
    assert set(damaged.inodes) <= names


def test_a_directory(damaged: Damaged) -> None:
    path = damaged.top / "directory-victim"
    assert_eio(os.listdir, path)
    assert_eio((path / "in").read_text)
    assert_eio((path / "new").touch)
    assert_eio(os.rmdir, path)
    assert_logged(damaged, path.name)


def test_a_symbolic_link(damaged: Damaged) -> None:
    assert_eio(os.readlink, damaged.top / "link-victim")
    assert_logged(damaged, "link-victim")


@pytest.mark.parametrize(("name", "count"), [("leaf-victim", 300), ("index-victim", LONG_NAMES)])
def test_a_part_of_a_large_directory(damaged: Damaged, name: str, count: int) -> None:
    """What lies behind the damaged block is lost for now; all other names of the directory are found."""
    path = damaged.top / name
    assert_eio(os.listdir, path)
    found = lost = 0
    for i in range(count):
        try:
            os.stat(path / long_name(i))
            found += 1
        except OSError as error:
            assert error.errno == errno.EIO, "never ENOENT: the name is there"
            lost += 1
    assert found > 0
    assert lost > 0
    if name == "leaf-victim":
        assert lost < 30, "one leaf"
    assert_logged(damaged, name)


def test_a_leaf_of_extents(damaged: Damaged) -> None:
    fd = os.open(damaged.top / "extent-victim", os.O_RDWR)
    found = lost = 0
    for i in range(HOLES):
        try:
            assert os.pread(fd, 8, 2 * i * BLOCK_BYTES) == b"%08d" % i, "never zeros: that would be wrong data"
            found += 1
        except OSError as error:
            assert error.errno == errno.EIO
            lost += 1
    os.close(fd)
    assert found > 0
    assert lost > 0
    assert_logged(damaged, "extent-victim")


def test_a_group_bitmap_is_avoided(damaged: Damaged) -> None:
    """A file takes nearly all the space there is: every group is tried for it, the damaged one too."""
    before = os.statvfs(damaged.top).f_bfree
    path = damaged.top / "filler"
    data = os.urandom(1 << 20)
    megabytes = before * 95 // 100 >> 8
    with path.open("wb") as file:
        for _ in range(megabytes):
            file.write(data)
        os.fsync(file.fileno())
    with path.open("rb") as file:
        assert all(file.read(1 << 20) == data for _ in range(megabytes))
    os.unlink(path)
    assert_logged(damaged, "group")
    (damaged.top / "after").write_text("there is room again")
