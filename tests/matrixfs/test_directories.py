"""Names in a directory: the hash, collisions, large directories, positions that stay good."""

from __future__ import annotations

import errno
import random

import pytest

from matrixfs.fs import directories, namespace, readdir
from matrixfs.fs.allocation import Reservation
from matrixfs.fs.blocks import EntryTable
from matrixfs.fs.held import Held
from matrixfs.ondisk.directory import (
    COOKIE_BASE,
    DISAMBIGUATION_BITS,
    ENTRY_BYTES,
    KEY_MAX,
    NAME_MAX,
    Entry,
    first_key,
)
from matrixfs.ondisk.index import BODY_BYTES
from matrixfs.ondisk.superblock import ROOT_INODE
from tests.matrixfs.local import MIB, Local, mounted
from tests.sim.checkers import assert_clean


@pytest.mark.parametrize(
    ("name", "code"),
    [
        (b"", errno.EINVAL), (b".", errno.EINVAL), (b"..", errno.EINVAL), (b"a/b", errno.EINVAL),
        (b"a\0b", errno.EINVAL), (b"x" * (NAME_MAX + 1), errno.ENAMETOOLONG),
    ],
)  # fmt: skip
async def test_names_that_cant_be(name: bytes, code: int) -> None:
    async with mounted(clean=False) as mount:
        with pytest.raises(OSError) as caught:
            await mount.file(name)
        assert caught.value.errno == code


async def test_any_other_bytes_are_a_name() -> None:
    async with mounted() as mount:
        names = [b"x" * NAME_MAX, b"\xff\xfe", b" ", b"...", "\u00e4".encode(), b"\n"]
        for name in names:
            await mount.file(name)
        listed = await readdir.entries(mount.volume, ROOT_INODE, 0, 100)
        assert sorted(name for _, name, _ in listed) == sorted(names)


def test_keys_fit_a_cookie() -> None:
    assert all(0 <= first_key(b"%d" % n, 99) <= KEY_MAX - 127 for n in range(1000))
    assert first_key(b"a", 1) % (1 << DISAMBIGUATION_BITS) == 0
    assert first_key(b"a", 1) != first_key(b"a", 2), "nobody outside can plan collisions"
    assert COOKIE_BASE + KEY_MAX < 1 << 63


async def test_equal_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of one hash live side by side, up to 128; one that goes leaves its key to the next."""
    monkeypatch.setattr(directories, "first_key", lambda name, seed: 7 << DISAMBIGUATION_BITS)
    async with mounted(clean=False) as mount:
        for number in range(128):
            await mount.file(b"%d" % number)
        with pytest.raises(OSError) as caught:
            await mount.file(b"one too many")
        assert caught.value.errno == errno.ENOSPC
        for number in range(128):
            found = await namespace.lookup(mount.volume, ROOT_INODE, b"%d" % number)
            assert found is not None
        await namespace.unlink(mount.volume, ROOT_INODE, b"50")
        made = await mount.file(b"new")
        found = await namespace.lookup(mount.volume, ROOT_INODE, b"new")
        assert found is made
        assert await namespace.lookup(mount.volume, ROOT_INODE, b"50") is None
        listed = await readdir.entries(mount.volume, ROOT_INODE, 0, 1000)
        assert len({cookie for cookie, _, _ in listed}) == 128


def long_name(number: int) -> bytes:
    return b"%d" % number + b"x" * 240


@pytest.mark.parametrize("others", [(), (3,), (9,), (3, 9)], ids=["alone", "below", "above", "between"])
async def test_more_equal_hashes_than_a_block_holds(others: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Long names: a block is full before there are 128, and can't be split between them.  ENOSPC, and all goes on."""

    def hashed(name: bytes, seed: int) -> int:
        return (int(name[1:2]) if name[:1] == b"h" else 7) << DISAMBIGUATION_BITS

    monkeypatch.setattr(directories, "first_key", hashed)
    async with mounted() as mount:
        top = await mount.directory(b"h1")
        for value in others:
            await mount.file(b"h%d" % value, top.ino)
        made = []
        with pytest.raises(OSError) as caught:
            for number in range(100):
                await mount.file(long_name(number), top.ino)
                made.append(long_name(number))
        assert caught.value.errno == errno.ENOSPC
        assert len(made) == 15, "as many as fit a block, whatever else there is"
        for attempt in (
            namespace.mkdir(mount.volume, top.ino, long_name(50), 0o755, 0, 0),
            namespace.rename(mount.volume, ROOT_INODE, b"h1", top.ino, long_name(50)),
            namespace.rename(mount.volume, top.ino, made[0], top.ino, made[0] + b"longer"),
            namespace.symlink(mount.volume, top.ino, long_name(50), b"target", 0, 0),
        ):
            with pytest.raises(OSError) as caught:
                await attempt
            assert caught.value.errno in (errno.ENOSPC, errno.EINVAL)
        for value in (1, 2, 4, 5, 6, 8):
            await mount.file(b"h%d" % value, top.ino)
        await namespace.unlink(mount.volume, top.ino, made.pop())
        await namespace.rename(mount.volume, top.ino, made.pop(), top.ino, long_name(51))
        await mount.volume.sync()
        disk = mount.disk
    async with mounted(disk) as mount:
        for name in (*made, long_name(51), *(b"h%d" % value for value in (1, 2, *others, 4, 5, 6, 8))):
            assert await namespace.lookup(mount.volume, top.ino, name) is not None


