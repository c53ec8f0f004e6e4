"""operations.py without a kernel: what can't be provoked through a mount at will."""

from __future__ import annotations

import errno
import os
import stat
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from matrixfs.fuse import libfuse
from matrixfs.fuse.api import Filesystem
from matrixfs.fuse.attribute_requests import AttributeRequests
from matrixfs.fuse.directory_requests import DirectoryRequests
from matrixfs.fuse.handles import HandleTable
from matrixfs.fuse.kernel_caches import FOREVER, KernelCaches
from matrixfs.fuse.libfuse import pyfuse3
from matrixfs.fuse.operations import Operations
from membership.errors import ToldLate

ROOT = 64
CALLER = SimpleNamespace(uid=1000, gid=1000, pid=os.getpid(), umask=0o22)


def inode(ino: int, mode: int = stat.S_IFREG | 0o644, uid: int = 1000, gid: int = 1000, **more: Any) -> Any:
    values = dict.fromkeys(
        ("size", "blocks512", "rdev", "atime_ns", "mtime_ns", "ctime_ns", "btime_ns", "parent", "data_version"), 0
    )
    values.update(bare=True, readable=True, incarnation=1)
    return SimpleNamespace(ino=ino, mode=mode, nlink=1, uid=uid, gid=gid, **{**values, **more})


class Kernelless:
    """Operations over functions given per test."""

    def __init__(self, **functions: Any) -> None:
        self.withdrawn: list[BaseException] = []
        self.closed: list[int] = []
        self.forgotten: list[int] = []
        self.fail_forgotten = 0
        self.rounds, self.is_room = 0, False
        self.opened: list[int] = []
        volume = SimpleNamespace(
            room=SimpleNamespace(make=self._make_room),
            atimes=SimpleNamespace(
                note=lambda _ino: None, would_note=lambda _inode: False, shown=lambda inode: inode.atime_ns
            ),
            opens=SimpleNamespace(opened=self.opened.append, closed=self.closed.append),
            forgotten=self._forgotten,
        )
        modules: Any = SimpleNamespace(
            Changes=lambda **changes: changes,
            generation=lambda _volume, inode: inode.incarnation,
            check_open=lambda _inode, _flags: None,
            **functions,
        )
        self.caches = KernelCaches(SimpleNamespace(monotonic=lambda: 1.0))  # type: ignore[arg-type]
        self.caches.nodes.root = ROOT
        self.caches._epoch = True
        self.handles = HandleTable()
        self.operations = Operations(
            volume, Filesystem(*[modules] * 5), self.caches, self.handles, self.withdrawn.append
        )

    async def _make_room(self) -> bool:
        self.rounds += 1
        return self.is_room

    def _forgotten(self, ino: int) -> None:
        if ino == self.fail_forgotten:
            raise KeyError(ino)
        self.forgotten.append(ino)


async def found(*_arguments: Any, **_more: Any) -> Any:
    return inode(100)


async def missing(*_arguments: Any) -> None:
    return None


async def exists(*_arguments: Any, **_more: Any) -> None:
    raise FileExistsError(errno.EEXIST, "exists")


async def test_replies_are_valid_until_invalidated() -> None:
    world = Kernelless(lookup=found)
    reply = await world.operations.lookup(1, b"f", CALLER)
    assert (reply.st_ino, reply.generation, reply.entry_timeout, reply.attr_timeout) == (100, 1, FOREVER, FOREVER)
    assert world.caches.nodes.known(100)


async def test_replies_that_the_kernel_takes_in_any_case_are_noted() -> None:
    """K2: it compares versions for those of LOOKUP and GETATTR only."""
    kernel: Any = SimpleNamespace(requests=lambda: 5)
    new = dict.fromkeys(("create", "mkdir", "symlink", "link", "setattr", "lookup", "getattr"), found)
    fields = SimpleNamespace(**{f"update_{name}": False for name in ("mode", "uid", "gid", "size", "atime", "mtime")})
    none = SimpleNamespace(st_rdev=0)
    for noted, call in (
        (None, lambda made: made.lookup(1, b"f", CALLER)),
        (None, lambda made: made.getattr(100, CALLER)),
        ((1.0, CALLER.pid, 5), lambda made: made.mknod(1, b"f", stat.S_IFREG | 0o644, 0, CALLER)),
        ((1.0, CALLER.pid, 5), lambda made: made.mkdir(1, b"f", 0o755, CALLER)),
        ((1.0, CALLER.pid, 5), lambda made: made.symlink(1, b"f", b"to", CALLER)),
        ((1.0, CALLER.pid, 5), lambda made: made.create(1, b"f", 0o644, os.O_RDWR, CALLER)),
        ((1.0, CALLER.pid, 5), lambda made: made.link(100, 1, b"f", CALLER)),
        ((1.0, CALLER.pid, 5), lambda made: made.setattr(100, none, fields, None, CALLER)),
    ):
        world = Kernelless(**new)
        world.caches._notifier = kernel
        world.caches.bare = lambda *_arguments: None  # type: ignore[method-assign]
        world.caches.nodes.looked_up(100, 1)
        await call(world.operations)
        node = world.caches.nodes.get(100)
        assert node is not None
        assert node.given == noted


