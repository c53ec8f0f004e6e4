"""Reservations through the kernel: the bytes, against a kernel that is played by the simulated LUN.

Nothing here was ever run on real hardware; what is tested is that both sides read SPC-4's, scsi/sg.h's and NVMe's
layouts in the same way, that each path is registered, and how answers are told apart.
"""

from __future__ import annotations

import ctypes
import errno
import os
import random
import struct

import pytest
import trio

from matrixfs.blockstore.scsi.kernel import (
    SG_IO,
    SG_SCSI_RESET,
    ScsiKernelReservations,
    kernel_reservations,
    sense_untrusted,
)
from matrixfs.blockstore.scsi.kernel_nvme import NVME_ID, NVME_IO_CMD, NvmeReservations, report_untrusted
from matrixfs.blockstore.scsi.reservation_commands import capabilities_untrusted, keys_untrusted, reservation_untrusted
from matrixfs.blockstore.scsi.status import Sense
from membership.errors import BadMessage, DeviceError
from membership.fence.reservations import REGISTRANTS_ONLY, Conflict, Refused, Reservation, Unsupported
from tests.contract.reservations import CHECKS, Subject
from tests.sim.disk import SimDisk
from tests.sim.lun import CONFORMING, TGT, SimLun, SimNexus, traits_of

NOT_HERE = {"check_relogin", "check_closed_is_an_error_of_the_device", "check_a_key_of_two_sessions_goes_as_one"}


class Machine:
    """The kernel of one host: its device nodes lead to a SimLun.  Called in a thread of trio's."""

    def __init__(self, lun: SimLun, host: str, nodes: tuple[str, ...]) -> None:
        self.nexuses = {node: SimNexus(lun, f"{host}{node}") for node in nodes}
        self.calls: list[tuple[str, int, bytes, bytes]] = []  # node, request, command, data sent
        self.answers: list[object] = []  # instead of the LUN's: (status, sense, host status), OSError or None

    def ioctl(self, device: str, request: int, argument: ctypes.Structure | ctypes.c_int) -> int:
        nexus = self.nexuses[device]
        planned = self.answers.pop(0) if self.answers else None
        if isinstance(planned, OSError):
            raise planned
        if request == SG_SCSI_RESET:
            assert argument.value == 0x101
            trio.from_thread.run(nexus.reset_lun)
        elif request == SG_IO:
            self._scsi(device, nexus, argument, planned)
        elif request == NVME_ID:
            return 7
        else:
            assert request == NVME_IO_CMD
            return self._nvme(device, nexus, argument) if planned is None else planned
        return 0

    def _scsi(self, device, nexus, header, planned) -> None:
        assert (header.interface_id, header.mx_sb_len, header.iovec_count) == (ord("S"), 64, 0)
        assert 0 < header.timeout <= 60_000
        cdb = ctypes.string_at(header.cmdp, header.cmd_len)
        data = ctypes.string_at(header.dxferp, header.dxfer_len) if header.dxfer_direction == -2 else b""
        self.calls.append((device, SG_IO, cdb, data))
        if planned is None:
            planned = (*self._pr_out(nexus, cdb, data), 0) if cdb[0] == 0x5F else (*self._pr_in(nexus, cdb, header), 0)
        header.status, sense, header.host_status = planned
        ctypes.memmove(header.sbp, sense, len(sense))
        header.sb_len_wr = len(sense)

    def _pr_out(self, nexus, cdb, data) -> tuple[int, bytes]:
        action, kind = cdb[1] & 0x1F, cdb[2] & 0x0F
        assert cdb[2] >> 4 == 0
        assert struct.unpack_from(">I", cdb, 5)[0] == len(data) == 24
        key, action_key = struct.unpack_from(">QQ", data)
        run = trio.from_thread.run
        try:
            if action == 6 and data[20] & 1:
                run(nexus.register_persistent, action_key)
            elif action == 6:
                run(nexus.register, action_key) if action_key else run(nexus.unregister, 0)
            elif action == 1:
                run(nexus.reserve, key, kind)
            elif action == 2:
                run(nexus.release, key, kind)
            elif action == 3:
                run(nexus.clear, key)
            else:
                assert action in {4, 5}
                run(lambda: nexus.preempt(key, action_key, kind, abort=action == 5))
        except (Conflict, Refused):
            return 0x18, b""
        except Unsupported:
            return 0x02, bytes([0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x24, 0, 0, 0, 0, 0])
        return 0, b""

    def _pr_in(self, nexus, cdb, header) -> tuple[int, bytes]:
        assert cdb[0] == 0x5E
        assert header.dxfer_direction == -3
        assert struct.unpack_from(">H", cdb, 7)[0] == header.dxfer_len
        if cdb[1] == 0:
            keys = trio.from_thread.run(nexus.read_keys)
            answer = struct.pack(f">II{len(keys)}Q", 1, 8 * len(keys), *keys)
        else:
            found = trio.from_thread.run(nexus.read_reservation)
            answer = (
                struct.pack(">II", 1, 0) if found is None else struct.pack(">IIQ5xBxx", 1, 16, found.key, found.kind)
            )
        ctypes.memmove(header.dxferp, answer, len(answer))
        return 0, b""

    def _nvme(self, device, nexus, command) -> int:
        assert command.nsid == 7
        data = ctypes.string_at(command.addr, command.data_len)
        self.calls.append((device, command.opcode, struct.pack("<II", command.cdw10, command.cdw11), data))
        action, kind = command.cdw10 & 7, {0: 0, 3: 5, 5: 7}[command.cdw10 >> 8 & 0xFF]
        run = trio.from_thread.run
        registered = nexus.lun.is_registered(nexus.login)
        try:
            if command.opcode == 0x0E:
                return self._nvme_report(nexus, command)
            keys = struct.unpack(f"<{len(data) // 8}Q", data)
            if command.opcode == 0x0D:
                assert command.cdw10 & 8
                if (action == 0 and registered) or (action == 1 and not registered):
                    return 0x4083
                run(nexus.unregister, 0) if action == 1 else run(nexus.register, keys[1])
            elif command.opcode == 0x11 and action == 0:
                run(nexus.reserve, keys[0], kind)
            elif command.opcode == 0x11:
                run(lambda: nexus.preempt(*keys, kind, abort=action == 2))
            else:
                assert command.opcode == 0x15
                run(nexus.clear, keys[0]) if action == 1 else run(nexus.release, keys[0], kind)
        except (Conflict, Refused):
            return 0x4083
        except Unsupported:
            return 0x4002
        return 0

    def _nvme_report(self, nexus, command) -> int:
        assert (command.cdw10 + 1) * 4 == command.data_len
        lun = nexus.lun
        rows = [(key, lun.holder is not None and lun._same(login, lun.holder)) for key, login in lun.entries]
        extended = command.cdw11 & 1
        image = struct.pack("<IBH", 1, {0: 0, 5: 3, 7: 5}[lun.kind], len(rows)).ljust(64 if extended else 24, b"\0")
        for key, holds in rows:
            if extended:
                image += struct.pack("<HB5xQ16s32x", 1, holds, key, b"host")
            else:
                image += struct.pack("<HB5xQQ", 1, holds, 0xDEADBEEF, key)
        ctypes.memmove(command.addr, image, len(image))
        return 0


