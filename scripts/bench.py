"""The bench: the same system calls on MatrixFS and on the local filesystem, in turns; ``scripts/bench`` starts it.

Every round does all rows on a new directory, first here and then there in even rounds and the other way round in odd
ones, so that both sides share whatever else the machine does.  The table shows medians over the rounds.  Beside the
times stand what an operation cost in calls from the kernel, messages between nodes, and store I/O.
"""

from __future__ import annotations

import argparse
import mmap
import os
import platform
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from matrixfs.fuse import registry
from membership.errors import MatrixError
from scripts import bench_calm, bench_crowd, bench_failover, bench_links
from scripts import bench_rows as work
from scripts.bench_counters import BenchError, Mounted, total
from scripts.bench_report import Row, as_json, percentile, table
from tests.mount.lab import Lab, LabError

STORE_MIB = 3072
STORE_PIECE = 4 << 20
CROWD_SECONDS = 1.5  # of creating in one directory, for each number of nodes
REBUILD_NODES = 3

Say = Callable[[str], None]


@dataclass(frozen=True)
class Sizes:
    """How much work a round is."""

    files: int
    mib: int
    syncs: int
    hand_overs: int
    tree: int
    locks: int


@dataclass
class Side:
    """Where a workload runs: a directory for each node (locally always the same one), and whose counters move."""

    tops: list[Path]
    mounts: list[Mounted]

    @property
    def ours(self) -> bool:
        """MatrixFS, not the local filesystem."""
        return bool(self.mounts)


