"""The house law as a test (style.md 20): import direction, seams, sizes, docstrings, seeds, dead files."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("membership", "dlm", "matrixfs")
FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 60
C_COLUMNS_MAX = 120  # ruff holds those of Python

# Layer of each unit: it may import its own layer and lower ones, never higher (R1, architecture 2).
# Within ``matrixfs`` the order is: ondisk and locks, then blockstore and fs, then fuse and fsck, then what wires.
ALLOWED: dict[str, set[str]] = {
    "membership": set(),
    "dlm": {"membership"},
    "matrixfs.ondisk": {"membership"},
    "matrixfs.locks": {"membership", "dlm"},
    "matrixfs.blockstore": {"membership", "matrixfs.store_names"},
    "matrixfs.store_names": set(),
    "matrixfs.fs": {"membership", "matrixfs.ondisk", "matrixfs.locks"},
    "matrixfs.fuse": {"membership"},
    "matrixfs.fsck": {"membership", "matrixfs.ondisk", "matrixfs.fs", "matrixfs.blockstore"},
    "matrixfs.debug": {"membership", "matrixfs.ondisk", "matrixfs.fs", "matrixfs.fsck", "matrixfs.blockstore"},
    "matrixfs.member": {"membership", "matrixfs.ondisk", "matrixfs.locks", "matrixfs.fs"},
    "matrixfs.options": set(),
    "matrixfs.answers": {"membership"},
    "matrixfs.processes": set(),
    "matrixfs.watch": {
        "membership", "matrixfs.ondisk", "matrixfs.locks", "matrixfs.fs", "matrixfs.member", "matrixfs.answers",
        "matrixfs.processes", "matrixfs.named_locks",
    },
    "matrixfs.growing": {
        "membership", "matrixfs.ondisk", "matrixfs.locks", "matrixfs.fs", "matrixfs.member", "matrixfs.answers",
        "matrixfs.blockstore",
    },
    "matrixfs.freezing": {"membership", "matrixfs.locks", "matrixfs.fs", "matrixfs.member", "matrixfs.answers"},
    "matrixfs.limiting": {
        "membership", "matrixfs.ondisk", "matrixfs.fs", "matrixfs.member", "matrixfs.answers",
    },
    "matrixfs.jobs": {"membership", "matrixfs.fs", "matrixfs.member"},
    "matrixfs.scrubbing": {"membership", "matrixfs.fs", "matrixfs.member", "matrixfs.answers", "matrixfs.jobs"},
    "matrixfs.trimming": {"membership", "matrixfs.fs", "matrixfs.member", "matrixfs.answers", "matrixfs.jobs"},
    "matrixfs.lock_names": set(),
    "matrixfs.named_locks": {"membership", "matrixfs.locks", "matrixfs.answers", "matrixfs.lock_names"},
}
WIRES = {"matrixfs.node", "matrixfs.cli"}  # may import anything below scripts

# R1: who implements a seam, or is an edge to the operating system, may touch what all others may not.
BANNED = {"time", "random", "socket", "select", "subprocess", "threading", "secrets", "fcntl", "signal"}
BANNED_CALLS = {"os.pread", "os.preadv", "os.pwrite", "os.pwritev", "os.fdatasync", "os.fsync", "os.urandom"}
EDGES = {
    "membership/clock.py",
    "membership/presence.py",
    "membership/control.py",
    "membership/control_ask.py",
    "membership/control_stream.py",
    "membership/enrol/credentials.py",
    "membership/fence/agent_process.py",
    "membership/fence/process.py",
    "membership/transport/connection.py",
    "membership/transport/door.py",
    "membership/transport/links.py",
    "membership/transport/reception.py",
    "matrixfs/node.py",
}
EDGE_DIRECTORIES = ("matrixfs/blockstore/", "matrixfs/cli/", "matrixfs/fuse/")

# No trio, no I/O: input is (message | timer, now), output is effects.
PURE = (
    "dlm/client.py", "dlm/directory.py", "dlm/lockspace.py", "dlm/master.py", "dlm/messages.py", "dlm/modes.py",
    "dlm/names.py", "dlm/owned", "dlm/recovery.py", "dlm/resource.py", "matrixfs/fs/blocks.py", "matrixfs/fs/dirty.py",
    "matrixfs/fs/groups.py", "matrixfs/fs/inode.py", "matrixfs/fuse/handles.py", "matrixfs/ondisk", "membership/group",
    "membership/lease/core.py", "membership/areas/poll.py",
    "membership/records.py", "membership/san/admin.py", "membership/san/agent.py", "membership/san/ballot.py",
    "membership/san/recovery.py", "membership/san/election.py", "membership/san/events.py", "membership/san/roles.py",
    "membership/transport/frames.py", "membership/transport/handshake.py",
    "membership/transport/paths.py", "membership/transport/peer.py", "membership/transport/pulse.py",
    "membership/transport/session.py", "membership/views.py", "membership/orders.py",
    "membership/mount_watch.py", "membership/san/evictions.py", "membership/san/lost_links.py",
    "membership/control_wire.py", "membership/enrol/exchange.py", "membership/enrol/grants.py",
    "membership/enrol/token.py", "membership/fence/agent_plan.py", "membership/fence/levels.py",
    "membership/fence/keys.py", "membership/fence/registration.py", "membership/fence/reservations.py",
    "membership/san/disk_lock_agent.py", "membership/san/disk_locks.py",
    "matrixfs/blockstore/scsi/address.py", "matrixfs/blockstore/scsi/answers.py",
    "matrixfs/blockstore/scsi/commands.py", "matrixfs/blockstore/scsi/reservation_commands.py",
    "matrixfs/blockstore/scsi/status.py",
)  # fmt: skip


def sources() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def c_sources() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.[ch]"))


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def unit_of(module: str) -> str:
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "matrixfs" else parts[0]


def imports(tree: ast.AST, *, type_checking: bool = True) -> Iterator[tuple[int, str]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from ((node.lineno, name) for name in names)
        elif not type_checking and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        else:
            yield from imports(node, type_checking=type_checking)


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


@pytest.mark.seed("002-05", "002-11", "002-19")
def test_imports_go_one_way() -> None:
    wrong = []
    for path in sources():
        unit = unit_of(module_of(path))
        if unit in WIRES or unit == "matrixfs":
            continue
        for line, name in imports(parsed(path)):
            target = unit_of(name)
            ours = target.split(".")[0] in PACKAGES and target not in {unit, "matrixfs"}
            if ours and target not in ALLOWED[unit]:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert not wrong


@pytest.mark.seed("002-19")
def test_the_filesystem_knows_no_transport() -> None:
    for path in (ROOT / "matrixfs" / "fs").rglob("*.py"):
        assert not [name for _, name in imports(parsed(path)) if name.startswith("membership.transport")], path


def test_only_fuse_imports_pyfuse3() -> None:
    for path in sources():
        if any(name.split(".")[0] == "pyfuse3" for _, name in imports(parsed(path))):
            assert module_of(path).startswith("matrixfs.fuse"), path


def test_no_import_cycles() -> None:
    """Between modules, at import time."""
    modules = {module_of(path): path for path in sources()}
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        found = set()
        for _, imported in imports(parsed(path), type_checking=False):
            target = imported if imported in modules else imported.rpartition(".")[0]
            if target in modules and target != name:
                found.add(target)
        graph[name] = found
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join((*above[above.index(name) :], name))
        if name not in done:
            for target in sorted(graph[name]):
                visit(target, (*above, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())


def test_seams_are_kept() -> None:
    """R1: nothing but the seams' implementations and the edges calls time, random, socket and the like."""
    wrong = []
    for path in sources():
        where = str(path.relative_to(ROOT))
        if where in EDGES or where.startswith(EDGE_DIRECTORIES):
            continue
        tree = parsed(path)
        wrong += [f"{where}:{line} {name}" for line, name in imports(tree) if name.split(".")[0] in BANNED]
        for node in ast.walk(tree):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if called in BANNED_CALLS:
                wrong.append(f"{where}:{node.lineno} {called}")
    assert not wrong