class Host:
    """A nexus for the contract: reservations through the kernel, data through the LUN's first path."""

    def __init__(self, reservations, machine: Machine) -> None:
        self.reservations, self.machine = reservations, machine
        self.first = next(iter(machine.nexuses.values()))
        self.write, self.read, self.aclose = self.first.write, self.first.read, self.first.aclose

    def __getattr__(self, name: str):
        return getattr(self.reservations, name)


@pytest.mark.parametrize("check", [check for check in CHECKS if check.__name__ not in NOT_HERE])
@pytest.mark.parametrize("kind", ["sg-conforming", "sg-tgt", "nvme"])
async def test_contract(check, kind) -> None:
    quirks = TGT if kind == "sg-tgt" else CONFORMING
    lun = SimLun(SimDisk(8 << 20), quirks)

    async def open_nexus(name: str):
        node = "/dev/nvme0n1" if kind == "nvme" else "/dev/sda"
        machine = Machine(lun, name, (node,))
        if kind == "nvme":
            made = NvmeReservations(node, node, machine, power_loss=True)
            made.reset_lun = machine.nexuses[node].reset_lun
            return Host(made, machine)
        return Host(ScsiKernelReservations("lun", [node], machine, power_loss=quirks.power_loss), machine)

    await check(Subject(open_nexus, traits_of(quirks)))


def sg(lun: SimLun, *nodes: str, power_loss: bool = False):
    machine = Machine(lun, "h", nodes)
    return ScsiKernelReservations("/dev/dm-0", list(nodes), machine, power_loss=power_loss), machine


