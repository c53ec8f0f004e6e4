"""Write the tables of docs/format/*.md and docs/operator/*.md from the declarations they describe (R12, style 3.10).

A page holds markers; what stands between them is made from the code, all else is written by hand:

    <!-- record matrixfs.ondisk.inode.InodeRecord -->     fields of a record
    <!-- problems -->                                      what fsck finds and repairs
    <!-- metrics -->                                       what matrixctl metrics prints
    <!-- end -->

``scripts/docs-from-tables`` rewrites the pages, ``--check`` only says which are out of date (exit code 1).
"""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

MARKED = re.compile(r"(<!-- (record ([\w.]+)|problems|metrics) -->\n).*?(<!-- end -->)", re.DOTALL)
HEADER_ROWS = (
    (8, 2, "version", "int", "{version}; a greater one is refused, not guessed at"),
    (10, 2, "", "", "zero"),
    (12, 4, "checksum", "int", "CRC-32C of the whole record with this field zero"),
    (16, 16, "`owner`", "bytes", "uuid of what it belongs to"),
    (32, 8, "`address`", "int", "its own block number"),
    (40, 8, "`generation`", "int", "only grows (R7)"),
)


def main(arguments: list[str]) -> int:
    """Rewrite or check all pages; return the exit code."""
    stale = []
    for page in sorted((ROOT / "docs").glob("[fo]*/*.md")):
        old = page.read_text()
        new = render(old)
        if new == old:
            continue
        stale.append(str(page.relative_to(ROOT)))
        if "--check" not in arguments:
            page.write_text(new)
    state = "out of date (run scripts/docs-from-tables)" if "--check" in arguments else "written"
    for name in stale:
        print(f"{name}: {state}")
    return 1 if stale and "--check" in arguments else 0


def render(text: str) -> str:
    """A page with its tables made anew."""

    def table(match: re.Match[str]) -> str:
        body = record_table(match[3]) if match[3] else metric_table() if match[2] == "metrics" else problem_table()
        return f"{match[1]}\n{body}\n{match[4]}"

    return MARKED.sub(table, text)


def record_table(path: str) -> str:
    """The fields of a record class named by its dotted path."""
    module, _, name = path.rpartition(".")
    kind = getattr(importlib.import_module(module), name)
    lines = [
        f"Magic `{kind.MAGIC.decode()}`, version {kind.VERSION}, {kind.SIZE} bytes. Bytes not listed are zero.",
        "",
        "| offset | bytes | field | kind | meaning |",
        "|-|-|-|-|-|",
        f"| 0 | 8 | magic | bytes | `{kind.MAGIC.decode()}` |",
    ]
    for at, size, field, sort, meaning in HEADER_ROWS:
        lines.append(f"| {at} | {size} | {field} | {sort} | {meaning.format(version=kind.VERSION)} |")
    for field, at in kind.FIELDS.items():
        lines.append(f"| {at.at} | {at.size} | `{field}` | {at.kind} | {escape(at.doc)} |")
    return "\n".join(lines) + "\n"


def problem_table() -> str:
    """All problems of fsck, from ``matrixfs/fsck/problems.py``."""
    from matrixfs.fsck.problems import PROBLEMS

    lines = ["| code | what it says | repair | `-p` |", "|-|-|-|-|"]
    for problem in PROBLEMS.values():
        sentence = re.sub(r"\{(\w+)[^}]*\}", lambda match: match[1].upper(), problem.sentence)
        note = " (a note, no error)" if problem.is_note else ""
        alone = "yes" if problem.cure and not problem.decides else "leaves it" if problem.is_note else "stops"
        cure = problem.cure or "none in this version"
        lines.append(f"| `{problem.code}` | {escape(sentence)}{note} | {cure} | {alone} |")
    return "\n".join(lines) + "\n"


def metric_table() -> str:
    """All metrics, from ``matrixfs/cli/metrics_table.py``."""
    from matrixfs.cli.metrics_table import METRICS

    lines = ["| name | type | labels | what |", "|-|-|-|-|"]
    for metric in METRICS:
        lines.append(f"| `{metric.name}` | {metric.kind} | {', '.join(metric.labels)} | {escape(metric.help)} |")
    return "\n".join(lines) + "\n"


def escape(text: str) -> str:
    """Text inside a table cell."""
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
