"""A SAN on loopback: private iSCSI targets in user space, tgt and istgt, that export files as LUNs.

Both are stock Debian packages and wrong in different places, which is what they are good for (ecosystem.md 1).  Each
target has its own directory, portal and control socket; nothing of the system's own services is touched.  A process
beside the tests ends it when they die (``tests/mount/guard.py``).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.mount.guard import guarded

MIB = 1 << 20
START_SECONDS_MAX = 20.0
LOOK_SECONDS = 0.02
GUARD_SECONDS = 3600  # the guard's patience; the end of the tests it notices at once
KINDS = ("tgt", "istgt")


class SanError(Exception):
    """A target could not be started or told what to do."""


@dataclass
class Lun:
    """One file as a disk."""

    path: Path
    number: int
    sector_bytes: int


class Target(ABC):
    """A target process and what it exports; it lives on through ``kill`` and ``start`` with the same names.

    Args:
        directory: its own.
        luns: how many disks.
        size: of each, in bytes.
        sector_bytes: of each.
        chap: user and password it demands.
    """

    program: str
    first_lun: int

    def __init__(
        self,
        directory: Path,
        luns: int = 1,
        size: int = 64 * MIB,
        sector_bytes: int = 512,
        chap: tuple[str, str] | None = None,
    ) -> None:
        self.directory = directory
        self.port = _free_port()
        self.name = "iqn.2026-11.lab:san"
        self.chap = chap
        self.luns: list[Lun] = []
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True, exist_ok=True)
        for number in range(self.first_lun, self.first_lun + luns):
            path = directory / f"lun{number}"
            with path.open("wb") as file:
                file.truncate(size)
            self.luns.append(Lun(path, number, sector_bytes))

    def url(self, index: int = 0, credentials: str = "") -> str:
        """Name of a LUN as open_store takes it; ``credentials``: USER%PASSWORD@."""
        return f"iscsi://{credentials}127.0.0.1:{self.port}/{self.name}/{self.luns[index].number}"

    def start(self) -> None:
        """Start it; returns when it serves its LUNs."""
        assert self._process is None
        with (self.directory / "log").open("ab") as log:
            self._process = self._launch(log.fileno())
        try:
            _wait(self._listens, f"{self.program} listens")
            self._configure()
        except BaseException:
            self.kill()
            raise

    def kill(self) -> None:
        """End it without asking (tgtd ignores SIGTERM while it is in use).  Connections die with it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        """As after a crash of its program: what it answered is in its files, sessions are gone."""
        self.kill()
        self.start()

    def freeze(self) -> None:
        """It hangs: connections stay, nobody answers.  Returns when its last thread stands still."""
        self._signal(signal.SIGSTOP)
        assert self._process is not None
        tasks = Path(f"/proc/{self._process.pid}/task")
        _wait(lambda: all(_state(task) == "T" for task in tasks.iterdir()), f"{self.program} is stopped")

    def thaw(self) -> None:
        """It goes on with what it has."""
        self._signal(signal.SIGCONT)

    def read(self, index: int, offset: int, length: int) -> bytes:
        """What the file of a LUN holds, for the tests' own look."""
        with self.luns[index].path.open("rb") as file:
            file.seek(offset)
            return file.read(length)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def _listens(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise SanError(f"{self.program} ended: {(self.directory / 'log').read_text()[-2000:]}")
        try:
            socket.create_connection(("127.0.0.1", self.port), 0.5).close()
        except OSError:
            return False
        return True

    @abstractmethod
    def _launch(self, log: int) -> subprocess.Popen[bytes]:
        """Start the process, its output to ``log``."""

    @abstractmethod
    def _configure(self) -> None:
        """Tell the running process what to export."""


class Tgt(Target):
    """tgt: no PREEMPT AND ABORT, no COMPARE AND WRITE, registrations end with the session; honours FUA."""

    program = "tgtd"
    first_lun = 1  # 0 is its controller
    _control = 9  # any number: the socket's path is our own

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "TGT_IPC_SOCKET": str(self.directory / "ipc")}

    def _launch(self, log: int) -> subprocess.Popen[bytes]:
        named = f"{self.directory}/tgtd"  # the guard knows our processes by the directory
        command = [named, "-f", "-C", str(self._control), "-t", "1", "--iscsi", f"portal=127.0.0.1:{self.port}"]
        return subprocess.Popen(
            command, executable=_program(self.program), env=self._environment(), stdout=log, stderr=log
        )

    def _configure(self) -> None:
        new_target = ("target", "new", "--tid", "1", "-T", self.name)
        _wait(lambda: self._admin(*new_target, check=False), "tgtd's control socket is there")
        for lun in self.luns:
            which = ("--tid", "1", "--lun", str(lun.number), "--blocksize", str(lun.sector_bytes))
            self._admin("logicalunit", "new", *which, "-b", str(lun.path))
        if self.chap:
            user, password = self.chap
            self._admin("account", "new", "--user", user, "--password", password)
            self._admin("account", "bind", "--tid", "1", "--user", user)
        self._admin("target", "bind", "--tid", "1", "-I", "ALL")

    def make_thin(self, index: int) -> None:
        """Let a LUN take UNMAP from now on."""
        which = ("--tid", "1", "--lun", str(self.luns[index].number))
        self._admin("logicalunit", "update", *which, "--params", "thin_provisioning=1")

    def _admin(self, mode: str, operation: str, *arguments: str, check: bool = True) -> bool:
        command = [_program("tgtadm"), "-C", str(self._control), "--lld", "iscsi", "--mode", mode, "--op", operation]
        done = subprocess.run(
            [*command, *arguments], check=False, capture_output=True, text=True, env=self._environment()
        )
        if check and done.returncode:
            raise SanError(f"tgtadm {mode} {operation}: {done.stderr}{done.stdout}")
        return done.returncode == 0


