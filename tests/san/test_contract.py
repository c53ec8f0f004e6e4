"""The device contract on real LUNs, with 512- and 4096-byte sectors (R13)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator

import pytest

from tests.contract.device import CHECKS, Subject
from tests.san.conftest import device_on
from tests.san.lab import KINDS, Target, san


@pytest.fixture(scope="module", params=[(kind, sector) for kind in KINDS for sector in (512, 4096)], ids=str)
def disk(request: pytest.FixtureRequest) -> Iterator[Target]:
    kind, sector_bytes = request.param
    with san(kind, sector_bytes=sector_bytes) as target:
        yield target


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
async def test_contract(check: Callable[[Subject], Awaitable[None]], disk: Target) -> None:
    device = device_on(disk.url())
    await device.open()
    assert device.sector_bytes == disk.luns[0].sector_bytes
    try:
        await check(Subject(device, lambda: device_on(disk.url())))
    finally:
        await device.aclose()