def test_pure_cores_are_pure() -> None:
    for entry in PURE:
        path = ROOT / entry
        assert path.exists(), entry
        for file in path.rglob("*.py") if path.is_dir() else [path]:
            bad = [name for _, name in imports(parsed(file)) if name.split(".")[0] in {"trio", *BANNED}]
            assert not bad, f"{file.relative_to(ROOT)} is declared pure and imports {bad}"


def test_sizes() -> None:
    wrong = []
    for path in sources():
        text = path.read_text()
        lines = text.count("\n")
        if lines > FILE_LINES_MAX:
            wrong.append(f"{path.relative_to(ROOT)}: {lines} lines")
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > FUNCTION_LINES_MAX:
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {length} lines")
    assert not wrong


def test_sizes_in_c() -> None:
    """As of Python; a function begins and ends with braces in the first column, and a tab is 8 columns."""
    wrong = []
    for path in c_sources():
        lines = path.read_text().expandtabs(8).splitlines()
        found = {"lines": (len(lines), FILE_LINES_MAX), "columns": (max(map(len, lines)), C_COLUMNS_MAX)}
        opened = [number for number, line in enumerate(lines) if line == "{"]
        closed = [number for number, line in enumerate(lines) if line == "}"]
        for first, last in zip(opened, closed, strict=True):
            found[f"lines of the function in line {first}"] = (last - first + 2, FUNCTION_LINES_MAX)
        wrong += [f"{path.relative_to(ROOT)}: {size} {what}" for what, (size, most) in found.items() if size > most]
    assert c_sources()
    assert not wrong


