"""Extended attributes on the product's volume: all values, all or nothing, freed with their file (X1-X3)."""

from __future__ import annotations

import errno
import os
import stat

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from matrixfs.fs import attributes, namespace, xattrs
from matrixfs.fs.inode import Inode
from matrixfs.fs.volume import Volume
from matrixfs.ondisk.acl import GROUP_OBJ, MASK, OTHER, USER, USER_OBJ, AclEntry, pack_acl, unpack_acl_untrusted
from matrixfs.ondisk.superblock import EXTENDED_ATTRIBUTES, ROOT_INODE
from matrixfs.ondisk.xattr import (
    ACL_ACCESS,
    ACL_DEFAULT,
    BODY_BYTES,
    INLINE_BYTES,
    LIST_BYTES_MAX,
    VALUE_BYTES_MAX,
)
from membership.errors import CorruptRecord
from membership.label import BLOCK_BYTES
from tests.matrixfs.local import Local, mounted, small_disk
from tests.sim.checkers import assert_clean
from tests.sim.fs_world import World, run_world

X, Y = b"user.x", b"user.y"
LARGEST = b"v" * VALUE_BYTES_MAX
NAMED = [AclEntry(USER_OBJ, 7), AclEntry(USER, 6, 5), AclEntry(GROUP_OBJ, 5), AclEntry(MASK, 7), AclEntry(OTHER, 4)]


async def everything(volume: Volume, ino: int) -> dict[bytes, bytes]:
    found = {}
    for name in (await xattrs.names(volume, ino))[1]:
        value = (await xattrs.get(volume, ino, name))[1]
        assert value is not None
        found[name] = value
    return found


async def code_of(volume: Volume, ino: int, name: bytes, value: bytes = b"", flags: int = 0) -> int:
    """The errno that setting an attribute gives."""
    with pytest.raises(OSError) as caught:
        await xattrs.put(volume, ino, name, value, flags)
    assert caught.value.errno is not None
    return caught.value.errno


async def free(mount: Local) -> int:
    await mount.volume.journal.commit()
    await mount.volume.allocator.settle()
    return (await attributes.statfs(mount.volume)).free


async def test_what_was_set_is_told_again_after_a_remount() -> None:
    disk = await small_disk()
    values = {X: b"", Y: b"y" * 5000, b"trusted.large": LARGEST, b"security.capability": bytes(range(24))}
    async with mounted(disk) as mount:
        made = await mount.file(b"f")
        for name, value in values.items():
            await xattrs.put(mount.volume, made.ino, name, value, 0)
        assert await everything(mount.volume, made.ino) == values
    async with mounted(disk) as mount:
        found = await namespace.lookup(mount.volume, ROOT_INODE, b"f")
        assert found is not None
        assert await everything(mount.volume, found.ino) == values
        assert list(await everything(mount.volume, found.ino)) == sorted(values)
    await assert_clean(disk, mount.volume.superblock, notes=False)


SIZES = st.sampled_from((0, 1, INLINE_BYTES - 11, INLINE_BYTES - 10, BODY_BYTES - 11, BODY_BYTES - 10, 9000, 65_536))
CHANGES = st.lists(st.tuples(st.sampled_from((X, Y, b"user.zz")), SIZES | st.none()), min_size=1, max_size=8)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(CHANGES)
def test_any_changes_leave_what_was_set_last_and_no_block_too_many(changes: list[tuple[bytes, int | None]]) -> None:
    async def main() -> None:
        disk = await small_disk()
        expected: dict[bytes, bytes] = {}
        async with mounted(disk) as mount:
            made = await mount.file(b"f")
            for round_, (name, size) in enumerate(changes):
                if size is None:
                    if expected.pop(name, None) is not None:
                        await xattrs.remove(mount.volume, made.ino, name)
                elif sum(map(len, expected.values())) - len(expected.get(name, b"")) + size <= 130_000:
                    expected[name] = bytes([round_]) * size
                    await xattrs.put(mount.volume, made.ino, name, expected[name], 0)
                assert made.bare == (not expected)
            await mount.give_up(made.ino)
            assert await everything(mount.volume, made.ino) == expected
        await assert_clean(disk, mount.volume.superblock, notes=False)

    trio.run(main)


