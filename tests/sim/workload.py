"""A random workload over a few shared directories, on several nodes at once, checked by a model (R2).

Each operation names the objects it touches (``keys``).  One that nothing else overlapped on any of its keys must
have the outcome the model says; where operations overlapped, the model forgets and learns from the next quiet look.
"""

from __future__ import annotations

import errno
import random
import stat
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import trio

from matrixfs.fs import attributes, data, namespace, readdir
from matrixfs.ondisk.superblock import ROOT_INODE
from membership.errors import CorruptRecord, DeviceError, Fenced
from tests.sim.checkers import ANYTHING, AppendLog, State, check_mixture, difference, identity, record_of
from tests.sim.fs_world import SimMount, World

DIRECTORIES = 3
NAMES = tuple(b"name%d" % i for i in range(6))
LOGS = 2
WORKERS = 2  # on each mount
HANG_SECONDS = 60.0  # of virtual time: far beyond any recovery
FILE_BYTES = 40_000

Key = tuple[Any, ...]
Outcome = Any  # what the operation returned, or -errno


class Operation:
    """One under way."""

    def __init__(self, node: int, keys: list[Key]) -> None:
        self.node = node
        self.keys = keys
        self.overlapped = False


class Crew:
    """The workers of one mount."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.stopping = False
        self.gone = trio.Event()


class Workload:
    """The model, and the workers that run against it."""

    def __init__(self, world: World, seed: int, pause: float) -> None:
        self.world = world
        self.pause = pause  # seconds: longest time that a worker thinks between two operations
        self.rng = random.Random(seed)
        self.states: defaultdict[Key, State] = defaultdict(State)
        self.active: defaultdict[Key, list[Operation]] = defaultdict(list)
        self.directories: list[int] = []
        self.logs: list[AppendLog] = []
        self.operations = 0
        self.quiet = 0  # operations whose outcome was compared with the model
        self.crews: dict[int, Crew] = {}
        self.chosen: Key | None = None
        self.turns: defaultdict[Key, trio.Lock] = defaultdict(trio.Lock)

    async def prepare(self, mount: SimMount) -> None:
        """The directories and logs, made durable."""
        volume = mount.volume
        for i in range(DIRECTORIES):
            self.directories.append((await namespace.mkdir(volume, ROOT_INODE, b"dir%d" % i, 0o755, 0, 0)).ino)
        for i in range(LOGS):
            made = await namespace.create(volume, ROOT_INODE, b"log%d" % i, stat.S_IFREG | 0o644, 0, 0)
            self.logs.append(AppendLog(made.ino))
        await volume.sync()
        for directory in self.directories:
            for name in NAMES:
                self.states[directory, name] = State(None)

    # --- nodes come and go ------------------------------------------------------------------------------

    def begin(self, nursery: trio.Nursery, mount: SimMount) -> None:
        """Start the workers of a mount; they end with ``finish``, ``stop`` or ``kill``."""
        crew = self.crews[mount.instance.node] = Crew()
        nursery.start_soon(self._work, mount, crew)

    async def _work(self, mount: SimMount, crew: Crew) -> None:
        with crew.scope:
            async with trio.open_nursery() as nursery:
                for _ in range(WORKERS):
                    nursery.start_soon(self._worker, mount, crew, random.Random(self.rng.random()))
        crew.gone.set()

    def kill(self, node: int) -> None:
        """Kill a mount; what it had done and nobody saw may be lost."""
        mount = self.world.kill(node)
        self.crews[node].scope.cancel()
        for state in self.states.values():
            state.died(node)
        for log in self.logs:
            log.dead.add(tuple(mount.instance))

    async def reach(self, operations: int) -> None:
        """Wait until so many operations are done."""
        while self.operations < operations:  # noqa: ASYNC110 - in virtual time
            await trio.sleep(self.pause)

    def stop(self, node: int) -> None:
        """Let the workers of a node end their operation and go."""
        self.crews[node].stopping = True

    async def finish(self, node: int) -> None:
        """``stop``, and wait until they are gone."""
        self.stop(node)
        await self.crews[node].gone.wait()

    async def _worker(self, mount: SimMount, crew: Crew, rng: random.Random) -> None:
        node = mount.instance.node
        actions = [action for action, weight in self._actions() for _ in range(weight)]
        while not crew.stopping:
            try:
                with trio.fail_after(HANG_SECONDS):
                    await rng.choice(actions)(mount, rng)
            except (DeviceError, Fenced):
                assert self.world.mounts.get(node) is not mount, "a living mount lost its device"
                return
            except trio.TooSlowError:
                waits = {n: m.member.counters()["waits"] for n, m in self.world.mounts.items()}
                raise AssertionError(f"node {node} hangs: {waits}") from None
            await trio.sleep(rng.choice((0.0, 0.0005, self.pause)))

    def _actions(self) -> list[tuple[Callable[[SimMount, random.Random], Awaitable[None]], int]]:
        return [
            (self._create, 8), (self._remove, 6), (self._rename, 6), (self._link, 3), (self._look, 8),
            (self._list, 3), (self._child, 3), (self._write, 8), (self._read, 8), (self._truncate, 3),
            (self._fsync, 3), (self._append, 10), (self._read_log, 4), (self._chmod, 2),
        ]  # fmt: skip

    # --- one operation ----------------------------------------------------------------------------------------

    async def _perform(
        self,
        node: int,
        keys: list[Key],
        action: Callable[[], Awaitable[Outcome]],
        settle: Callable[[Outcome], None],
    ) -> Outcome:
        operation = Operation(node, keys)
        for key in keys:
            for other in self.active[key]:
                other.overlapped = operation.overlapped = True
            self.active[key].append(operation)
        done = False
        try:
            try:
                outcome = await action()
            except OSError as error:
                assert error.errno != errno.EIO, error
                outcome = -(error.errno or 0)
            except CorruptRecord as error:  # a number from before its inode was deleted, and its block given to data
                gone = operation.overlapped or not self.states[keys[0]].known
                assert gone and error.check == "magic", error
                outcome = -errno.ESTALE
            done = True
            self.operations += 1
        finally:
            for key in keys:
                self.active[key].remove(operation)
                if operation.overlapped or not done:
                    self.states[key].lost_sight()
        if outcome == -errno.ESTALE and not self.states[keys[0]].known:
            return outcome  # who made it died meanwhile, and it was not safe
        if not operation.overlapped:
            self.quiet += 1
            settle(outcome)
        return outcome

    def _place(self, rng: random.Random) -> Key:
        return self.chosen or (rng.choice(self.directories), rng.choice(NAMES))

    def _file(self, rng: random.Random) -> tuple[Key, tuple[int, int, int]] | None:
        """A name that surely means a file now."""
        for _ in range(4):
            key = self._place(rng)
            state = self.states[key]
            if state.known and state.value is not None and stat.S_ISREG(state.value[2]) and not self.active[key]:
                return key, state.value
        return None

    async def _create(self, mount: SimMount, rng: random.Random) -> None:
        node, volume = mount.instance.node, mount.volume
        key = self._place(rng)
        kind = rng.choice("fffds")

        async def action() -> Outcome:
            if kind == "d":
                made = await namespace.mkdir(volume, *key, 0o755, 0, 0)
            elif kind == "s":
                made = await namespace.symlink(volume, *key, b"target" * rng.choice((1, 650)), 0, 0)
            else:
                made = await namespace.create(volume, *key, stat.S_IFREG | 0o644, 0, 0)
            return identity(made)

        def settle(outcome: Outcome) -> None:
            state = self.states[key]
            if outcome == -errno.EEXIST:
                assert not (state.known and state.value is None), f"{key}: EEXIST for a name that isn't there"
                state.possible = [one for one in state.possible if one is not None] or state.possible
                return
            assert not isinstance(outcome, int), f"{key}: create: {outcome}"
            assert state.allows(None), f"{key}: created over {state.possible}"
            state.changed(node, outcome)
            self._made(node, outcome)

        await self._perform(node, [key], action, settle)

    def _made(self, node: int, found: tuple[int, int, int]) -> None:
        """A new object is empty."""
        self.states["content", found[:2]] = State(b"")
        self.states["content", found[:2]].changed(node, b"")
        self.states[found[:2], b"child"] = State(None)

    async def _remove(self, mount: SimMount, rng: random.Random) -> None:
        node, volume = mount.instance.node, mount.volume
        key = self._place(rng)
        operation = rng.choice((namespace.unlink, namespace.unlink, namespace.rmdir))

        def settle(outcome: Outcome) -> None:
            state = self.states[key]
            if outcome == -errno.ENOENT:
                state.saw(node, None, key)
            elif outcome is None:
                assert not (state.known and state.value is None), f"{key}: removed a name that isn't there"
                if state.known:
                    assert stat.S_ISDIR(state.value[2]) == (operation is namespace.rmdir)
                    child = self.states[state.value[:2], b"child"]
                    assert operation is namespace.unlink or self.active[state.value[:2], b"child"] or child.allows(None)
                state.changed(node, None)
            elif state.known:
                kinds = {-errno.EISDIR: (namespace.unlink, True), -errno.ENOTDIR: (namespace.rmdir, False)}
                expected = kinds.get(outcome, (namespace.rmdir, True))
                assert outcome in kinds or outcome == -errno.ENOTEMPTY, f"{key}: remove: {outcome}"
                assert state.value is not None
                assert expected == (operation, stat.S_ISDIR(state.value[2])), f"{key}: {outcome} for {state.value}"

        await self._perform(node, [key], lambda: operation(volume, *key), settle)

    async def _rename(self, mount: SimMount, rng: random.Random) -> None:
        node, volume = mount.instance.node, mount.volume
        old, new = self._place(rng), self._place(rng)
        flags = rng.choice((0, 0, 0, 1, 2))

        def settle(outcome: Outcome) -> None:
            source, target = self.states[old], self.states[new]
            if outcome is not None:
                wrong = flags == 0 and outcome == -errno.ENOENT and source.known and source.value is not None
                assert not wrong, f"rename {old} to {new}: {outcome} with {source.possible}"
                return
            if old == new:
                return
            if not (source.known and target.known):
                source.lost_sight()
                target.lost_sight()
                return
            moved, replaced = source.value, target.value
            assert moved is not None, f"{old}: renamed a name that isn't there"
            assert not (flags == 1 and replaced is not None), f"{new}: NOREPLACE replaced"
            if flags != 2 and replaced is not None and moved[:2] == replaced[:2]:
                return
            target.changed(node, moved)
            source.changed(node, replaced if flags == 2 else None)

        keys = [old] if old == new else [old, new]
        await self._perform(node, keys, lambda: namespace.rename(volume, *old, *new, flags), settle)

    async def _link(self, mount: SimMount, rng: random.Random) -> None:
        node, volume = mount.instance.node, mount.volume
        found, new = self._file(rng), self._place(rng)
        if found is None or found[0] == new:
            return
        key, value = found

        def settle(outcome: Outcome) -> None:
            state = self.states[new]
            if isinstance(outcome, int):
                assert outcome == -errno.EEXIST, f"link to {new}: {outcome}"
                assert not (state.known and state.value is None), f"{new}: EEXIST for a name that isn't there"
            else:
                assert state.allows(None), f"{new}: linked over {state.possible}"
                state.changed(node, value)

        await self._perform(node, [key, new], lambda: namespace.link(volume, value[0], *new), settle)

    async def _look(self, mount: SimMount, rng: random.Random) -> None:
        node, volume = mount.instance.node, mount.volume
        key = self._place(rng)

        async def action() -> Outcome:
            inode = await namespace.lookup(volume, *key)
            return None if inode is None else identity(inode)

        await self._perform(node, [key], action, lambda outcome: self.states[key].saw(node, outcome, key))

    async def _list(self, mount: SimMount, rng: random.Random) -> None:
        node, volume = mount.instance.node, mount.volume
        directory = rng.choice(self.directories)
        keys: list[Key] = [(directory, name) for name in NAMES]
        limit = rng.choice((2, 100))

        async def action() -> Outcome:
            found: dict[bytes, tuple[int, int, int]] = {}
            cookie = 0
            while batch := await readdir.entries(volume, directory, cookie, limit):
                assert all(name not in found for _, name, _ in batch), "a name is listed twice"
                found |= {name: identity(inode) for _, name, inode in batch}
                cookie = batch[-1][0]
            return found

        def settle(outcome: Outcome) -> None:
            for key in keys:
                self.states[key].saw(node, outcome.get(key[1]), key)

        await self._perform(node, keys, action, settle)

    async def _child(self, mount: SimMount, rng: random.Random) -> None:
        """Make or remove a name in a directory that may itself be moved or removed."""
        node, volume = mount.instance.node, mount.volume
        key = self._place(rng)
        above = self.states[key]
        if not above.known or above.value is None or not stat.S_ISDIR(above.value[2]):
            return
        child: Key = (above.value[:2], b"child")
        make = rng.random() < 0.5
        ino = above.value[0]

        async def action() -> Outcome:
            if make:
                await namespace.create(volume, ino, b"child", stat.S_IFREG | 0o644, 0, 0)
            else:
                await namespace.unlink(volume, ino, b"child")

        def settle(outcome: Outcome) -> None:
            state = self.states[child]
            expected = state.possible[0] is None if state.known else None
            if outcome is None:
                assert expected is None or expected == make, f"{child}: make={make} with {state.possible}"
                state.changed(node, b"there" if make else None)
            else:
                assert outcome == (-errno.EEXIST if make else -errno.ENOENT), f"{child}: {outcome}"
                assert expected is None or expected != make, f"{child}: {outcome} with {state.possible}"

        await self._perform(node, [key, child], action, settle)

    # --- contents -----------------------------------------------------------------------------------------------

    async def _write(self, mount: SimMount, rng: random.Random) -> None:
        found = self._file(rng)
        if found is None:
            return
        node, volume = mount.instance.node, mount.volume
        key, value = found
        content: Key = ("content", value[:2])
        offset = rng.choice((0, 0, rng.randrange(FILE_BYTES)))
        piece = rng.randbytes(8) * rng.choice((1, 100, rng.randrange(1, 2000)))

        def settle(outcome: Outcome) -> None:
            assert outcome == len(piece), f"{key}: write: {outcome}"
            state = self.states[content]
            if state.known:
                old = state.value
                state.changed(node, old[:offset].ljust(offset, b"\0") + piece + old[offset + len(piece) :])
            else:
                state.lost_sight()

        await self._perform(node, [key, content], lambda: data.write(volume, value[0], offset, piece), settle)

    async def _read(self, mount: SimMount, rng: random.Random) -> None:
        found = self._file(rng)
        if found is None:
            return
        node, volume = mount.instance.node, mount.volume
        key, value = found
        content: Key = ("content", value[:2])

        def settle(outcome: Outcome) -> None:
            assert isinstance(outcome, bytes), f"{key}: read: {outcome}"
            state = self.states[content]
            if state.known:
                assert outcome == state.value, f"{key}: {difference(outcome, state.value)}"
            elif len(state.possible) > 1 and all(isinstance(one, bytes) for one in state.possible):
                check_mixture(outcome, state.possible, key)
            state.possible = [ANYTHING] if ANYTHING in state.possible else [outcome]
            state.saw(node, outcome, key)

        await self._perform(node, [key, content], lambda: data.read(volume, value[0], 0, 1 << 20), settle)

    async def _truncate(self, mount: SimMount, rng: random.Random) -> None:
        found = self._file(rng)
        if found is None:
            return
        node, volume = mount.instance.node, mount.volume
        key, value = found
        content: Key = ("content", value[:2])
        size = rng.choice((0, rng.randrange(4000), rng.randrange(FILE_BYTES)))

        def settle(outcome: Outcome) -> None:
            assert not isinstance(outcome, int), f"{key}: truncate: {outcome}"
            state = self.states[content]
            if state.known:
                state.changed(node, state.value[:size].ljust(size, b"\0"))
            else:
                state.lost_sight()

        changes = attributes.Changes(size=size)
        await self._perform(node, [key, content], lambda: attributes.setattr(volume, value[0], changes), settle)

    async def _chmod(self, mount: SimMount, rng: random.Random) -> None:
        found = self._file(rng)
        if found is None:
            return
        key, value = found
        changes = attributes.Changes(mode=rng.choice((0o600, 0o640)))

        def settle(outcome: Outcome) -> None:
            assert not isinstance(outcome, int), f"{key}: chmod: {outcome}"

        await self._perform(
            mount.instance.node, [key], lambda: attributes.setattr(mount.volume, value[0], changes), settle
        )

    async def _fsync(self, mount: SimMount, rng: random.Random) -> None:
        found = self._file(rng)
        if found is None:
            return
        node, volume = mount.instance.node, mount.volume
        key, value = found
        content: Key = ("content", value[:2])
        names = [one for one, state in self.states.items() if state.owner == node and not self.active[one]]
        before = {one: list(self.states[one].possible) for one in names}

        def settle(outcome: Outcome) -> None:
            assert outcome is None, f"{key}: fsync: {outcome}"
            for one in names:  # the log is in order: all that was done before the fsync is durable with it
                if one[0] != "content" and self.states[one].possible == before[one] and not self.active[one]:
                    self.states[one].durable(node)
            self.states[content].durable(node)

        await self._perform(node, [key, content], lambda: data.fsync(volume, value[0], False), settle)

    async def _append(self, mount: SimMount, rng: random.Random) -> None:
        log = rng.choice(self.logs)
        writer = tuple(mount.instance)
        async with self.turns[log.ino, writer]:  # one worker of a node at a time: so its order is known
            acked = log.acknowledged.setdefault(writer, [])
            padding = rng.choice((10, 100, 1500))
            await data.write(mount.volume, log.ino, 0, record_of(writer, len(acked), padding), append=True)
            acked.append(padding)
            count = len(acked)
            self.operations += 1
        if rng.random() < 0.2:
            await data.fsync(mount.volume, log.ino, False)
            log.durable[writer] = max(count, log.durable.get(writer, 0))

    async def _read_log(self, mount: SimMount, rng: random.Random) -> None:
        await self.check_log(mount, rng.choice(self.logs))

    async def check_log(self, mount: SimMount, log: AppendLog) -> None:
        """Read a log and check it."""
        expected = log.expected()
        content = await data.read(mount.volume, log.ino, 0, 1 << 26)
        for writer in log.dead & expected.keys():  # it may have died while we read, with what was not safe
            safe = log.lengths.get(writer, log.durable.get(writer, 0))
            expected[writer] = min(expected[writer], safe)
        log.check(content, expected, mount.instance.node)
        self.operations += 1

    async def check_everything(self, mount: SimMount) -> None:
        """Nobody else works: everything must be as the model says, and every file must be readable."""
        rng = random.Random(0)
        for log in self.logs:
            await self.check_log(mount, log)
        for directory in self.directories:
            for name in NAMES:
                with self._only((directory, name)):
                    await self._look(mount, rng)
                    await self._read(mount, rng)

    @contextmanager
    def _only(self, key: Key) -> Iterator[None]:
        """Let every choice be this name."""
        self.chosen = key
        try:
            yield
        finally:
            self.chosen = None
