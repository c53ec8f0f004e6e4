"""Freezing on one mount: what rest means, and what is refused.  Several mounts: tests/sim/test_freezing.py."""

from __future__ import annotations

import stat
from typing import Any

import pytest
import trio

from matrixfs.freezing import Freezer
from matrixfs.fs import data, namespace
from matrixfs.fs.held import Held
from matrixfs.fs.replay import read_journal_header
from matrixfs.locks.modes import EX
from matrixfs.ondisk.journal import CLEAN
from matrixfs.ondisk.superblock import ROOT_INODE
from membership.errors import BadMessage, OperatorError
from tests.matrixfs.local import Local, eventually, mounted
from tests.sim.checkers import assert_clean


async def change(mount: Local) -> None:
    """Buffered data, a deleted file, names: all kinds of what is not at home."""
    for name in (b"a", b"b", b"gone"):
        made = await mount.file(name)
        await data.write(mount.volume, made.ino, 0, name * 9000)
    await namespace.unlink(mount.volume, ROOT_INODE, b"gone")


async def test_who_gives_up_leave_to_change_rests(autojump_clock: object) -> None:
    async with mounted() as mount:
        volume = mount.volume
        await change(mount)
        mount.locks.revoke(volume.changes.lock.resource, 0)
        await eventually(lambda: not volume.changes.lock.mode)
        assert volume.journal.resting
        assert volume.write_back.idle
        image = mount.disk.crash_image(len(mount.disk.log), "drop")
        assert (await read_journal_header(image, volume.superblock, 0)).state == CLEAN
        await assert_clean(image, volume.superblock)
        before = len(mount.disk.writes)
        for ino in [ROOT_INODE, (await namespace.lookup(volume, ROOT_INODE, b"a")).ino]:  # type: ignore[union-attr]
            await mount.give_up(ino)  # readers elsewhere
        assert len(mount.disk.writes) == before, "nothing is dirty under it"


async def test_an_operation_under_way_ends_first_and_new_ones_wait(autojump_clock: object) -> None:
    async with mounted() as mount:
        volume = mount.volume
        await change(mount)
        lock = volume.changes.lock
        with Held(volume) as held:
            inode = await held.exclusive(ROOT_INODE)
            assert await lock.hold(EX, exclusive=True, timeout=1.0) is False
            volume.touch(inode, data=False)
        assert await lock.hold(EX, exclusive=True, timeout=1.0)
        with trio.move_on_after(5) as limit:
            await namespace.create(volume, ROOT_INODE, b"late", stat.S_IFREG | 0o644, 0, 0)
        assert limit.cancelled_caught
        lock.drop(EX, exclusive=True)
        await namespace.create(volume, ROOT_INODE, b"late", stat.S_IFREG | 0o644, 0, 0)


async def test_leave_to_change_comes_before_any_other_lock() -> None:
    """F4: who reads first and then wants to change could wait for a freeze with a lock that the others need."""
    async with mounted() as mount:
        made = await mount.file(b"f")
        with Held(mount.volume) as held:
            await held.shared(ROOT_INODE)
            with pytest.raises(AssertionError, match="a lock is held to read"):
                await held.exclusive(made.ino)
        with Held(mount.volume) as held:
            await held.changing()
            await held.shared(ROOT_INODE)
            await held.exclusive(made.ino)


class Member:
    def __init__(self, volume: Any) -> None:
        self.volume = volume


async def test_questions_that_are_refused() -> None:
    with pytest.raises(OperatorError, match="still being mounted"):
        Freezer(Member(None)).freeze({"fs": "t", "seconds": 1.0})  # type: ignore[arg-type]
    async with mounted() as mount:
        mount.volume.clock.monotonic()
        member = Member(mount.volume)
        member.clock = mount.volume.clock  # type: ignore[attr-defined]
        freezer = Freezer(member)  # type: ignore[arg-type]
        for seconds in (0.0, -1.0, float("nan"), float("inf"), 1e6):
            with pytest.raises(BadMessage):
                freezer.freeze({"fs": "t", "seconds": seconds})
        for arguments in ({}, {"fs": 7, "seconds": 1.0}, {"fs": "t", "seconds": "1"}):
            with pytest.raises(BadMessage):
                freezer.freeze(arguments)
        assert freezer.frozen({"fs": "t"}) is None
        assert freezer.frozen({"fs": "other"}) is None
        assert await freezer.thaw({"fs": "t"}) is False
        with pytest.raises(OperatorError, match="is being frozen already, or unmounted here"):
            freezer.freeze({"fs": "t", "seconds": 1.0})  # nobody carries it out


async def test_nobody_holds_a_group_while_it_is_frozen() -> None:
    """Who holds a group may have to enlarge it: a look at one asks for leave to change first."""
    async with mounted() as mount:
        volume = mount.volume
        await change(mount)
        assert await volume.changes.lock.hold(EX, exclusive=True)
        await volume.changes.rest()
        with Held(volume) as held, pytest.raises(AssertionError, match="to hold a group"):
            await held.groups({0})
        volume.changes.lock.drop(EX, exclusive=True)
