"""Targets shared by the tests of a module."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack

import pytest

from matrixfs.blockstore.device.iscsi import IscsiDevice
from matrixfs.blockstore.scsi.address import identity_of, parse_address
from tests.san.lab import KINDS, Target, san

_identities = itertools.count()


@pytest.fixture(scope="module", params=KINDS)
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    """A target with three LUNs of 64 MiB; tests leave it running."""
    with san(request.param, luns=3) as made:
        yield made


def device_on(url: str, identity: str = "", **options: float) -> IscsiDevice:
    """A device, not open; without an identity it has one that nobody else has."""
    who = identity_of(identity or f"test {next(_identities)}", "testhost", {})
    return IscsiDevice(parse_address(url, {}), who, **options)  # type: ignore[arg-type]


@pytest.fixture
async def opened() -> AsyncIterator[Callable[..., object]]:
    """``await opened(url, ...)``: an open device, closed after the test."""
    async with AsyncExitStack() as stack:

        async def make(url: str, identity: str = "", **options: float) -> IscsiDevice:
            device = device_on(url, identity, **options)
            await device.open()
            stack.push_async_callback(device.aclose)
            return device

        yield make