async def test_the_bytes_of_scsi() -> None:
    lun = SimLun(SimDisk(8 << 20))
    host, machine = sg(lun, "/dev/sda", power_loss=True)
    await host.register(0x4D58_0300_0000_00A1)
    assert machine.calls[-1][2].hex() == "5f060000000000001800"
    assert machine.calls[-1][3].hex() == "00000000000000004d580300000000a10000000001000000"
    await host.reserve(0x4D58_0300_0000_00A1, REGISTRANTS_ONLY)
    assert machine.calls[-1][2].hex() == "5f010500000000001800"
    assert machine.calls[-1][3].hex() == "4d580300000000a1" + 16 * "00"
    with pytest.raises(Refused):
        await host.preempt(0x4D58_0300_0000_00A1, 0x123ABC, REGISTRANTS_ONLY, abort=True)
    assert machine.calls[-2][2].hex() == "5f050500000000001800"
    assert machine.calls[-2][3].hex() == "4d580300000000a10000000000123abc" + 8 * "00"
    assert machine.calls[-1][2][:2].hex() == "5e00"  # who was refused reads the keys


async def test_the_bytes_of_nvme() -> None:
    lun = SimLun(SimDisk(8 << 20))
    machine = Machine(lun, "h", ("/dev/nvme0n1",))
    host = NvmeReservations("ns", "/dev/nvme0n1", machine, power_loss=True)
    await host.register(0xA1)
    await host.register(0xA2)  # register is refused to who is registered: replace
    await host.reserve(0xA2, REGISTRANTS_ONLY)
    with pytest.raises(Refused):
        await host.preempt(0xA2, 0xB1, REGISTRANTS_ONLY, abort=True)
    sent = [(opcode, command.hex(), data.hex()) for _, opcode, command, data in machine.calls]
    assert sent[:5] == [
        (0x0D, "080000c000000000", "0000000000000000a100000000000000"),
        (0x0D, "080000c000000000", "0000000000000000a200000000000000"),
        (0x0D, "0a0000c000000000", "0000000000000000a200000000000000"),
        (0x11, "0003000000000000", "a200000000000000"),
        (0x11, "0203000000000000", "a200000000000000b100000000000000"),
    ]
    assert await host.read_reservation() == Reservation(0xA2, REGISTRANTS_ONLY)
    with pytest.raises(Unsupported):
        await host.reset_lun()
    machine.answers = [None, 0x4018]
    assert await host.read_keys() == [0xA2]
    assert machine.calls[-1][2][4:] == bytes(4)
    machine.answers = [None, 0x0006]
    with pytest.raises(DeviceError, match="reservation report failed \\(NVMe status 0x006\\)"):
        await host.read_keys()
    machine.answers = [OSError(errno.EIO, "broken")]
    with pytest.raises(DeviceError, match="clear failed: broken"):
        await host.clear(0xA2)


async def test_every_path_is_registered_and_a_failed_one_is_passed_over() -> None:
    lun = SimLun(SimDisk(8 << 20))
    host, machine = sg(lun, "/dev/sda", "/dev/sdb", "/dev/sdc")
    await host.register(0xA1)
    assert await host.read_keys() == [0xA1, 0xA1, 0xA1]
    await host.unregister(0xA1)
    assert lun.keys == []
    failed = (0, b"", 0x01)  # DID_NO_CONNECT
    machine.answers = [None, failed, None]
    await host.register(0xA1)
    assert lun.keys == [0xA1, 0xA1]
    machine.answers = [failed]
    await host.reserve(0xA1, REGISTRANTS_ONLY)
    assert lun.holder.owner == "h/dev/sdc"  # the first is away, the second was not registered
    machine.answers = [failed, failed, failed]
    with pytest.raises(DeviceError, match="the path failed"):
        await host.register(0xA1)
    machine.answers = [OSError(errno.ENODEV, "gone"), failed, OSError(errno.ENODEV, "gone")]
    with pytest.raises(DeviceError, match="gone"):
        await host.read_keys()
    await host.release(0xA1, REGISTRANTS_ONLY)
    assert lun.kind == 0


async def test_unit_attentions_and_a_busy_unit_are_waited_out(autojump_clock) -> None:
    lun = SimLun(SimDisk(8 << 20))
    host, machine = sg(lun, "/dev/sda")
    attention = (2, bytes([0x72, 6, 0x2A, 3]), 0)
    machine.answers = [attention] * 3
    await host.register(0xA1)
    assert len(machine.calls) == 4
    machine.answers = [attention] * 20
    with pytest.raises(DeviceError, match="unit attention 2A/03"):
        await host.read_keys()
    assert len(machine.answers) == 12
    machine.answers = [(2, bytes([0x70, 0, 3]).ljust(18, b"\0"), 0)]
    with pytest.raises(DeviceError, match="medium error"):
        await host.read_keys()
    machine.answers = [OSError(errno.EPERM, "no")]
    with pytest.raises(Unsupported, match="LUN RESET failed: no"):
        await host.reset_lun()