class Bench:
    """The rows, and one round of each group of them on one side."""

    def __init__(self, sizes: Sizes, say: Say) -> None:
        self.sizes = sizes
        self.rows: list[Row] = []
        self._say = say

    def _row(self, name: str, unit: str, bound: str) -> Row:
        for row in self.rows:
            if row.name == name:
                return row
        self.rows.append(Row(name, unit, bound))
        return self.rows[-1]

    def _measure(self, side: Side, row: Row, operations: int, action: Callable[[], object]) -> None:
        """Time ``action``, which is ``operations`` of the row's; its cost too, on MatrixFS."""
        before = total(side.mounts)
        seconds = work.timed(action) / operations
        if side.ours:
            row.costs.append((total(side.mounts) - before).per(operations))
            row.ours.append(seconds)
        else:
            row.local.append(seconds)

    def small_files(self, side: Side, top: Path) -> None:
        """Create, write, stat, open-read-close, unlink."""
        count = self.sizes.files
        files = work.paths(top, count)
        calls = "its calls: 40-60 us each, trio and pyfuse3"
        self._measure(side, self._row("create", "file", calls), count, lambda: work.create(files))
        self._measure(side, self._row("open-write-close 4 KiB", "file", calls), count, lambda: work.write_small(files))
        work.read_small(files)  # warms attributes and pages
        work.stat_all(files)
        self._measure(side, self._row("stat, warm", "file", "the kernel alone"), count, lambda: work.stat_all(files))
        opens = "OPEN, FLUSH and RELEASE calls"
        self._measure(
            side, self._row("open-read-close 4 KiB, warm", "file", opens), count, lambda: work.read_small(files)
        )
        removes = "calls, and the deletion behind them"
        self._measure(side, self._row("unlink", "file", removes), count, lambda: work.unlink(files))

    def large_file(self, side: Side, top: Path) -> None:
        """One large file in calls of 1 MiB, and durable small writes."""
        path, mib = top / "large", self.sizes.mib
        self._measure(
            side,
            self._row("sequential write, fsync at the end", "MiB", "copies in the mount process, the store"),
            mib,
            lambda: work.write_large(path, mib),
        )
        work.read_large(path, mib)
        warm = self._row("sequential read, warm", "MiB", "the kernel's copy from its page cache")
        self._measure(side, warm, mib, lambda: work.read_large(path, mib))
        if os.geteuid() == 0:
            work.drop_caches(work.PAGES_ONLY)
            cold = self._row("sequential read, cold", "MiB", "one call and one store read per MiB")
            self._measure(side, cold, mib, lambda: work.read_large(path, mib))
        path.unlink()
        count, log = self.sizes.syncs, top / "log"
        appends = self._row("append 4 KiB and fsync", "fsync", "two syncs of the store: data, journal")
        self._measure(side, appends, count, lambda: work.write_durably(log, count))

    def tree(self, side: Side, name: str) -> None:
        """A tree made on the first node, listed and read where nobody has seen it."""
        count = self.sizes.tree
        work.make_tree(side.tops[0] / name, count)
        root = os.geteuid() == 0
        if not (side.ours or root):
            return  # a local tree is cold only when root drops the caches
        taking = "the writer's release of each file"
        sharing = "a lock request and a store read per file"
        for top, who, why in zip(side.tops[1:3], ("2nd", "3rd"), (taking, sharing), strict=False):
            if root:
                work.drop_caches(work.EVERYTHING)
            viewed = top / name
            row = self._row(f"list a cold tree, {who} mount", "file", why)
            self._measure(side, row, count, lambda viewed=viewed: work.list_tree(viewed, count))  # type: ignore[misc]
            if row.costs:
                row.note = f"{1000 * (row.cost('messages') or 0):.0f} messages for 1,000 files"
            if root:
                work.drop_caches(work.PAGES_ONLY)
            row = self._row(f"read its files, {who} mount", "file", "calls and a store read per file")
            self._measure(side, row, count, lambda viewed=viewed: work.read_tree(viewed))  # type: ignore[misc]

    def hand_over(self, side: Side, reference: Path, name: str, bare: float) -> None:
        """One page written on the first node and read on the second; between two of them a bare write of the disk."""
        row = self._row("hand-over of a 4 KiB file", "page", "three syncs: journal, in place, revoke; and CPU")
        store = self._row("durable 4 KiB write, in between", "write", "the disk, and who else uses it")
        row.rounds = store.rounds = False
        count = self.sizes.hand_overs
        before = total(side.mounts)
        with bench_crowd.DurableFile(reference / name) as disk:
            row.ours += work.hand_over(side.tops[0] / name, side.tops[1] / name, count, disk.write)
        store.local += disk.seconds
        row.costs.append((total(side.mounts) - before).per(count))
        slow, disk_slow = (percentile(seconds, 99) * 1000 for seconds in (row.ours, store.local))
        row.note = (
            f"median {median(row.ours) * 1000:.2f} ms, {median(row.ours) / bare:.0f} bare round trips; "
            f"p99 {slow:.2f} ms, of a bare durable write {disk_slow:.2f} ms; {len(row.ours)} times, none stale"
        )

    def ping_pong(self, side: Side, name: str, bare: float) -> None:
        """One byte's fcntl lock between two nodes, without data."""
        count = self.sizes.hand_overs
        row = self._row("fcntl lock, hand-off between two mounts", "lock", "calls, and the round trip to the arbiter")
        self._measure(side, row, 2 * count, lambda: work.ping_pong(side.tops[0] / name, side.tops[1] / name, count))
        if side.ours:
            seconds = median(row.ours)
            row.note = f"{1 / seconds:.0f} hand-offs a second, each {seconds / bare:.1f} bare round trips"

    def hot_files(self, side: Side, name: str) -> None:
        """The warm row again, on a mount whose files the kernel opens by itself."""
        count = self.sizes.files
        (side.tops[0] / name).mkdir()
        files = work.paths(side.tops[0] / name, count)
        work.create(files)
        work.write_small(files)
        for _ in range(2):  # the first READ after a write lets go of the attributes
            work.read_small(files)
        row = self._row("the same, -o localflocks", "file", "the kernel alone")
        self._measure(side, row, count, lambda: work.read_small(files))

    def remote_lock(self, side: Side, name: str, bare: float) -> None:
        """Lock requests nobody stands in the way of: to another node, and to the node's own share of the lock manager.

        A file that node 1 made is arbitrated by node 1, one that node 3 made by node 3 (placement).  When node 3 has
        lost the lock, and two others share it, node 3's next stat takes it too: with a round trip there, none here.
        The rest of that stat is the same work, so the difference is the round trip with all that belongs to it.
        """
        if len(side.tops) < 3:
            return
        third = side.tops[2]
        own = self._first_stats(side, third, f"{name}-own")
        remote = self._first_stats(side, side.tops[0], f"{name}-remote")
        if own[1]["round_trips"] > 0.1 or remote[1]["round_trips"] < 0.9:
            self._say("lock requests went elsewhere than expected: no figure for the remote lock")
            return
        row = self._row("uncontended remote lock", "lock", "wake-ups of two processes")
        row.costs.append(remote[1])
        row.ours.append(remote[0] - own[0])
        times = median(row.ours) / bare
        row.note = f"first stat of a file arbitrated elsewhere, less one arbitrated here; {times:.1f} bare round trips"

    def crowd(self, side: Side, name: str, bare: float) -> None:
        """All nodes create in one directory, beside one of them that has a directory for itself."""
        alone = None
        for nodes in range(1, min(3, len(side.tops)) + 1):
            top = f"{name}-{nodes}"
            (side.tops[0] / top).mkdir()
            who, bound = (f"{nodes} nodes", "hand-overs; two CPUs") if alone else ("1 node", "its calls")
            row = self._row(f"create in one directory, {who}", "file", bound)
            before = total(side.mounts)
            found = bench_crowd.create_together([each / top for each in side.tops[:nodes]], CROWD_SECONDS)
            row.costs.append((total(side.mounts) - before).per(sum(found.made)))
            row.ours.append(1 / found.rate)
            row.crowds.append(found)
            alone = alone or row
            row.note = crowd_note(row, alone, bare)

    def rebuild(self, bare: float) -> None:
        """Recovery of the locks: three processes, none of them a mount, after a fourth one died."""
        locks = self.sizes.locks
        row = self._row(f"rebuild of locks, {REBUILD_NODES} nodes", "lock", "reports: encode, decode, insert")
        row.ours.append(bench_crowd.rebuild(locks, REBUILD_NODES) / locks)
        seconds = median(row.ours) * locks
        row.note = f"{locks} locks in {seconds:.2f} s, {seconds / bare:.0f} bare round trips"

    def _first_stats(self, side: Side, maker: Path, name: str) -> tuple[float, dict[str, float]]:
        """Median seconds, and cost to node 3, of its stats of files that ``maker`` made and nodes 1 and 2 share."""
        first, second, third = side.tops[:3]
        count = self.sizes.syncs
        files = [f"{name}/file-{number}" for number in range(count)]
        (maker / name).mkdir()
        work.create([f"{maker}/{file}" for file in files])
        work.stat_all([f"{third}/{file}" for file in files])  # it knows the names: what follows asks for the inode only
        work.write_small([f"{first}/{file}" for file in files])
        work.stat_all([f"{second}/{file}" for file in files])
        before = side.mounts[2].counters()
        seconds = work.stat_each([f"{third}/{file}" for file in files])
        return median(seconds), (side.mounts[2].counters() - before).per(count)

    def links(self, bare: float) -> None:
        """What of a remote lock is the link's and the lock manager's: between two bare processes, nothing mounted."""
        for name, unit, trips in (
            ("message and answer, bare processes", "trip", bench_links.message_trips),
            ("uncontended remote lock, bare processes", "lock", bench_links.lock_trips),
        ):
            row = self._row(name, unit, "wake-ups of two processes")
            row.rounds = False
            row.ours += trips(500)
            quick = percentile(row.ours, 10)
            row.note = f"{median(row.ours) / bare:.1f} bare round trips; a tenth took {quick * 1e6:.0f} us or less"

    # --- a whole run ---------------------------------------------------------------------------------------------

    def run(self, ours: Side, local: Side, rounds: int) -> None:
        """All rounds."""
        bare = Row("bare trio TCP round trip, 64 bytes", "trip", "wake-ups of two processes", rounds=False)
        for number in range(rounds):
            self._say(f"round {number + 1} of {rounds}")
            sides = (ours, local) if number % 2 == 0 else (local, ours)
            bare.local += work.round_trips(500)
            for side in sides:
                top = side.tops[0] / f"round-{number}"
                top.mkdir()
                self.small_files(side, top)
                self.large_file(side, top)
                self.tree(side, f"tree-{number}")
                self.ping_pong(side, f"locks-of-{number}", median(bare.local))
            self.hand_over(ours, local.tops[0], f"page-{number}", median(bare.local))
            self.remote_lock(ours, f"locks-{number}", median(bare.local))
            self.crowd(ours, f"crowd-{number}", median(bare.local))
            self.rebuild(median(bare.local))
            self.links(median(bare.local))
        self.rows = [row for row in self.rows if row.ours or not row.rounds]
        self.rows.append(bare)


