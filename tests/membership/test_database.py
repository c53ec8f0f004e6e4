"""The membership database: rows, images, two slots, crashes at every write (002-42, 002-44)."""

from __future__ import annotations

import random

import pytest
import trio

from membership.database.image import IMAGE_BYTES_MAX, DatabaseImage, ImageHeader, read_image, slot_block, write_image
from membership.database.keeper import SAVE_SECONDS
from membership.database.schema import filesystems, nodes
from membership.database.store import EVENTS_KEPT, MembershipDatabase
from membership.errors import CorruptRecord, OperatorError
from membership.label import BLOCK_BYTES, DATA_BLOCK
from tests.sim.disk import SimDisk
from tests.sim.membership.world import LABEL, World

CLUSTER = b"C" * 16


def disk() -> SimDisk:
    return SimDisk((DATA_BLOCK + 16) * BLOCK_BYTES)


def event(text: str) -> dict[str, object]:
    return {"wall_ns": 1_700_000_000_000_000_000, "node": "n1", "kind": "alert", "text": text}


def test_rows_survive_an_image():
    database = MembershipDatabase()
    node = {"id": 3, "name": "n1", "host": "h", "port": 1, "state": "member", "changed_ns": 5}
    database.put(nodes, node)
    database.put(nodes, {**node, "state": "dead"})
    fs = {"uuid": "ab", "name": "web", "attempt": str(2**64 - 1), "error": "", "changed_ns": 6}
    database.put(filesystems, fs)
    database.add_events([event("one"), event("x" * 999)])
    copy = MembershipDatabase.from_image_untrusted(database.image(), "test")
    assert copy.rows() == ([{**node, "state": "dead"}], [fs])
    assert [str(e["text"])[:3] for e in copy.events(10)] == ["one", "xxx"]
    assert len(str(copy.events(1)[0]["text"])) == 240
    copy.close()
    database.close()


def test_the_event_log_is_bounded_and_fits_its_slot():
    database = MembershipDatabase()
    for _ in range(4):
        database.add_events(event("y" * 240) for _ in range(EVENTS_KEPT))
    assert len(database.events(10 * EVENTS_KEPT)) == EVENTS_KEPT
    assert len(database.image()) < IMAGE_BYTES_MAX
    database.close()


def test_hostile_images_raise_one_error():
    database = MembershipDatabase()
    database.add_events([event("one")] * 50)
    image = database.image()
    database.close()
    rng = random.Random(2)
    refused = 0
    for _ in range(150):
        data = bytearray(image)
        for _ in range(rng.randrange(1, 40)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            MembershipDatabase.from_image_untrusted(bytes(data), "test").close()
        except CorruptRecord:
            refused += 1
    assert refused > 50
    for data in (b"", b"SQLite format 3\0", rng.randbytes(4096), image[: len(image) // 2]):
        with pytest.raises(CorruptRecord):
            MembershipDatabase.from_image_untrusted(data, "test")


async def test_the_older_slot_is_overwritten():
    device = disk()
    assert await read_image(device, CLUSTER) is None
    for sequence in (1, 2, 3):
        await write_image(device, CLUSTER, DatabaseImage(sequence, 7, bytes([sequence]) * 5000, 9))
        found = await read_image(device, CLUSTER)
        assert found is not None
        assert (found.sequence, found.generation, found.content) == (sequence, 7, bytes([sequence]) * 5000)
    headers = [await device.read(slot_block(s) * BLOCK_BYTES, BLOCK_BYTES) for s in (0, 1)]
    assert {ImageHeader.decode_untrusted(h, "x").sequence for h in headers} == {2, 3}
    with pytest.raises(OperatorError, match="room"):
        await write_image(device, CLUSTER, DatabaseImage(4, 7, bytes(IMAGE_BYTES_MAX + 1), 9))


@pytest.mark.seed("002-42")
async def test_a_crash_at_any_write_leaves_the_last_or_the_new_image():
    device = disk()
    for sequence in (1, 2):
        await write_image(device, CLUSTER, DatabaseImage(sequence, 1, bytes([sequence]) * 9000, 1))
    device.mark()
    await write_image(device, CLUSTER, DatabaseImage(3, 1, bytes([3]) * 9000, 1))
    seen = set()
    for k in range(len(device.log) + 1):
        for mode in ("drop", "keep-some", "tear", "keep-all"):
            for seed in range(5):
                found = await read_image(device.crash_image(k, mode, seed), CLUSTER)
                assert found is not None
                assert found.content == bytes([found.sequence]) * 9000
                seen.add(found.sequence)
    assert seen == {2, 3}


async def test_a_damaged_slot_leaves_the_other():
    device = disk()
    for sequence in (1, 2):
        await write_image(device, CLUSTER, DatabaseImage(sequence, 1, bytes([sequence]) * 9000, 1))
    device.corrupt((slot_block(1) + 1) * BLOCK_BYTES + 100)
    found = await read_image(device, CLUSTER)
    assert found is not None
    assert found.sequence == 1


@pytest.mark.seed("002-44")
async def test_administrators_keep_one_history_on_the_disk(autojump_clock):
    async with World(31) as world:
        for number in (1, 2, 3):
            await world.start(number, wait=False)
        await world.until(lambda: all(m.is_member for m in world.machines.values()), 10)
        await world.until(lambda: len(world.administrators()) == 1, 10)
        await world.mount(1)
        await trio.sleep(2 * SAVE_SECONDS)
        first = world.administrators()[0]
        world.kill(int(first.name[1:]))
        await world.until(lambda: [m for m in world.administrators() if m is not first], 10)
        await trio.sleep(2 * SAVE_SECONDS)
        found = await read_image(world.disk, LABEL.owner)
        assert found is not None
        database = MembershipDatabase.from_image_untrusted(found.content, "test")
        events = database.events(1000)
        assert {first.name, world.administrators()[0].name} <= {str(e["node"]) for e in events}
        assert any(e["kind"] == "fenced" for e in events)
        nodes, filesystems = database.rows()
        assert {n["name"] for n in nodes} == {"n1", "n2", "n3"}
        assert [f["name"] for f in filesystems] == ["web"]
        database.close()
