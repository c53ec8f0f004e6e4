"""What can be wrong with a filesystem: one code, one check, one planted damage, one sentence each (F3).

The sentence is what an administrator reads; the cure is what a repair does, "" where this version has none.
``docs/operator/fsck.md`` is generated from this table, and ``tests/damage`` plants one damage per code.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from matrixfs.fsck.fixes import Fix

FINDINGS_MAX = 20_000  # kept in memory; more are counted, and repaired in the next round


@dataclass(frozen=True, slots=True)
class Problem:
    """One kind of problem."""

    code: str
    sentence: str  # str.format with the details of a finding
    cure: str  # what a repair does; "" = none in this version
    taints: bool = False  # while it stands, nothing may be freed (F4)
    is_note: bool = False  # worth saying, but no damage: a crash leaves it, and mounts deal with it
    decides: bool = False  # its repair gives up names or content: an administrator decides, not -p


PROBLEMS: dict[str, Problem] = {}


def _problem(
    code: str, sentence: str, cure: str = "", *, taints: bool = False, is_note: bool = False, decides: bool = False
) -> Problem:
    assert code not in PROBLEMS
    assert cure or not decides
    problem = PROBLEMS[code] = Problem(code, sentence, cure, taints, is_note, decides)
    return problem


# --- label, superblock, journals ---------------------------------------------------------------------------
LABEL_COPY = _problem(
    "label-copy", "the label in block {block} of the disk is damaged or differs from the other one", "written again"
)
SUPERBLOCK_LOST = _problem("superblock-lost", "the superblock and its copy are damaged ({reason})", taints=True)
SUPERBLOCK_PRIMARY = _problem("superblock", "the superblock is damaged ({reason}); its copy is good", "written again")
SUPERBLOCK_COPY = _problem("superblock-copy", "the superblock's copy is damaged or out of date", "written again")
SUPERBLOCK_LATER = _problem(
    "superblock-later",
    "the superblock is one change ahead of its copy, as a crash leaves it while journals are added",
    "written again",
    is_note=True,
)
JOURNAL_HEADER = _problem("journal-header", "the header of journal {journal} is damaged ({reason})", taints=True)
JOURNAL_LOG = _problem("journal-log", "journal {journal} can't be replayed ({reason})", taints=True)

# --- inodes --------------------------------------------------------------------------------------------------
INODE_DAMAGED = _problem("inode-damaged", "inode {inode} ({name}) is damaged ({reason})", taints=True)
INODE_TYPE = _problem("inode-type", "inode {inode} has mode {mode:#o}, which is no file type", taints=True)
INODE_LAYOUT = _problem(
    "inode-layout", "inode {inode} keeps its content in a way that its type can't have ({reason})", taints=True
)
INODE_FLAGS = _problem("inode-flags", "inode {inode} has unknown flags {flags:#x}")
INODE_USER_FLAGS = _problem(
    "inode-user-flags", "inode {inode} has flags {flags} that its type, or this filesystem, can't have", "removed"
)
INODE_PROJECT = _problem(
    "inode-project", "inode {inode} belongs to project {project}, and this filesystem has none", "taken out of it"
)
INODE_QUARANTINED = _problem(
    "inode-quarantined", "inode {inode} was put in quarantine by a scrub", "let out, once the rest is repaired"
)
INODE_SIZE = _problem("inode-size", "inode {inode} has {size} bytes, more than can be")
SYMLINK_TARGET = _problem("symlink-target", "symbolic link {inode} has an impossible target ({reason})")
INODE_BLOCKS = _problem("inode-blocks", "inode {inode} counts {found} blocks, it has {expected}", "corrected")
INODE_NLINK = _problem("inode-nlink", "inode {inode} counts {found} names, it has {expected}", "corrected")
INODE_ORPHAN_MARK = _problem(
    "inode-orphan-mark", "inode {inode} is marked as orphan of journal {journal}, but has a name", "mark removed"
)
EXTENT_PAST_EOF = _problem(
    "extent-past-eof",
    "inode {inode} has blocks behind its end, and no truncation is under way",
    "marked for truncation, which the next mount finishes",
    is_note=True,
)

# --- trees ------------------------------------------------------------------------------------------------------
TREE_ROOT = _problem("tree-root", "the root of the tree in inode {inode} is damaged ({reason})", taints=True)
TREE_INDEX = _problem("tree-index", "index block {block} of inode {inode} is damaged ({reason})", taints=True)
TREE_LEAF = _problem("tree-leaf", "leaf block {block} of inode {inode} is damaged ({reason})", taints=True)
TREE_ORDER = _problem(
    "tree-order", "block {block} of inode {inode} holds key {key}, which belongs elsewhere in the tree", taints=True
)

# --- extended attributes ------------------------------------------------------------------------------------
XATTR_BLOCK = _problem("xattr-block", "attribute block {block} of inode {inode} is damaged ({reason})", taints=True)
XATTR_LOOP = _problem("xattr-loop", "the attribute blocks of inode {inode} lead back to block {block}", taints=True)
XATTR_CONTENT = _problem("xattr-content", "the extended attributes of inode {inode} can't be read ({reason})")

# --- directories and names ----------------------------------------------------------------------------------
SYSTEM_DIRECTORY = _problem("system-directory", "inode {inode} must be a directory and is none", taints=True)
ENTRY_DANGLING = _problem(
    "entry-dangling", "{name} in directory {directory} means inode {inode}, which is none", "name removed", decides=True
)
ENTRY_KIND = _problem(
    "entry-kind", "{name} in directory {directory} has kind {found}, inode {inode} has {expected}", "corrected"
)
ENTRY_KEY = _problem("entry-key", "{name} in directory {directory} has a key that its hash can't give")
ENTRY_TWICE = _problem("entry-twice", "{name} is twice in directory {directory}")
DIRECTORY_TWICE = _problem("directory-twice", "{name} in directory {directory} is a second name of directory {inode}")
DIRECTORY_PARENT = _problem(
    "directory-parent", "directory {inode} says its parent is {found}, it lies in {expected}", "corrected"
)
DIRECTORY_NLINK = _problem("directory-nlink", "directory {inode} counts {found} links, it has {expected}", "corrected")
DIRECTORY_SIZE = _problem(
    "directory-size", "directory {inode} says {found} bytes, its names take {expected}", "corrected"
)
DIRECTORY_CHILDREN = _problem(
    "directory-children", "directory {inode} counts {found} names, it has {expected}", "corrected"
)

# --- orphans and the lost -------------------------------------------------------------------------------------
ORPHAN = _problem(
    "orphan", "inode {inode} has no name and waits in journal {journal}'s list to be freed", "freed", is_note=True
)
ORPHAN_NAME = _problem(
    "orphan-name", "orphan directory {directory} lists inode {inode} under the name {name}", "removed from the list"
)
ORPHAN_LINKED = _problem(
    "orphan-linked", "inode {inode} stands in orphan directory {directory}, but has a name", "removed from the list"
)
ORPHAN_NLINK = _problem(
    "orphan-nlink",
    "inode {inode} stands in orphan directory {directory}, counts {found} names and has none",
    taints=True,
)
ORPHAN_MARK = _problem(
    "orphan-mark", "inode {inode} is orphan of journal {expected}, but marked as of {found}", "corrected"
)
ORPHAN_NOT_EMPTY = _problem("orphan-not-empty", "orphan {inode} is a directory that still holds names", taints=True)
ORPHAN_UNLISTED = _problem(
    "orphan-unlisted", "inode {inode} has no name and stands in no orphan directory", "freed", decides=True
)
LOST_INODE = _problem("lost-inode", "inode {inode} (mode {mode:#o}, {size} bytes) has content but no name", taints=True)

# --- quotas -------------------------------------------------------------------------------------------------
QUOTA_TREE = _problem(
    "quota-tree", "the tree of the quotas is damaged ({reason})", "made anew, with the limits that can be read",
    decides=True,
)  # fmt: skip
QUOTA_BLOCK = _problem(
    "quota-block", "block {block} of the quotas is damaged ({reason})", "made anew; limits in it are lost", decides=True
)
QUOTA_LIMITS = _problem("quota-limits", "{who} has limits that nobody can have set", "removed", decides=True)
QUOTA_USAGE = _problem(
    "quota-usage",
    "what is counted of {count} users, groups or projects is wrong"
    " (of {who}: {found} blocks and inodes, {expected} are used)",
    "counted anew",
)

# --- blocks ---------------------------------------------------------------------------------------------------------
BLOCK_FORBIDDEN = _problem("block-forbidden", "inode {inode} refers to block {block}, which can't be its", taints=True)
BLOCK_SHARED = _problem("block-shared", "block {block} belongs to inode {inode} and to something else", taints=True)
BLOCK_LEAKED = _problem(
    "block-leaked", "group {group}: {count} blocks are marked in use and are not (the first is {block})", "marked free"
)
BLOCK_MISSING = _problem(
    "block-missing", "group {group}: {count} blocks are in use and marked free (the first is {block})", "marked in use"
)
GROUP_DAMAGED = _problem("group-damaged", "group {group} is damaged ({reason})", "rebuilt from what is in use")
GROUP_SHAPE = _problem("group-shape", "group {group} says it is number {index} with {blocks} blocks", "corrected")
GROUP_SHORT = _problem(
    "group-short",
    "group {group} has {found} blocks and room for {expected} since the filesystem was grown",
    "enlarged",
    is_note=True,
)
JOURNAL_UNMARKED = _problem(
    "journal-unmarked",
    "group {group}: {count} blocks of journals that were added (the first is {block}) are not marked in use yet",
    "marked in use",
    is_note=True,
)
GROUP_FREE = _problem(
    "group-free", "group {group} says {found} blocks are free, its bitmap says {expected}", "corrected"
)
GROUP_PADDING = _problem("group-padding", "group {group} marks blocks free that it doesn't have", "corrected")


@dataclass(frozen=True, slots=True)
class Finding:
    """One problem at one place."""

    problem: Problem
    details: dict[str, Any]
    fix: Fix | None  # None: this version can't, or must not, repair it here

    @property
    def text(self) -> str:
        """One line."""
        return self.problem.sentence.format(**self.details)


@dataclass(slots=True)
class Findings:
    """All findings of one check, in order."""

    kept: list[Finding] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    tainted: bool = False

    def add(self, problem: Problem, fix: Fix | None = None, **details: Any) -> None:
        """Note a finding."""
        assert fix is None or problem.cure, problem.code
        self.counts[problem.code] = self.counts.get(problem.code, 0) + 1
        self.tainted |= problem.taints
        if len(self.kept) < FINDINGS_MAX:
            self.kept.append(Finding(problem, details, fix))

    @property
    def errors(self) -> int:
        """Findings that are damage."""
        return sum(count for code, count in self.counts.items() if not PROBLEMS[code].is_note)

    @property
    def fixable(self) -> list[Finding]:
        """Those that may be repaired now."""
        return [finding for finding in self.kept if self.may_fix(finding)]

    @property
    def is_safe(self) -> bool:
        """Whether a repair without anybody to ask ends with a clean filesystem, and gives nothing up (-p)."""
        if sum(self.counts.values()) > len(self.kept):
            return False
        errors = (finding for finding in self.kept if not finding.problem.is_note)
        return all(self.may_fix(finding) and not finding.problem.decides for finding in errors)

    def may_fix(self, finding: Finding) -> bool:
        """Whether a finding may be repaired beside the others: F4; and nothing that a journal may still change."""
        fix = finding.fix
        if fix is None or (fix.needs_whole and self.tainted):
            return False
        return not fix.is_journalled or not self.counts.keys() & {JOURNAL_HEADER.code, JOURNAL_LOG.code}
