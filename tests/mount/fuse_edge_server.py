"""A tree in memory behind the real FUSE layer, driven over stdin and stdout: one JSON command, one JSON answer a line.

Used by test_fuse_edge.py in a process of its own, because pyfuse3 carries one session per process.  ``gate`` holds
operations back as a lock that another node has would; files named ``boom-*`` provoke errors.
"""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import stat
import sys
import time
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import trio

if sys.argv[3:] in (["no-extension"], ["local-no-extension"]):
    sys.modules["matrixfs.fuse._libfuse"] = None  # type: ignore[assignment]  # importing it fails

if other := os.environ.get("MATRIXFS_TEST_EXTENSION"):  # one built for debugging
    sys.setdlopenflags(os.RTLD_NOW | os.RTLD_GLOBAL)
    spec = importlib.util.spec_from_file_location("matrixfs.fuse._libfuse", other)
    assert spec is not None
    assert spec.loader is not None
    sys.modules["matrixfs.fuse._libfuse"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["matrixfs.fuse._libfuse"])

from matrixfs.fuse import libfuse
from matrixfs.fuse.api import ClusterLocks, Filesystem
from matrixfs.fuse.kernel_caches import KernelCaches
from matrixfs.fuse.session import Session, SessionConfig
from membership.errors import CorruptRecord, Fenced
from tests.mount.fake_locks import FLOCK, POSIX, FakeLocks

ROOT = 64


@dataclass
class FakeInode:
    ino: int
    mode: int
    uid: int = 0
    gid: int = 0
    incarnation: int = 7
    parent: int = 0
    nlink: int = 1
    rdev: int = 0
    atime_ns: int = 10**18
    mtime_ns: int = 10**18
    ctime_ns: int = 10**18
    btime_ns: int = 10**18
    data_version: int = 1
    readable: bool = True
    data: bytearray = field(default_factory=bytearray)
    names: dict[bytes, FakeInode] = field(default_factory=dict)
    extended: dict[bytes, bytes] = field(default_factory=dict)

    @property
    def bare(self) -> bool:
        return not self.extended

    @property
    def size(self) -> int:
        return len(self.data)

    @property
    def blocks512(self) -> int:
        return (self.size + 511) // 512

    def touched(self) -> None:
        self.mtime_ns += 1000
        self.data_version += 1


@dataclass
class Changes:
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    changer: Any = None
    times_are_now: bool = False


class RealClock:
    def monotonic(self) -> float:
        return time.monotonic()

    def wall_ns(self) -> int:
        return time.time_ns()

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds)


class FakeVolume:
    """The tree, its gates and what was seen."""

    def __init__(self) -> None:
        self.inodes = {ROOT: FakeInode(ROOT, stat.S_IFDIR | 0o755, nlink=2)}
        self.next_ino = 100
        self.gates: dict[str, trio.Event] = {}
        self.waiting: set[str] = set()
        self.atimes = SimpleNamespace(
            note=lambda _ino: None, would_note=lambda _inode: False, shown=lambda inode: inode.atime_ns
        )
        self.room = SimpleNamespace(make=None)  # nothing here says ENOSPC
        self.opens = SimpleNamespace(opened=self.opened, closed=self.closed)
        self.open_counts: dict[int, int] = {}
        self.forgot: list[int] = []
        self.sizes: dict[str, int] = {"read": 0, "write": 0}

    def opened(self, ino: int) -> None:
        self.open_counts[ino] = self.open_counts.get(ino, 0) + 1

    def closed(self, ino: int) -> None:
        self.open_counts[ino] -= 1

    def forgotten(self, ino: int) -> None:
        self.forgot.append(ino)

    def at(self, ino: int) -> FakeInode:
        if ino not in self.inodes:
            raise OSError(errno.ESTALE, "gone")
        return self.inodes[ino]

    async def pass_gate(self, operation: str) -> None:
        gate = self.gates.get(operation)
        if gate is not None:
            self.waiting.add(operation)
            await gate.wait()
            self.waiting.discard(operation)

    def make(self, parent: int, name: bytes, mode: int, uid: int, gid: int, rdev: int = 0) -> FakeInode:
        names = self.at(parent).names
        if name in names:
            raise OSError(errno.EEXIST, "exists")
        inode = FakeInode(self.next_ino, mode, uid, gid, rdev=rdev)
        self.next_ino += 1
        inode.parent = parent
        self.inodes[inode.ino] = names[name] = inode
        return inode


async def lookup(volume: FakeVolume, parent: int, name: bytes) -> FakeInode | None:
    await volume.pass_gate("lookup")
    if name == b"boom-key":
        raise KeyError(name)
    if name == b"boom-corrupt":
        raise CorruptRecord("block 9 (inode)", "checksum", 1, 2)
    if name == b"boom-fenced":
        raise Fenced("lease past")
    if name == b"boom-assert":
        raise ExceptionGroup("nursery", [AssertionError("invariant")])
    return volume.at(parent).names.get(name)


