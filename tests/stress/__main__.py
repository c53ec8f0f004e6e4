"""The stress for minutes or hours: ``scripts/test --stress`` runs this.

Prints a line a minute and a table at the end; exit code 0 when every acknowledged operation is explained.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import shutil
import sys
import time
from collections import Counter
from pathlib import Path

from tests.mount.guard import guarded
from tests.mount.lab import Lab, LabError
from tests.stress import contents, crowd
from tests.stress.rounds import Broken, Hang, Rounds, mount_hooked, plan_of
from tests.stress.worker import PROFILES

LINE_SECONDS = 60.0
SLACK_SECONDS = 600.0  # that a run may take beyond its minutes before the guard ends it
OPERATIONS = 200  # at most, of each process in a round
SHOWN = 1500  # characters of a round that failed, with --keep-going


def bring_up(lab: Lab, *, epochs: bool, mount_options: tuple[str, ...]) -> None:
    """Format, start and mount; without epochs as on a kernel before 6.16."""
    lab.format()
    for node in lab.nodes:
        lab.start(node)
    for node in lab.nodes:
        if epochs:
            lab.mount(node, *mount_options)
        else:
            mount_hooked(lab, node, "no-epoch", *mount_options)


def run(lab: Lab, options: argparse.Namespace) -> Rounds:
    """Rounds until the time is over, with all mounted.  Raises Hang, Broken, LabError."""
    rounds = Rounds(lab, epochs=not options.no_epochs, strict=options.strict, starve=options.starve)
    failed = 0
    profiles = tuple(
        profile for profile in options.profiles.split(",") if not (options.localflocks and profile == "locks")
    )
    began = told = time.monotonic()
    for number in itertools.count(options.first):
        if time.monotonic() - began > options.minutes * 60:
            break
        if options.rounds and number >= options.first + options.rounds:
            break
        wanted = plan_of(number, options.seed, options.processes, options.operations, profiles)
        try:
            rounds.run(wanted)
        except Broken as error:
            if not options.keep_going:
                raise
            failed += 1
            print(str(error)[:SHOWN], flush=True)
        if options.strict and rounds.stale:
            print(f"{wanted}: {contents.told(rounds.stale)}", flush=True)
        shutil.rmtree(lab.nodes[number % len(lab.nodes)].mountpoint / f"round{number}")
        if time.monotonic() - told >= LINE_SECONDS:
            told += LINE_SECONDS
            done = ", ".join(f"{kind} {count}" for kind, count in rounds.counts.most_common())
            print(f"{(told - began) / 60:.0f} min, round {number}: {done}", flush=True)
    lab.down()
    found = lab.fsck("-n")
    if found.returncode:
        raise Broken(f"fsck: {found.stdout}{found.stderr}")
    if failed:
        raise Broken(f"{failed} rounds, see above\n{table(rounds.counts)}")
    return rounds


def table(counts: Counter[str]) -> str:
    """Two columns."""
    return "\n".join(f"  {count:9}  {kind}" for kind, count in counts.most_common())


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="scripts/test --stress", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=8, help="in all, spread over the nodes (8)")
    parser.add_argument("--nodes", type=int, default=3, help="how many mounts (3)")
    parser.add_argument("--first", type=int, default=1, help="number of the first round: to repeat one (1)")
    parser.add_argument("--profiles", default=",".join(PROFILES), help=f"kinds of rounds, of {', '.join(PROFILES)}")
    parser.add_argument("--rounds", type=int, default=0, help="end after that many (when the minutes are over)")
    parser.add_argument("--operations", type=int, default=OPERATIONS, help=f"of a process and round ({OPERATIONS})")
    parser.add_argument("--strict", action="store_true", help="excuse nothing: the known limits count as failures")
    parser.add_argument("--keep-going", action="store_true", help="tell of a round that fails, and go on")
    parser.add_argument("--starve", action="store_true", help="beside busy processes: replies are taken in late")
    parser.add_argument("--no-epochs", action="store_true", help="as on a kernel before 6.16")
    parser.add_argument("--localflocks", action="store_true", help="mount with -o localflocks: without profile locks")
    parser.add_argument("--data-journal", action="store_true", help="mount with -o data=journal")
    parser.add_argument("--dir", type=Path, default=Path("/var/tmp/matrixfs-stress"), help="where everything is made")
    options = parser.parse_args()
    if not set(options.profiles.split(",")) <= PROFILES.keys() or not 1 <= options.processes <= 60 or options.nodes < 1:
        parser.error(f"--profiles are of {', '.join(PROFILES)}; 1 to 60 --processes; at least one of --nodes")
    directory = options.dir.resolve() / f"lab{os.getpid()}"  # a name that only this run uses, for the guard
    directory.parent.mkdir(parents=True, exist_ok=True)
    with guarded(directory, keep=True) as ear:
        print(options.minutes * 60 + SLACK_SECONDS, file=ear, flush=True)
        return _judged(Lab(directory, nodes=options.nodes, size="1G", name="stress"), options)


def _mount_options(options: argparse.Namespace) -> tuple[str, ...]:
    return ("localflocks",) * options.localflocks + ("data=journal",) * options.data_journal


def _judged(lab: Lab, options: argparse.Namespace) -> int:
    """Do it and tell; the exit code."""
    again = f"--seed {options.seed} --processes {options.processes} --nodes {options.nodes}"
    again += f" --profiles {options.profiles}" + "".join(
        f" --{name.replace('_', '-')}"
        for name in ("no_epochs", "localflocks", "data_journal", "strict", "keep_going", "starve")
        if getattr(options, name)
    )
    print(f"stress: {again}", flush=True)
    try:
        bring_up(lab, epochs=not options.no_epochs, mount_options=_mount_options(options))
        with crowd.busy() if options.starve else contextlib.nullcontext():
            rounds = run(lab, options)
    except (Hang, Broken, LabError) as error:
        print(f"FAILED: {error}\nagain: scripts/test --stress {again}, --first as told above", file=sys.stderr)
        print(f"history and logs: {lab.directory}", file=sys.stderr)
        lab.destroy()
        return 1
    except BaseException:
        lab.destroy()
        raise
    print(f"{rounds.counts.total()} operations, all explained\n{table(rounds.counts)}")
    if rounds.excused:
        print(f"known limits met (docs/testing.md)\n{table(rounds.excused)}")
    lab.remove()
    return 0


if __name__ == "__main__":
    sys.exit(main())
