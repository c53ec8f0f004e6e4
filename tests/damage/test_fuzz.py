"""Whatever is on a store, fsck and a mount end, in bounds, and say what is wrong by its name (R11, issue 5).

The default run takes the damages of ``images.py`` and ``SAMPLE`` changes by chance, always the same; ``--long`` takes
all fields and values of each structure, several changes at once from a few seeds, and the golden images: minutes.
"""

from __future__ import annotations

import random
import resource

import pytest

from matrixfs.ondisk.superblock import Superblock
from membership.label import BLOCK_BYTES, DATA_BLOCK, Label
from membership.records import Record
from tests.damage.fuzz import Change, Image, Values, structures
from tests.damage.images import CUTS, PLOTS, Plot, build, built_image, cut, golden_image
from tests.damage.judge import judge_fsck, judge_mount
from tests.sim.disk import SimDisk

OURS = [kind for kind in structures().values() if kind.__module__.startswith("matrixfs.ondisk.")]
SAMPLE = 18
BYTES_SAMPLE = 60  # changes of fields of bytes, for each structure, in the long form
GROWTH_MIB_MAX = 200  # of the process over all cases: a list without end is more
AT_ONCE = 3  # changes made together in the combined cases


def peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


async def judge(disk: SimDisk, *, thorough: bool = False) -> None:
    """fsck on the image; a mount of it as it is, and if ``thorough`` also as ``-y`` left it."""
    before = peak_mib()
    repaired, _ = await judge_fsck(disk)
    await judge_mount(disk)
    if thorough:
        await judge_mount(repaired)
    assert peak_mib() - before < GROWTH_MIB_MAX


async def all_changes(image: Image, seed: int, count: int) -> list[Change]:
    rng = random.Random(seed)
    return [change for place in image.places for change in await image.changes(place, Values(count), rng)]


async def judge_changes(image: Image, changes: list[Change], *, thorough: bool = False) -> None:
    base = image.disk.snapshot()
    for change in changes:
        await image.spoil(change)
        try:
            await judge(image.disk, thorough=thorough)
        except BaseException as error:
            error.add_note(str(change))
            raise
        finally:
            image.disk.restore(base)


async def test_every_structure_and_field_is_fuzzed() -> None:
    """A structure that is new must be in ``build.sample`` (or ``images.build``): then it is fuzzed by itself."""
    image = await built_image()
    kinds = {place.kind for place in image.places}
    assert {*OURS, Label} <= kinds
    in_journal = {place.kind for place in image.places if place.frame}
    assert len(in_journal) == 5
    fields: dict[type[Record], set[str]] = {}
    for change in await all_changes(image, 1, 1):
        fields.setdefault(change.place.kind, set()).add(change.field)
    for kind in OURS:
        assert fields[kind] >= {"magic", "version", "owner", "address", "generation", *kind.FIELDS}, kind
    assert {"blocks_total", "group_shift"} <= fields[Superblock]


async def test_nothing_is_wrong_with_an_unspoilt_image(autojump_clock: object) -> None:
    image = await built_image()
    await judge(image.disk)
    _, code = await judge_fsck(image.disk)
    assert code == 0


async def test_a_sample_of_changed_fields(autojump_clock: object) -> None:
    image = await built_image()
    rng = random.Random(17)
    by_kind: dict[type[Record], list[Change]] = {}
    for change in await all_changes(image, 17, 1):
        by_kind.setdefault(change.place.kind, []).append(change)
    each = -(-SAMPLE // len(by_kind))
    await judge_changes(image, [change for kind in by_kind for change in rng.sample(by_kind[kind], each)])


@pytest.mark.parametrize("plant", PLOTS, ids=lambda plant: plant.__name__)
async def test_damages_of_several_fields(plant: Plot, autojump_clock: object) -> None:
    built = await build()
    await plant(built)
    await judge(built.volume.disk)


async def test_stores_that_were_cut_short(autojump_clock: object) -> None:
    """Without the rest; and with a label that says it was always so small."""
    built = await build()
    for blocks in CUTS:
        disk = cut(built.volume.disk, blocks)
        _, code = await judge_fsck(disk)
        assert code == 8
        label = Label.decode_untrusted(await disk.read(0, BLOCK_BYTES), "label")
        label.data_blocks = blocks - DATA_BLOCK - 1
        for block in (blocks - 1, 0):
            label.address = block
            await disk.write(block * BLOCK_BYTES, label.encode(), durable=True)
        await judge(disk)


async def combined(image: Image, rng: random.Random, cases: int) -> None:
    changes = await all_changes(image, rng.randrange(1 << 30), 1)
    base = image.disk.snapshot()
    for _ in range(cases):
        chosen = rng.sample(changes, AT_ONCE)
        for change in chosen:
            await image.spoil(change)
        try:
            await judge(image.disk, thorough=True)
        except BaseException as error:
            for change in chosen:
                error.add_note(str(change))
            raise
        finally:
            image.disk.restore(base)


# --- the long form --------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", [*OURS, Label], ids=lambda kind: kind.__name__)
async def test_all_fields_and_values(kind: type[Record], autojump_clock: object) -> None:
    """Of a structure of each kind in place and of one in the journal; of fields of bytes a sample."""
    image = await built_image()
    rng = random.Random(5)
    places = [place for place in image.places if place.kind is kind]
    assert places
    for place in dict.fromkeys([*places[:1], *[p for p in places if p.frame][:1]]):
        changes = await image.changes(place, Values(0), rng)
        in_bytes = [c for c in changes if c.field in kind.FIELDS and kind.FIELDS[c.field].kind == "bytes"]
        skipped = set(rng.sample(in_bytes, max(0, len(in_bytes) - BYTES_SAMPLE)))
        await judge_changes(image, [change for change in changes if change not in skipped])


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(4))
async def test_many_changes_at_once(seed: int, autojump_clock: object) -> None:
    await combined(await built_image(), random.Random(seed), 60)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", ["v1-clean", "v1-crashed"])
async def test_golden_images(name: str, autojump_clock: object) -> None:
    image = await golden_image(name)
    rng = random.Random(3)
    await judge_changes(image, rng.sample(await all_changes(image, 3, 1), 40))