def crowd_note(row: Row, alone: Row, bare: float) -> str:
    """How the nodes together did beside one alone, and beside each other."""
    share = median(alone.ours) / median(row.ours)
    least = median(each.slowest_share for each in row.crowds)
    longest = max(each.longest for each in row.crowds)
    return (
        f"{1 / median(row.ours):.0f} a second, {share:.0%} of one node's; the slowest made {least:.0%} of its share; "
        f"the longest create took {longest * 1000:.0f} ms, {longest / bare:.0f} bare round trips"
    )


# --- where it runs ---------------------------------------------------------------------------------------------------


def filesystem_of(path: Path) -> str:
    """Type of the filesystem that holds ``path``."""
    holders = [m for m in registry.mounts() if path == Path(m.path) or Path(m.path) in path.parents]
    return max(holders, key=lambda m: len(m.path)).fs_type if holders else "unknown"


def write_store(path: Path) -> None:
    """Give every block of the store its place on the local disk, which a LUN's blocks have too.

    A durable write into a hole of an ext4 file costs a commit of ext4's journal, many times the write itself.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_DIRECT, 0o600)
    piece = mmap.mmap(-1, STORE_PIECE)
    for at in range(0, STORE_MIB << 20, STORE_PIECE):
        os.pwritev(fd, [piece], at)
    os.fsync(fd)
    os.close(fd)


def measure(directories: Sequence[Path], reference: Path, options: argparse.Namespace, say: Say) -> Bench:
    """Run the bench in new directories below the given ones, which are removed at the end."""
    mounts = [Mounted(path) for path in directories]
    if len({mount.source for mount in mounts}) != 1:
        raise BenchError("the directories are mounts of different trees")
    if filesystem_of(reference).startswith("fuse."):
        raise BenchError(f"{reference} is no local filesystem: give one with --local")
    name = f"bench-{os.getpid()}"
    ours = Side([path / name for path in directories], mounts)
    local = Side([reference / name] * len(directories), [])
    sizes = Sizes(options.files, options.mib, options.syncs, options.hand_overs, options.tree, options.locks)
    bench = Bench(sizes, say)
    try:
        ours.tops[0].mkdir()
        local.tops[0].mkdir(parents=True)
        bench.run(ours, local, options.rounds)
    finally:
        if options.directories:  # else the whole store goes
            shutil.rmtree(ours.tops[0], ignore_errors=True)
        shutil.rmtree(local.tops[0], ignore_errors=True)
    return bench


def measure_hot_files(lab: Lab, bench: Bench, reference: Path, rounds: int) -> None:
    """The last node's mount again with ``-o localflocks``."""
    node = lab.nodes[-1]
    lab.umount(node)
    lab.mount(node, "localflocks")
    for top, mounts in ((node.mountpoint, [Mounted(node.mountpoint)]), (reference, [])):
        top = top / f"hot-{os.getpid()}"
        top.mkdir()
        try:
            for number in range(rounds):
                bench.hot_files(Side([top], mounts), f"round-{number}")
        finally:
            shutil.rmtree(top)
    warm = next(index for index, row in enumerate(bench.rows) if "warm" in row.name and "open" in row.name)
    bench.rows.insert(warm + 1, bench.rows.pop())


