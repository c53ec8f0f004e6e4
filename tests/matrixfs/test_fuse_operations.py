"""operations.py without a kernel: what can't be provoked through a mount at will."""

from __future__ import annotations

import errno
import os
import stat
from types import SimpleNamespace
from typing import Any

import pytest

from matrixfs.fuse.api import Filesystem
from matrixfs.fuse.handles import HandleTable
from matrixfs.fuse.kernel_caches import FOREVER, KernelCaches
from matrixfs.fuse.libfuse import pyfuse3
from matrixfs.fuse.operations import Operations, may_open

ROOT = 64
CALLER = SimpleNamespace(uid=1000, gid=1000, pid=os.getpid(), umask=0o22)


def inode(ino: int, mode: int = stat.S_IFREG | 0o644, uid: int = 1000, gid: int = 1000, **more: Any) -> Any:
    values = dict.fromkeys(
        ("size", "blocks512", "rdev", "atime_ns", "mtime_ns", "ctime_ns", "parent", "data_version"), 0
    )
    return SimpleNamespace(ino=ino, incarnation=1, mode=mode, nlink=1, uid=uid, gid=gid, **{**values, **more})


class Kernelless:
    """Operations over functions given per test."""

    def __init__(self, **functions: Any) -> None:
        self.withdrawn: list[BaseException] = []
        self.closed: list[int] = []
        self.forgotten: list[int] = []
        self.fail_forgotten = 0
        self.opened: list[int] = []
        volume = SimpleNamespace(
            atimes=SimpleNamespace(note=lambda _ino: None, shown=lambda inode: inode.atime_ns),
            opens=SimpleNamespace(opened=self.opened.append, closed=self.closed.append), forgotten=self._forgotten
        )
        modules: Any = SimpleNamespace(Changes=lambda **changes: changes, **functions)
        self.caches = KernelCaches(SimpleNamespace(monotonic=lambda: 0.0))  # type: ignore[arg-type]
        self.caches.nodes.root = ROOT
        self.caches._epoch = True
        self.handles = HandleTable()
        self.operations = Operations(
            volume, Filesystem(modules, modules, modules, modules), self.caches, self.handles, self.withdrawn.append
        )

    def _forgotten(self, ino: int) -> None:
        if ino == self.fail_forgotten:
            raise KeyError(ino)
        self.forgotten.append(ino)


async def found(*_arguments: Any, **_more: Any) -> Any:
    return inode(100)


async def missing(*_arguments: Any) -> None:
    return None


async def exists(*_arguments: Any) -> None:
    raise FileExistsError(errno.EEXIST, "exists")


async def test_replies_are_valid_until_invalidated() -> None:
    world = Kernelless(lookup=found)
    reply = await world.operations.lookup(1, b"f", CALLER)
    assert (reply.st_ino, reply.generation, reply.entry_timeout, reply.attr_timeout) == (100, 1, FOREVER, FOREVER)
    assert world.caches.nodes.known(100)


async def test_a_purge_between_create_and_open_takes_the_names_validity() -> None:
    """O1: reading the new inode may cost a message, and the directory's lock may go meanwhile."""

    async def purged_meanwhile(*_arguments: Any) -> Any:
        await world.caches.purge_names(ROOT)
        return inode(100)

    world = Kernelless(create=found, getattr=purged_meanwhile)
    info, reply = await world.operations.create(1, b"f", 0o644, os.O_RDWR, CALLER)
    assert reply.entry_timeout == 0
    assert reply.attr_timeout == FOREVER  # the inode was read after that
    assert world.handles[info.fh].ino == 100
    assert world.caches.counters()["tracked_directories"] == 0


async def test_a_failed_open_is_not_counted() -> None:
    async def stale(*_arguments: Any) -> Any:
        raise OSError(errno.ESTALE, "gone")

    world = Kernelless(getattr=stale)
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await world.operations.open(100, os.O_RDONLY, CALLER)
    assert caught.value.errno == errno.ESTALE
    assert world.opened == world.closed == [100]
    assert len(world.handles) == 0
    assert not world.caches.pending.busy(100)


async def test_create_of_an_existing_name_opens_it_if_permitted() -> None:
    world = Kernelless(create=exists, lookup=found, getattr=found)
    info, _reply = await world.operations.create(1, b"f", 0o644, os.O_RDWR, CALLER)
    assert world.handles[info.fh].ino == 100
    other = SimpleNamespace(uid=2000, gid=2000, pid=os.getpid(), umask=0)
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await world.operations.create(1, b"f", 0o644, os.O_RDWR, other)
    assert caught.value.errno == errno.EACCES


@pytest.mark.parametrize("looked_up", [missing, "directory"])
async def test_create_of_a_name_in_motion_sends_the_kernel_around_again(looked_up: Any) -> None:
    async def directory(*_arguments: Any) -> Any:
        return inode(100, stat.S_IFDIR | 0o755)

    world = Kernelless(create=exists, lookup=directory if looked_up == "directory" else looked_up)
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await world.operations.create(1, b"f", 0o644, os.O_RDWR, CALLER)
    assert caught.value.errno == errno.ESTALE


async def test_exclusive_create_of_an_existing_name_fails() -> None:
    world = Kernelless(create=exists)
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await world.operations.create(1, b"f", 0o644, os.O_RDWR | os.O_EXCL, CALLER)
    assert caught.value.errno == errno.EEXIST