async def create(
    volume: FakeVolume, parent: int, name: bytes, mode: int, uid: int, gid: int, rdev: int = 0, *, umask: int
) -> Any:
    await volume.pass_gate("create")
    return volume.make(parent, name, mode & ~umask, uid, gid, rdev)


async def mkdir(volume: FakeVolume, parent: int, name: bytes, mode: int, uid: int, gid: int, *, umask: int) -> Any:
    return volume.make(parent, name, mode & ~umask, uid, gid)


async def symlink(volume: FakeVolume, parent: int, name: bytes, target: bytes, uid: int, gid: int) -> Any:
    inode = volume.make(parent, name, stat.S_IFLNK | 0o777, uid, gid)
    inode.data[:] = target
    return inode


async def link(volume: FakeVolume, ino: int, parent: int, name: bytes) -> Any:
    inode = volume.at(parent).names[name] = volume.at(ino)
    inode.nlink += 1
    return inode


async def unlink(volume: FakeVolume, parent: int, name: bytes) -> None:
    inode = volume.at(parent).names.pop(name)
    inode.nlink -= 1


async def rename(volume: FakeVolume, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int) -> None:
    source, target = volume.at(parent).names, volume.at(new_parent).names
    if flags & 1 and new_name in target:
        raise OSError(errno.EEXIST, "exists")
    if flags & 2:
        source[name], target[new_name] = target[new_name], source[name]
    else:
        target[new_name] = source.pop(name)


async def getattr_(volume: FakeVolume, ino: int) -> FakeInode:
    await volume.pass_gate("getattr")
    return volume.at(ino)


def take_away(inode: FakeInode, changer: Any) -> None:
    if changer is not None and inode.mode & stat.S_ISUID and not changer.keeps_set_id():
        inode.mode &= ~stat.S_ISUID
        changer.took_away(inode)


async def setattr_(volume: FakeVolume, ino: int, changes: Changes) -> FakeInode:
    inode = volume.at(ino)
    if changes.mode is not None:
        inode.mode = stat.S_IFMT(inode.mode) | changes.mode
    take_away(inode, changes.changer)
    if changes.size is not None:
        inode.data = inode.data[: changes.size].ljust(changes.size, b"\0")
        inode.touched()
    for name in ("uid", "gid", "atime_ns", "mtime_ns"):
        if getattr(changes, name) is not None:
            setattr(inode, name, getattr(changes, name))
    return inode


async def permits(volume: FakeVolume, ino: int, wanted: int, uid: int, is_member: Any) -> bool:
    return uid == 0 or volume.at(ino).mode & wanted == wanted


async def get_xattr(volume: FakeVolume, ino: int, name: bytes) -> Any:
    return volume.at(ino), volume.at(ino).extended.get(name)


async def xattr_names(volume: FakeVolume, ino: int) -> Any:
    return volume.at(ino), list(volume.at(ino).extended)


async def put_xattr(volume: FakeVolume, ino: int, name: bytes, value: bytes, flags: int, is_member: Any) -> Any:
    held = volume.at(ino).extended
    if flags & os.XATTR_CREATE and name in held:
        raise OSError(errno.EEXIST, "exists")
    if flags & os.XATTR_REPLACE and name not in held:
        raise OSError(errno.ENODATA, "not there")
    held[name] = value
    return volume.at(ino)


async def remove_xattr(volume: FakeVolume, ino: int, name: bytes) -> Any:
    del volume.at(ino).extended[name]
    return volume.at(ino)


async def readlink(volume: FakeVolume, ino: int) -> bytes:
    return bytes(volume.at(ino).data)


async def statfs(volume: FakeVolume) -> Any:
    return SimpleNamespace(blocks=1000, free=500, files=100, files_free=50)


async def read(volume: FakeVolume, ino: int, offset: int, length: int) -> bytes:
    await volume.pass_gate("read")
    volume.sizes["read"] = max(volume.sizes["read"], length)
    return bytes(volume.at(ino).data[offset : offset + length])


async def write(
    volume: FakeVolume, ino: int, offset: int, buf: bytes, append: bool, changer: Any, _overwrites: bool, _partly: bool
) -> int:
    inode = volume.at(ino)
    take_away(inode, changer)
    volume.sizes["write"] = max(volume.sizes["write"], len(buf))
    if append:
        offset = inode.size
    if offset > inode.size:
        inode.data.extend(bytes(offset - inode.size))
    inode.data[offset : offset + len(buf)] = buf
    inode.touched()
    return len(buf)


def version(volume: FakeVolume, ino: int) -> int:
    return volume.at(ino).data_version


async def fsync(volume: FakeVolume, ino: int, datasync: bool) -> None:
    pass


async def flush(volume: FakeVolume, ino: int) -> None:
    pass


