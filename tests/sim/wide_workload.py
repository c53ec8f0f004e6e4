"""The random workload with ranges of files, files without a name, extended attributes and access control lists (R2).

A workload of its own, so that the seeds of the plain one stay the runs that once found something.

The model knows of a file its bytes (``content``), and of files and directories mode and attributes (``attributes``).  A
range operation that a crash interrupts leaves old bytes, new ones or zeros (RG1 in ``matrixfs/fs/ranges.py``).
"""

from __future__ import annotations

import errno
import os
import random
import stat
from collections.abc import Awaitable, Callable
from typing import Any

from matrixfs.fs import attributes, data, namespace, ranges, xattrs
from matrixfs.ondisk.acl import GROUP_OBJ, MASK, OTHER, USER, USER_OBJ, AclEntry, pack_acl, unpack_acl_untrusted
from matrixfs.ondisk.xattr import ACL_ACCESS, ACL_DEFAULT
from tests.sim.checkers import State, identity
from tests.sim.fs_world import SimMount
from tests.sim.workload import FILE_BYTES, NAMES, Key, Outcome, Workload

Identity = tuple[int, int, int]
Found = tuple[Key, Identity]

RESERVED_BYTES = 300_000  # behind the end of a file, at most
USER_NAMES = (b"user.a", b"user.much longer than the others", b"trusted.t", b"security.s")
VALUE_BYTES = (0, 1, 40, 500, 5000, 30_000)
MODES = (0, ranges.KEEP_SIZE, *(ranges.PUNCH_HOLE | ranges.KEEP_SIZE,) * 3, *ranges.MODES[3:])
FIRST_MODE = {stat.S_IFREG: 0o644, stat.S_IFDIR: 0o755, stat.S_IFLNK: 0o777}


def content_of(found: Identity) -> Key:
    return ("content", found[:2])


def attributes_of(found: Identity) -> Key:
    return ("attributes", found[:2])