@pytest.mark.parametrize(
    ("mode", "uid", "gid", "flags", "allowed"),
    [
        (0o000, 0, 0, os.O_RDWR, True),
        (0o600, 1000, 5, os.O_RDWR, True),
        (0o400, 1000, 5, os.O_RDWR, False),
        (0o400, 1000, 5, os.O_RDONLY, True),
        (0o400, 1000, 5, os.O_RDONLY | os.O_TRUNC, False),
        (0o077, 1000, 5, os.O_RDONLY, False),  # the owner's bits decide for the owner
        (0o060, 2000, 1000, os.O_RDWR, True),
        (0o060, 2000, 7, os.O_RDWR, True),  # by a further group
        (0o006, 2000, 7, os.O_RDWR, False),  # the group's bits decide for its members
        (0o006, 2000, 8, os.O_WRONLY, True),
        (0o004, 2000, 8, os.O_WRONLY, False),
    ],
)
def test_may_open(mode: int, uid: int, gid: int, flags: int, allowed: bool) -> None:
    file = inode(100, stat.S_IFREG | mode, uid=1000, gid=1000)
    groups = {1000} if gid == 7 else set()
    assert may_open(file, flags, uid, gid, lambda: groups) == allowed


async def test_setattr_passes_what_was_asked_for_only() -> None:
    seen: list[Any] = []

    async def setattr_(_volume: Any, ino: int, changes: Any) -> Any:
        seen.append((ino, changes))
        return inode(ino)

    world = Kernelless(setattr=setattr_)
    fields = SimpleNamespace(
        update_mode=True, update_uid=False, update_gid=False, update_size=True, update_atime=False, update_mtime=True
    )
    wanted = pyfuse3.EntryAttributes()
    wanted.st_mode, wanted.st_size, wanted.st_mtime_ns, wanted.st_uid = stat.S_IFREG | 0o4755, 9, 5, 77
    await world.operations.setattr(1, wanted, fields, None, CALLER)
    nothing = {"uid": None, "gid": None, "atime_ns": None}
    assert seen == [(ROOT, {"mode": 0o4755, "size": 9, "mtime_ns": 5, **nothing})]


async def test_attributes_are_told_only_when_pages_left_behind_are_dropped() -> None:
    """And are read again after that wait: the lock may have gone meanwhile (O1, K5)."""
    steps: list[str] = []

    async def read(*_arguments: Any) -> Any:
        steps.append("read")
        return inode(100)

    async def dropped(_ino: int) -> None:
        steps.append("dropped")

    world = Kernelless(getattr=read)
    world.caches.dropping = lambda _ino: "dropped" not in steps  # type: ignore[method-assign]
    world.caches.dropped = dropped  # type: ignore[method-assign]
    await world.operations.getattr(100, CALLER)
    assert steps == ["read", "dropped", "read"]


@pytest.mark.parametrize("known", [0, 1], ids=["of older data", "of this data"])
async def test_pages_are_not_trusted_for_the_mtime_that_a_setattr_tells(known: int) -> None:
    """The kernel takes over that mtime without dropping pages, so comparing it later says nothing of them."""

    async def changed(*_arguments: Any) -> Any:
        made = inode(100)
        made.data_version = 1
        return made

    world = Kernelless(setattr=changed)
    node = world.caches.nodes.looked_up(100, 1)
    node.pages, node.data_version = True, known
    dropped: list[int] = []
    world.caches.drop_pages_later = dropped.append  # type: ignore[method-assign]
    fields = SimpleNamespace(
        update_mode=True, update_uid=False, update_gid=False, update_size=False, update_atime=False, update_mtime=False
    )
    reply = await world.operations.setattr(100, pyfuse3.EntryAttributes(), fields, None, CALLER)
    assert (dropped, reply.attr_timeout == 0) == (([], False) if known else ([100], True))


async def test_unknown_handle_is_ebadf_not_a_crash() -> None:
    world = Kernelless()
    for call in (world.operations.read(7, 0, 10), world.operations.release(7), world.operations.readdir(7, 0, None)):
        with pytest.raises(pyfuse3.FUSEError) as caught:
            await call
        assert caught.value.errno == errno.EBADF


async def test_failures_in_forget_are_logged_and_the_rest_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    world = Kernelless()
    world.caches.nodes.looked_up(100, 1)
    world.caches.nodes.looked_up(101, 1)
    world.fail_forgotten = 100
    await world.operations.forget([(100, 1), (101, 1)])
    assert world.forgotten == [101]
    assert "forget(100, 1) failed unexpectedly" in caplog.text


async def test_withdrawn_once(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(*_arguments: Any) -> Any:
        raise AssertionError("invariant")

    world = Kernelless(getattr=broken)
    for _ in range(2):
        with pytest.raises(pyfuse3.FUSEError):
            await world.operations.getattr(100, CALLER)
    assert len(world.withdrawn) == 1
    assert "invariant" in caplog.text


async def test_every_handler_is_behind_the_edge() -> None:
    """coherence.md 10; forget has its own, as it answers nothing."""
    handlers = [
        name
        for name, member in vars(Operations).items()
        if callable(member) and not name.startswith("_") and name != "forget"
    ]
    assert len(handlers) == 23
    assert all(hasattr(getattr(Operations, name), "__wrapped__") for name in handlers)


async def test_a_new_file_with_the_number_of_one_that_the_kernel_still_knows() -> None:
    """Seen in a cp to a second mount: ESTALE made the kernel create it again, which then said EEXIST."""
    world = Kernelless(create=found, getattr=found)
    world.caches.nodes.looked_up(100, 0)  # deleted by another node, and not forgotten yet
    info, reply = await world.operations.create(1, b"f", 0o644, os.O_RDWR | os.O_EXCL, CALLER)
    assert (reply.st_ino, reply.generation) == (100, 1)
    assert world.handles[info.fh].ino == 100
