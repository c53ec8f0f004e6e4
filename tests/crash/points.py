"""When the power may go, and what may then be on the disk.

A crash point ``k`` is the instant just before entry k of a disk's log landed: what landed before and is not safe, and
what was in flight, each has one of three fates, by sectors of 512 bytes.  A choice gives every write its fate; it is a
number that means the same in every run with the same seed, so that one point can be repeated alone.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from membership.label import BLOCK_BYTES
from tests.sim.disk import Media, SimDisk, Write

DROPPED, KEPT, TORN = "dropped", "kept", "torn"
FATES = (DROPPED, KEPT, TORN)
EXHAUSTIVE_MAX = 3  # writes at risk up to which every combination is a choice


@dataclass(slots=True)
class Point:
    """An instant, as ``points`` meets it; ``media`` is valid until it goes on."""

    k: int
    media: Media
    at_risk: list[Write]  # oldest first
    in_flight: list[Write]  # those of them that had not returned

    def choices(self) -> int | None:
        """How many there are; None: as many as one likes."""
        return 3 ** len(self.at_risk) if len(self.at_risk) <= EXHAUSTIVE_MAX else None

    def fates(self, choice: int, seed: int) -> list[str]:
        """The fate of each write at risk."""
        count = len(self.at_risk)
        if count <= EXHAUSTIVE_MAX:
            return [FATES[choice // 3**i % 3] for i in range(count)]
        if choice < 3:  # all alike
            return [FATES[choice]] * count
        rng = random.Random(f"fates {seed} {self.k} {choice}")
        weights = rng.choice(((1, 1, 1), (1, 6, 1), (6, 1, 1), (1, 1, 0)))
        return rng.choices(FATES, weights, k=count)

    def crashed(self, choice: int, seed: int) -> tuple[Media, Counter[str]]:
        """The medium when the power is on again, and how many writes met which fate."""
        fates = self.fates(choice, seed)
        rng = random.Random(f"tear {seed} {self.k} {choice}")
        kept = {
            id(write): _sectors(write, fate, self.media.sector_bytes, rng)
            for write, fate in zip(self.at_risk, fates, strict=True)
        }

        def surviving(write: Write) -> list[int]:
            found = kept.get(id(write))
            return found if found is not None else [*range(0, write.length, self.media.sector_bytes)]

        return self.media.after_power_loss(surviving, self.in_flight), Counter(fates)


def _sectors(write: Write, fate: str, sector: int, rng: random.Random) -> list[int]:
    """Offsets within a write of the sectors that survive; a tear is by sectors, by blocks, or one cut."""
    every = [*range(0, write.length, sector)]
    if fate != TORN:
        return every if fate == KEPT else []
    style = rng.randrange(3)
    if style == 0:
        return [at for at in every if rng.random() < 0.5]
    if style == 1 and write.length > BLOCK_BYTES:
        lucky = [rng.random() < 0.5 for _ in range(-(-write.length // BLOCK_BYTES))]
        return [at for at in every if lucky[at // BLOCK_BYTES]]
    cut = rng.randint(0, len(every))
    return every[:cut] if rng.random() < 0.5 else every[cut:]


def points(disk: SimDisk, *, every: bool = False) -> Iterator[Point]:
    """The crash points of a disk's log, in order: before each flush and each durable write, and at the end.

    With ``every``, also before the writes that are not durable; what they add is what the next flush's point can drop.
    """
    log = disk.log
    in_flight: list[list[Write]] = [[] for _ in range(len(log) + 1)]
    for landed, entry in enumerate(log):
        if isinstance(entry, Write):
            for k in range(entry.begun, landed + 1):
                in_flight[k].append(entry)
    for k, media in enumerate(disk.replayed()):
        entry = log[k] if k < len(log) else None
        if every or not isinstance(entry, Write) or entry.durable:
            yield Point(k, media, [*media.unsafe, *in_flight[k]], in_flight[k])


def described(disk: SimDisk, k: int) -> str:
    """The entry before which the power goes."""
    if k == len(disk.log):
        return "the end"
    entry = disk.log[k]
    if not isinstance(entry, Write):
        return f"a flush of {entry.port}"
    kind = "durable write" if entry.durable else "write"
    return f"a {kind} of {entry.length} bytes at block {entry.offset // BLOCK_BYTES} by {entry.port}"