class Istgt(Target):
    """istgt: PREEMPT AND ABORT, atomic COMPARE AND WRITE, session reinstatement; has a cache and no FUA.

    It takes one login a second, from whomever, and must not be told to reset a LUN under load: it hangs.
    """

    program = "istgt"
    first_lun = 0  # it insists on one
    _CONFIGURATION = """[Global]
  NodeBase "iqn.2026-11.lab"
  PidFile {directory}/pid
  AuthFile {directory}/auth
  MediaDirectory {directory}
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
  AuthMethod {method}
  AuthGroup {group}
  UseDigest Auto
  UnitType Disk
  QueueDepth 0
  BlockLength {sector}
{luns}
"""  # QueueDepth: with a queue a LUN hung at a preempt under load

    def _launch(self, log: int) -> subprocess.Popen[bytes]:
        text = self._CONFIGURATION.format(
            directory=self.directory,
            control=_free_port(),
            port=self.port,
            method="CHAP" if self.chap else "None",
            group="AuthGroup1" if self.chap else "None",
            sector=self.luns[0].sector_bytes,
            luns="\n".join(f"  LUN{lun.number} Storage {lun.path} Auto" for lun in self.luns),
        )
        (self.directory / "conf").write_text(text)
        secrets = self.directory / "auth"
        user, password = self.chap or ("", "")
        secrets.write_text(f'[AuthGroup1]\n  Auth "{user}" "{password}"\n' if self.chap else "")
        secrets.chmod(0o600)
        command = [_program(self.program), "-c", str(self.directory / "conf"), "-D"]
        return subprocess.Popen(command, stdout=log, stderr=log)

    def _configure(self) -> None:
        pass  # all is in its file


@contextlib.contextmanager
def san(kind: str, **options: object) -> Iterator[Target]:
    """A running target of ``kind``, ended and removed afterwards whatever happens.  Options are ``Target``'s."""
    directory = Path(tempfile.mkdtemp(prefix="matrixfs-san-"))  # short: a socket's path has 108 bytes at most
    with guarded(directory) as ear:
        ear.write(f"{GUARD_SECONDS}\n")
        ear.flush()
        target = {"tgt": Tgt, "istgt": Istgt}[kind](directory, **options)  # type: ignore[arg-type]
        target.start()
        try:
            yield target
        finally:
            target.kill()
            shutil.rmtree(directory, ignore_errors=True)


def _program(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if found is None:
        raise SanError(f"there is no {name} (scripts/install --develop gets it)")
    return found


def _state(task: Path) -> str:
    return (task / "stat").read_text().rpartition(")")[2].split()[0]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _wait(condition: object, what: str) -> None:
    assert callable(condition)
    deadline = time.monotonic() + START_SECONDS_MAX
    while not condition():
        if time.monotonic() > deadline:
            raise SanError(f"waited {START_SECONDS_MAX:g} s in vain until {what}")
        time.sleep(LOOK_SECONDS)