class WideWorkload(Workload):
    """See the module."""

    def _actions(self) -> list[tuple[Callable[[SimMount, random.Random], Awaitable[None]], int]]:
        return [
            *super()._actions(),
            (self._fallocate, 24), (self._seek, 8), (self._copy, 16), (self._tmpfile, 4), (self._write, 12),
            (self._read, 24), (self._set_attribute, 10), (self._remove_attribute, 4), (self._set_list, 6),
            (self._attributes, 10),
        ]  # fmt: skip

    def _made(self, node: int, found: Identity) -> None:
        super()._made(node, found)
        state = self.states[attributes_of(found)] = State((FIRST_MODE[stat.S_IFMT(found[2])], ()))
        state.changed(node, state.value)

    def _thing(self, rng: random.Random) -> Found | None:
        """A name that surely means a file or a directory now."""
        for _ in range(4):
            key = self._place(rng)
            state = self.states[key]
            if state.known and state.value is not None and not stat.S_ISLNK(state.value[2]) and not self.active[key]:
                return key, state.value
        return None

    # --- ranges -------------------------------------------------------------------------------------------------

    async def _fallocate(self, mount: SimMount, rng: random.Random) -> None:
        if (file := self._file(rng)) is None:
            return
        node, volume = mount.instance.node, mount.volume
        (key, found), content = file, content_of(file[1])
        mode = rng.choice(MODES)
        offset = rng.choice((0, rng.randrange(FILE_BYTES), rng.randrange(8) * 4096))
        most = RESERVED_BYTES if mode == ranges.KEEP_SIZE else FILE_BYTES
        length = rng.choice((1, rng.randrange(1, 5000), rng.randrange(1, most), rng.randrange(1, 8) * 4096))

        def settle(outcome: Outcome) -> None:
            assert outcome is None, f"{key}: fallocate {mode}: {outcome}"
            state = self.states[content]
            if not state.known:
                state.lost_sight()
            elif (after := allocated(state.value, mode, offset, offset + length)) != state.value:
                state.changed(node, after)

        await self._perform(
            node, [key, content], lambda: ranges.fallocate(volume, found[0], mode, offset, length), settle
        )

    async def _seek(self, mount: SimMount, rng: random.Random) -> None:
        """All runs of data: what lies between reads as zeros."""
        if (file := self._file(rng)) is None:
            return
        volume = mount.volume
        (key, found), content = file, content_of(file[1])

        async def action() -> Outcome:
            runs: list[tuple[int, int]] = []
            at = 0
            try:
                while True:
                    start = await ranges.seek(volume, found[0], at, os.SEEK_DATA)
                    at = await ranges.seek(volume, found[0], start, os.SEEK_HOLE)
                    runs.append((start, at))
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
            return runs

        def settle(outcome: Outcome) -> None:
            assert isinstance(outcome, list), f"{key}: seek: {outcome}"
            if not self.states[content].known:
                return
            value, at = self.states[content].value, 0
            for start, end in outcome:
                assert at <= start < end <= len(value), f"{key}: runs {outcome} in {len(value)} bytes"
                assert not value[at:start].strip(b"\0"), f"{key}: data between {at} and {start}, runs {outcome}"
                at = end
            assert not value[at:].strip(b"\0"), f"{key}: data behind {at}, runs {outcome}"

        await self._perform(mount.instance.node, [key, content], action, settle)

    async def _copy(self, mount: SimMount, rng: random.Random) -> None:
        one, two = self._file(rng), self._file(rng)
        if one is None or two is None:
            return
        node, volume = mount.instance.node, mount.volume
        source, target = content_of(one[1]), content_of(two[1])
        at, to = (rng.choice((0, 4096, rng.randrange(FILE_BYTES))) for _ in range(2))
        length = rng.choice((1, 4096, rng.randrange(1, FILE_BYTES)))

        def settle(outcome: Outcome) -> None:
            if source == target and abs(at - to) < length:
                assert outcome == -errno.EINVAL, f"{target}: copied onto itself: {outcome}"
                return
            assert isinstance(outcome, int), f"{target}: copy: {outcome}"
            if outcome == -errno.ESTALE and not self.states[two[0]].known:
                return  # who made the target died meanwhile, and it was not safe
            assert outcome >= 0, f"{target}: copy: {outcome}"
            reading, writing = self.states[source], self.states[target]
            if reading.known:
                assert outcome == max(0, min(length, len(reading.value) - at)), f"{target}: copied {outcome}"
            if not outcome:
                return
            if not (reading.known and writing.known):
                writing.lost_sight()
                return
            old, piece = writing.value, reading.value[at : at + outcome]
            writing.changed(node, old[:to].ljust(to, b"\0") + piece + old[to + outcome :])

        keys = list(dict.fromkeys((one[0], two[0], source, target)))
        await self._perform(node, keys, lambda: ranges.copy(volume, one[1][0], at, two[1][0], to, length), settle)

    # --- files without a name -----------------------------------------------------------------------------------

    async def _tmpfile(self, mount: SimMount, rng: random.Random) -> None:
        """Made without a name, written, and given one, or not."""
        node, volume = mount.instance.node, mount.volume
        key, parent = self._place(rng), rng.choice(self.directories)
        content = rng.randbytes(8) * rng.choice((0, 1, 1000))
        linked = rng.random() < 0.7

        async def action() -> Outcome:
            made = await namespace.tmpfile(volume, parent, 0o644, 0, 0)
            volume.opens.opened(made.ino)
            try:
                found = identity(made)
                if content:
                    await data.write(volume, made.ino, 0, content)
                if linked:
                    await namespace.link(volume, made.ino, *key)
            finally:
                volume.opens.closed(made.ino)
            return found

        def settle(outcome: Outcome) -> None:
            state = self.states[key]
            if outcome == -errno.EEXIST:
                assert not (state.known and state.value is None), f"{key}: EEXIST for a name that isn't there"
                return
            assert not isinstance(outcome, int), f"{key}: file without a name: {outcome}"
            if linked:
                assert state.allows(None), f"{key}: linked over {state.possible}"
                state.changed(node, outcome)
                self._made(node, outcome)
                self.states[content_of(outcome)].changed(node, content)

        await self._perform(node, [key] if linked else [("nameless", node)], action, settle)

    # --- attributes ---------------------------------------------------------------------------------------------

    async def _attributes(self, mount: SimMount, rng: random.Random) -> None:
        """Look at mode and attributes."""
        if (thing := self._thing(rng)) is None:
            return
        node, volume = mount.instance.node, mount.volume
        key, (ino, _, _) = thing
        place = attributes_of(thing[1])

        async def action() -> Outcome:
            _, names = await xattrs.names(volume, ino)
            values = [(name, (await xattrs.get(volume, ino, name))[1]) for name in sorted(names)]
            return stat.S_IMODE((await attributes.getattr(volume, ino)).mode), tuple(values)

        def settle(outcome: Outcome) -> None:
            assert isinstance(outcome, tuple), f"{key}: attributes: {outcome}"
            self.states[place].saw(node, outcome, key)

        await self._perform(node, [key, place], action, settle)

    async def _change(
        self, mount: SimMount, thing: Found, action: Callable[[], Awaitable[Any]], apply: Callable[[int, Any], Any]
    ) -> None:
        """Change mode or attributes; ``apply`` gives them from what they were, or ENODATA."""
        node, (key, found) = mount.instance.node, thing
        place = attributes_of(found)

        def settle(outcome: Outcome) -> None:
            state = self.states[place]
            if not state.known:
                state.lost_sight()
                return
            mode, entries = state.value
            after = apply(mode, dict(entries))
            if after is None:
                assert outcome == -errno.ENODATA, f"{key}: no such attribute, but {outcome}"
                return
            assert not isinstance(outcome, int), f"{key}: attributes: {outcome} with {state.value!r:.300}"
            state.changed(node, (after[0], tuple(sorted(after[1].items()))))

        await self._perform(node, [key, place], action, settle)

    async def _set_attribute(self, mount: SimMount, rng: random.Random) -> None:
        if (thing := self._thing(rng)) is None:
            return
        volume, ino = mount.volume, thing[1][0]
        name, value = rng.choice(USER_NAMES), rng.randbytes(rng.choice(VALUE_BYTES))

        def apply(mode: int, old: dict[bytes, bytes]) -> Any:
            return mode, {**old, name: value}

        await self._change(mount, thing, lambda: xattrs.put(volume, ino, name, value, 0), apply)

    async def _remove_attribute(self, mount: SimMount, rng: random.Random) -> None:
        if (thing := self._thing(rng)) is None:
            return
        volume, ino = mount.volume, thing[1][0]
        name = rng.choice((*USER_NAMES, ACL_ACCESS))

        def apply(mode: int, old: dict[bytes, bytes]) -> Any:
            there = old.pop(name, None) is not None or name == ACL_ACCESS  # which need not be there
            return (mode, old) if there else None

        await self._change(mount, thing, lambda: xattrs.remove(volume, ino, name), apply)

    async def _set_list(self, mount: SimMount, rng: random.Random) -> None:
        if (thing := self._thing(rng)) is None:
            return
        volume, ino = mount.volume, thing[1][0]
        default = stat.S_ISDIR(thing[1][2]) and rng.random() < 0.5
        mode, named = rng.choice((0o750, 0o644, 0o707)), rng.choice((0, 1, 3, 20))
        value = access_list(mode, named)

        def apply(old_mode: int, old: dict[bytes, bytes]) -> Any:
            if default:
                return old_mode, {**old, ACL_DEFAULT: value}
            old.pop(ACL_ACCESS, None)
            return mode, {**old, ACL_ACCESS: value} if named else old

        name = ACL_DEFAULT if default else ACL_ACCESS
        await self._change(mount, thing, lambda: xattrs.put(volume, ino, name, value, 0), apply)

    async def _chmod(self, mount: SimMount, rng: random.Random) -> None:
        if (thing := self._thing(rng)) is None:
            return
        volume, ino = mount.volume, thing[1][0]
        mode = rng.choice((0o600, 0o640, 0o777))

        def apply(_: int, old: dict[bytes, bytes]) -> Any:
            if ACL_ACCESS in old:
                old[ACL_ACCESS] = with_mode(old[ACL_ACCESS], mode)
            return mode, old

        await self._change(mount, thing, lambda: attributes.setattr(volume, ino, attributes.Changes(mode=mode)), apply)

    # --- the end ------------------------------------------------------------------------------------------------

    async def check_everything(self, mount: SimMount) -> None:
        """See ``Workload``."""
        await super().check_everything(mount)
        rng = random.Random(0)
        for directory in self.directories:
            for name in NAMES:
                with self._only((directory, name)):
                    await self._attributes(mount, rng)
                    await self._seek(mount, rng)


