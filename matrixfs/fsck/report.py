"""What fsck says: lines for people, one document for programs, progress on a terminal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TextIO

from matrixfs.fs.replay import ReplayReport
from matrixfs.fsck.context import STAGES, printable
from matrixfs.fsck.problems import Finding, Findings
from matrixfs.fsck.run import Outcome
from matrixfs.ondisk.features import feature_names
from membership.seams import Clock

LINES_PER_CODE = 20  # of one kind of problem, unless --verbose
PROGRESS_SECONDS = 0.2
BAR_WIDTH = 16


class TextReporter:
    """A ``Reporter`` that prints.

    Args:
        out: for lines.
        terminal: for progress; None when nobody watches.
        clock: paces the progress.
        confirm: asks the administrator.
        verbose: say everything.
    """

    def __init__(
        self, out: TextIO, terminal: TextIO | None, clock: Clock, confirm: Callable[[str], bool], *, verbose: bool
    ) -> None:
        self._out = out
        self._terminal = terminal
        self._clock = clock
        self._confirm = confirm
        self._verbose = verbose
        self._shown_at = clock.monotonic()
        self._checks = 0

    def report(self, stage: str, done: int, total: int) -> None:
        """See ``Progress``."""
        if self._terminal is None:
            return
        now = self._clock.monotonic()
        if now - self._shown_at >= PROGRESS_SECONDS:
            self._shown_at = now
            self._terminal.write("\r\x1b[K" + progress_line(stage, done, total))
            self._terminal.flush()

    def say(self, line: str) -> None:
        """See ``Reporter``."""
        self._clear()
        self._out.write(line + "\n")
        self._out.flush()

    def replayed(self, journal: int, report: ReplayReport, *, in_memory: bool) -> None:
        """See ``Reporter``."""
        what = f"{report.transactions} transactions, {report.written} blocks"
        if in_memory:
            self.say(f"journal {journal}: not replayed on the store; checked as if it were: {what}")
        else:
            self.say(f"journal {journal}: replayed {what}")
        if self._verbose:
            self.say(
                f"journal {journal}: {report.frames} frames, {report.images} images,"
                f" {report.skipped} older than in place, {report.revoked} revoked"
            )

    def found(self, findings: Findings) -> None:
        """See ``Reporter``."""
        self._checks += 1
        if self._checks > 1 and findings.kept:
            self.say("after the repair:")
        shown: dict[str, int] = {}
        for finding in findings.kept:
            code = finding.problem.code
            shown[code] = shown.get(code, 0) + 1
            if self._verbose or shown[code] <= LINES_PER_CODE:
                self.say(_line(findings, finding))
        for code, count in findings.counts.items():
            hidden = count - (shown[code] if self._verbose else min(shown.get(code, 0), LINES_PER_CODE))
            if hidden:
                self.say(f"... and {hidden} more [{code}]")

    def ask(self, fixable: int) -> bool:
        """See ``Reporter``."""
        self._clear()
        return self._confirm(f"Repair {_many(fixable, 'problem')}?")

    def close(self) -> None:
        """Leave the terminal tidy."""
        self._clear()

    def _clear(self) -> None:
        if self._terminal is not None:
            self._terminal.write("\r\x1b[K")
            self._terminal.flush()


def progress_line(stage: str, done: int, total: int) -> str:
    """Which stage of how many, a bar, and blocks done of all, in less than 80 columns."""
    done = min(done, total)
    filled = BAR_WIDTH * done // max(1, total)
    number = f"{STAGES.index(stage) + 1}/{len(STAGES)} {stage}" if stage in STAGES else stage
    bar = "#" * filled + "." * (BAR_WIDTH - filled)
    return f"{number:<10} [{bar}] {100 * done // max(1, total):>3} %  {done:,} of {total:,} blocks"


class SilentReporter:
    """A ``Reporter`` for ``--json``: the document at the end says all."""

    def __init__(self) -> None:
        self.journals: list[dict[str, Any]] = []

    def report(self, stage: str, done: int, total: int) -> None:
        """See ``Progress``."""

    def say(self, line: str) -> None:
        """See ``Reporter``."""

    def replayed(self, journal: int, report: ReplayReport, *, in_memory: bool) -> None:
        """See ``Reporter``."""
        counts = {name: getattr(report, name) for name in ReplayReport.__dataclass_fields__}
        self.journals.append({"journal": journal, "in_memory": in_memory, **counts})

    def found(self, findings: Findings) -> None:
        """See ``Reporter``."""

    def ask(self, fixable: int) -> bool:
        """Nobody is there to ask."""
        return False


def _line(findings: Findings, finding: Finding) -> str:
    problem = finding.problem
    kind = "note: " if problem.is_note else ""
    if findings.may_fix(finding):
        hint = f"; repair: {problem.cure}{' (not with -p)' if problem.decides else ''}"
    elif finding.fix is not None:
        hint = "; not repaired while worse damage stands"
    elif problem.is_note:
        hint = ""
    else:
        hint = "; this version can't repair it"
    return f"{kind}{finding.text} [{problem.code}]{hint}"


def summary(outcome: Outcome) -> str:
    """The last line, after e2fsck's."""
    counts = outcome.counts
    if outcome.left.errors:
        state = f"{_many(outcome.left.errors, 'problem')} left"
        if outcome.left.fixable:
            state += " (repair with -y)"
    elif outcome.found.errors:
        state = f"clean after {_many(outcome.found.errors, 'repaired problem')}"
    else:
        state = "clean"
    if not outcome.name:
        return f"no filesystem: {state}"
    return (
        f"{printable(outcome.name.encode())}: {state}, {_many(counts.files, 'file')},"
        f" {_many(counts.directories, 'directory')}, {counts.blocks_used}/{outcome.blocks_total} blocks used"
    )


