"""A mount as a member of its lockspace: what it answers to orders that need no other member (matrixfs/member.py)."""

from __future__ import annotations

import pytest

from matrixfs.fs import namespace
from matrixfs.ondisk.superblock import ROOT_INODE
from membership.orders import JournalState, Suspend, Suspended
from tests.sim.fs_world import World, run_world

MIB = 1 << 20


@pytest.mark.seed("002-28", "002-30")
def test_a_survey_reads_the_journals_when_the_order_comes() -> None:
    async def body(world: World) -> None:
        mounts = await world.start(0, 1)
        await world.leave(1)
        volume = mounts[0].volume  # the header is written with the first commit (J7)
        await namespace.mkdir(volume, ROOT_INODE, b"d", 0o755, 0, 0)
        await volume.journal.commit()
        world.attempt += 1
        mounts[0].member.order(Suspend(world.attempt, survey=True))
        answer = await world._wait(mounts[0], Suspended)
        owner = mounts[0].instance
        assert isinstance(answer, Suspended)
        assert answer.journals[0] == JournalState(0, owner.node, owner.incarnation, dirty=True)
        assert [(state.index, state.dirty) for state in answer.journals[1:]] == [(1, False), (2, False), (3, False)]
        world.attempt += 1
        mounts[0].member.order(Suspend(world.attempt))
        assert await world._wait(mounts[0], Suspended) == Suspended(world.attempt)

    run_world(5, body, size=16 * MIB)