def measure_own_lab(options: argparse.Namespace, say: Say) -> Bench:
    """The same on three nodes that are started for it."""
    if os.geteuid() != 0:
        raise BenchError("only root may mount: use sudo, or give mount points")
    lab = Lab(options.dir.resolve(), name="bench", size=f"{STORE_MIB}M")
    lab.remove()  # what an interrupted run left
    say(f"writing a store of {STORE_MIB} MiB, starting three nodes in {lab.directory}")
    try:
        write_store(lab.store)
        lab.up()
        reference = options.local or lab.directory
        bench = measure([node.mountpoint for node in lab.nodes], reference, options, say)
        measure_hot_files(lab, bench, reference, options.rounds)
    except BaseException:
        lab.close()  # the logs stay: a mount that died tells there why
        say(f"logs: {lab.directory}/n*/*.log (the next run removes them)")
        raise
    lab.remove()
    return bench


def header(options: argparse.Namespace, reference: Path) -> dict[str, Any]:
    """What somebody needs to compare or repeat the run."""
    words = ["sudo", "scripts/bench", *map(str, options.directories)]
    flags = ("rounds",) if options.failover else ("rounds", "files", "mib", "syncs", "hand_overs", "tree", "locks")
    words += ["--failover"] if options.failover else []
    if options.calm:
        flags, words = (), [*words, "--calm", f"{options.calm:g}"]
    for flag in flags:
        words += [f"--{flag.replace('_', '-')}", str(getattr(options, flag))]
    return {
        "command": shlex.join(words + (["--local", str(options.local)] if options.local else [])),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
        "local_filesystem": filesystem_of(reference),
    }


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("directories", nargs="*", type=Path, metavar="DIR", help="two or more mount points of one tree")
    parser.add_argument("--rounds", type=int, default=3, help="of everything; medians are shown [3]")
    parser.add_argument("--calm", type=float, metavar="MINUTES", help="instead: is anybody evicted at full load?")
    parser.add_argument("--failover", action="store_true", help="instead: how long others wait for a dead node")
    parser.add_argument("--files", type=int, default=1000, help="small files in one directory [1000]")
    parser.add_argument("--mib", type=int, default=256, help="size of the large file [256]")
    parser.add_argument("--syncs", type=int, default=200, help="durable writes, and lock requests [200]")
    parser.add_argument("--hand-overs", type=int, default=200, help="pages passed between two mounts [200]")
    parser.add_argument("--tree", type=int, default=500, help="files in the tree that is read cold [500]")
    parser.add_argument("--locks", type=int, default=100_000, help="rebuilt on three nodes [100000]")
    parser.add_argument("--local", type=Path, help="directory to compare with [beside the store, or /var/tmp]")
    parser.add_argument("--dir", type=Path, default=Path("/var/tmp/matrixfs-bench"), help="where own nodes are made")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of the table")
    options = parser.parse_args()
    if len(options.directories) == 1:
        parser.error("give two or more mount points of one tree, or none")
    sizes = (options.rounds, options.files, options.mib, options.syncs, options.hand_overs, options.tree, options.locks)
    if min(sizes) < 1:
        parser.error("every number must be 1 or more")
    if options.calm is not None and not options.calm > 0:
        parser.error("--calm: give minutes")
    options.directories = [path.resolve() for path in options.directories]
    return options