def allocated(content: bytes, mode: int, start: int, end: int) -> bytes:
    """A file's bytes after fallocate."""
    if not mode & ranges.KEEP_SIZE:
        content = content.ljust(end, b"\0")
    if mode & (ranges.PUNCH_HOLE | ranges.ZERO_RANGE):
        return content[:start] + bytes(max(0, min(end, len(content)) - start)) + content[end:]
    return content


def access_list(mode: int, named: int) -> bytes:
    """One that goes with ``mode`` and names so many users."""
    owner, group, others = mode >> 6, mode >> 3 & 7, mode & 7
    users = [AclEntry(USER, 1000 + number, 1000 + number) for number in range(named)]
    users = [entry._replace(permissions=entry.id % 8) for entry in users]
    mask = [AclEntry(MASK, group)] if named else []
    return pack_acl([AclEntry(USER_OBJ, owner), *users, AclEntry(GROUP_OBJ, group), *mask, AclEntry(OTHER, others)])


def with_mode(packed: bytes, mode: int) -> bytes:
    """One that names somebody, after chmod: the group's bits are the mask's."""
    bits = {USER_OBJ: mode >> 6, MASK: mode >> 3 & 7, OTHER: mode & 7}
    entries = unpack_acl_untrusted(packed, "model")
    return pack_acl([entry._replace(permissions=bits.get(entry.tag, entry.permissions)) for entry in entries])
