"""The demo's steps; ``scripts/demo`` installs first and then runs this."""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import itertools
import os
import shutil
import signal
import stat
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.mount.lab import Lab, LabError, LabNode, wait_until, walk_tree

FILES_MIN = 5_000
BYTES_MAX = 400 << 20
APPENDS = 300  # lines from each node
NAMES = 200  # files created in one directory by each node
LOAD_SECONDS = 2.0  # of writing before the kill
AFTER_SECONDS = 4.0  # of watching the survivors after it

Fingerprint = tuple[int, int, int, int, int, str]


class Failure(Exception):
    """Something was not as it must be."""


class Demo:
    """One run; each step prints what it shows and raises Failure when that isn't so."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.one, self.two, self.three = lab.nodes
        self.summary: list[tuple[str, str]] = []
        self._began = time.monotonic()
        self._lockers: list[int] = []  # processes beside us that hold a lock, or wait for it

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self._began:6.1f} s] {text}", flush=True)

    def note(self, what: str, result: str) -> None:
        self.summary.append((what, result))
        self.say(f"{what}: {result}")

    # --- steps ------------------------------------------------------------------------------------------------

    def bring_up(self) -> None:
        """mkfs, three daemons, three mounts."""
        self.say(f"writing {self.lab.store} in full ({self.lab.size}): a disk has no holes that must be filled first")
        size = 2 << 30
        with open(self.lab.store, "wb", buffering=0) as store:
            store.writelines(bytes(1 << 20) for _ in range(size >> 20))
            os.fsync(store.fileno())
        self.say("formatting it")
        self.lab.format()
        for node in self.lab.nodes:
            self.lab.start(node)
            self.say(f"node {node.name} at {node.address} is a member")
        for node in self.lab.nodes:
            self.lab.mount(node)
        self.note("cluster", "3 nodes, one store, mounted on " + ", ".join(str(n.mountpoint) for n in self.lab.nodes))

    def copy_tree(self) -> Path:
        """A real tree goes in through node 1 and is compared through nodes 2 and 3."""
        original, count, size = self._gather()
        began = time.monotonic()
        subprocess.run(["cp", "-a", str(original), str(self.one.mountpoint / "tree")], check=True)
        took = time.monotonic() - began
        self.note("copied in through n1", f"{count} files and directories, {size >> 20} MiB, in {took:.1f} s")
        wanted = dict(fingerprints(original))
        for node in (self.two, self.three):
            began = time.monotonic()
            found = dict(fingerprints(node.mountpoint / "tree"))
            differing = [path for path in wanted.keys() | found.keys() if wanted.get(path) != found.get(path)]
            if differing:
                raise Failure(f"{len(differing)} of {len(wanted)} differ through {node.name}, first: {min(differing)}")
            self.note(
                f"compared through {node.name}",
                f"{len(found)} checksums, modes, owners, times and links the same ({time.monotonic() - began:.1f} s)",
            )
        return original

    def _gather(self) -> tuple[Path, int, int]:
        """A copy, outside of the cluster, of files every machine has: the tree to compare with."""
        staged = self.lab.directory / "original"
        staged.mkdir()
        count = size = 0
        for source in (sysconfig.get_path("stdlib"), "/usr/share/doc", "/usr/include", "/usr/share/perl", "/usr/lib"):
            if count >= FILES_MIN or not os.path.isdir(source):
                continue
            target = staged / source.strip("/").replace("/", "-")
            for path in itertools.chain([Path(source)], walk_tree(Path(source))):
                if "site-packages" in path.parts or "__pycache__" in path.parts:
                    continue
                copied = self._stage(path, target / path.relative_to(source))
                count, size = count + (copied is not None), size + (copied or 0)
                if size > BYTES_MAX or count > 3 * FILES_MIN:
                    break
        extra = staged / "links"
        extra.mkdir()
        (extra / "file").write_text("a file with two names and a link\n")
        os.link(extra / "file", extra / "second-name")
        os.symlink("file", extra / "symlink")
        os.mkfifo(extra / "fifo", 0o640)
        os.chmod(extra / "file", 0o4751)
        if count < FILES_MIN:
            raise Failure(f"this machine has only {count} files to copy")
        return staged, count + 5, size

    @staticmethod
    def _stage(path: Path, target: Path) -> int | None:
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode):
            target.mkdir(parents=True, exist_ok=True)
            return 0
        if stat.S_ISLNK(mode) or stat.S_ISREG(mode):
            shutil.copy2(path, target, follow_symlinks=False)
            return path.lstat().st_size
        return None

    def write_together(self) -> None:
        """Appends to one file and names in one directory, from all three nodes at once."""
        self.say(f"3 nodes append {APPENDS} lines each to one file and create {NAMES} names each in one directory")
        shared = self.one.mountpoint / "shared"
        shared.mkdir()
        (self.one.mountpoint / "log").touch()
        began = time.monotonic()
        appenders = [self._child(append_lines, node, APPENDS) for node in self.lab.nodes]
        creators = [self._child(create_names, node, NAMES) for node in self.lab.nodes]
        self._reap(appenders + creators)
        took = time.monotonic() - began
        for node in self.lab.nodes:
            lines = (node.mountpoint / "log").read_bytes().splitlines()
            wanted = {b"%s %06d" % (n.name.encode(), i) for n in self.lab.nodes for i in range(APPENDS)}
            if len(lines) != 3 * APPENDS or set(lines) != wanted:
                raise Failure(f"{node.name} sees {len(lines)} lines, {len(set(lines) & wanted)} of {len(wanted)} right")
            names = os.listdir(node.mountpoint / "shared")
            if len(names) != 3 * NAMES or len(set(names)) != 3 * NAMES:
                raise Failure(f"{node.name} sees {len(names)} names of {3 * NAMES}")
        self.note("written by all at once", f"{3 * APPENDS} lines and {3 * NAMES} names, none lost ({took:.1f} s)")

    def lock(self) -> None:
        """A flock held on node 1 is refused on node 2, where somebody then waits for it."""
        path = self.one.mountpoint / "lock"
        path.touch()
        held = self.lab.directory / "held"
        self._lockers.append(self._child(hold_lock, path, held))
        wait_until(held.exists, "n1 has the flock")
        with open(self.two.mountpoint / "lock", "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pass
            else:
                raise Failure("n2 got a flock that n1 holds")
        self._lockers.append(self._child(wait_for_lock, self.two.mountpoint / "lock", self.lab.directory / "got"))
        wait_until(lambda: any("waits" in line for line in self._locks_shown()), "the wait shows")
        self.note("flock held on n1", "refused on n2, where another process waits for it")
        self.say("matrixctl locks on n3 says:")
        for line in self._locks_shown():
            print(f"             {line}")

    def _locks_shown(self) -> list[str]:
        shown = self.lab.run("matrixctl", "locks", "--state", self.three.state)
        return shown.stdout.splitlines()

    def _tell_lock(self, killed: float) -> None:
        """The flock that the dead node held went to whoever waited for it."""
        holder, waiter = self._lockers
        self._reap([waiter])
        os.kill(holder, signal.SIGKILL)  # with its node's mount gone it has nothing any more
        self._reap([holder], expect_failure=True)
        took = float((self.lab.directory / "got").read_text()) - killed
        self.note("flock freed by the death", f"n2 has it {took * 1000:.0f} ms after the kill")

    def kill_one(self) -> None:
        """SIGKILL of node 1 while it writes; the survivors must go on, with all that was fsynced."""
        acknowledged = self.lab.directory / "acknowledged"
        acknowledged.touch()
        (self.one.mountpoint / "load").mkdir()
        for node in (self.two, self.three):
            (node.mountpoint / f"work-{node.name}").mkdir()
        writers = [self._child(write_and_sync, self.one, acknowledged, i) for i in range(2)]
        stop = time.monotonic() + LOAD_SECONDS + AFTER_SECONDS
        gaps = [self.lab.directory / f"gap-{node.name}" for node in (self.two, self.three)]
        workers = [
            self._child(work_until, node, stop, gap) for node, gap in zip((self.two, self.three), gaps, strict=True)
        ]
        time.sleep(LOAD_SECONDS)
        self.say("SIGKILL to matrixd and the mount process of n1, while it writes")
        killed = self.lab.kill(self.one)
        reading = self._child(first_look, self.two, killed, self.lab.directory / "look")
        self._reap(writers, expect_failure=True)
        self._reap([*workers, reading])
        first, every, files = (self.lab.directory / "look").read_text().split()
        for node, gap in zip((self.two, self.three), gaps, strict=True):
            longest, done = gap.read_text().split()
            self.note(f"{node.name} went on", f"{done} operations, the longest took {float(longest) * 1000:.0f} ms")
        waited = f"n2 gets at their directory {float(first) * 1000:.0f} ms after the kill"
        self.note("what n1 was writing", f"{waited}, and has read all {files} files after {float(every) * 1000:.0f} ms")
        self._tell_lock(killed)
        self._tell_recovery()
        self._check_synced(acknowledged)

    def _tell_recovery(self) -> None:
        """The phases as the administrator, whichever survivor that is now, has timed them."""
        for node in (self.two, self.three):
            for recovery in self.lab.status(node)["recoveries"]:
                if recovery["dead"]:
                    phases = ", ".join(f"{name} {seconds * 1000:.0f}" for name, seconds in recovery["phases"])
                    self.note("recovery", f"ms: {phases} (driven by {node.name})")
                    return

    def _check_synced(self, acknowledged: Path) -> None:
        lines = acknowledged.read_text().splitlines()
        for line in lines:
            name, size, digest = line.split()
            for node in (self.two, self.three):
                data = (node.mountpoint / "load" / name).read_bytes()[: int(size)]
                if hashlib.sha256(data).hexdigest() != digest:
                    raise Failure(f"{name}: what was fsynced ({size} bytes) is not there on {node.name}")
        if not lines:
            raise Failure("nothing was fsynced before the kill")
        self.note("fsynced before the kill", f"all {len(lines)} writes are there on n2 and n3")

    def bring_down(self) -> None:
        """Unmount, stop, check the store."""
        for node in (self.two, self.three):
            self.lab.umount(node)
        for node in (self.two, self.three):
            self.lab.stop(node)
        found = self.lab.fsck("-n")
        if found.returncode:
            raise Failure(f"fsck.matrixfs: exit {found.returncode}\n{found.stdout}{found.stderr}")
        self.note("fsck.matrixfs", found.stdout.strip().splitlines()[-1])

    # --- processes beside us ------------------------------------------------------------------------------------

    def _child(self, function: Callable[..., None], *arguments: object) -> int:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                function(*arguments)
                code = 0
            except Exception as error:  # a child's only way to tell
                if not isinstance(error, OSError):
                    print(f"demo: {function.__name__}: {error!r}", file=sys.stderr)
            finally:
                os._exit(code)
        return pid

    @staticmethod
    def _reap(pids: list[int], *, expect_failure: bool = False) -> None:
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        if any(codes) and not expect_failure:
            raise Failure("a process beside the demo failed")


# --- what runs on the nodes ----------------------------------------------------------------------------------------


def append_lines(node: LabNode, count: int) -> None:
    fd = os.open(node.mountpoint / "log", os.O_WRONLY | os.O_APPEND)
    for i in range(count):
        os.write(fd, b"%s %06d\n" % (node.name.encode(), i))
    os.close(fd)


def create_names(node: LabNode, count: int) -> None:
    for i in range(count):
        os.close(os.open(node.mountpoint / "shared" / f"{node.name}-{i}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))


def write_and_sync(node: LabNode, acknowledged: Path, worker: int) -> None:
    """Write and fsync files until the node dies; note outside of it what fsync promised."""
    log = os.open(acknowledged, os.O_WRONLY | os.O_APPEND)
    for i in itertools.count():
        name = f"{worker}-{i}"
        data = os.urandom(200 + (i * 7919) % 60000)
        fd = os.open(node.mountpoint / "load" / name, os.O_CREAT | os.O_WRONLY)
        os.write(fd, data)
        os.fsync(fd)
        os.close(fd)
        os.write(log, f"{name} {len(data)} {hashlib.sha256(data).hexdigest()}\n".encode())


def hold_lock(path: Path, held: Path) -> None:
    """Take a flock and keep it, for as long as the demo lasts."""
    parent = os.getppid()
    with open(path, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        held.touch()
        while os.getppid() == parent:
            time.sleep(0.1)


def wait_for_lock(path: Path, got: Path) -> None:
    """Wait for a flock; note when it came."""
    with open(path, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        got.write_text(str(time.monotonic()))


def work_until(node: LabNode, stop: float, result: Path) -> None:
    """Create, write, read and remove files of one's own; note how long the longest operation took."""
    longest = 0.0
    done = 0
    while (began := time.monotonic()) < stop:
        path = node.mountpoint / f"work-{node.name}" / f"f{done % 50}"
        path.write_bytes(b"x" * 5000)
        if path.read_bytes() != b"x" * 5000:
            raise Failure(f"{path}: other bytes than were written")
        if done % 3 == 0:
            path.unlink()
        longest = max(longest, time.monotonic() - began)
        done += 1
    result.write_text(f"{longest} {done}")