async def entries(volume: FakeVolume, ino: int, cookie: int, limit: int) -> list[tuple[int, bytes, FakeInode]]:
    listing = [(index, name, inode) for index, (name, inode) in enumerate(sorted(volume.at(ino).names.items()), 3)]
    return [entry for entry in listing if entry[0] > cookie][:limit]


FILESYSTEM = Filesystem(
    SimpleNamespace(
        lookup=lookup,
        create=create,
        mkdir=mkdir,
        symlink=symlink,
        link=link,
        unlink=unlink,
        rmdir=unlink,
        rename=rename,
    ),
    SimpleNamespace(
        Changes=Changes, getattr=getattr_, setattr=setattr_, readlink=readlink, permits=permits, statfs=statfs,
        by_number=getattr_, generation=lambda _volume, inode: inode.incarnation,
        check_open=lambda _inode, _flags: None,
    ),
    SimpleNamespace(read=read, write=write, version=version, fsync=fsync, flush=flush),
    SimpleNamespace(entries=entries),
    SimpleNamespace(get=get_xattr, names=xattr_names, put=put_xattr, remove=remove_xattr),
)


class Server:
    def __init__(self, mountpoint: str, registry_directory: str, mode: str) -> None:
        self.volume = FakeVolume()
        self.caches = KernelCaches(RealClock())
        config = SessionConfig(
            mountpoint, "fake,tree", ROOT,
            local_locks=mode.startswith("local"), options=("suid",), registry_directory=registry_directory,
        )  # fmt: skip
        self.withdrawn: list[str] = []
        self.locks = FakeLocks()
        self.session = Session(
            config, self.volume, FILESYSTEM, self.caches, lambda error: self.withdrawn.append(repr(error)),
            ClusterLocks(self.locks, FLOCK, POSIX, node=1),
        )  # fmt: skip
        self.mode = mode
        libfuse.clear_privileges(mode != "old-kernel")
        self.flush_error = ""

    async def command(self, request: dict[str, Any]) -> Any:
        volume, caches = self.volume, self.caches
        match request.pop("do"):
            case "counters":
                return {**self.session.counters(), "withdrawn": self.withdrawn, "sizes": volume.sizes}
            case "purge_inode":
                await caches.purge_inode(request["ino"])
            case "purge_names":
                await caches.purge_names(request["ino"])
            case "gate":
                volume.gates[request["operation"]] = trio.Event()
            case "open_gate":
                volume.gates.pop(request["operation"]).set()
            case "waiting":
                return sorted(volume.waiting)
            case "remote_write":  # what another node does: nobody tells the kernel until the purge
                inode = volume.inodes[request["ino"]]
                inode.data[:] = request["text"].encode()
                inode.touched()
            case "remote_create":
                inode = volume.make(request["parent"], request["name"].encode(), stat.S_IFREG | 0o644, 0, 0)
                return inode.ino
            case "remote_reuse":  # freed and used again by another node
                volume.inodes[request["ino"]].incarnation += 1
            case "remote_lock":  # another node's owner 9, process 77
                await self.locks.set(request["kind"], request["ino"], (2, 9), 77, *request["range"], True, wait=False)
            case "remote_unlock":
                await self.locks.drop(request["kind"], request["ino"], (2, 9))
            case "locks":
                return {"held": self.locks.dump(), "waiting": self.locks.waiting(), **libfuse.lock_counters()}
            case "requests":
                return libfuse.requests()
            case "asked_since":
                return libfuse.asked_since(request["pid"], request["requests"])
            case "locks_fail":
                self.locks.failure = request["how"]
            case "withdraw":
                self.session.withdraw("told so")
            case "shed":
                await caches.shed(request["ino"])
            case "fail_flush":
                self.flush_error = "no space"
            case "stop":
                self.session.stop()
            case "state":
                return {
                    "opens": {str(k): v for k, v in volume.open_counts.items() if v},
                    "forgot": volume.forgot,
                    "nodes": len(caches.nodes),
                }
            case other:
                raise ValueError(other)
        return None

    async def serve_commands(self) -> None:
        stdin = trio.lowlevel.FdStream(0)
        buffered = b""
        async with trio.open_nursery() as nursery:
            async for chunk in stdin:
                buffered += chunk
                *lines, buffered = buffered.split(b"\n")
                for line in lines:
                    nursery.start_soon(self.answer, json.loads(line))

    async def answer(self, request: dict[str, Any]) -> None:
        number = request.pop("number")
        result = await self.command(request)
        print(json.dumps({"number": number, "result": result}), flush=True)

    async def main(self) -> None:
        self.session.start()
        if self.mode == "timeouts":
            self.caches._epoch = False
        print(json.dumps({"number": 0, "result": self.session.device}), flush=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.serve_commands)
            await self.session.run()
            await self.volume.pass_gate("last_flush")
            nursery.cancel_scope.cancel()
        self.session.close(self.flush_error)
        self.session.close()  # a second time is harmless


if __name__ == "__main__":
    trio.run(Server(sys.argv[1], sys.argv[2], sys.argv[3]).main)
