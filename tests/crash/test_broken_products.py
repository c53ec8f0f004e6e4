"""The matrix must find a product that breaks a promise: each of these breaks one, and is found out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from matrixfs.fs import data, data_journal, journal, namespace, new_blocks, remap, replay, xattrs
from matrixfs.fs.blocks import Block
from matrixfs.fs.groups import Group
from matrixfs.fs.inode import Inode
from matrixfs.fs.journal import Journal, Release
from matrixfs.fs.volume import Volume
from matrixfs.fs.writeback import WriteBack
from matrixfs.ondisk.extent import Extent
from tests.crash.matrix import Matrix, Plan
from tests.sim.disk import SimPort

Patch = pytest.MonkeyPatch


def data_is_not_flushed_before_the_commit(patch: Patch) -> None:  # J4, R10
    patch.setattr(Journal, "_data_unflushed", property(lambda _: False))


def freed_blocks_are_given_out_at_once(patch: Patch) -> None:  # J5
    patch.setattr(Journal, "free_data", lambda _, start, length, reuse: reuse())


def the_log_is_trimmed_before_the_blocks_are_safe(patch: Patch) -> None:  # J6
    checkpoint = Journal.checkpoint

    async def careless(log: Journal) -> None:
        async def nothing() -> None:
            pass

        flush, log._flush = log._flush, nothing  # type: ignore[method-assign]
        try:
            await checkpoint(log)
        finally:
            log._flush = flush  # type: ignore[method-assign]

    patch.setattr(Journal, "checkpoint", careless)


def locks_are_given_up_with_images_in_the_log(patch: Patch) -> None:  # J3, R8
    async def careless(journal: Journal, release: Release) -> None:
        release.done = True

    patch.setattr(Journal, "_release_all", careless)


def freed_metadata_is_not_revoked(patch: Patch) -> None:  # R7
    free = Journal.free

    def careless(journal: Journal, block: Any, reuse: Callable[[], None]) -> None:
        free(journal, block, reuse)
        journal.running.revokes.discard(block.address)

    patch.setattr(Journal, "free", careless)


def frames_are_not_durable(patch: Patch) -> None:  # R10
    write = SimPort.write

    async def careless(port: SimPort, offset: int, content: bytes, **how: Any) -> None:
        await write(port, offset, content, **{**how, "durable": len(content) == 4096 and how.get("durable", False)})

    patch.setattr(SimPort, "write", careless)


def torn_frames_are_replayed(patch: Patch) -> None:  # P2
    patch.setattr(replay._LogReader, "_check_image", lambda *_: None)

    class Anything(int):
        def __ne__(self, other: object) -> bool:
            return False

    patch.setattr(replay, "crc32", type("Crc", (), {"iscsi": staticmethod(lambda _: Anything())}))


def replay_does_not_flush(patch: Patch) -> None:  # P5
    flush = SimPort.flush

    async def careless(port: SimPort, **how: Any) -> None:
        if port._path.name:  # a mount's, not replay's, which has the disk itself
            await flush(port, **how)

    patch.setattr(SimPort, "flush", careless)


def fsync_does_nothing(patch: Patch) -> None:  # R10
    async def careless(*_: object) -> None:
        pass

    patch.setattr(data, "fsync", careless)


def what_was_cut_is_not_zeroed(patch: Patch) -> None:
    patch.setattr(data, "_zero_tail", lambda *_: None)


def a_rename_is_a_link_and_an_unlink(patch: Patch) -> None:  # J1
    async def careless(volume: Volume, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int) -> None:
        inode = await namespace.lookup(volume, parent, name)
        assert inode is not None
        await namespace.link(volume, inode.ino, new_parent, new_name)
        await volume.journal.commit()
        await namespace.unlink(volume, parent, name)

    patch.setattr(namespace, "rename", careless)


def a_part_counts_for_the_whole(patch: Patch) -> None:  # P3
    read = replay._LogReader._read_frame

    async def careless(reader: Any, position: int, sequence: int) -> Any:
        frame = await read(reader, position, sequence)
        if frame is not None:
            frame.part, frame.parts = 0, 1
        return frame

    patch.setattr(replay._LogReader, "_read_frame", careless)


def reserved_blocks_count_as_written_before_they_are(patch: Patch) -> None:  # J4
    async def careless(write_back: WriteBack, inode: Inode, piece: Extent) -> None:
        await remap.set_flags(write_back._volume, inode, piece, 0)
        new_blocks.size_follows(write_back._volume, inode, piece.end)
        await write_back._write(inode, piece, mapped=False)

    patch.setattr(WriteBack, "write_reserved", careless)


def blocks_of_attributes_are_freed_like_data(patch: Patch) -> None:  # R7
    def careless(volume: Volume, group: Group, block: Block) -> None:
        volume.journal.running.blocks.pop(block.address, None)
        volume.allocator.free_data(group, block.address, 1)

    patch.setattr(xattrs, "free_metadata", careless)


def images_are_not_revoked_when_the_lock_goes(patch: Patch) -> None:  # DJ2
    async def careless(log: Journal, release: Release) -> None:
        async with log._place_lock:
            await log._place(sorted(release.addresses), durable=True)
        log.data.settle((), release.addresses)
        release.done = True

    patch.setattr(Journal, "_release_all", careless)


def images_of_data_outlive_their_blocks(patch: Patch) -> None:  # DJ3
    free_data = Journal.free_data

    def careless(journal: Journal, start: int, length: int, reuse: Callable[[], None]) -> None:
        for block in journal.data.within(start, length):
            journal.data.forget(block.address)
        free_data(journal, start, length, reuse)

    patch.setattr(Journal, "free_data", careless)


def data_is_written_in_place_under_its_images(patch: Patch) -> None:  # DJ4
    async def careless(*_: object) -> None:
        pass

    patch.setattr(data_journal, "withdraw", careless)


def a_small_write_is_several_transactions(patch: Patch) -> None:  # DJ5
    patch.setattr(journal, "TRANSACTION_BLOCKS_MAX", 2)


BROKEN = [
    (data_is_not_flushed_before_the_commit, "maildir", 1),
    (freed_blocks_are_given_out_at_once, "ranges", 1),
    pytest.param(freed_blocks_are_given_out_at_once, "full", 1, marks=pytest.mark.long),
    (the_log_is_trimmed_before_the_blocks_are_safe, "maildir", 1),
    (locks_are_given_up_with_images_in_the_log, "two-nodes", 2),
    pytest.param(freed_metadata_is_not_revoked, "full", 3, marks=pytest.mark.long),
    (frames_are_not_durable, "sqlite", 1),
    (torn_frames_are_replayed, "sqlite", 1),
    (replay_does_not_flush, "maildir", 1),
    (fsync_does_nothing, "maildir", 1),
    pytest.param(what_was_cut_is_not_zeroed, "extents", 1, marks=pytest.mark.long),
    (a_rename_is_a_link_and_an_unlink, "maildir", 1),
    (a_part_counts_for_the_whole, "transactions", 1),
    (reserved_blocks_count_as_written_before_they_are, "ranges", 1),
    (blocks_of_attributes_are_freed_like_data, "attributes", 1),
    (images_are_not_revoked_when_the_lock_goes, "data-journal-two", 1),
    pytest.param(images_of_data_outlive_their_blocks, "data-journal", 1, marks=pytest.mark.long),
    (data_is_written_in_place_under_its_images, "data-journal", 1),
    pytest.param(a_small_write_is_several_transactions, "data-journal", 1, marks=pytest.mark.long),
]


@pytest.mark.parametrize(("broken", "workload", "seed"), BROKEN, ids=lambda each: getattr(each, "__name__", str(each)))
def test_it_is_found(broken: Callable[[Patch], None], workload: str, seed: int, monkeypatch: Patch) -> None:
    broken(monkeypatch)
    matrix = Matrix(workload, seed)
    failures = matrix.run(Plan(points=60, failures=1)).failures
    assert failures
    where = failures[-1].where
    alone = Matrix(workload, seed).repeat(where).failures
    assert [each.where for each in alone] == [where], "one point alone fails as it did among all"
