"""The SAN header on a disk that tears, and the store operations on it (002-42, 002-45)."""

from __future__ import annotations

import random

import pytest

from membership.areas.quorum import Area, Areas
from membership.errors import CorruptRecord
from membership.label import BLOCK_BYTES, DATA_BLOCK, HEADER_BLOCK
from membership.san.ballot import Decided, Passed
from membership.san.header import COPY_BYTES, NOBODY, header_untrusted, make_header, read_header, write_header
from membership.san.store import take_generation
from tests.sim.disk import SimDisk
from tests.sim.network import SimClock, SimRng

CLUSTER = b"C" * 16


def disk() -> SimDisk:
    return SimDisk((DATA_BLOCK + 16) * BLOCK_BYTES, latency=(0.001, 0.003))


def areas(device) -> Areas:
    return Areas(CLUSTER, [Area(b"d" * 16, device)], SimClock())


def header(generation: int, *members: int, administrator: int = NOBODY):
    return make_header(
        CLUSTER, generation, administrator=administrator, members={n: 7 + n for n in members}, fencing={63: 1}
    )


def test_an_unwritten_area_is_generation_zero():
    empty = header_untrusted(bytes(BLOCK_BYTES), CLUSTER)
    assert (empty.generation, empty.members, empty.administrator) == (0, {}, NOBODY)


def test_round_trip():
    made = header(9, 0, 5, 63, administrator=5)
    back = header_untrusted(made.encode() * 2, CLUSTER)
    assert back == made
    assert back.members == {0: 7, 5: 12, 63: 70}
    assert back.fencing == {63: 1}
    assert back.administrator_incarnation == 12


@pytest.mark.seed("002-42")
async def test_a_torn_write_leaves_the_old_or_the_new_header(autojump_clock):
    device = disk()
    await write_header(device, header(1, 0))
    device.mark()
    await write_header(device, header(2, 0, 1))
    seen = set()
    for k in range(len(device.log) + 1):
        for seed in range(20):
            crashed = device.crash_image(k, "tear", seed)
            seen.add((await read_header(crashed, CLUSTER)).generation)
    assert seen == {1, 2}
    assert (await read_header(device, CLUSTER)).generation == 2


async def test_a_write_in_flight_when_the_path_is_cut_tears_at_most_one_copy(autojump_clock):
    import trio

    for seed in range(40):
        device = SimDisk((DATA_BLOCK + 16) * BLOCK_BYTES, seed=seed, latency=(0.001, 0.003))
        await write_header(device, header(1, 0))
        port = device.port("n1")
        async with trio.open_nursery() as nursery:

            async def write(port=port) -> None:
                await areas(port).put_header(header(2, 0, 1))

            nursery.start_soon(write)
            await trio.sleep(random.Random(seed).uniform(0, 0.012))
            port.cut()
        assert (await read_header(device, CLUSTER)).generation in {1, 2}


def test_hostile_headers_raise_one_error():
    image = header(9, 0, 5).encode() * 2
    rng = random.Random(3)
    for _ in range(200):
        data = bytearray(image)
        for at in (0, COPY_BYTES):
            data[at + rng.randrange(COPY_BYTES)] ^= 1 << rng.randrange(8)
        with pytest.raises(CorruptRecord):
            header_untrusted(bytes(data), CLUSTER)
    with pytest.raises(CorruptRecord, match="owner"):
        header_untrusted(image, b"X" * 16)
    with pytest.raises(CorruptRecord, match="administrator"):
        header_untrusted(make_header(CLUSTER, 1, administrator=65, members={}, fencing={}).encode() * 2, CLUSTER)
    with pytest.raises(CorruptRecord, match="length"):
        header_untrusted(image[:40], CLUSTER)


async def test_put_header_never_replaces_a_newer_one(autojump_clock):
    device = disk()
    assert await areas(device).put_header(header(5, 0))
    assert not await areas(device).put_header(header(4, 1))
    assert (await read_header(device, CLUSTER)).generation == 5
    assert await areas(device).put_header(header(5, 0))
    device.fail("write", HEADER_BLOCK * BLOCK_BYTES, BLOCK_BYTES)
    assert not await areas(device).put_header(header(6, 0))


@pytest.mark.seed("002-32", "002-40")
async def test_rivals_on_one_disk_decide_one_owner_per_generation(autojump_clock):
    import trio

    for seed in range(10):
        device = SimDisk((DATA_BLOCK + 16) * BLOCK_BYTES, seed=seed, latency=(0.0005, 0.005))
        for generation in (1, 2, 3):
            outcomes = {}

            async def run(node: int, generation=generation, outcomes=outcomes, device=device, seed=seed) -> None:
                rng = SimRng(seed * 100 + node)
                outcomes[node] = await take_generation(
                    areas(device), (node, 70 + node), generation, clock=SimClock(), rng=rng
                )

            async with trio.open_nursery() as nursery:
                for node in range(5):
                    nursery.start_soon(run, node)
            assert len(set(outcomes.values())) == 1
            assert isinstance(outcomes[0], Decided)
        late = await take_generation(areas(device), (9, 79), 1, clock=SimClock(), rng=SimRng(0))
        assert late == Passed(3)


async def test_an_unreadable_ballot_area_is_a_failed_candidate(autojump_clock):
    device = disk()
    device.corrupt((HEADER_BLOCK + 1 + 4) * BLOCK_BYTES + 3, 0xFF)
    assert await take_generation(areas(device), (0, 1), 1, clock=SimClock(), rng=SimRng(0)) is None
    device = disk()
    device.fail("read", 2 * BLOCK_BYTES, BLOCK_BYTES)
    assert await take_generation(areas(device), (0, 1), 1, clock=SimClock(), rng=SimRng(0)) is None
