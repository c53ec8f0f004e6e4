"""A simulated shared disk: forgets what was not flushed, fails, lies and dies on demand, all from one seed.

``Media`` is the medium and its volatile cache (pure).  ``SimDisk`` gives it latency, faults and a log under trio's
virtual clock, and is a ``GuardedDevice`` itself; ``SimDisk.port(name)`` is one node's path to it, which can be cut.

What it models (style.md 3.6; SQLite's test6.c):
    M1  A sector is atomic; a longer write is not.
    M2  A write that returned is seen by every later read, and is lost with the power unless it was durable, or a
        flush that began after it returned has returned.
    M3  On power loss each write that is not safe is kept, dropped or torn by sectors, independently of the others;
        one sector never shows an older write over a newer safe one.
    M4  A write in flight when the power or its path goes may have happened, wholly or in part, durable or not.
What it doesn't: sectors that rot by themselves (``corrupt`` does it), misdirected writes, a disk that lies about flush.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import trio

from matrixfs.blockstore.device.api import Guard, InFlight, buffer_bytes, check_range
from membership.errors import DeviceError
from membership.seams import Buffer

Mode: TypeAlias = Literal["drop", "keep-some", "keep-all", "tear"]
Operation: TypeAlias = Literal["read", "write", "flush"]
_PAGE = 4096
_ZEROS = bytes(_PAGE)


@dataclass(slots=True, eq=False)
class Write:
    """One write: in the log, and in the cache until it is safe."""

    offset: int
    data: bytes
    durable: bool
    port: str = ""
    safe: bool = False  # survives power loss
    begun: int = 0  # entries of the log when it was submitted: from there until it is one, it is in flight (M4)

    @property
    def length(self) -> int:
        return len(self.data)


@dataclass(frozen=True, slots=True, eq=False)
class Flush:
    """One flush that returned; ``writes`` are those it made safe."""

    writes: tuple[Write, ...]
    port: str = ""


class Pages:
    """Sparse bytes in immutable pages, so a copy costs one dict."""

    __slots__ = ("_pages",)

    def __init__(self, pages: dict[int, bytes] | None = None) -> None:
        self._pages = dict(pages or {})

    def copy(self) -> Pages:
        return Pages(self._pages)

    def outside(self, first: int, end: int) -> frozenset[tuple[int, bytes]]:
        """All pages but those of [first, end), to compare with others; a page of zeros counts as none."""
        return frozenset(item for item in self._pages.items() if not first <= item[0] < end and item[1] != _ZEROS)

    def read(self, offset: int, length: int) -> bytes:
        out = bytearray()
        while length:
            page, at = divmod(offset, _PAGE)
            n = min(length, _PAGE - at)
            content = self._pages.get(page)
            out += content[at : at + n] if content is not None else bytes(n)
            offset, length = offset + n, length - n
        return bytes(out)

    def write(self, offset: int, data: bytes) -> None:
        done = 0
        while done < len(data):
            page, at = divmod(offset + done, _PAGE)
            part = data[done : done + _PAGE - at]
            if len(part) < _PAGE:
                old = self._pages.get(page) or bytes(_PAGE)
                part = old[:at] + part + old[at + len(part) :]
            self._pages[page] = part
            done += min(len(data) - done, _PAGE - at)


class Media:
    """What is on the platter, and what is only in the disk's cache.  Pure."""

    def __init__(self, sector_bytes: int, content: Pages | None = None) -> None:
        self.sector_bytes = sector_bytes
        self._platter = content or Pages()
        self._visible = self._platter.copy()
        self._cache: list[Write] = []  # since the first write that is not safe, in order

    @property
    def cache(self) -> tuple[Write, ...]:
        """Everything from the first write that is not safe on, oldest first."""
        return tuple(self._cache)

    @property
    def unsafe(self) -> tuple[Write, ...]:
        """Writes that power loss may take, oldest first."""
        return tuple(write for write in self._cache if not write.safe)

    def read(self, offset: int, length: int) -> bytes:
        return self._visible.read(offset, length)

    def write(self, write: Write) -> None:
        write.safe = write.durable
        self._visible.write(write.offset, write.data)
        self._cache.append(write)
        self._settle()

    def flush(self, writes: tuple[Write, ...]) -> None:
        for write in writes:
            write.safe = True
        self._settle()

    def corrupt(self, offset: int, flip: int) -> None:
        for pages in (self._visible, self._platter):
            pages.write(offset, bytes([pages.read(offset, 1)[0] ^ flip]))
        for write in self._cache:
            at = offset - write.offset
            if 0 <= at < write.length:
                write.data = write.data[:at] + bytes([write.data[at] ^ flip]) + write.data[at + 1 :]

    def copy(self) -> Media:
        """As it is now, cache included; the two share nothing that changes."""
        twin = Media(self.sector_bytes, self._platter.copy())
        twin._visible = self._visible.copy()
        twin._cache = [Write(w.offset, w.data, w.durable, w.port, w.safe) for w in self._cache]
        return twin

    def power_loss(self, rng: random.Random, mode: Mode) -> None:
        self._platter = self.after_power_loss(lambda write: self._surviving(write, rng, mode)).content
        self._cache.clear()
        self._visible = self._platter.copy()

    @property
    def content(self) -> Pages:
        """What is on the platter."""
        return self._platter

    def after_power_loss(self, surviving: Callable[[Write], Iterable[int]], in_flight: Iterable[Write] = ()) -> Media:
        """The medium as a power loss now leaves it; ``surviving`` gives the offsets of a write's sectors that are kept.

        It is asked about each write that had returned, safe or not, and then about those ``in_flight`` (M4).
        """
        platter = self._platter.copy()
        for write in (*self._cache, *in_flight):
            for at in surviving(write):
                platter.write(write.offset + at, write.data[at : at + self.sector_bytes])
        return Media(self.sector_bytes, platter)

    def tear(self, write: Write, rng: random.Random) -> Write | None:
        """What of a write that was in flight has happened: nothing, all, or its first sectors."""
        whole = write.length // self.sector_bytes
        sectors = rng.choice((0, rng.randint(0, whole), whole))
        if not sectors:
            return None
        return Write(write.offset, write.data[: sectors * self.sector_bytes], write.durable, write.port)

    def _surviving(self, write: Write, rng: random.Random, mode: Mode) -> Iterator[int]:
        kept = write.safe or mode == "keep-all" or (mode == "keep-some" and rng.random() < 0.5)
        for at in range(0, write.length, self.sector_bytes):
            if kept or (mode == "tear" and rng.random() < 0.5):
                yield at

    def _settle(self) -> None:
        """Safe writes with nothing unsafe before them are history (M3: later ones must stay in order)."""
        settled = 0
        while settled < len(self._cache) and self._cache[settled].safe:
            self._platter.write(self._cache[settled].offset, self._cache[settled].data)
            settled += 1
        del self._cache[:settled]