def first_look(node: LabNode, killed: float, result: Path) -> None:
    """List and read what the dead node was writing: the part of the tree that waits for its replay."""
    directory = node.mountpoint / "load"
    directory.stat()
    first = time.monotonic() - killed
    names = os.listdir(directory)
    for name in names:
        (directory / name).read_bytes()
    result.write_text(f"{first} {time.monotonic() - killed} {len(names)}")


def fingerprints(top: Path) -> Iterator[tuple[str, Fingerprint]]:
    """Each path below ``top`` with mode, owner, mtime, number of links, and what it holds."""
    for path in walk_tree(top):
        found = path.lstat()
        content = ""
        links = 0 if stat.S_ISDIR(found.st_mode) else found.st_nlink  # some filesystems count no directories
        if stat.S_ISREG(found.st_mode):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        elif stat.S_ISLNK(found.st_mode):
            content = os.readlink(path)
        yield (
            str(path.relative_to(top)),
            (found.st_mode, found.st_uid, found.st_gid, found.st_mtime_ns, links, content),
        )


def explain_keep(lab: Lab) -> None:
    one = lab.nodes[0]
    print(f"""
The cluster is up.  Look around:
  ls {one.mountpoint} {lab.nodes[1].mountpoint} {lab.nodes[2].mountpoint}
  matrixctl status --state {one.state}
  matrixctl status --json --state {one.state}
End it:
  umount {" ".join(str(node.mountpoint) for node in lab.nodes)}
  for n in n1 n2 n3; do matrixctl --state {lab.directory}/$n stop; done; rm -r {lab.directory}""")


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave the three nodes up and say how to look around")
    parser.add_argument("--dir", type=Path, default=Path("/var/tmp/matrixfs-demo"), help="where everything is made")
    options = parser.parse_args()
    lab = Lab(options.dir.resolve(), name="web")
    lab.remove()  # what an interrupted run left
    options.dir.mkdir(parents=True, exist_ok=True)
    demo = Demo(lab)
    try:
        demo.bring_up()
        demo.copy_tree()
        demo.write_together()
        if options.keep:
            explain_keep(lab)
            return 0
        demo.lock()
        demo.kill_one()
        demo.bring_down()
    except (Failure, LabError, subprocess.SubprocessError, OSError) as error:
        print(f"\nFAILED: {error}", file=sys.stderr)
        print(f"logs: {lab.directory}/n*/*.log", file=sys.stderr)
        lab.close()
        return 1
    except BaseException:
        lab.close()
        raise
    lab.remove()
    print("\nMatrixFS demo: all as it should be")
    for what, result in demo.summary:
        print(f"  {what:<24} {result}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