def upgrade_line(outcome: Outcome) -> str:
    """What ``--upgrade`` did."""
    if outcome.left.errors:
        return "not upgraded: only a clean filesystem is; repair it first (-y)"
    if not outcome.features_new:
        return "not upgraded: it has everything that this version can do"
    names = ", ".join(feature_names(outcome.features_new))
    return f"upgraded: {names}; versions of MatrixFS that do not know these can't mount, check or change it any more"


def quotas_line(outcome: Outcome) -> str:
    """What ``--quota`` did."""
    if outcome.left.errors:
        return "quotas not turned on: only on a clean filesystem; repair it first (-y)"
    if not outcome.quotas_new:
        return "quotas were on already"
    return "quotas are on; versions of MatrixFS that do not know them can't mount, check or change it any more"


def _many(count: int, word: str) -> str:
    """``count`` of something."""
    if count == 1:
        return f"1 {word}"
    return f"{count} {word[:-1]}ies" if word.endswith("y") else f"{count} {word}s"


def document(store: str, outcome: Outcome, reporter: SilentReporter) -> dict[str, Any]:
    """What ``--json`` prints."""
    return {
        "store": store,
        "filesystem": outcome.name,
        "uuid": outcome.uuid,
        "exit_code": outcome.exit_code,
        "journals_replayed": reporter.journals,
        "problems": [_item(outcome.found, finding) for finding in outcome.found.kept],
        "problems_found": outcome.found.errors,
        "problems_left": [_item(outcome.left, finding) for finding in outcome.left.kept] if outcome.rounds else None,
        "repaired": outcome.repaired,
        "quotas_new": outcome.quotas_new,
        "features_new": feature_names(outcome.features_new),
        "files": outcome.counts.files,
        "directories": outcome.counts.directories,
        "orphans": outcome.counts.orphans,
        "blocks_used": outcome.counts.blocks_used,
        "blocks_total": outcome.blocks_total,
    }


def _item(findings: Findings, finding: Finding) -> dict[str, Any]:
    return {
        "code": finding.problem.code,
        "note": finding.problem.is_note,
        "text": finding.text,
        "repair": finding.problem.cure if findings.may_fix(finding) else None,
        **{name: value for name, value in finding.details.items() if isinstance(value, int)},
    }