@dataclass(slots=True)
class Fault:
    """Operations that touch the range fail, ``times`` times (None: always)."""

    operation: Operation
    offset: int
    length: int
    code: int
    times: int | None

    def hits(self, operation: Operation, offset: int, length: int) -> bool:
        touched = offset < self.offset + self.length and self.offset < offset + max(length, 1)
        if operation != self.operation or self.times == 0 or not (touched or operation == "flush"):
            return False
        if self.times is not None:
            self.times -= 1
        return True


@dataclass(eq=False)
class _Path:
    """State of one port: cut or not, and what is on its way."""

    name: str
    cut: str | None = None
    in_flight: InFlight = field(default_factory=InFlight)
    writes: list[Write] = field(default_factory=list)
    scopes: set[trio.CancelScope] = field(default_factory=set)


class SimPort:
    """One node's path to a shared SimDisk: a GuardedDevice that can be cut, as a fence in the fabric does."""

    def __init__(self, disk: SimDisk, path: _Path) -> None:
        self._disk = disk
        self._path = path

    @property
    def name(self) -> str:
        return f"{self._disk.media_name}@{self._path.name}" if self._path.name else self._disk.media_name

    @property
    def sector_bytes(self) -> int:
        return self._disk.media.sector_bytes

    @property
    def size_bytes(self) -> int:
        return self._disk.capacity

    @property
    def in_flight(self) -> int:
        return self._path.in_flight.count

    async def read(self, offset: int, length: int, *, guard: Guard | None = None) -> bytes:
        check_range(self, "read", offset, length)
        await self._travel("read", offset, length, guard)
        return self._disk.media.read(offset, length)

    async def write(self, offset: int, data: Buffer, *, durable: bool = False, guard: Guard | None = None) -> None:
        check_range(self, "write", offset, buffer_bytes(data))
        write = Write(offset, bytes(data), durable, self._path.name, begun=len(self._disk.log))
        try:
            await self._travel("write", offset, write.length, guard, write)
            self._disk.land(write)
        finally:
            if write in self._path.writes:
                self._path.writes.remove(write)

    async def flush(self, *, guard: Guard | None = None) -> None:
        covered = self._disk.media.unsafe  # writes that return later don't ride along
        await self._travel("flush", 0, 0, guard)
        self._disk.make_safe(covered, self._path.name)

    async def discard(self, offset: int, length: int, *, guard: Guard | None = None) -> None:
        """What is read there afterwards is no content that anybody wrote."""
        self._disk.discards.append((offset, length))
        await self.write(offset, b"\xdd" * length, guard=guard)

    async def aclose(self) -> None:
        self._path.cut = self._path.cut or "is closed"
        await self._path.in_flight.wait_idle()

    def cut(self, reason: str = "path cut") -> None:
        """Nothing passes any more; each write in flight has happened, partly happened, or not (M4)."""
        self._path.cut = reason
        self._disk.abandon(self._path, self._disk.rng)

    def mend(self) -> None:
        """End of ``cut``."""
        self._path.cut = None

    async def _travel(
        self, operation: Operation, offset: int, length: int, guard: Guard | None, write: Write | None = None
    ) -> None:
        """To the disk and back; shielded, since a real device gives no operation back either."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._path.cut is not None:
            raise DeviceError(f"{self.name}: {self._path.cut}")
        if guard is not None:
            guard()
        if write is not None:
            self._path.writes.append(write)
        with self._path.in_flight, trio.CancelScope(shield=True) as scope:
            self._path.scopes.add(scope)
            try:
                await self._disk.delay()
            finally:
                self._path.scopes.discard(scope)
        if scope.cancel_called:
            raise DeviceError(f"{self.name}: {operation} at {offset}: lost on the way")
        self._disk.maybe_fail(self.name, operation, offset, length)


class SimDisk(SimPort):
    """The disk; itself a device, and the maker of ports.

    Args:
        size_bytes: capacity.
        sector_bytes: 512 or 4096.
        seed: of latencies and of what survives.
        latency: (least, most) seconds of an operation on trio's clock; (0, 0) is one checkpoint.
        name: for messages.

    ``log`` holds every Write and Flush since the last ``mark``; ``crash_image(k)`` is the disk as a power loss
    after the first k of them leaves it, so a test can run once and look at every k.
    """

    def __init__(
        self,
        size_bytes: int,
        sector_bytes: int = 512,
        seed: int = 0,
        latency: tuple[float, float] = (0.0, 0.0),
        name: str = "sim",
    ) -> None:
        assert sector_bytes in {512, 4096} and size_bytes % sector_bytes == 0
        self.media = Media(sector_bytes)
        self.media_name = name
        self.capacity = size_bytes
        self.latency = latency
        self.rng = random.Random(seed)
        self.faults: list[Fault] = []
        self.discards: list[tuple[int, int]] = []  # (offset, length)
        self.operations = {"read": 0, "write": 0, "flush": 0}
        self.mark()
        self._paths = [_Path("")]
        self._running: trio.Event | None = None
        super().__init__(self, self._paths[0])

    @property
    def writes(self) -> list[Write]:
        """Writes in the order they reached the disk, since ``mark``."""
        return [entry for entry in self.log if isinstance(entry, Write)]

    def port(self, name: str) -> SimPort:
        """A new path for node ``name``."""
        self._paths.append(_Path(name))
        return SimPort(self, self._paths[-1])

    def mark(self) -> None:
        """Begin the log here."""
        self._origin, self._origin_cache = self.media.copy(), self.media.cache
        self.log: list[Write | Flush] = []

    def crash_image(self, k: int, mode: Mode = "drop", seed: int = 0) -> SimDisk:
        """A new disk in the state that a power loss after ``log[:k]`` leaves, with nothing in flight."""
        for media in itertools.islice(self.replayed(), k, k + 1):
            media.power_loss(random.Random(seed), mode)
        return self.twin(media, f"{self.media_name}#{k}", seed)

    def replayed(self) -> Iterator[Media]:
        """The medium after each of the first 0, 1, 2... entries of the log: one object, which goes on changing."""
        media = self._origin.copy()
        copies = {id(old): new for old, new in zip(self._origin_cache, media.cache, strict=True)}
        yield media
        for entry in self.log:
            if isinstance(entry, Write):
                copies[id(entry)] = copy = Write(entry.offset, entry.data, entry.durable, entry.port)
                media.write(copy)
            else:
                media.flush(tuple(copies[id(write)] for write in entry.writes if id(write) in copies))
            yield media

    def twin(self, media: Media, name: str, seed: int) -> SimDisk:
        """Another disk of this kind with ``media`` in it."""
        twin = SimDisk(self.capacity, self.sector_bytes, seed, self.latency, name)
        twin.media = media
        twin.mark()
        return twin

    def power_loss(self, rng: random.Random | None = None, mode: Mode = "drop") -> None:
        """Lose the power now, for all nodes: what is in flight fails, and has happened or not.  Then it is on again."""
        rng = rng or self.rng
        for path in self._paths:
            self.abandon(path, rng)
        self.media.power_loss(rng, mode)

    def snapshot(self) -> Media:
        """The disk's whole state, for ``restore``."""
        return self.media.copy()

    def restore(self, snapshot: Media) -> None:
        """Back to ``snapshot``; nothing may be in flight."""
        assert not any(path.in_flight.count for path in self._paths)
        self.media = snapshot.copy()
        self.mark()

    def fail(
        self,
        operation: Operation,
        offset: int = 0,
        length: int = 1 << 62,
        code: int = errno.EIO,
        times: int | None = None,
    ) -> Fault:
        """Make operations that touch the range fail with ``code``.  Remove the answer from ``faults`` to heal."""
        self.faults.append(Fault(operation, offset, length, code, times))
        return self.faults[-1]

    def corrupt(self, offset: int, flip: int = 1) -> None:
        """Flip bits of one byte on the medium."""
        self.media.corrupt(offset, flip)

    def hang(self) -> None:
        """Operations stay in flight until ``resume``."""
        self._running = self._running or trio.Event()

    def resume(self) -> None:
        """End of ``hang``: what hung goes on, and lands."""
        if self._running is not None:
            self._running.set()
            self._running = None

    # -- for the ports

    async def delay(self) -> None:
        if self._running is not None:
            await self._running.wait()
        if self.latency[1]:
            await trio.sleep(self.rng.uniform(*self.latency))
        else:
            await trio.lowlevel.checkpoint()

    def maybe_fail(self, name: str, operation: Operation, offset: int, length: int) -> None:
        self.operations[operation] += 1
        for fault in self.faults:
            if fault.hits(operation, offset, length):
                raise DeviceError(f"{name}: {operation} at {offset} failed: {os.strerror(fault.code)}", fault.code)

    def land(self, write: Write) -> None:
        self.media.write(write)
        self.log.append(write)

    def make_safe(self, writes: tuple[Write, ...], port: str) -> None:
        self.media.flush(writes)
        self.log.append(Flush(writes, port))

    def abandon(self, path: _Path, rng: random.Random) -> None:
        """M4 for everything on its way through ``path``."""
        for write in path.writes:
            torn = self.media.tear(write, rng)
            if torn is not None:
                self.land(torn)
        path.writes.clear()
        for scope in path.scopes:
            scope.cancel()