async def test_an_answer_for_attributes_is_noted() -> None:
    """K2: one more invalidation waits till it has been taken in."""
    world = Kernelless(getattr=found)
    node = world.caches.nodes.looked_up(100, 1)
    assert node.answered_at == 0
    await world.operations.getattr(100, CALLER)
    assert node.answered_at == 1


async def test_an_inode_that_lands_late_is_invalidated_before_it_is_used() -> None:
    """K2: the kernel asks about it for the first time, with attributes from before the purge."""
    told: list[int] = []
    kernel: Any = SimpleNamespace(requests=lambda: 5, attributes=told.append)
    world = Kernelless(getattr=found)
    world.caches._notifier = kernel
    world.caches.nodes.looked_up(100, 1)
    world.caches.unlanded.add(100)
    for _ in range(2):
        await world.operations.open(100, os.O_RDONLY, CALLER)
    assert (told, world.caches.unlanded) == ([100], set())


async def test_listings_are_taken_in_when_their_reader_asks_again_or_closes() -> None:
    """``listings`` L1; one without names brings none."""

    async def entries(_volume: Any, _ino: int, after: int, _limit: int) -> list[Any]:
        return [] if after else [(3, b"f", inode(100))]

    world = Kernelless(getattr=found, entries=entries)
    world.operations._volume.atimes.note = lambda _ino: None
    listings = world.caches._listings
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pyfuse3, "readdir_reply", lambda *_arguments: True)
        handles = [await world.operations.opendir(100, CALLER) for _ in range(2)]
        for handle in handles:
            await world.operations.readdir(handle, 2, None)
        assert len(listings) == 2
        await world.operations.readdir(handles[0], 3, None)
        assert len(listings) == 1
        await world.operations.releasedir(handles[1])
        assert len(listings) == 0


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
    async def permits(*_arguments: Any) -> bool:
        return True

    world = Kernelless(create=exists, lookup=found, getattr=found, permits=permits)
    info, _reply = await world.operations.create(1, b"f", 0o644, os.O_RDWR, CALLER)
    assert world.handles[info.fh].ino == 100


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
    ("flags", "wanted"),
    [(os.O_RDONLY, 4), (os.O_WRONLY, 2), (os.O_RDWR, 6), (os.O_RDONLY | os.O_TRUNC, 6), (os.O_WRONLY | os.O_APPEND, 2)],
)
async def test_create_of_an_existing_name_asks_for_what_the_flags_need(flags: int, wanted: int) -> None:
    asked: list[Any] = []

    async def permits(_volume: Any, ino: int, wanted: int, uid: int, is_member: Any) -> bool:
        asked.append((ino, wanted, uid, is_member(CALLER.gid)))
        return False

    world = Kernelless(create=exists, lookup=found, permits=permits)
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await world.operations.create(1, b"f", 0o644, flags, CALLER)
    assert caught.value.errno == errno.EACCES
    assert asked == [(100, wanted, 1000, True)]


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
    assert seen[0][1].pop("changer").of_setattr(fields) is not None, "it truncates"
    nothing = {"uid": None, "gid": None, "atime_ns": None}
    assert seen == [(ROOT, {"mode": 0o4755, "size": 9, "mtime_ns": 5, "times_are_now": False, **nothing})]
    wanted.st_rdev = 1  # from the extension
    await world.operations.setattr(1, wanted, fields, None, CALLER)
    assert seen[1][1]["times_are_now"]


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


