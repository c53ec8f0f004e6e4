"""Nodes that create in one directory: turns instead of a hand-over for each file, and a share for everybody."""

from __future__ import annotations

import stat

import pytest
import trio

from matrixfs.fs import namespace
from matrixfs.locks.turns import TURN
from matrixfs.ondisk.superblock import ROOT_INODE
from tests.sim.fs_world import SimMount, World, run_world

CALL = 0.0001  # seconds the kernel and the program take between two calls
SECONDS = 1.2


class Creator:
    """A program on one node, as the kernel lets it be seen: LOOKUP, CREATE, again."""

    def __init__(self, mount: SimMount) -> None:
        self.mount = mount
        self.made = 0
        self.longest = 0.0

    async def run(self, end: float) -> None:
        volume = self.mount.volume
        while (began := trio.current_time()) < end:
            name = b"%d-%d" % (self.mount.instance.node, self.made)
            assert await namespace.lookup(volume, ROOT_INODE, name) is None
            await trio.sleep(CALL)
            await namespace.create(volume, ROOT_INODE, name, stat.S_IFREG | 0o644, 0, 0)
            self.longest = max(self.longest, trio.current_time() - began)
            self.made += 1
            await trio.sleep(CALL)

    @property
    def hand_overs(self) -> int:
        found = self.mount.member.locks.statistics()["types"]["inode"]["hand_overs_given"]
        assert isinstance(found, int)
        return found


async def create_together(world: World, nodes: int) -> list[Creator]:
    creators = [Creator(mount) for mount in await world.start(*range(nodes))]
    end = trio.current_time() + SECONDS
    async with trio.open_nursery() as nursery:
        for creator in creators:
            nursery.start_soon(creator.run, end)
    return creators


@pytest.mark.seed("002-06", "002-08")
@pytest.mark.parametrize("nodes", [2, 3])
def test_nodes_share_a_directory_in_turns(nodes: int) -> None:
    found: dict[int, list[Creator]] = {}
    for count in (1, nodes):

        async def body(world: World, count: int = count) -> None:
            found[count] = await create_together(world, count)

        run_world(3, body, size=96 << 20)
    alone = found[1][0].made
    together = found[nodes]
    made = sum(creator.made for creator in together)
    assert made > alone / 2, "half of what one node does alone"
    assert sum(creator.hand_overs for creator in together) < made / 5
    assert min(creator.made for creator in together) > 0.7 * made / nodes, "everybody gets a share"
    assert max(creator.longest for creator in together) < nodes * 2 * TURN, "nobody starves"