async def test_small_ones_take_no_block_and_large_ones_are_counted() -> None:
    async with mounted() as mount:
        before = await free(mount)
        made = await mount.file(b"f")
        await xattrs.put(mount.volume, made.ino, X, b"v" * (INLINE_BYTES - 11), 0)
        assert (made.blocks512, await free(mount)) == (0, before - 1)
        await xattrs.put(mount.volume, made.ino, Y, LARGEST, 0)
        assert (made.blocks512, await free(mount)) == (17 * 8, before - 1 - 17)
        await xattrs.remove(mount.volume, made.ino, Y)
        assert (made.blocks512, await free(mount)) == (0, before - 1)


async def test_they_are_freed_with_the_file(autojump_clock: trio.abc.Clock) -> None:
    async with mounted() as mount:
        before = await free(mount)
        made, directory = await mount.file(b"f"), await mount.directory(b"d")
        for ino in (made.ino, directory.ino):
            await xattrs.put(mount.volume, ino, X, LARGEST, 0)
        await mount.volume.sync()
        await mount.give_up(made.ino)  # they are read again to be freed
        await namespace.unlink(mount.volume, ROOT_INODE, b"f")
        await namespace.rmdir(mount.volume, ROOT_INODE, b"d")
        await trio.sleep(3)
        assert await free(mount) == before
    await assert_clean(mount.disk, mount.volume.superblock, notes=False)


async def test_ctime_tells_of_every_change() -> None:
    async with mounted() as mount:
        made = await mount.file(b"f")
        times = [made.ctime_ns]
        for step in (
            lambda: xattrs.put(mount.volume, made.ino, X, b"1", 0),
            lambda: xattrs.remove(mount.volume, made.ino, X),
        ):
            await trio.sleep(0.001)
            await step()
            times.append(made.ctime_ns)
        assert times == sorted(set(times))
        assert made.mtime_ns <= times[0]


async def test_errors_are_those_of_linux() -> None:
    async with mounted() as mount:
        volume, ino = mount.volume, (await mount.file(b"f")).ino
        assert await code_of(volume, ino, X, b"", os.XATTR_REPLACE) == errno.ENODATA
        await xattrs.put(volume, ino, X, b"1", os.XATTR_CREATE)
        assert await code_of(volume, ino, X, b"2", os.XATTR_CREATE) == errno.EEXIST
        await xattrs.put(volume, ino, X, b"3", os.XATTR_REPLACE)
        assert await code_of(volume, ino, b"other.x") == errno.EOPNOTSUPP
        assert await code_of(volume, ino, b"system.x") == errno.EOPNOTSUPP
        assert await code_of(volume, ino, b"user.") == errno.EINVAL
        assert await code_of(volume, ino, b"user." + b"x" * 251) == errno.ERANGE
        assert await code_of(volume, ino, X, LARGEST + b"v") == errno.E2BIG
        assert await code_of(volume, ino, ACL_ACCESS, b"nonsense") == errno.EINVAL
        with pytest.raises(OSError) as caught:
            await xattrs.remove(volume, ino, Y)
        assert caught.value.errno == errno.ENODATA
        assert await everything(volume, ino) == {X: b"3"}
        with pytest.raises(OSError) as caught:
            await xattrs.get(volume, 200, X)
        assert caught.value.errno == errno.ESTALE


async def test_taking_away_an_access_control_list_that_is_not_there_is_no_error() -> None:
    """As Linux has it, and as setting an empty one comes down to; nothing has changed then."""
    async with mounted() as mount:
        made = await mount.file(b"f")
        before = made.ctime_ns
        await trio.sleep(0.001)
        for name in (ACL_ACCESS, ACL_DEFAULT):
            await xattrs.remove(mount.volume, made.ino, name)
        assert made.ctime_ns == before