@pytest.mark.parametrize(
    ("flags", "durable"),
    [(os.O_APPEND, 0), (os.O_APPEND | os.O_SYNC, 1), (os.O_APPEND | os.O_DSYNC, 1), (os.O_SYNC, 0)],
    ids=["append", "append sync", "append dsync", "sync: the kernel asks itself"],
)
async def test_a_synchronous_append_is_durable_before_it_is_answered(flags: int, durable: int) -> None:
    steps: list[str] = []

    async def write(*_arguments: Any, **_more: Any) -> int:
        steps.append("write")
        return 3

    async def fsync(*_arguments: Any) -> None:
        steps.append("fsync")

    world = Kernelless(getattr=found, write=write, fsync=fsync, version=lambda *_: None)
    handle = world.handles.add(100, os.O_WRONLY | flags)
    assert await world.operations.write(handle, 0, b"abc") == 3
    assert steps == ["write", *["fsync"] * durable]


@pytest.mark.parametrize(
    ("code", "is_room", "calls"),
    [
        (errno.ENOSPC, True, 2),
        (errno.EDQUOT, True, 2),
        (errno.EIO, True, 1),
    ],
)
async def test_what_found_no_room_is_done_again_when_there_is_some(code: int, is_room: bool, calls: int) -> None:
    """And for the same caller: what the extension tells of the request is another one's by then."""
    seen: list[int] = []
    changers: list[Any] = []

    async def write(*arguments: Any) -> int:
        seen.append(world.rounds)
        changers.append(arguments[-3])
        if len(seen) == 1:
            raise OSError(code, "no")
        return 3

    world = Kernelless(write=write, version=lambda *_: None)
    world.is_room = is_room
    handle = world.handles.add(100, os.O_WRONLY)
    if calls == 2:
        assert await world.operations.write(handle, 0, b"abc") == 3
    else:
        with pytest.raises(pyfuse3.FUSEError) as caught:
            await world.operations.write(handle, 0, b"abc")
        assert caught.value.errno == code
    assert (seen, world.rounds) == ([0, 1][:calls], int(code != errno.EIO))
    assert changers[0] is changers[-1] is not None


@pytest.mark.parametrize(("of_pages", "direct"), [(False, False), (True, False), (False, True)])
async def test_a_write_that_finds_no_room_takes_what_fits(of_pages: bool, direct: bool) -> None:
    """Not one of pages of a mapping, nor a direct one: the kernel would take a part for all, or for a fault."""
    asked: list[bool] = []

    async def write(*arguments: Any) -> int:
        asked.append(arguments[-1])
        if not asked[-1]:
            raise OSError(errno.ENOSPC, "no")
        return 2

    world = Kernelless(write=write, version=lambda *_: None)
    world.is_room = False
    handle = world.handles.add(100, os.O_WRONLY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(libfuse, "caller", lambda: (None, of_pages, direct, 1, 0))
        if of_pages or direct:
            with pytest.raises(pyfuse3.FUSEError):
                await world.operations.write(handle, 0, b"abc")
        else:
            assert await world.operations.write(handle, 0, b"abc") == 2
    assert asked == [False, not (of_pages or direct)]


@pytest.mark.parametrize("is_room", [True, False])
async def test_a_parked_request_that_found_no_room_is_done_again_when_there_is_some(is_room: bool) -> None:
    world = Kernelless()
    world.is_room = is_room
    seen: list[int] = []

    async def work() -> None:
        seen.append(world.rounds)
        if len(seen) == 1:
            raise OSError(errno.ENOSPC, "no")

    code = await world.operations.parked._outcome("fallocate", trio.CancelScope(), work)
    assert (code, seen) == ((0, [0, 1]) if is_room else (errno.ENOSPC, [0]))


@pytest.mark.parametrize("call", ["fsync", "flush"])
async def test_lost_data_is_told_and_not_tried_away(call: str) -> None:
    """A second fsync would find nothing to report, and the application would take its data for durable."""
    seen: list[str] = []

    async def report(*_arguments: Any) -> None:
        seen.append(call)
        if len(seen) == 1:
            raise ToldLate(errno.ENOSPC, "lost")

    world = Kernelless(**{call: report})
    world.is_room = True
    handle = world.handles.add(100, os.O_WRONLY)
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await getattr(world.operations, call)(handle, *([False] if call == "fsync" else []))
    assert (caught.value.errno, seen, world.rounds) == (errno.ENOSPC, [call], 0)


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
        for part in (Operations, AttributeRequests, DirectoryRequests)
        for name, member in vars(part).items()
        if callable(member) and not name.startswith("_") and name != "forget"
    ]
    assert len(handlers) == 27
    assert all(hasattr(getattr(Operations, name), "__wrapped__") for name in handlers)


