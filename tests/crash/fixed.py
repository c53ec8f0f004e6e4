"""Programs that do the same in every run but for sizes and choices: what random ones would not reach."""

from __future__ import annotations

import random

import trio

from matrixfs.fs.ranges import KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE
from matrixfs.ondisk.xattr import ACL_ACCESS, ACL_DEFAULT
from membership.label import BLOCK_BYTES
from tests.crash.application import Application
from tests.crash.history import ROOT, Thing
from tests.crash.operations import Choice
from tests.sim.fs_world import World


async def maildir(world: World, apps: list[Application], rng: random.Random) -> None:
    """Delivery: write in tmp, fsync, rename to new, fsync the directory; readers move to cur and delete."""
    app = apps[0]
    tmp, new, cur = [await app.mkdir(ROOT, name) for name in (b"tmp", b"new", b"cur")]
    await app.sync()
    delivered: list[bytes] = []
    for number in range(14):
        name = b"%d.M%dP17.host" % (1_700_000_000 + number, rng.randrange(10**6))
        message = await app.create(tmp, name)
        await app.write(message, 0, rng.choice((300, 3000, 12_000)))
        await app.append(message, rng.randint(1, 9000))
        await app.fsync(message)
        await app.rename(tmp, name, new, name)
        await app.fsync(new)
        delivered.append(name)
        if number % 3 == 2:
            seen = delivered.pop(rng.randrange(len(delivered)))
            await app.rename(new, seen, cur, seen + b":2,S")
            if number % 2:
                await app.unlink(cur, seen + b":2,S")
        await trio.sleep(rng.choice((0.0, 0.3)))


async def sqlite(world: World, apps: list[Application], rng: random.Random) -> None:
    """Rollback mode: old pages to a journal, fsync; overwrite in place, fsync; unlink the journal, fsync."""
    app = apps[0]
    database = await app.create(ROOT, b"db")
    await app.write(database, 0, 24 * 4096)
    await app.fsync(database)
    for number in range(10):
        pages = rng.sample(range(24), rng.choice((1, 3, 8)))
        log = await app.create(ROOT, b"db-journal")
        await app.write(log, 0, 512)
        for page in range(len(pages)):
            await app.write(log, 512 + page * 4104, 4104)
        await app.fsync(log)
        await app.write(log, 0, 12)  # the number of pages, in its header
        await app.fsync(log)
        await app.fsync(ROOT)
        for page in pages:
            await app.write(database, page * 4096, 4096)
        if number % 3 == 0:
            await app.append(database, 4096)
        await app.fsync(database)
        if number % 4 == 3:  # journal_mode=truncate
            await app.truncate(log, 0)
            await app.fsync(log)
        await app.unlink(ROOT, b"db-journal")
        await app.fsync(ROOT)
        await trio.sleep(rng.choice((0.0, 0.2)))


async def directories(world: World, apps: list[Application], rng: random.Random) -> None:
    """A directory that grows to many leaves, is renamed, moved, emptied and removed."""
    app = apps[0]
    large, other = await app.mkdir(ROOT, b"large"), await app.mkdir(ROOT, b"other")
    names = [b"%d " % number + b"a name as long as names become in some trees" * 4 for number in range(110)]
    for count, name in enumerate(names):
        await app.create(large, name)
        if count % 25 == 24:
            await app.fsync(large)
    await app.rename(ROOT, b"large", other, b"moved")
    await app.fsync(other)
    for count, name in enumerate(rng.sample(names, 60)):
        await app.rename(large, name, other, b"%d" % count)
        if count % 20 == 19:
            await trio.sleep(2.5)
    await app.rename(other, b"moved", ROOT, b"back")
    for name in names:
        if ("name", large, name) in app.history.now and app.history.now["name", large, name] is not None:
            await app.unlink(large, name)
    await app.fsync(large)
    await app.rmdir(ROOT, b"back")
    await trio.sleep(2.5)
    await app.fsync(ROOT)