def show(bench: Bench, head: dict[str, Any], rounds: int) -> None:
    """The table for people."""
    print(f"\nMatrixFS beside local {head['local_filesystem']}: microseconds, medians of {rounds} rounds; "
          "calls, messages, store reads and writes are per operation\n")  # fmt: skip
    print(table(bench.rows))
    if not any("cold" in row.name for row in bench.rows):
        print("cold reads: only root can drop the kernel's caches")
    print(f"\n{head['cpus']} CPUs, Linux {head['kernel']}, Python {head['python']}, load {head['load_before']} before; "
          "other load on the machine shows in the spread of the rounds")  # fmt: skip
    print(f"repeat with: {head['command']}")


def main() -> int:
    """The command."""
    options = arguments()
    reference = (options.local or (Path("/var/tmp") if options.directories else options.dir.parent)).resolve()
    head = header(options, reference)

    def say(text: str) -> None:
        print(f"bench: {text}", file=sys.stderr, flush=True)

    try:
        if options.calm:
            bench_calm.run(options.dir.resolve(), options.calm, head, say, as_json=options.json)
            return 0
        if options.failover:
            bench_failover.run(options.dir.resolve(), options.rounds, head, say, as_json=options.json)
            return 0
        if options.directories:
            bench = measure(options.directories, reference, options, say)
        else:
            bench = measure_own_lab(options, say)
    except (BenchError, LabError, MatrixError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    if options.json:
        print(as_json(head, bench.rows))
    else:
        show(bench, head, options.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