def test_every_module_says_what_it_is() -> None:
    assert not [str(path) for path in sources() if not ast.get_docstring(parsed(path))]
    assert not [str(path) for path in c_sources() if not path.read_text().startswith("/*\n * ")]


def test_seed_ids_exist() -> None:
    """Every id cited by a test has the form of the feature list, whose documents are 000 to 004."""
    for path in (ROOT / "tests").rglob("*.py"):
        for cited in re.findall(r"mark\.seed\(([^)]*)\)", path.read_text()):
            for name in re.findall(r'"([^"]*)"', cited):
                assert re.fullmatch(r"00[0-4]-\d\d", name), f"{path.relative_to(ROOT)}: {name}"


def test_no_dead_modules() -> None:
    """Every module is imported by another, or is a command."""
    commands = set(re.findall(r'= "(matrixfs\.cli\.\w+):main"', (ROOT / "pyproject.toml").read_text()))
    used: set[str] = set()
    for path in sources():
        for _, name in imports(parsed(path)):
            used |= {name, name.rpartition(".")[0]}
    modules = {module_of(path) for path in sources() if path.name != "__init__.py"}
    assert not modules - used - commands


def test_nothing_names_this_machine() -> None:
    """No path of a machine and no package registry in the repository."""
    banned = ["/" + "work/", "py" + "pi.org", "registry.npm" + "js"]
    for path in ROOT.rglob("*"):
        parts = path.relative_to(ROOT).parts
        if path.is_file() and not any(part.startswith(".") or part in {"build", "__pycache__"} for part in parts):
            if path.suffix in {".so", ".img", ".pyc"} or any(part.endswith(".egg-info") for part in parts):
                continue
            text = path.read_text(errors="replace")
            assert not [word for word in banned if word in text], path


def test_decisions_are_numbered_in_order() -> None:
    """Each has a number of its own, with none left out, and its heading says the same."""
    pages = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    assert [page.name[:5] for page in pages] == [f"{number:04}-" for number in range(len(pages))]
    for page in pages:
        assert page.read_text().startswith(f"# {page.name[:4]}: "), page.name
