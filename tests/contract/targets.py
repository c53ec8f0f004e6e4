"""Two real iSCSI targets for tests, on loopback, that go with the test: Debian's tgt and istgt.

Both are wrong in places (decision 0016).  ``istgt`` only works with queue depth 0.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass

from matrixfs.blockstore.scsi.address import Address, parse_address
from tests.contract.stores import make_file

_IQN = "iqn.2026-11.org.matrixfs.test:san"
_START_SECONDS = 10.0
_ISTGT = """[Global]
  NodeBase "iqn.2026-11.org.matrixfs.test"
  PidFile {place}/istgt.pid
  AuthFile {place}/auth.conf
  MediaDirectory {place}
  LogFacility "local7"
  Timeout 30
  NopInInterval 20
  DiscoveryAuthMethod None
  MaxSessions 64
  MaxConnections 4
  MaxR2T 32
  MaxOutstandingR2T 16
  DefaultTime2Wait 2
  DefaultTime2Retain 60
  FirstBurstLength 262144
  MaxBurstLength 1048576
  MaxRecvDataSegmentLength 262144
  InitialR2T Yes
  ImmediateData Yes
  DataPDUInOrder Yes
  DataSequenceInOrder Yes
  ErrorRecoveryLevel 0
[UnitControl]
  AuthMethod None
  Portal UC1 127.0.0.1:{control}
  Netmask 127.0.0.1
[PortalGroup1]
  Portal DA1 127.0.0.1:{port}
[InitiatorGroup1]
  InitiatorName "ALL"
  Netmask ALL
[LogicalUnit1]
  TargetName san
  Mapping PortalGroup1 InitiatorGroup1
  AuthMethod None
  UseDigest Auto
  UnitType Disk
  QueueDepth 0
"""


@dataclass(frozen=True)
class Target:
    """A running target.  ``addresses`` are its LUNs; ``images`` the files behind them."""

    kind: str
    pid: int
    addresses: tuple[Address, ...]
    images: tuple[str, ...]


@contextlib.contextmanager
def target(kind: str, place: str, *, luns: int = 1, size: int = 16 << 20) -> Iterator[Target]:
    """Run ``tgt`` or ``istgt`` with its files in the directory ``place``."""
    images = tuple(make_file(os.path.join(place, f"{kind}{i}.img"), size) for i in range(luns))
    port, control = _free_ports()
    start, first = (_start_tgt, 1) if kind == "tgt" else (_start_istgt, 0)
    with (
        open(os.path.join(place, f"{kind}.log"), "ab") as log,
        _running(start, place, port, control, images, log) as pid,
    ):
        urls = [f"iscsi://127.0.0.1:{port}/{_IQN}/{first + i}" for i in range(luns)]
        yield Target(kind, pid, tuple(parse_address(url, {}) for url in urls), images)


@contextlib.contextmanager
def _running(start, place, port, control, images, log) -> Iterator[int]:
    process, configure = start(place, port, control, images, log)
    try:
        _wait_for(lambda: socket.create_connection(("127.0.0.1", port), 1).close(), OSError, process)
        configure()
        yield process.pid
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()  # tgtd survives SIGTERM while it is in use
        process.wait()


def _start_tgt(place, port, control, images, log):
    environment = {**os.environ, "TGT_IPC_SOCKET": os.path.join(place, "tgt.ipc")}
    number = str(control % 32768)
    process = subprocess.Popen(
        ["tgtd", "-f", "-C", number, "-t", "1", "--iscsi", f"portal=127.0.0.1:{port}"],
        env=environment, stdout=log, stderr=subprocess.STDOUT,
    )  # fmt: skip

    def admin(*arguments: str) -> None:
        command = ["tgtadm", "-C", number, "--lld", "iscsi", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr}")

    def configure() -> None:
        new = ("--mode", "target", "--op", "new", "--tid", "1", "-T", _IQN)
        _wait_for(lambda: admin(*new), RuntimeError, process)  # its control socket comes up after the portal
        for i, image in enumerate(images):
            admin("--mode", "logicalunit", "--op", "new", "--tid", "1", "--lun", str(i + 1), "-b", image)
        admin("--mode", "target", "--op", "bind", "--tid", "1", "-I", "ALL")

    return process, configure


def _start_istgt(place, port, control, images, log):
    lines = [f"  LUN{i} Storage {image} Auto\n" for i, image in enumerate(images)]
    path = os.path.join(place, "istgt.conf")
    with open(path, "w", encoding="ascii") as file:
        file.write(_ISTGT.format(place=place, port=port, control=control) + "".join(lines))
    with open(os.path.join(place, "auth.conf"), "w", opener=lambda p, flags: os.open(p, flags, 0o600)):
        pass
    process = subprocess.Popen(["istgt", "-c", path, "-D"], stdout=log, stderr=subprocess.STDOUT)
    return process, lambda: None


def _wait_for(attempt, error, process) -> None:
    end = time.monotonic() + _START_SECONDS
    while True:
        try:
            return attempt()
        except error:
            assert process.poll() is None, "the target has died: see its log"
            if time.monotonic() > end:
                raise
            time.sleep(0.02)


def _free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        return one.getsockname()[1], two.getsockname()[1]
