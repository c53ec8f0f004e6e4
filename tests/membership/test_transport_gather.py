"""Gathering at the end of a pass, and the system's clock and randomness."""

from __future__ import annotations

import pytest
import trio

from membership.clock import SystemClock, SystemRng
from membership.transport.gather import Gatherer, Outbox


class Link:
    def __init__(self, error: Exception | None = None) -> None:
        self.flushed = 0
        self.error = error

    def flush(self) -> None:
        self.flushed += 1
        if self.error is not None:
            raise self.error


@pytest.mark.seed("003-33")
async def test_marked_links_are_flushed_when_the_pass_ends_and_once():
    gatherer, link = Gatherer(), Link()
    outbox = Outbox(gatherer)
    outbox.link = link
    trio.lowlevel.add_instrument(gatherer)
    flushed = []
    for burst in 1, 1, 5, 5, 1, 1, 1:
        before = link.flushed
        for _ in range(burst):
            outbox.sent()
        at_once = link.flushed - before
        await trio.lowlevel.checkpoint()
        flushed.append((at_once, link.flushed - before - at_once))
        await trio.lowlevel.checkpoint()
        assert link.flushed == before + sum(flushed[-1]), "once"
    trio.lowlevel.remove_instrument(gatherer)
    assert flushed == [(1, 1), (1, 1), (1, 1), (0, 1), (0, 1), (1, 1), (1, 1)], "alone: at once; after a burst: later"


@pytest.mark.seed("003-33")
async def test_what_is_sent_in_a_cork_leaves_when_it_ends():
    gatherer, link = Gatherer(), Link()
    outbox = Outbox(gatherer)
    outbox.link = link
    for _ in range(3):
        gatherer.cork()
        for _ in range(3):
            outbox.sent()
        assert link.flushed == 0
        gatherer.uncork()
        assert link.flushed == 1
        link.flushed = 0
    gatherer.cork()
    gatherer.uncork()
    assert link.flushed == 0, "nothing was sent"


async def test_outbox_without_a_connection_waits_for_one():
    gatherer = Gatherer()
    outbox = Outbox(gatherer)
    trio.lowlevel.add_instrument(gatherer)
    outbox.sent()
    await trio.lowlevel.checkpoint()
    outbox.link = link = Link()
    outbox.sent()
    assert link.flushed == 1
    trio.lowlevel.remove_instrument(gatherer)


def test_own_bug_in_a_flush_ends_the_process_loudly():
    """A trio that only logged it would leave a node that never sends again."""

    async def main() -> None:
        gatherer = Gatherer()
        trio.lowlevel.add_instrument(gatherer)
        outbox = Outbox(gatherer)
        outbox.sent()
        outbox.link = Link(ValueError("bug"))
        await trio.sleep_forever()

    with pytest.raises(trio.TrioInternalError):
        trio.run(main)


async def test_system_clock_and_rng():
    clock, rng = SystemClock(), SystemRng()
    before, wall = clock.monotonic(), clock.wall_ns()
    await clock.sleep(0)
    assert clock.monotonic() >= before
    assert wall > 10**18
    assert len(rng.randbytes(32)) == 32
    assert rng.randbytes(32) != rng.randbytes(32)
    assert 1.0 <= rng.uniform(1.0, 2.0) <= 2.0
