"""The operations of random programs: one line of ``OPERATIONS`` each.

An operation chooses from the tree as it is now; others may be faster, and then it fails as it would on any filesystem.
"""

from __future__ import annotations

import random
import stat
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from matrixfs.fs.ranges import KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE
from matrixfs.fs.rename import RENAME_EXCHANGE, RENAME_NOREPLACE
from matrixfs.ondisk.acl import pack_acl
from matrixfs.ondisk.xattr import ACL_ACCESS, ACL_DEFAULT
from membership.label import BLOCK_BYTES
from tests.crash.application import Application
from tests.crash.history import FLAGS, SECTOR, Thing
from tests.matrixfs.acl_rules import rules

NAMES = 12  # that a directory may have
FILE_MAX = 60_000
LENGTHS = (10, 700, 3000, 4096, 9000, 20_000)  # in the inode, a block, several
ATTRIBUTES = (b"user.a", b"user.of a longer name", b"security.c")
VALUES = (3, 40, 2000, 4096, 9000)  # bytes: in the inode, a block, several
LONG_TARGET = b"target/" * 580  # of a symbolic link: too long for its inode


class NothingToDo(Exception):
    """The tree has nothing that this operation could be done to."""


class Choice:
    """Random things of the present tree."""

    def __init__(self, app: Application, rng: random.Random) -> None:
        self.app = app
        self.rng = rng

    def name(self) -> bytes:
        """A name out of few, so that programs meet; some are long, so that leaves are full soon."""
        number = self.rng.randrange(NAMES)
        return b"n%d" % number if number % 2 else b"a long name, so that a leaf is full before long, number %d" % number

    def _named(self, wanted: Callable[[int], bool]) -> tuple[Thing, bytes, Thing]:
        """(directory, name, what it means) of a name whose mode is ``wanted``."""
        now = self.app.history.now
        found = [
            (key[1], key[2], value)
            for key, value in now.items()
            if len(key) == 3 and isinstance(value, int) and wanted(now["attributes", value][0])  # type: ignore[index]
        ]
        if not found:
            raise NothingToDo
        return self.rng.choice(found)

    def directory(self) -> Thing:
        """Any directory, the root among them."""
        now = self.app.history.now
        found = [
            key[1]
            for key, value in now.items()
            if key[0] == "attributes" and value is not None and stat.S_ISDIR(value[0])  # type: ignore[index]
        ]
        return self.rng.choice([0, *found])

    def file(self) -> Thing:
        """A regular file."""
        return self._named(stat.S_ISREG)[2]

    def named_file(self) -> tuple[Thing, bytes, Thing]:
        """Anything but a directory."""
        return self._named(lambda mode: not stat.S_ISDIR(mode))

    def named_directory(self) -> tuple[Thing, bytes, Thing]:
        """A directory that is not the root."""
        return self._named(stat.S_ISDIR)

    def named(self) -> tuple[Thing, bytes, Thing]:
        """Anything."""
        return self._named(bool)

    def length(self) -> int:
        """Of a write."""
        return self.rng.randint(1, self.rng.choice(LENGTHS))

    def range(self, size: int) -> tuple[int, int]:
        """(offset, length) of some of ``size`` bytes; whole blocks, every second time."""
        offset, length = self.rng.randrange(max(1, size)), self.length()
        if self.rng.random() < 0.5:
            return offset, length
        return offset // BLOCK_BYTES * BLOCK_BYTES, -(-length // BLOCK_BYTES) * BLOCK_BYTES

    def value(self, length: int) -> bytes:
        """Of an extended attribute: never the same again."""
        serial = b"%d value " % next(self.app.history.serials)
        return (serial * (length // len(serial) + 1))[:length]

    def acl(self) -> bytes:
        """An access control list that no mode can say, with random permissions of somebody."""
        bits = "".join(self.rng.choice((letter, "-")) for letter in "rwx")
        return pack_acl(rules(f"u:rw- u5:{bits} g:{bits} m:{bits} o:---"))


async def create(app: Application, choice: Choice) -> None:
    thing = await app.create(choice.directory(), choice.name())
    if choice.rng.random() < 0.7:
        await app.write(thing, 0, choice.length())


async def mkdir(app: Application, choice: Choice) -> None:
    await app.mkdir(choice.directory(), choice.name())


async def symlink(app: Application, choice: Choice) -> None:
    await app.symlink(choice.directory(), choice.name(), choice.rng.choice((b"short", LONG_TARGET)))


async def link(app: Application, choice: Choice) -> None:
    await app.link(choice.file(), choice.directory(), choice.name())


async def unlink(app: Application, choice: Choice) -> None:
    directory, name, _ = choice.named_file()
    await app.unlink(directory, name)


async def unlink_while_open(app: Application, choice: Choice) -> None:
    directory, name, thing = choice.named_file()
    await app.open(thing)
    try:
        await app.unlink(directory, name)
        await trio.sleep(choice.rng.choice((0.0, 0.1, 3.0)))
        await app.append(thing, choice.length())
    finally:
        app.close(thing)


async def rmdir(app: Application, choice: Choice) -> None:
    directory, name, _ = choice.named_directory()
    await app.rmdir(directory, name)


async def rename(app: Application, choice: Choice) -> None:
    directory, name, _ = choice.named()
    flags = choice.rng.choice((0, 0, 0, RENAME_NOREPLACE))
    await app.rename(directory, name, choice.directory(), choice.name(), flags)


async def rename_over(app: Application, choice: Choice) -> None:
    (directory, name, _), (other, other_name, _) = choice.named_file(), choice.named_file()
    await app.rename(directory, name, other, other_name, choice.rng.choice((0, 0, RENAME_EXCHANGE)))


async def rename_directory(app: Application, choice: Choice) -> None:
    directory, name, _ = choice.named_directory()
    await app.rename(directory, name, choice.directory(), choice.name())


async def write(app: Application, choice: Choice) -> None:
    thing = choice.file()
    await app.write(thing, choice.rng.randrange(FILE_MAX), choice.length())


async def overwrite(app: Application, choice: Choice) -> None:
    thing = choice.file()
    size = len(app.content(thing))
    offset = choice.rng.randrange(size) if size else 0
    await app.write(thing, offset, max(1, min(choice.length(), size - offset)))


async def append(app: Application, choice: Choice) -> None:
    thing = choice.file()
    if len(app.content(thing)) < FILE_MAX:
        await app.append(thing, choice.length())


async def truncate(app: Application, choice: Choice) -> None:
    thing = choice.file()
    size = len(app.content(thing))
    await app.truncate(thing, choice.rng.choice((0, size // 2, size // 4096 * 4096, size + choice.length())))


async def chmod(app: Application, choice: Choice) -> None:
    await app.chmod(choice.file(), choice.rng.choice((0o600, 0o640, 0o644)), choice.rng.randrange(1, 3))


async def read(app: Application, choice: Choice) -> None:
    await app.read(choice.file())


async def fsync(app: Application, choice: Choice) -> None:
    await app.fsync(choice.file())


async def fsync_directory(app: Application, choice: Choice) -> None:
    await app.fsync(choice.directory())


async def synchronous_write(app: Application, choice: Choice) -> None:
    """As with O_SYNC."""
    thing = choice.file()
    await app.write(thing, choice.rng.randrange(FILE_MAX), choice.length())
    await app.fsync(thing)


async def save(app: Application, choice: Choice) -> None:
    """As an editor saves: a new file, fsync, rename over the old one."""
    directory, name, _ = choice.named_file()
    made = await app.create(directory, b"saving")
    await app.write(made, 0, choice.length())
    await app.fsync(made)
    await app.rename(directory, b"saving", directory, name)


async def directory_and_file(app: Application, choice: Choice) -> None:
    """A directory that needs leaves comes and goes; a file is written, which may get their blocks."""
    inside = await app.mkdir(0, b"short-lived")
    names = [b"%d " % number + b"long" * 55 for number in range(19)]
    for made, name in enumerate(names):
        try:
            await app.create(inside, name)
        except OSError:  # no space left
            del names[made:]
            break
    await app.fsync(inside)
    for name in names:
        await app.unlink(inside, name)
    await app.rmdir(0, b"short-lived")
    await app.fsync(0)
    await trio.sleep(0.1)
    thing = await app.create(0, b"written after %d" % inside)
    await app.write(thing, 0, 30 * 4096)
    await app.fsync(thing)
    await app.unlink(0, b"written after %d" % inside)


async def set_attribute(app: Application, choice: Choice) -> None:
    _, _, thing = choice.named()
    await app.set_attribute(thing, choice.rng.choice(ATTRIBUTES), choice.value(choice.rng.choice(VALUES)))


async def remove_attribute(app: Application, choice: Choice) -> None:
    now = app.history.now.items()
    held = [key for key, value in now if key[0] == "extended" and len(key) == 3 and value is not None]
    found = [(key[1], key[2]) for key in held if key[2] != FLAGS]
    if not found:
        raise NothingToDo
    await app.remove_attribute(*choice.rng.choice(found))


async def set_flags(app: Application, choice: Choice) -> None:
    """Nodump and noatime, which forbid nothing, and a project."""
    await app.set_flags(choice.file(), choice.rng.choice((0, 0x40, 0x80, 0xC0)), choice.rng.randrange(3))


async def set_acl(app: Application, choice: Choice) -> None:
    """Of a file, or what a directory hands down."""
    if choice.rng.random() < 0.6:
        await app.set_attribute(choice.file(), ACL_ACCESS, choice.acl())
    else:
        await app.set_attribute(choice.named_directory()[2], ACL_DEFAULT, choice.acl())


async def reserve(app: Application, choice: Choice) -> None:
    await app.fallocate(choice.file(), choice.rng.choice((0, KEEP_SIZE)), *choice.range(FILE_MAX))


async def punch(app: Application, choice: Choice) -> None:
    thing = choice.file()
    await app.fallocate(thing, PUNCH_HOLE | KEEP_SIZE, *choice.range(len(app.content(thing))))


async def zero(app: Application, choice: Choice) -> None:
    thing = choice.file()
    await app.fallocate(thing, ZERO_RANGE | choice.rng.choice((0, KEEP_SIZE)), *choice.range(len(app.content(thing))))


async def copy(app: Application, choice: Choice) -> None:
    source, target = choice.file(), choice.file()
    at, length = choice.range(len(app.content(source)))
    to = choice.rng.randrange(FILE_MAX // SECTOR) * SECTOR + at % SECTOR
    await app.copy(source, at, target, to, length)


async def access(app: Application, choice: Choice) -> None:
    await app.access(choice.named()[2])


async def nameless(app: Application, choice: Choice) -> None:
    """O_TMPFILE: written, and named when it is complete, or not at all."""
    thing = await app.tmpfile(choice.directory())
    try:
        await app.append(thing, choice.length())
        if choice.rng.random() < 0.3:
            await app.set_attribute(thing, choice.rng.choice(ATTRIBUTES), choice.value(choice.rng.choice(VALUES)))
        if choice.rng.random() < 0.6:
            await app.fsync(thing)
        await trio.sleep(choice.rng.choice((0.0, 0.1, 3.0)))
        if choice.rng.random() < 0.7:
            await app.link(thing, choice.directory(), choice.name())
    finally:
        app.close(thing)


async def sync(app: Application, choice: Choice) -> None:
    await app.sync()


@dataclass(frozen=True, slots=True)
class Operation:
    """How often, and what."""

    weight: int
    perform: Callable[[Application, Choice], Awaitable[None]]


OPERATIONS = (
    Operation(14, create),
    Operation(5, mkdir),
    Operation(2, symlink),
    Operation(4, link),
    Operation(7, unlink),
    Operation(3, unlink_while_open),
    Operation(2, rmdir),
    Operation(6, rename),
    Operation(5, rename_over),
    Operation(3, rename_directory),
    Operation(8, write),
    Operation(6, overwrite),
    Operation(8, append),
    Operation(6, truncate),
    Operation(3, chmod),
    Operation(3, read),
    Operation(7, fsync),
    Operation(3, fsync_directory),
    Operation(3, synchronous_write),
    Operation(3, save),
    Operation(4, set_attribute),
    Operation(2, remove_attribute),
    Operation(2, set_acl),
    Operation(2, set_flags),
    Operation(4, reserve),
    Operation(4, punch),
    Operation(3, zero),
    Operation(4, copy),
    Operation(2, access),
    Operation(3, nameless),
    Operation(1, sync),
    Operation(1, directory_and_file),
)
