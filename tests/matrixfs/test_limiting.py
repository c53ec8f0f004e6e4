"""What a mount answers to matrixctl fs quota, and what it refuses (matrixfs/limiting.py)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from matrixfs.limiting import ROWS_MAX, Limiter
from matrixfs.ondisk.quota import PROJECT, USER
from membership.errors import BadMessage, OperatorError
from tests.matrixfs.local import mounted, small_disk

NO_LIMITS = {"blocks_hard": -1, "blocks_soft": -1, "inodes_hard": -1, "inodes_soft": -1}


@asynccontextmanager
async def limiter(*, quotas: bool = True) -> AsyncIterator[Limiter]:
    async with mounted(await small_disk(quotas=quotas)) as local, trio.open_nursery() as nursery:
        made = Limiter(SimpleNamespace(volume=local.volume, clock=local.volume.clock))  # type: ignore[arg-type]
        nursery.start_soon(made.run)
        await trio.testing.wait_all_tasks_blocked()
        yield made
        await made.close()


async def outcome(made: Limiter, serial: int, at: int = 0) -> dict[str, Any]:
    while True:
        found = made.result({"fs": "t", "from": at})
        assert found is not None
        assert found["serial"] == serial
        if found["done"]:
            return found
        await trio.sleep(0.01)


async def test_limits_are_set_and_told(autojump_clock: object) -> None:
    async with limiter() as made:
        for number in range(1, ROWS_MAX + 6):
            found = await outcome(made, made.set_limits({
                **NO_LIMITS, "fs": "t", "type": PROJECT, "id": number, "blocks_hard": number, "blocks_soft": 1,
            }))  # fmt: skip
            assert found["rows"] == [[PROJECT, number, 0, 0, number, 1, 0, 0, 0, 0]]
        await outcome(made, made.set_limits({**NO_LIMITS, "fs": "t", "type": PROJECT, "id": 9, "blocks_soft": 0}))
        found = await outcome(made, made.report({"fs": "t"}))
        assert (found["count"], len(found["rows"])) == (ROWS_MAX + 5, ROWS_MAX)
        assert found["rows"][8][:6] == [PROJECT, 9, 0, 0, 9, 0]
        rest = made.result({"fs": "t", "from": ROWS_MAX})
        assert rest is not None
        assert [row[1] for row in rest["rows"]] == list(range(ROWS_MAX + 1, ROWS_MAX + 6))


async def test_what_cant_be_is_refused_and_costs_nothing(autojump_clock: object) -> None:
    async with limiter() as made:
        asked = {**NO_LIMITS, "fs": "t", "type": USER, "id": 5}
        assert made.report({"fs": "another"}) == 0
        assert made.set_limits({**asked, "fs": "another"}) == 0
        for wrong in ({"type": 3}, {"id": 1 << 32}, {"blocks_hard": -2}, {"inodes_soft": 1 << 53}, {"fs": 7}):
            with pytest.raises(BadMessage):
                made.set_limits({**asked, **wrong})
        with pytest.raises(BadMessage):
            made.set_grace({"fs": "t", "type": USER, "blocks_ns": 1 << 63, "inodes_ns": 0})
        found = await outcome(made, made.set_limits({**asked, "id": 0, "blocks_hard": 1}))
        assert "id 0 has no limits" in found["error"]
        found = await outcome(made, made.set_limits({**asked, "blocks_hard": 1, "blocks_soft": 2}))
        assert (found["exit_code"], "can't be" in found["error"]) == (2, True)
        made.report({"fs": "t"})
        with pytest.raises(OperatorError, match="works on quotas already"):
            made.report({"fs": "t"})
        await trio.sleep(1)
    async with limiter(quotas=False) as made:
        with pytest.raises(OperatorError, match="has no quotas"):
            made.report({"fs": "t"})