async def test_one_inode_has_128_kib_in_all_and_64_of_names() -> None:
    async with mounted() as mount:
        volume, ino = mount.volume, (await mount.file(b"f")).ino
        await xattrs.put(volume, ino, X, LARGEST, 0)
        room = 131_072 - (65_536 + 11) - 11
        await xattrs.put(volume, ino, Y, b"y" * room, 0)
        assert await code_of(volume, ino, Y, b"y" * (room + 1)) == errno.ENOSPC
        await xattrs.remove(volume, ino, X)
        await xattrs.remove(volume, ino, Y)
        names = [b"user.%0240d" % number for number in range(LIST_BYTES_MAX // 246 + 1)]
        for name in names[:-1]:
            await xattrs.put(volume, ino, name, b"", 0)
        assert await code_of(volume, ino, names[-1]) == errno.ENOSPC
        assert list(await everything(volume, ino)) == names[:-1]
    await assert_clean(mount.disk, mount.volume.superblock, notes=False)


async def test_a_full_filesystem_says_so_and_keeps_the_old_ones() -> None:
    async with mounted(size=8 << 20) as mount:
        inodes = []
        with pytest.raises(OSError) as caught:
            for number in range(200):
                inodes.append(await mount.file(b"%d" % number))
                await xattrs.put(mount.volume, inodes[-1].ino, X, LARGEST, 0)
        assert caught.value.errno == errno.ENOSPC
        await xattrs.put(mount.volume, inodes[-1].ino, X, b"small", 0)
        await xattrs.remove(mount.volume, inodes[0].ino, X)
        await mount.volume.sync()
        await xattrs.put(mount.volume, inodes[-1].ino, X, LARGEST, 0)
    await assert_clean(mount.disk, mount.volume.superblock, notes=False)


async def test_a_filesystem_made_without_them_has_none() -> None:
    async with mounted() as mount:
        made = await mount.file(b"f")
        mount.volume.superblock.features_incompatible &= ~EXTENDED_ATTRIBUTES
        assert await code_of(mount.volume, made.ino, X) == errno.EOPNOTSUPP
        assert await everything(mount.volume, made.ino) == {}
        mount.volume.superblock.features_incompatible |= EXTENDED_ATTRIBUTES


@pytest.mark.parametrize("sizes", [(30, 60), (60, 5000), (9000, 20), (4000, 65_536)])
async def test_a_crash_at_any_write_leaves_the_old_ones_or_the_new(
    sizes: tuple[int, int], autojump_clock: trio.abc.Clock
) -> None:
    """X1: one transaction, whether they move in or out of the inode, and the mode goes with them."""
    old, new = ({X: b"o" * sizes[0], Y: b"1"}, {X: b"n" * sizes[1], Y: b"1"})
    disk = await small_disk()
    async with mounted(disk, clean=False) as mount:
        made = await mount.file(b"f")
        for name, value in old.items():
            await xattrs.put(mount.volume, made.ino, name, value, 0)
        await mount.volume.sync()
        await mount.volume.journal.checkpoint()
        disk.mark()
        await xattrs.put(mount.volume, made.ino, X, new[X], 0)
        await mount.volume.sync()
        await mount.volume.journal.checkpoint()
        superblock = mount.volume.superblock
    outcomes = []
    for at in range(len(disk.log) + 1):
        for mode in ("drop", "tear"):
            image = disk.crash_image(at, mode, seed=at)
            await assert_clean(image, superblock)
            async with mounted(image) as again:
                found = await namespace.lookup(again.volume, ROOT_INODE, b"f")
                assert found is not None
                outcomes.append((await everything(again.volume, found.ino), found.blocks512))
    assert {str(sorted(values.items())) for values, _ in outcomes} == {str(sorted(v.items())) for v in (old, new)}
    assert outcomes[0][0] == old
    assert outcomes[-1][0] == new
    assert all(blocks == 8 * xattrs.blocks_needed(values) for values, blocks in outcomes)


async def test_damage_is_an_error_and_no_answer() -> None:
    disk = await small_disk()
    async with mounted(disk) as mount:
        made, other = await mount.file(b"f"), await mount.file(b"g")
        await xattrs.put(mount.volume, made.ino, X, LARGEST, 0)
        await xattrs.put(mount.volume, other.ino, X, b"1", 0)
        second = (await xattrs.load(mount.volume, made)).chain[1].address
    disk.corrupt(second * BLOCK_BYTES + 100)
    async with mounted(disk) as mount:
        for call in (xattrs.get(mount.volume, made.ino, X), xattrs.put(mount.volume, made.ino, Y, b"", 0)):
            with pytest.raises(CorruptRecord):
                await call
        assert (await attributes.getattr(mount.volume, made.ino)).ino == made.ino
        assert await everything(mount.volume, other.ino) == {X: b"1"}


async def test_a_chain_that_leads_to_another_block_of_the_inode_is_an_error() -> None:
    async with mounted() as mount:
        made = await mount.file(b"f")
        await xattrs.put(mount.volume, made.ino, X, LARGEST, 0)
        first, made.attributes, made.extended = made.attributes, made.ino, None
        with pytest.raises(CorruptRecord, match="another one of this inode"):
            await xattrs.get(mount.volume, made.ino, X)
        made.attributes = first


async def test_a_chain_that_loops_is_an_error() -> None:
    async with mounted() as mount:
        made = await mount.file(b"f")
        await xattrs.put(mount.volume, made.ino, X, LARGEST, 0)
        await mount.give_up(made.ino)
        inode = await attributes.getattr(mount.volume, made.ino)
        chain = (await xattrs.load(mount.volume, inode)).chain
        chain[3].next, inode.extended = chain[1].address, None
        with pytest.raises(CorruptRecord, match="chain"):
            await xattrs.get(mount.volume, made.ino, X)
        chain[3].next = chain[4].address


# --- access control lists ------------------------------------------------------------------------------------


async def list_of(volume: Volume, inode: Inode, name: bytes = ACL_ACCESS) -> list[AclEntry] | None:
    value = (await xattrs.get(volume, inode.ino, name))[1]
    return None if value is None else unpack_acl_untrusted(value, "t")


async def test_a_list_sets_the_mode_and_chmod_changes_the_list() -> None:
    async with mounted() as mount:
        volume, made = mount.volume, await mount.file(b"f")
        await xattrs.put(volume, made.ino, ACL_ACCESS, pack_acl(NAMED), 0)
        assert stat.S_IMODE(made.mode) == 0o774
        await attributes.setattr(volume, made.ino, attributes.Changes(mode=0o640))
        expected = [NAMED[0]._replace(permissions=6), *NAMED[1:3], AclEntry(MASK, 4), AclEntry(OTHER, 0)]
        assert await list_of(volume, made) == expected
        await mount.give_up(made.ino)
        again = await attributes.getattr(volume, made.ino)
        assert (stat.S_IMODE(again.mode), await list_of(volume, again)) == (0o640, expected)
        minimal = [AclEntry(USER_OBJ, 6), AclEntry(GROUP_OBJ, 0), AclEntry(OTHER, 0)]
        await xattrs.put(volume, made.ino, ACL_ACCESS, pack_acl(minimal), 0)
        assert (stat.S_IMODE(again.mode), again.bare) == (0o600, True)
    await assert_clean(mount.disk, mount.volume.superblock, notes=False)


async def test_set_group_id_outlives_a_list_set_by_a_member_only() -> None:
    async with mounted() as mount:
        made = await mount.file(b"f")
        await attributes.setattr(mount.volume, made.ino, attributes.Changes(mode=0o2755, gid=77))
        asked: list[int] = []
        await xattrs.put(mount.volume, made.ino, ACL_ACCESS, pack_acl(NAMED), 0, lambda gid: not asked.append(gid))
        assert (asked, stat.S_IMODE(made.mode)) == ([77], 0o2774)
        await xattrs.put(mount.volume, made.ino, ACL_ACCESS, pack_acl(NAMED), 0, lambda _: False)
        assert stat.S_IMODE(made.mode) == 0o774


async def test_new_ones_get_the_default_list_or_the_umask() -> None:
    async with mounted() as mount:
        volume, directory = mount.volume, await mount.directory(b"d")
        make = namespace.create
        plain = await make(volume, directory.ino, b"plain", stat.S_IFREG | 0o666, 0, 0, umask=0o027)
        assert (stat.S_IMODE(plain.mode), plain.bare) == (0o640, True)
        await xattrs.put(volume, directory.ino, ACL_DEFAULT, pack_acl(NAMED), 0)
        assert stat.S_IMODE(directory.mode) == 0o755
        file = await make(volume, directory.ino, b"f", stat.S_IFREG | 0o666, 0, 0, umask=0o777)
        assert stat.S_IMODE(file.mode) == 0o664
        assert await list_of(volume, file) == [
            NAMED[0]._replace(permissions=6), *NAMED[1:3], AclEntry(MASK, 6), NAMED[4],
        ]  # fmt: skip
        assert file.blocks == 0, "lies in the inode"
        sub = await namespace.mkdir(volume, directory.ino, b"sub", 0o777, 0, 0, umask=0o777)
        assert stat.S_IMODE(sub.mode) == 0o774
        assert await list_of(volume, sub, ACL_DEFAULT) == NAMED
        assert await list_of(volume, sub) == NAMED
        link = await namespace.symlink(volume, directory.ino, b"l", b"f", 0, 0)
        assert (stat.S_IMODE(link.mode), link.bare) == (0o777, True)
        minimal = [AclEntry(USER_OBJ, 7), AclEntry(GROUP_OBJ, 0), AclEntry(OTHER, 0)]
        await xattrs.put(volume, directory.ino, ACL_DEFAULT, pack_acl(minimal), 0)
        private = await make(volume, directory.ino, b"private", stat.S_IFREG | 0o666, 0, 0, umask=0)
        assert (stat.S_IMODE(private.mode), private.bare) == (0o600, True)
    await assert_clean(mount.disk, mount.volume.superblock, notes=False)


@pytest.mark.parametrize(
    ("uid", "groups", "wanted", "allowed"),
    [
        (0, (), 6, True), (1000, (), 6, True), (5, (), 6, True),
        (7, (), 4, False), (7, (100,), 4, True), (7, (100,), 6, False),
    ],
)
async def test_permits_looks_at_the_list(uid: int, groups: tuple[int, ...], wanted: int, allowed: bool) -> None:
    async with mounted() as mount:
        made = await mount.file(b"f")
        rules = [*NAMED[:2], AclEntry(GROUP_OBJ, 4), NAMED[3], AclEntry(OTHER, 0)]
        await xattrs.put(mount.volume, made.ino, ACL_ACCESS, pack_acl(rules), 0)
        await attributes.setattr(mount.volume, made.ino, attributes.Changes(uid=1000, gid=100))
        assert await attributes.permits(mount.volume, made.ino, wanted, uid, groups.__contains__) == allowed


@pytest.mark.parametrize(
    ("mode", "uid", "gid", "wanted", "allowed"),
    [
        (0o000, 0, 0, 6, True),
        (0o600, 1000, 5, 6, True),
        (0o400, 1000, 5, 6, False),
        (0o400, 1000, 5, 4, True),
        (0o077, 1000, 5, 4, False),  # the owner's bits decide for the owner
        (0o060, 2000, 1000, 6, True),
        (0o006, 2000, 1000, 6, False),  # the group's bits decide for its members
        (0o006, 2000, 8, 2, True),
        (0o004, 2000, 8, 2, False),
    ],
)
async def test_permits_by_the_mode(mode: int, uid: int, gid: int, wanted: int, allowed: bool) -> None:
    async with mounted() as mount:
        made = await mount.file(b"f")
        await attributes.setattr(mount.volume, made.ino, attributes.Changes(mode=mode, uid=1000, gid=1000))
        assert await attributes.permits(mount.volume, made.ino, wanted, uid, (gid,).__contains__) == allowed


# --- several nodes -------------------------------------------------------------------------------------------


def test_what_one_node_sets_another_tells() -> None:
    async def body(world: World) -> None:
        a, b = [mount.volume for mount in await world.start(0, 1)]
        made = await namespace.create(a, ROOT_INODE, b"f", stat.S_IFREG | 0o644, 0, 0)
        assert await everything(b, made.ino) == {}
        for number, volume in enumerate((a, b, b, a)):
            await xattrs.put(volume, made.ino, b"user.%d" % number, b"%d" % number * 3000, 0)
            expected = {b"user.%d" % n: b"%d" % n * 3000 for n in range(number + 1)}
            assert await everything(a, made.ino) == await everything(b, made.ino) == expected
        await xattrs.put(b, made.ino, ACL_ACCESS, pack_acl(NAMED), 0)
        await attributes.setattr(a, made.ino, attributes.Changes(mode=0o600))
        found = await attributes.getattr(b, made.ino)
        assert [entry.permissions for entry in await list_of(b, found) or []] == [6, 6, 5, 0, 0]
        for node in (0, 1):
            await world.leave(node)
        await assert_clean(world.disk, world.superblock, notes=False)

    run_world(3, body)


def test_a_node_that_dies_leaves_the_old_ones_or_what_it_committed() -> None:
    async def body(world: World) -> None:
        a, b = [mount.volume for mount in await world.start(0, 1)]
        made = await namespace.create(a, ROOT_INODE, b"f", stat.S_IFREG | 0o644, 0, 0)
        await xattrs.put(a, made.ino, X, b"1" * 9000, 0)
        await a.sync()
        await xattrs.put(a, made.ino, X, b"2" * 90, 0)
        await a.sync()
        await xattrs.put(a, made.ino, X, b"3" * 60_000, 0)
        world.kill(0)
        await world.change()
        assert (await everything(b, made.ino))[X] in (b"2" * 90, b"3" * 60_000)
        await world.leave(1)
        await assert_clean(world.disk, world.superblock, notes=False)

    run_world(4, body)
