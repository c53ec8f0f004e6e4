"""Descriptor blocks and PR parameters, byte by byte as libiscsi's own builders make them, and PR parsers."""

from __future__ import annotations

import ctypes as c
import random
import struct

import pytest

from matrixfs.blockstore.scsi import commands, libiscsi
from matrixfs.blockstore.scsi import reservation_commands as reservations
from membership.errors import BadMessage

LBA, BLOCKS = 0x123456789AB, 0x1234


def cdb_of(function: str, *arguments: int) -> bytes:
    """The descriptor block that a function of libiscsi makes."""
    library = libiscsi.load()
    make = getattr(library, function)
    make.restype = c.c_void_p
    make.argtypes = [c.c_uint64 if argument == LBA else c.c_int for argument in arguments]
    task = make(*arguments)
    found = c.cast(task, c.POINTER(libiscsi._Task)).contents
    made = bytes(found.cdb)[: found.cdb_size]
    library.scsi_free_scsi_task(task)
    return made


def test_reads_and_writes_are_libiscsis() -> None:
    count = BLOCKS * 512
    assert commands.read_16(LBA, BLOCKS) == cdb_of("scsi_cdb_read16", LBA, count, 512, 0, 0, 0, 0, 0)
    assert commands.write_16(LBA, BLOCKS) == cdb_of("scsi_cdb_write16", LBA, count, 512, 0, 0, 0, 0, 0)
    assert commands.write_16(LBA, BLOCKS, fua=True) == cdb_of("scsi_cdb_write16", LBA, count, 512, 0, 0, 1, 0, 0)
    assert commands.synchronize_cache(LBA, BLOCKS) == cdb_of("scsi_cdb_synchronizecache16", LBA, BLOCKS, 0, 0)


def test_questions_are_libiscsis() -> None:
    assert commands.test_unit_ready().cdb == cdb_of("scsi_cdb_testunitready")
    assert commands.inquiry().cdb == cdb_of("scsi_cdb_inquiry", 0, 0, commands.INQUIRY_BYTES)
    assert commands.vital_product_data(0x83).cdb == cdb_of("scsi_cdb_inquiry", 1, 0x83, commands.VPD_BYTES)
    assert commands.mode_sense_caching().cdb == cdb_of("scsi_cdb_modesense6", 0, 0, 8, 0, 192)
    capacity = commands.read_capacity()
    assert capacity.cdb == cdb_of("scsi_cdb_readcapacity16")[:13] + bytes([capacity.receives, 0, 0])


def test_probe_commands_are_libiscsis() -> None:
    data = bytes(1024)
    same = cdb_of("scsi_cdb_writesame16", 0, 0, 0, LBA, 0, BLOCKS, 512)
    assert commands.write_same(LBA, BLOCKS, bytes(512)).cdb == same
    assert commands.orwrite(LBA, data, 512).cdb == cdb_of("scsi_cdb_orwrite", LBA, 1024, 512, 0, 0, 0, 0, 0)
    verify = cdb_of("scsi_cdb_writeverify16", LBA, 1024, 512, 0, 0, 0, 0)
    assert commands.write_and_verify(LBA, data, 512).cdb == verify
    swap = commands.compare_and_write(LBA, data, data, 512)
    assert swap.cdb == cdb_of("scsi_cdb_compareandwrite", LBA, 2048, 512, 0, 0, 0, 0, 0)
    assert swap.data == data + data
    assert commands.unmap(LBA, BLOCKS).cdb == cdb_of("scsi_cdb_unmap", 0, 0, 24)
    assert struct.unpack(">HHIQII", commands.unmap(LBA, BLOCKS).data) == (22, 16, 0, LBA, BLOCKS, 0)
    sent = {command.cdb[0] for command in (swap, commands.orwrite(0, data, 512), commands.unmap(0, 1))}
    assert sent - commands.PROBE_ONLY == {commands.COMPARE_AND_WRITE}


def test_reservations_are_libiscsis() -> None:
    for action, command in enumerate(
        (reservations.read_keys(), reservations.read_reservation(), reservations.report_capabilities())
    ):
        assert command.cdb == cdb_of("scsi_cdb_persistent_reserve_in", action, command.receives)
    out = reservations.reserve_out(reservations.Action.PREEMPT, 0xA, 0xB, 5, aptpl=True)
    assert out.cdb == struct.pack(">BBBHIB", 0x5F, 4, 5, 0, 24, 0)
    assert out.data == struct.pack(">QQIBBH", 0xA, 0xB, 0, 1, 0, 0)


def test_keys() -> None:
    answer = struct.pack(">II3Q", 7, 24, 1, 2, 2) + bytes(100)
    assert reservations.keys_untrusted(answer) == reservations.Keys(7, (1, 2, 2))
    assert reservations.keys_untrusted(bytes(8)).keys == ()
    for bad in (bytes(7), struct.pack(">II", 1, 7), struct.pack(">II", 1, 1 << 31)):
        with pytest.raises(BadMessage):
            reservations.keys_untrusted(bad)


def test_reservation() -> None:
    assert reservations.reservation_untrusted(bytes(24)) is None
    answer = struct.pack(">IIQIBBH", 1, 16, 0xABC, 0, 0, 0x05, 0)
    assert reservations.reservation_untrusted(answer) == reservations.Reservation(0xABC, 5)
    with pytest.raises(BadMessage):
        reservations.reservation_untrusted(struct.pack(">II", 1, 8) + bytes(16))


def test_capabilities() -> None:
    both = reservations.capabilities_untrusted(bytes((0, 8, 1, 0x81, 0xEA, 1, 0, 0)))
    assert both == reservations.Capabilities(True, True, frozenset({1, 3, 5, 6, 7, 8}))
    assert reservations.capabilities_untrusted(bytes((0, 8, 0, 0, 0, 0, 0, 0))).types is None
    with pytest.raises(BadMessage):
        reservations.capabilities_untrusted(bytes(8))


@pytest.mark.parametrize(
    "parse",
    [reservations.keys_untrusted, reservations.reservation_untrusted, reservations.capabilities_untrusted],
    ids=lambda parse: parse.__name__,
)
def test_any_bytes_parse_or_are_bad_messages(parse: object) -> None:
    rng = random.Random(5)
    outcomes = set()
    for _ in range(5000):
        answer = bytearray(rng.randbytes(rng.randrange(64)))
        if rng.random() < 0.5 and len(answer) >= 8:
            answer[4:7] = bytes(3)
        try:
            parse(bytes(answer))  # type: ignore[operator]
            outcomes.add("parsed")
        except BadMessage:
            outcomes.add("refused")
    assert outcomes == {"parsed", "refused"}