def entry_of(key: int, size: int) -> Entry:
    return Entry(key, 100, 8, b"n" * (size - ENTRY_BYTES))


def test_a_split_leaves_room_for_what_it_is_made_for() -> None:
    rng = random.Random(1)
    split = refused = 0
    for _ in range(300):
        hashes = rng.choice((1, 2, 5, 50))
        entries: dict[int, Entry] = {}
        while sum(entry.size for entry in entries.values()) <= BODY_BYTES - 273:
            key = rng.randrange(hashes) << DISAMBIGUATION_BITS | rng.randrange(128)
            entries[key] = entry_of(key, rng.choice((19, 100, 273)))
        key = rng.choice([key for key in range(hashes << DISAMBIGUATION_BITS) if key not in entries])
        table, item = EntryTable(sorted(entries.values()), BODY_BYTES), entry_of(key, 273)
        if table.fits(item):
            continue
        if not table.takes(item):
            refused += 1
            assert hashes <= 5
            continue
        split += 1
        separator, right = table.split(item)
        assert separator % (1 << DISAMBIGUATION_BITS) == 0
        (right if item.key >= separator else table).add(item)
        assert max(table.used, right.used) <= BODY_BYTES
        assert all(key < separator for key in table.keys)
        assert all(key >= separator for key in right.keys)
        assert sorted([*table.entries, *right.entries]) == sorted([*entries.values(), item])
        assert len(table)
        assert len(right)
    assert split > 100
    assert refused > 10


async def add_many(mount: Local, ino: int, names: list[bytes]) -> None:
    """Many names of one inode: a large directory in little time."""
    volume = mount.volume
    with Held(volume) as held:
        directory = await held.exclusive(ino)
        target = await mount.file(b"target")
        for name in names:
            if len(volume.journal.running.blocks) > 100:
                await volume.journal.commit()
            place = await directories.locate(volume, directory, name)
            entry = directories.new_entry(place, name, target.ino, 8)
            count = directories.blocks_needed(place, name)
            with Held(volume) as groups:
                group = await groups.group(count) if count else None
                with Reservation(volume.journal, group, count) as spare:
                    directories.add(volume, directory, place, entry, spare)
            target.nlink += 1
        volume.touch(target, data=False)


async def test_twenty_thousand_names_and_positions_that_stay_good() -> None:
    """Read in parts, while others add and remove: every name that stays is seen once, whatever comes and goes."""
    rng = random.Random(1)
    names = [b"%05d.html" % number for number in range(20_000)]
    async with mounted(size=64 * MIB, journal_blocks=512) as mount:
        volume = mount.volume
        big = await mount.directory(b"big")
        await add_many(mount, big.ino, names)
        assert big.depth == 1
        assert big.children == 20_000
        removed, added, seen, cookie = set(), set(), [], 0
        while batch := await readdir.entries(volume, big.ino, cookie, 700):
            seen += [name for _, name, _ in batch]
            cookie = batch[-1][0]
            for name in rng.sample(names, 10):
                if name not in removed:
                    await namespace.unlink(volume, big.ino, name)
                    removed.add(name)
            fresh = b"fresh%d" % len(seen)
            await mount.file(fresh, big.ino)
            added.add(fresh)
        assert len(seen) == len(set(seen)), "a name was seen twice"
        assert set(names) - removed <= set(seen) <= set(names) | added
        disk, superblock = mount.disk, volume.superblock
        await volume.write_back.all()
        for name in rng.sample(names, 200):
            assert (await namespace.lookup(volume, big.ino, name) is None) == (name in removed)
    await assert_clean(disk, superblock)


async def test_a_directory_survives_a_remount_at_every_size() -> None:
    """Inline, leaf blocks, two levels: all names are there again from the store alone."""
    async with mounted(size=24 * MIB) as mount:
        made = [await mount.directory(b"d%d" % n) for n in (1, 70, 400)]
        for directory, count in zip(made, (1, 70, 400), strict=True):
            for number in range(count):
                await mount.file(b"a name of some fifty bytes, to fill leaves soon %d" % number, directory.ino)
        disk = mount.disk
    async with mounted(disk) as mount:
        for directory, count in zip(made, (1, 70, 400), strict=True):
            listed = await readdir.entries(mount.volume, directory.ino, 0, 1000)
            assert len(listed) == count
            assert [cookie for cookie, _, _ in listed] == sorted(cookie for cookie, _, _ in listed)
