"""Parsers of what a unit says of itself: real answers of two targets, made-up ones, and noise."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

import pytest

from matrixfs.blockstore.scsi import answers
from membership.errors import BadMessage

INQUIRY = bytes([0, 0, 5, 2, 61, 0, 0, 2]) + b"IET     VIRTUAL-DISK    0001" + bytes(30)
LIMITS = struct.pack(">BBHBBHI", 0, 0xB0, 0x3C, 0, 128, 0, 2048) + bytes(52)
CACHING = bytes([31, 0, 0x10, 8]) + bytes(8) + bytes([0x08, 0x12, 0x04]) + bytes(17)


def designator(code_set: int, kind: int, data: bytes, association: int = 0) -> bytes:
    return bytes((code_set, association << 4 | kind, 0, len(data))) + data


def page_83(*designators: bytes) -> bytes:
    body = b"".join(designators)
    return struct.pack(">BBH", 0, 0x83, len(body)) + body


def test_inquiry() -> None:
    assert answers.inquiry_untrusted(INQUIRY) == answers.Inquiry(True, "IET", "VIRTUAL-DISK", "0001")
    assert answers.inquiry_untrusted(b"\x7f" + INQUIRY[1:]) is None
    tape = answers.inquiry_untrusted(b"\x01" + INQUIRY[1:])
    assert tape is not None
    assert not tape.is_disk
    strange = answers.inquiry_untrusted(INQUIRY[:8] + b"\xff\x1b[2J\0\0\0" + INQUIRY[16:])
    assert strange is not None
    assert strange.vendor == "??[2J", "nothing of a target reaches a terminal raw"


def test_capacity() -> None:
    found = answers.capacity_untrusted(struct.pack(">QI", 99, 4096) + bytes(20))
    assert (found.blocks, found.sector_bytes, found.size_bytes) == (100, 4096, 409600)
    for last, sector in ((0xFFFFFFFFFFFFFFFF, 512), (1, 0), (1, 1 << 31)):
        with pytest.raises(BadMessage):
            answers.capacity_untrusted(struct.pack(">QI", last, sector))


def test_block_limits() -> None:
    assert answers.block_limits_untrusted(LIMITS) == answers.BlockLimits(2048, 128)
    body = LIMITS[4:].ljust(60, b"\0")
    whole = b"\0\xb0" + struct.pack(">H", 60) + body[:16] + struct.pack(">I", 77) + body[20:]
    assert answers.block_limits_untrusted(whole) == answers.BlockLimits(2048, 128, 77)
    with pytest.raises(BadMessage):
        answers.block_limits_untrusted(LIMITS[:9])
    with pytest.raises(BadMessage):
        answers.block_limits_untrusted(b"\0\x83" + LIMITS[2:])


def test_provisioning() -> None:
    assert answers.provisioning_untrusted(b"\0\xb2\0\x04\0\x84\0\0")
    assert not answers.provisioning_untrusted(b"\0\xb2\0\x04\0\x7f\0\0")
    with pytest.raises(BadMessage):
        answers.provisioning_untrusted(b"\0\xb2\0\x01\0")


def test_caching() -> None:
    assert answers.caching_untrusted(CACHING) == answers.Caching(write_cache=True, fua=True, write_protected=False)
    without = CACHING[:2] + b"\x80" + CACHING[3:14] + b"\0" + CACHING[15:]
    assert answers.caching_untrusted(without) == answers.Caching(write_cache=False, fua=False, write_protected=True)
    for bad in (CACHING[:14], CACHING[:12] + b"\x0a" + CACHING[13:], b"\x05" + CACHING[1:]):
        with pytest.raises(BadMessage):
            answers.caching_untrusted(bad)


def test_serial() -> None:
    assert answers.serial_untrusted(b"\0\x80\0\x08beaf11\0\0rest") == "beaf11"


def test_device_id_is_the_best_name_of_the_unit() -> None:
    vendor, naa = designator(2, 1, b"IET     0001"), designator(1, 3, bytes.fromhex("3000000100000001"))
    port = designator(1, 3, b"\x51" * 8, association=1)
    assert answers.device_id_untrusted(page_83(vendor, naa, port)) == "3000000100000001"
    assert answers.device_id_untrusted(page_83(naa, vendor)) == "3000000100000001"
    assert answers.device_id_untrusted(page_83(vendor)) == "IET     0001"
    assert answers.device_id_untrusted(page_83(port)) == ""
    assert answers.device_id_untrusted(page_83(vendor, naa)[:-3]) == "IET     0001", "the last one is cut off"


PARSERS: list[tuple[Callable[[bytes], object], bytes]] = [
    (answers.inquiry_untrusted, INQUIRY),
    (answers.capacity_untrusted, struct.pack(">QI", 99, 4096) + bytes(20)),
    (answers.block_limits_untrusted, LIMITS),
    (answers.caching_untrusted, CACHING),
    (answers.provisioning_untrusted, b"\0\xb2\0\x04\0\x84\0\0"),
    (answers.serial_untrusted, b"\0\x80\0\x08beaf11\0\0"),
    (answers.device_id_untrusted, page_83(designator(2, 1, b"x" * 20), designator(1, 3, b"y" * 8))),
]


@pytest.mark.parametrize(("parse", "good"), PARSERS, ids=lambda part: getattr(part, "__name__", ""))
def test_any_bytes_parse_or_are_bad_messages(parse: Callable[[bytes], object], good: bytes) -> None:
    rng = random.Random(11)
    outcomes = {"parsed": 0, "refused": 0}
    for _ in range(5000):
        answer = bytearray(good)
        for _ in range(rng.randrange(1, 4)):
            answer[rng.randrange(len(answer))] = rng.randrange(256)
        if rng.random() < 0.5:
            del answer[rng.randrange(len(answer)) :]
        try:
            parse(bytes(answer))
            outcomes["parsed"] += 1
        except BadMessage:
            outcomes["refused"] += 1
    assert all(outcomes.values()), outcomes