async def test_a_new_file_with_the_number_of_one_that_the_kernel_still_knows() -> None:
    """Seen in a cp to a second mount: ESTALE made the kernel create it again, which then said EEXIST."""
    world = Kernelless(create=found, getattr=found)
    world.caches.nodes.looked_up(100, 0)  # deleted by another node, and not forgotten yet
    info, reply = await world.operations.create(1, b"f", 0o644, os.O_RDWR | os.O_EXCL, CALLER)
    assert (reply.st_ino, reply.generation) == (100, 1)
    assert world.handles[info.fh].ino == 100


class PlayedAttributes:
    """Of inode 100; remembers what was set."""

    def __init__(self, **held: bytes) -> None:
        self.held = {f"{space}.x".encode(): value for space, value in held.items()}
        self.put_with: list[tuple[bytes, bytes, int]] = []

    def inode(self) -> Any:
        return inode(100, bare=not self.held)

    async def get(self, _volume: Any, _ino: int, name: bytes) -> Any:
        return self.inode(), self.held.get(name)

    async def names(self, _volume: Any, _ino: int) -> Any:
        return self.inode(), list(self.held)

    async def put(self, _volume: Any, _ino: int, name: bytes, value: bytes, flags: int, _is_member: Any) -> Any:
        self.put_with.append((name, value, flags))
        self.held[name] = value
        return self.inode()

    async def remove(self, _volume: Any, _ino: int, name: bytes) -> Any:
        if name not in self.held:
            raise OSError(errno.ENODATA, "not there")
        del self.held[name]
        return self.inode()


class PlayedNotifier:
    """Keeps what the extension is told to answer for."""

    def __init__(self) -> None:
        self.bare_nodes: set[int] = set()

    def bare(self, node: int, is_bare: bool, /) -> None:
        (self.bare_nodes.add if is_bare else self.bare_nodes.discard)(node)


def attribute_world(**held: bytes) -> tuple[Kernelless, PlayedAttributes, PlayedNotifier]:
    played, notifier = PlayedAttributes(**held), PlayedNotifier()
    world = Kernelless(get=played.get, names=played.names, put=played.put, remove=played.remove)
    world.caches._notifier = notifier  # type: ignore[assignment]
    return world, played, notifier


@pytest.mark.parametrize("flags", [0, os.XATTR_CREATE, os.XATTR_REPLACE])
async def test_setxattr_takes_its_flags_from_the_name(flags: int) -> None:
    """Where the extension put them; it is here, as this process loaded it."""
    world, played, _ = attribute_world()
    await world.operations.setxattr(100, bytes([flags + 1]) + b"user.x", b"v", CALLER)
    assert played.put_with == [(b"user.x", b"v", flags)]


async def test_the_extension_answers_for_an_inode_from_the_look_that_found_no_attributes_to_the_next_one() -> None:
    world, _, notifier = attribute_world()
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await world.operations.getxattr(100, b"user.x", CALLER)
    assert caught.value.errno == errno.ENODATA
    assert notifier.bare_nodes == {100}
    await world.operations.setxattr(100, b"\1user.x", b"v", CALLER)
    assert notifier.bare_nodes == set()
    assert await world.operations.getxattr(100, b"user.x", CALLER) == b"v"
    await world.operations.removexattr(100, b"user.x", CALLER)
    assert notifier.bare_nodes == {100}
    await world.caches.purge_inode(100)
    assert notifier.bare_nodes == set()


async def test_attributes_of_another_file_of_that_number_are_stale() -> None:
    world, _, notifier = attribute_world(user=b"v")
    notifier.bare_nodes.add(100)
    world.caches.nodes.looked_up(100, 7)
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await world.operations.getxattr(100, b"user.x", CALLER)
    assert caught.value.errno == errno.ESTALE
    assert notifier.bare_nodes == set()


async def test_trusted_names_are_told_to_root_only() -> None:
    world, _, _ = attribute_world(trusted=b"1", user=b"1")
    assert await world.operations.listxattr(100, CALLER) == [b"user.x"]
    root = SimpleNamespace(uid=0, gid=0, pid=os.getpid(), umask=0)
    assert await world.operations.listxattr(100, root) == [b"trusted.x", b"user.x"]