def device_tree(root, *, disks=(), partitions=(), maps=()) -> str:
    """A sysfs: ``maps`` are (name, uuid, slaves)."""
    (root / "class/block").mkdir(parents=True)
    for disk in disks:
        (root / "devices" / disk).mkdir(parents=True)
        os.symlink(root / "devices" / disk, root / "class/block" / disk)
    for disk, part in partitions:
        (root / "devices" / disk / part).mkdir()
        (root / "devices" / disk / part / "partition").write_text("1")
        os.symlink(root / "devices" / disk / part, root / "class/block" / part)
    for name, uuid, slaves in maps:
        (root / "devices" / name / "dm").mkdir(parents=True)
        (root / "devices" / name / "slaves").mkdir()
        (root / "devices" / name / "dm/uuid").write_text(uuid)
        for slave in slaves:
            (root / "devices" / name / "slaves" / slave).touch()
        os.symlink(root / "devices" / name, root / "class/block" / name)
    return str(root)


def test_what_a_device_is_made_of(tmp_path) -> None:
    sysfs = device_tree(
        tmp_path,
        disks=("sda", "sdb", "sdc", "nvme0n1", "loop0"),
        partitions=(("sda", "sda1"), ("nvme0n1", "nvme0n1p2")),
        maps=(
            ("dm-0", "mpath-3600", ("sdb", "sdc")),
            ("dm-1", "part1-mpath-3600", ("dm-0",)),
            ("dm-2", "LVM-abc", ("sda", "sdb")),
            ("dm-3", "LVM-def", ("sda1",)),
        ),
    )

    def paths(name: str) -> list[str] | None:
        found = kernel_reservations(f"/dev/{name}", sysfs=sysfs, kernel=Machine.__new__(Machine))
        if found is None:
            return None
        assert found.name == f"/dev/{name}"
        return found._paths if isinstance(found, ScsiKernelReservations) else [found._node]

    assert paths("sda") == paths("sda1") == paths("dm-3") == ["/dev/sda"]
    assert paths("dm-0") == paths("dm-1") == ["/dev/sdb", "/dev/sdc"]
    assert paths("nvme0n1") == paths("nvme0n1p2") == ["/dev/nvme0n1"]
    assert paths("loop0") is None
    assert paths("dm-2") is None  # two disks that are not paths of one
    assert paths("nothing") is None


def test_sense_of_both_formats() -> None:
    fixed = bytes([0x70, 0, 6, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x2A, 0x03])
    assert sense_untrusted(fixed) == Sense(6, 0x2A03)
    assert sense_untrusted(bytes([0xF0]) + fixed[1:]) == Sense(6, 0x2A03)
    assert sense_untrusted(bytes([0x72, 5, 0x20, 0])) == Sense(5, 0x2000)
    assert sense_untrusted(b"") == Sense()
    assert sense_untrusted(b"\x70") == Sense()


@pytest.mark.parametrize(
    "parse",
    [
        keys_untrusted, reservation_untrusted, capabilities_untrusted, sense_untrusted,
        lambda data: report_untrusted(data, extended=True), lambda data: report_untrusted(data, extended=False),
    ],
)  # fmt: skip
def test_no_answer_of_a_device_breaks_a_parser(parse) -> None:
    """Random bytes, and good answers with bytes changed or cut off: a value, or BadMessage."""
    rng = random.Random(4)
    good = [
        struct.pack(">II3Q", 1, 24, 1, 2, 3),
        struct.pack(">IIQ5xBxx", 1, 16, 7, 5),
        bytes([0, 8, 1, 0x80, 0x20, 0, 0, 0]),
        struct.pack("<IBH", 1, 3, 2).ljust(64 + 128, b"\0"),
        struct.pack("<IBH", 1, 5, 3).ljust(24 + 72, b"\0"),
    ]
    outcomes = {True: 0, False: 0}
    for _ in range(3000):
        data = bytearray(rng.choice(good) if rng.random() < 0.7 else rng.randbytes(rng.randrange(200)))
        for _ in range(rng.randrange(3)):
            if data:
                data[rng.randrange(len(data))] = rng.choice((0, 1, 0x7F, 0xFF, rng.randrange(256)))
        data = data[: rng.randrange(len(data) + 1)] if rng.random() < 0.2 else data
        try:
            parse(bytes(data))
            outcomes[True] += 1
        except BadMessage:
            outcomes[False] += 1
    assert outcomes[True] > 50
    assert outcomes[False] > 50 or parse is sense_untrusted
