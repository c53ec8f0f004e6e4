"""atimes.py: access times, noted when they count, shown at once, written down in rounds."""

from __future__ import annotations

import pytest

from matrixfs.fs import atimes, attributes, data
from matrixfs.fs.atimes import DAY_NS
from matrixfs.fs.inode import Inode
from matrixfs.locks.modes import EX, PR
from tests.matrixfs.local import Local, eventually, mounted
from tests.sim.network import SimClock

CHANGES = {
    "mode": attributes.Changes(mode=0o600),
    "size": attributes.Changes(size=3),
    "mtime": attributes.Changes(mtime_ns=5),
}


class Later:
    """Time that passes for file times only."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.ns = 0
        real = SimClock.wall_ns
        patch.setattr(SimClock, "wall_ns", lambda clock: real(clock) + self.ns)

    def __call__(self, seconds: float) -> None:
        self.ns += int(seconds * 10**9)


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Later:
    return Later(monkeypatch)


async def read_file(mount: Local, later: Later) -> Inode:
    """A file that was written and then read, a second later."""
    made = await mount.file(b"f")
    await data.write(mount.volume, made.ino, 0, b"content")
    later(1)
    mount.volume.atimes.note(made.ino)
    return made


async def test_an_access_is_shown_at_once_and_written_later(monkeypatch: pytest.MonkeyPatch, later: Later) -> None:
    """T2."""
    monkeypatch.setattr(atimes, "ROUND_SECONDS", 0.001)
    async with mounted() as mount:
        made = await read_file(mount, later)
        before = made.atime_ns, made.ctime_ns, made.mtime_ns
        shown = mount.volume.atimes.shown(made)
        assert shown > max(before)
        await eventually(lambda: made.atime_ns == shown)
        assert (made.ctime_ns, made.mtime_ns) == before[1:]
        disk = mount.disk
    async with mounted(disk) as again:
        assert (await attributes.getattr(again.volume, made.ino)).atime_ns == shown


async def test_a_clean_end_writes_it_down(later: Later) -> None:
    """T5."""
    async with mounted() as mount:
        made = await read_file(mount, later)
        shown = mount.volume.atimes.shown(made)
        disk = mount.disk
    async with mounted(disk) as again:
        assert (await attributes.getattr(again.volume, made.ino)).atime_ns == shown


async def test_only_what_counts_is_noted(later: Later) -> None:
    """T1: the first access after a change, and one after a day."""
    async with mounted() as mount:
        made = await read_file(mount, later)
        volume = mount.volume
        first = volume.atimes.shown(made)
        later(3600)
        volume.atimes.note(made.ino)
        assert volume.atimes.shown(made) == first
        later(DAY_NS / 10**9)
        volume.atimes.note(made.ino)
        assert volume.atimes.shown(made) > first


@pytest.mark.parametrize("change", [*CHANGES, "write"])
async def test_a_change_after_the_access_leaves_it(later: Later, change: str) -> None:
    """T4; and it is no access."""
    async with mounted() as mount:
        made = await read_file(mount, later)
        shown = mount.volume.atimes.shown(made)
        later(1)
        if change == "write":
            await data.write(mount.volume, made.ino, 0, b"new")
        else:
            await attributes.setattr(mount.volume, made.ino, CHANGES[change])
        assert mount.volume.atimes.shown(made) == made.atime_ns == shown


async def test_a_time_that_is_set_makes_it_void(later: Later) -> None:
    """utimes(2) sets a time: what was noted before must not overrule it."""
    async with mounted() as mount:
        made = await read_file(mount, later)
        later(1)
        await attributes.setattr(mount.volume, made.ino, attributes.Changes(atime_ns=5))
        assert mount.volume.atimes.shown(made) == 5


async def test_with_noatime_nothing_is_noted(later: Later) -> None:
    async with mounted() as mount:
        mount.volume.atimes.enabled = False
        made = await read_file(mount, later)
        assert mount.volume.atimes.shown(made) == made.atime_ns


async def test_a_tree_read_through_is_not_remembered_whole(monkeypatch: pytest.MonkeyPatch, later: Later) -> None:
    """T3."""
    monkeypatch.setattr(atimes, "NOTED_MAX", 3)
    async with mounted() as mount:
        made = [await mount.file(b"f%d" % number) for number in range(5)]
        later(1)
        for inode in made:
            mount.volume.atimes.note(inode.ino)
        assert [mount.volume.atimes.shown(inode) > inode.atime_ns for inode in made] == [True] * 3 + [False] * 2


async def test_a_file_that_went_is_forgotten(monkeypatch: pytest.MonkeyPatch, later: Later) -> None:
    monkeypatch.setattr(atimes, "ROUND_SECONDS", 0.001)
    async with mounted() as mount:
        made = await read_file(mount, later)
        made.mode = 0  # as deletion leaves it
        await eventually(lambda: not mount.volume.atimes._noted)
        made.mode = 0o100644


async def test_the_lock_of_others_is_asked_for_only_when_the_file_is_quiet(
    monkeypatch: pytest.MonkeyPatch, later: Later
) -> None:
    """T3."""
    monkeypatch.setattr(atimes, "ROUND_SECONDS", 0.001)
    async with mounted() as mount:
        first = await mount.file(b"first")
        await mount.volume.sync()
        await mount.give_up(first.ino)
        first = await attributes.getattr(mount.volume, first.ino)  # under PR now
        later(1)
        mount.volume.atimes.note(first.ino)
        other = await read_file(mount, later)
        await eventually(lambda: other.atime_ns == mount.volume.atimes.shown(other) > other.ctime_ns)
        assert first.lock.mode == PR
        later(atimes.QUIET_SECONDS + 1)
        await eventually(lambda: first.atime_ns > first.ctime_ns)
        assert first.lock.mode == EX