async def extents(world: World, apps: list[Application], rng: random.Random) -> None:
    """A file with a hole behind each block, so that its extents need a tree; cut, grown, overwritten, removed."""
    app = apps[0]
    sparse = await app.create(ROOT, b"sparse")
    order = rng.sample(range(330), 330)
    for first in (0, 110, 220):
        await app.write_many(sparse, [(block * 8192, 4096) for block in order[first : first + 110]])
        await app.fsync(sparse)
    await app.truncate(sparse, 200 * 8192 + 100)
    await trio.sleep(2.5)
    await app.truncate(sparse, 290 * 8192)
    await app.write(sparse, 250 * 8192, 3 * 4096)
    await app.fsync(sparse)
    await app.write(sparse, 10 * 8192 + 50, 30_000)
    await trio.sleep(4)
    await app.truncate(sparse, 5000)
    await app.fsync(sparse)
    await app.open(sparse)
    await app.unlink(ROOT, b"sparse")
    await app.append(sparse, 100_000)
    await trio.sleep(4)
    app.close(sparse)
    await trio.sleep(2.5)


async def transactions(world: World, apps: list[Application], rng: random.Random) -> None:
    """Changes of more blocks than a frame of the log holds: transactions of several parts (P3)."""
    app = apps[0]
    directory = await app.mkdir(ROOT, b"directory")
    await app.fsync(ROOT)
    for number in range(230):
        made = await app.create(directory, b"%d" % number)
        if number % 20 == 0:
            await app.write(made, 0, 5000)
    await app.fsync(directory)
    for number in rng.sample(range(230), 215):
        await app.rename(directory, b"%d" % number, ROOT, b"moved %d" % number)
    await app.fsync(directory)
    for name in [key[2] for key, value in app.history.now.items() if key[:2] == ("name", ROOT) and value != directory]:
        if app.history.now["name", ROOT, name] is not None:
            await app.unlink(ROOT, name)
    await app.sync()
    await trio.sleep(3)


async def ranges(world: World, apps: list[Application], rng: random.Random) -> None:
    """Files that are reserved, written in parts, punched, zeroed, cut and copied, over blocks that others had."""
    app = apps[0]
    await _leave_blocks(app, 120)
    table, other = [await app.create(ROOT, name) for name in (b"table", b"other")]
    await app.fallocate(table, 0, 0, 40 * BLOCK_BYTES)
    await app.fsync(table)
    for number in range(18):
        place, length = rng.randrange(36) * BLOCK_BYTES, rng.randrange(1, 5) * BLOCK_BYTES
        edge = rng.choice((0, 700))
        await app.write(table, place + edge, rng.choice((3000, 4096, 20_000)))
        if number % 2:
            await app.fsync(table)
        size = len(app.content(table))
        match number % 6:
            case 0:
                await app.fallocate(table, PUNCH_HOLE | KEEP_SIZE, place + edge, length)
            case 1:
                await app.fallocate(table, ZERO_RANGE | KEEP_SIZE, place - edge if place else 0, length)
            case 2:
                await app.fallocate(table, KEEP_SIZE, size, 6 * BLOCK_BYTES)
                await app.append(table, 2 * BLOCK_BYTES + edge)
            case 3:
                await app.copy(table, place, other, rng.randrange(20) * 512, length + 512)
            case 4:
                await app.truncate(table, size - length)
                await app.fallocate(table, ZERO_RANGE, size - length - 3000, length + 5000)
            case 5:
                await app.fallocate(table, PUNCH_HOLE | KEEP_SIZE, place, 12 * BLOCK_BYTES)
                next_one = await app.create(ROOT, b"next %d" % number)
                await app.write(next_one, 0, 9 * BLOCK_BYTES)
                await app.fsync(next_one)
        await trio.sleep(rng.choice((0.0, 0.5, 2.5)))
    await app.sync()


