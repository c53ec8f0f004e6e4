"""The core of a node: what it makes of headers that may never come into force (A8, M3; seed 5115)."""

from __future__ import annotations

import pytest

from membership.label import DEFAULT_TIMING
from membership.lease.core import LeaseState
from membership.node_core import NodeCore
from membership.san.header import make_header
from membership.seams import PeerAddress

CLUSTER = b"c" * 16
ME = PeerAddress(1, 101, "10.0.0.1", 9)


def member() -> NodeCore:
    core = NodeCore(ME, make_header(CLUSTER, 5, administrator=1, members={1: 101}, fencing={}), DEFAULT_TIMING)
    core.tick(0.0)
    core.header_read(core.admin.header, 0.2, renewal=0.1)
    assert core.lease.state is LeaseState.MEMBER
    return core


@pytest.mark.seed("002-46")
@pytest.mark.parametrize("leaves", [True, False])
def test_the_last_to_leave_does_not_wait_for_its_header_to_be_in_force(leaves: bool) -> None:
    """Written on a minority of the areas, with errors: nobody is left to write it again."""
    core = member()
    if leaves:
        core.leave(0.3)
    core.header_read(make_header(CLUSTER, 6, members={}, fencing={}), 0.4, renewal=0.35, settled=False)
    assert core.lease.state is (LeaseState.LEFT if leaves else LeaseState.MEMBER)
