"""handles.py: what the kernel holds of us."""

from __future__ import annotations

import errno
import os
import random

import pytest

from matrixfs.fuse.handles import (
    APPEND_HANDLE,
    INODE_HANDLE,
    READ_ONLY_HANDLE,
    ROOT_NODE,
    TOLD_HANDLE,
    Handle,
    HandleTable,
    NodeTable,
    Pending,
)


def test_root_is_node_one_whatever_its_number() -> None:
    nodes = NodeTable(root=64)
    assert (nodes.ino(ROOT_NODE), nodes.node_id(64), nodes.ino(100), nodes.node_id(100)) == (64, 1, 100, 100)
    assert nodes.known(64)
    assert not nodes.forget(64, 5)
    assert nodes.known(64)


def test_lookup_counts_balance_in_any_order() -> None:
    """H1, against a plain counter."""
    rng = random.Random(7)
    nodes = NodeTable(root=64)
    model: dict[int, int] = {}
    for _ in range(5000):
        ino = rng.randrange(100, 110)
        if rng.random() < 0.5 or not model.get(ino):
            nodes.looked_up(ino, 1)
            model[ino] = model.get(ino, 0) + 1
        else:
            count = rng.randint(1, model[ino])
            model[ino] -= count
            assert nodes.forget(ino, count) == (model[ino] == 0)
        assert nodes.known(ino) == (model[ino] > 0)
    assert len(nodes) == sum(count > 0 for count in model.values())


def test_forget_of_an_unknown_inode_is_harmless() -> None:
    assert not NodeTable(root=64).forget(100, 3)


def test_reused_number_is_stale_under_the_old_incarnation() -> None:
    """H3."""
    nodes = NodeTable(root=64)
    nodes.looked_up(100, 1).data_version = 9
    nodes.check(100, 1)
    with pytest.raises(OSError) as caught:
        nodes.check(100, 2)
    assert caught.value.errno == errno.ESTALE
    assert nodes.looked_up(100, 2).data_version is None
    nodes.check(100, 2)
    assert nodes.incarnation(100) == 2
    assert not nodes.forget(100, 1)  # both references count
    assert nodes.forget(100, 1)


@pytest.mark.parametrize(
    ("steps", "kept"),
    [
        ("w1 w2", True),
        ("", True),
        ("w2", False),  # another node wrote before us
        ("w1 r", True),  # it was written before it was read
        ("r w1", False),  # a READ beside the WRITE may have brought back the old data
        ("w1 r w2", False),
        ("r c o0 w1", True),  # nobody had it open: nothing was under way any more
        ("o0 r c w1", False),  # but here somebody still has
        ("w?", True),  # the inode is not cached any more: nothing is learnt, and it was not changed
    ],
)
def test_pages_are_kept_when_nothing_but_our_writes_changed_the_data(steps: str, kept: bool) -> None:
    """H5: o open at a version, c close, r READ, w WRITE that leaves a version."""
    nodes = NodeTable(root=64)
    node = nodes.looked_up(100, 1)
    assert not node.opened(0), "nothing is known of a file's pages before its first open"
    now = 0
    for step in steps.split():
        match step[0], step[1:]:
            case "o", version:
                node.opened(int(version))
            case "c", _:
                node.opens -= 1
            case "r", _:
                nodes.reads(100)
            case "w", "?":
                nodes.wrote(100, None)
            case "w", version:
                now = int(version)
                nodes.wrote(100, now)
    assert node.opened(now) == kept


def test_the_first_read_of_what_was_written_here_is_asked_for_where_it_counts() -> None:
    node = NodeTable(root=64).looked_up(100, 1)
    node.opened(0)
    assert node.opened(0), "of written pages nothing is told"
    assert not node.opened(0, tells_reads=True)
    node.is_read = True
    assert node.opened(0, tells_reads=True), "what was read from us is not asked for again"
    assert not node.opened(1)
    assert not node.is_read


def test_a_write_to_an_inode_that_is_being_forgotten_is_harmless() -> None:
    NodeTable(root=64).wrote(100, 1)


def test_inode_one_that_is_not_the_root_is_a_bug() -> None:
    with pytest.raises(AssertionError):
        NodeTable(root=64).looked_up(1, 1)


def test_handles_are_never_reused() -> None:
    """H4."""
    handles = HandleTable()
    first = handles.add(100, os.O_APPEND | os.O_WRONLY)
    assert handles[first].append
    assert handles.remove(first).ino == 100
    second = handles.add(101, os.O_RDONLY)
    assert second != first
    assert not handles[second].append
    for call in (handles.__getitem__, handles.remove):
        with pytest.raises(OSError) as caught:
            call(first)
        assert caught.value.errno == errno.EBADF
    assert len(handles) == 1


def test_handle_numbers_tell_what_the_extension_asks() -> None:
    handles = HandleTable()
    assert not handles.add(100, os.O_RDWR) & READ_ONLY_HANDLE
    assert not handles.add(100, os.O_WRONLY) & READ_ONLY_HANDLE
    reader = handles.add(100, os.O_RDONLY)
    assert reader & READ_ONLY_HANDLE
    assert handles.remove(reader).ino == 100
    assert handles[INODE_HANDLE | 77].ino == 77
    assert not handles[INODE_HANDLE | 77].append
    assert handles[INODE_HANDLE | TOLD_HANDLE | APPEND_HANDLE | 77] == Handle(77, 0, append_now=True, unasked=True)


def test_a_write_tells_the_flags_of_now() -> None:
    """F_SETFL changes them after the open."""
    handles = HandleTable()
    plain, appending = handles.add(100, os.O_RDWR), handles.add(101, os.O_RDWR | os.O_APPEND)
    assert [handles[plain].append, handles[appending].append] == [False, True]
    assert [handles[plain | TOLD_HANDLE].append, handles[appending | TOLD_HANDLE].append] == [False, False]
    set_later = handles[plain | TOLD_HANDLE | APPEND_HANDLE]
    assert set_later.append
    assert not set_later.around_pages
    assert handles[appending | TOLD_HANDLE].around_pages


def test_pending_counts_per_inode() -> None:
    pending = Pending()
    pending.enter(5)
    pending.enter(5)
    pending.enter(6)
    assert pending.total() == 3
    pending.leave(5)
    assert pending.busy(5)
    pending.leave(5)
    assert not pending.busy(5)
    assert pending.busy(6)