async def data_journal(world: World, apps: list[Application], rng: random.Random) -> None:
    """A spool, a table, a file with holes: small writes of several blocks, each all there or not at all, in order."""
    app = apps[0]
    await _leave_blocks(app, 60)
    spool, table, sparse, plain = [await app.create(ROOT, name) for name in (b"spool", b"table", b"sparse", b"plain")]
    app.history.exact |= {spool, table, sparse}
    app.history.in_place.add(plain)
    await app.write(table, 0, 6 * BLOCK_BYTES)
    await app.append(plain, 5 * BLOCK_BYTES)
    await app.write(sparse, 0, 5000)
    await app.sync()
    for number in range(24):
        await app.append(spool, rng.choice((300, 3000, 9000)))
        if number % 3 == 0:
            await app.fsync(spool)
        await app.write(table, rng.randrange(2 * BLOCK_BYTES), rng.choice((100, 4096, 15_000)))
        for _ in range(3):
            await app.write(sparse, rng.randrange(60 * BLOCK_BYTES), rng.choice((100, 4096, 9000)))
        if number % 4 == 0:
            await app.fsync(table)
        if number % 5 == 0:
            await _in_both_ways(app, plain, rng.randrange(3 * BLOCK_BYTES))
        if number % 8 == 7:
            await _blocks_change_hands(app, plain, b"next %d" % number)
        await trio.sleep(rng.choice((0.0, 0.3, 2.5)))
    await app.sync()


async def _in_both_ways(app: Application, thing: Thing, offset: int) -> None:
    """Through the journal, and over that to its place."""
    for way in (True, False):
        app.volume.journal_data = way
        await app.write(thing, offset, 6000)
        await app.fsync(thing)
    app.volume.journal_data = True


async def _blocks_change_hands(app: Application, thing: Thing, name: bytes) -> None:
    """What the log has of a file is of nobody when its blocks are another's, which is written to its place."""
    await app.write(thing, 0, 5 * BLOCK_BYTES)
    await app.fsync(thing)
    await app.fallocate(thing, PUNCH_HOLE | KEEP_SIZE, 0, 5 * BLOCK_BYTES)
    await app.fsync(thing)
    made = await app.create(ROOT, name)
    app.history.in_place.add(made)
    app.volume.journal_data = False
    await app.append(made, 30 * BLOCK_BYTES)
    await app.fsync(made)
    app.volume.journal_data = True


async def _leave_blocks(app: Application, count: int) -> None:
    """Have so many free blocks hold what a file had in them that is gone."""
    old = await app.create(ROOT, b"old")
    await app.write(old, 0, count * BLOCK_BYTES)
    await app.fsync(old)
    await app.unlink(ROOT, b"old")
    await trio.sleep(2.5)
    await app.sync()


async def attributes(world: World, apps: list[Application], rng: random.Random) -> None:
    """Values that move from the inode to blocks and back, whose blocks become file data; what directories hand down."""
    app = apps[0]
    choice = Choice(app, rng)
    parent = await app.mkdir(ROOT, b"parent")
    await app.set_attribute(parent, ACL_DEFAULT, choice.acl())
    await app.mkdir(parent, b"below")
    files = [await app.create(parent, b"file %d" % number) for number in range(3)]
    for number in range(16):
        thing = files[number % 3]
        await app.set_attribute(thing, b"user.a", choice.value((10, 3000, 30_000)[number % 3]))
        if number % 4 == 1:
            await app.chmod(thing, rng.choice((0o600, 0o640, 0o664)), number)
        await app.set_attribute(thing, *rng.choice(((b"user.b", choice.value(50)), (ACL_ACCESS, choice.acl()))))
        await app.fsync(thing)
        if number % 3 == 2:
            if number % 2:
                await app.remove_attribute(thing, b"user.a")
                await app.fsync(thing)
            made = await app.create(ROOT, b"made %d" % number)
            await app.write(made, 0, 7 * BLOCK_BYTES)
            await app.fsync(made)
            await app.rename(ROOT, b"made %d" % number, parent, b"file %d" % (number % 3))
            files[number % 3] = made
        await app.access(thing if thing in files else parent)
        await trio.sleep(rng.choice((0.0, 0.3, 2.5)))
    nameless = await app.tmpfile(parent)
    await app.set_attribute(nameless, b"user.a", choice.value(5000))
    await app.write(nameless, 0, 9000)
    await app.fsync(nameless)
    await app.link(nameless, ROOT, b"complete")
    app.close(nameless)
    await app.fsync(ROOT)
    await trio.sleep(6)  # access times are written down
