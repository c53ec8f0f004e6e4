"""A node to be fenced: registers a key with a LUN and writes as much as it can, until it is refused.

    python -m tests.san.victim URL NAME KEY TRAITS

Prints "writing" when the first write is done, then "fenced" or what went wrong.  TRAITS: kind,flags,leaks.
"""

from __future__ import annotations

import sys

import trio

from matrixfs.blockstore.device.iscsi import IscsiDevice
from matrixfs.blockstore.fencing.luns import lun_of
from matrixfs.blockstore.scsi.address import identity_of, parse_address
from membership.errors import Fenced, MatrixError
from membership.fence.reservations import LunTraits

AT = 8 << 20
MIB = 1 << 20
AREAS = 8
WRITERS = 16


async def main(url: str, name: str, key: str, traits: str) -> None:
    device = IscsiDevice(parse_address(url, {}), identity_of("victim", name, {}))
    await device.open()
    lun = lun_of(device, LunTraits.from_words_untrusted(*map(int, traits.split(","))))
    assert lun.usable is not None
    await lun.usable.register(int(key, 16))
    outcomes: set[str] = set()

    async def write_on(i: int) -> None:
        try:
            while True:
                await device.write(AT + i % AREAS * MIB, b"victim__" * (MIB // 8))
                if "writing" not in outcomes:
                    outcomes.add("writing")
                    print("writing", flush=True)
        except Fenced:
            outcomes.add("fenced")
        except MatrixError as error:
            outcomes.add(str(error))

    async with trio.open_nursery() as nursery:
        for i in range(WRITERS):
            nursery.start_soon(write_on, i)
    print(" ".join(sorted(outcomes - {"writing"})), flush=True)
    await device.aclose()


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
