"""``fsck.matrixfs``: check a store that no node uses, and repair what is safe to repair (``matrixfs/fsck``).

Exit codes are fsck(8)'s, not those of our other commands: 0 clean, 1 corrected, 4 errors left, 8 operational
error, 16 usage, 32 cancelled.  Source: issue 2 (commands and bad input); ecosystem 6 (fsck -t TYPE runs fsck.TYPE).
"""

from __future__ import annotations

import functools
import json
import signal
import sys
from typing import TYPE_CHECKING, Any, Final

import click

from matrixfs import __version__
from matrixfs.cli.common import printable, worst_of
from matrixfs.store_names import public_name
from membership.errors import MatrixError

if TYPE_CHECKING:
    from matrixfs.fsck.run import Mode, Outcome, Reporter

PROGRAM: Final = "fsck.matrixfs"
EXIT_OPERATIONAL: Final = 8
EXIT_USAGE: Final = 16
EXIT_CANCELLED: Final = 32


@click.command(PROGRAM, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("store")
@click.option("-n", "look", is_flag=True, help="Write nothing: open STORE read-only, replay journals in memory.")
@click.option("-y", "yes", is_flag=True, help="Repair what can be repaired without asking.")
@click.option(
    "-p", "-a", "preen", is_flag=True, help="Repair if all of it is safe; if something must be decided, change nothing."
)
@click.option("-f", is_flag=True, expose_value=False, help="Ignored: STORE is always checked.")
@click.option(
    "--upgrade", is_flag=True, help="If it is clean, let it use all of this version; older ones can't mount it then."
)
@click.option("--quota", is_flag=True, help="If it is clean, turn quotas on: count what is used, and keep it counted.")
@click.option("-v", "--verbose", is_flag=True, help="Show every problem and what the replay did.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.version_option(__version__, prog_name=PROGRAM)
@click.pass_context
def command(
    context: click.Context,
    *,
    store: str,
    look: bool,
    yes: bool,
    preen: bool,
    upgrade: bool,
    quota: bool,
    verbose: bool,
    as_json: bool,
) -> None:
    """Check the filesystem on STORE: the block device, file or LUN (iscsi://...) that mkfs.matrixfs made.

    No node may be using it.  Without an option it asks before it repairs, or on no terminal repairs nothing.
    """
    from matrixfs.fsck.run import Mode

    if look + yes + preen > 1:
        raise click.UsageError("choose one of -n, -y and -p")
    if look and (upgrade or quota):
        raise click.UsageError("-n writes nothing: leave it out to upgrade, or to turn quotas on")
    if yes:
        mode = Mode.REPAIR
    elif preen:
        mode = Mode.PREEN
    elif look or ((as_json or not sys.stdin.isatty()) and not (upgrade or quota)):
        mode = Mode.LOOK
    else:
        mode = Mode.ASK
    run_one = _check_as_json if as_json else functools.partial(_check, verbose=verbose)
    context.exit(run_one(store, mode, upgrade=upgrade, quota=quota))


def main() -> None:
    """Entry point: ``command``, with the exit codes of fsck(8)."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # end like Ctrl-C: 32
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run the command line; return the exit code."""
    try:
        result: Any = command.main(arguments, prog_name=PROGRAM, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return EXIT_USAGE
    except MatrixError as error:
        return _operational(error)
    except BaseExceptionGroup as group:
        if group.subgroup(KeyboardInterrupt):
            return _cancelled()
        return _operational(worst_of(group))
    except (click.Abort, KeyboardInterrupt):
        return _cancelled()
    return int(result or 0)


def _operational(error: MatrixError) -> int:
    click.echo(f"{PROGRAM}: {printable(str(error))}", err=True)
    return EXIT_OPERATIONAL


def _cancelled() -> int:
    click.echo(f"{PROGRAM}: cancelled; run it again to finish", err=True)
    return EXIT_CANCELLED


def _check(store: str, mode: Mode, *, upgrade: bool, quota: bool, verbose: bool) -> int:
    """Check and print for people."""
    from matrixfs.fsck.report import TextReporter, quotas_line, summary, upgrade_line
    from membership.clock import SystemClock

    terminal = sys.stderr if sys.stderr.isatty() else None
    confirm = click.confirm if sys.stdin.isatty() else _nobody
    reporter = TextReporter(sys.stdout, terminal, SystemClock(), confirm, verbose=verbose)
    try:
        outcome = _run(store, mode, reporter, upgrade=upgrade, quota=quota)
    finally:
        reporter.close()
    reporter.say(summary(outcome))
    if upgrade:
        reporter.say(f"{printable(outcome.name)}: {upgrade_line(outcome)}")
    if quota:
        reporter.say(f"{printable(outcome.name)}: {quotas_line(outcome)}")
    return outcome.exit_code


def _nobody(question: str) -> bool:  # noqa: ARG001 - as click.confirm
    """The answer where nobody can be asked."""
    return False


def _check_as_json(store: str, mode: Mode, *, upgrade: bool, quota: bool) -> int:
    """Check and print one document."""
    from matrixfs.fsck.report import SilentReporter, document

    reporter = SilentReporter()
    outcome = _run(store, mode, reporter, upgrade=upgrade, quota=quota)
    click.echo(json.dumps(document(public_name(store), outcome, reporter), indent=2))
    return outcome.exit_code


def _run(store: str, mode: Mode, reporter: Reporter, *, upgrade: bool, quota: bool) -> Outcome:
    """Open the store and check it.  Raises MatrixError."""
    import trio

    from matrixfs.blockstore import open_store
    from matrixfs.blockstore.fencing.luns import seize
    from matrixfs.fsck.run import Mode, run_fsck
    from membership.clock import SystemClock, SystemRng

    device = open_store(store, read_only=mode is Mode.LOOK)

    async def check() -> Outcome:
        await device.open()
        incarnation = int.from_bytes(SystemRng().randbytes(5), "little")
        try:
            clock, rng = SystemClock(), SystemRng()
            return await run_fsck(
                device,
                mode,
                clock,
                rng,
                reporter,
                lambda label: seize(device, label, incarnation),
                upgrade=upgrade,
                quotas=quota,
            )
        finally:
            with trio.CancelScope(shield=True):
                await device.aclose()

    return trio.run(check)
