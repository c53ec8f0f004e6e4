"""``debug.matrixfs``: show what lies on a store, structure by structure (``matrixfs/debug``); nothing is ever written.

Exit codes are those of membership/errors.py: 0, 2 wrong usage or no such thing, 4 the store failed, 5 something that
was shown is damaged.  Source: issue 5 (debug.matrixfs), style 3.16.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final

import click

from matrixfs import __version__
from matrixfs.cli.common import MatrixCommand, MatrixGroup, json_option, printable
from matrixfs.store_names import public_name
from membership.errors import CorruptionError

if TYPE_CHECKING:
    from matrixfs.debug.items import Item, Items
    from matrixfs.debug.store import Store

PROGRAM: Final = "debug.matrixfs"
EXIT_DAMAGED: Final = CorruptionError.exit_code


class Where(tuple[str, bool]):
    """The store's name, and whether its journals are to be replayed in memory."""

    __slots__ = ()


@click.group(
    PROGRAM,
    cls=MatrixGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    subcommand_metavar="VERB [ARGS]...",
)
@click.argument("store")
@click.option("--replay", is_flag=True, help="Show the store as a mount would find it: journals replayed, in memory.")
@click.version_option(__version__, prog_name=PROGRAM)
@click.pass_context
def main(context: click.Context, store: str, replay: bool) -> None:
    """Show what lies on STORE: the block device, file or LUN (iscsi://...) that mkfs.matrixfs made.

    Nothing is written, and nodes may use it meanwhile; what is shown may then be torn or old, and it says so.

    WHAT is a path that begins with / (symbolic links are not followed), or the number of an inode.
    Help for a verb: debug.matrixfs STORE VERB --help.
    """
    context.obj = Where((store, replay))


def _verb(name: str) -> Callable[[Callable[..., Items]], click.Command]:
    """Make a command of a function that takes the open store and the command's arguments and gives items."""

    def wrap(function: Callable[..., Items]) -> click.Command:
        def run(context: click.Context, /, *, as_json: bool, **arguments: Any) -> None:
            printer = _Json(context.obj[0], name) if as_json else _Text()
            _on_store(context.obj, lambda store: _print(function(store, **arguments), store, printer))
            context.exit(EXIT_DAMAGED if printer.problems else 0)

        functools.update_wrapper(run, function)  # with the options that were declared for it
        return main.command(name, cls=MatrixCommand, help=function.__doc__)(json_option(click.pass_context(run)))

    return wrap


what_argument = click.argument("what")
copy_option = click.option("--copy", is_flag=True, help="Its copy at the end.")


@_verb("stat")
def _stat(store: Store) -> Items:
    """The store in a few lines."""
    from matrixfs.debug.verbs_store import stat_store

    return stat_store(store)


@_verb("label")
@copy_option
def _label(store: Store, copy: bool) -> Items:
    """The disk's label."""
    from matrixfs.debug.verbs_store import label

    return label(store, copy=copy)


@_verb("superblock")
@copy_option
def _superblock(store: Store, copy: bool) -> Items:
    """The filesystem's superblock."""
    from matrixfs.debug.verbs_store import superblock

    return superblock(store, copy=copy)


@_verb("map")
def _map(store: Store) -> Items:
    """Free space, a line for each allocation group."""
    from matrixfs.debug.verbs_store import free_map

    return free_map(store)


@_verb("group")
@click.argument("number")
def _group(store: Store, number: str) -> Items:
    """Allocation group NUMBER, its free runs."""
    from matrixfs.debug.verbs_store import group

    return group(store, number)


@_verb("journal")
@click.argument("number")
@click.option("--frames", is_flag=True, help="Also the frames that a replay would read, and their images.")
def _journal(store: Store, number: str, frames: bool) -> Items:
    """The header of journal NUMBER, and its log."""
    from matrixfs.debug.verbs_journal import journal

    return journal(store, number, frames=frames)


@_verb("orphans")
def _orphans(store: Store) -> Items:
    """Inodes without a name, waiting to be freed."""
    from matrixfs.debug.verbs_journal import orphans

    return orphans(store)


@_verb("block")
@click.argument("number")
def _block(store: Store, number: str) -> Items:
    """What lies in block NUMBER of the filesystem."""
    from matrixfs.debug.verbs_store import block

    return block(store, number)


@_verb("inode")
@what_argument
def _inode(store: Store, what: str) -> Items:
    """An inode, and what its block holds."""
    from matrixfs.debug.verbs_files import inode

    return inode(store, what)


@_verb("tree")
@what_argument
def _tree(store: Store, what: str) -> Items:
    """The blocks of the tree below an inode."""
    from matrixfs.debug.verbs_files import tree

    return tree(store, what)


@_verb("extents")
@what_argument
def _extents(store: Store, what: str) -> Items:
    """Where the content of a file lies."""
    from matrixfs.debug.verbs_files import extents

    return extents(store, what)


@_verb("directory")
@what_argument
def _directory(store: Store, what: str) -> Items:
    """A directory's entries as they lie there."""
    from matrixfs.debug.verbs_files import directory

    return directory(store, what)


@_verb("path")
@click.argument("what", metavar="PATH")
def _path(store: Store, what: str) -> Items:
    """Where PATH leads, name by name, and its inode."""
    from matrixfs.debug.verbs_files import path

    return path(store, what)


@_verb("ls")
@click.argument("what", default="/")
@click.option("-R", "--recursive", is_flag=True, help="All directories below, too.")
def _ls(store: Store, what: str, recursive: bool) -> Items:
    """Names in a directory, by default the root."""
    from matrixfs.debug.verbs_files import ls

    return ls(store, what, recursive=recursive)


@main.command("cat", cls=MatrixCommand)
@what_argument
@click.option("--offset", type=click.IntRange(0), default=0, help="First byte.")
@click.option("--length", type=click.IntRange(0), default=None, help="So many bytes at most.")
@click.pass_context
def _cat(context: click.Context, what: str, offset: int, length: int | None) -> None:
    """The bytes of a file or symbolic link."""
    from matrixfs.debug.cat import Cat

    cat = Cat(what, offset, length)
    printer = _Text()

    async def write(store: Store) -> None:
        printer.begin(store)
        async with aclosing(cat.portions(store)) as portions:
            async for portion in portions:
                sys.stdout.buffer.write(portion)
        sys.stdout.buffer.flush()
        for text in cat.problems:
            printer.problem(text)

    _on_store(context.obj, write)
    context.exit(EXIT_DAMAGED if printer.problems else 0)


# --- running --------------------------------------------------------------------------------------------------


def _on_store(where: Where, work: Callable[[Store], Awaitable[None]]) -> None:
    """Open the store and work on it.  Raises MatrixError; who reads a pipe may close it."""
    import trio

    from matrixfs.blockstore import open_store
    from matrixfs.debug.store import Store
    from membership.clock import SystemClock

    name, replay = where
    device = open_store(name, read_only=True)

    async def run() -> None:
        try:
            await device.open()
            store = Store(device)
            await store.open(SystemClock(), replay=replay)
            await work(store)
        finally:
            with trio.CancelScope(shield=True):
                await device.aclose()

    try:
        trio.run(run)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


async def _print(items: Items, store: Store, printer: _Text | _Json) -> None:
    printer.begin(store)
    async with aclosing(items):
        async for item in items:
            printer.item(item)
    printer.end()


class _Text:
    """Lines for people; what is wrong goes to stderr."""

    def __init__(self) -> None:
        self.problems = 0

    def begin(self, store: Store) -> None:
        """What was found on opening, and who may be writing (D4)."""
        if store.writers:
            names = ", ".join(store.writers)
            click.echo(f"{PROGRAM}: note: {names} may be writing: what is shown may be torn or old", err=True)
        for item in store.notes:
            self.item(item)

    def item(self, item: Item) -> None:
        """Print an item."""
        for line in item.lines:
            click.echo(line)
        for text in item.problems:
            self.problem(text)

    def problem(self, text: str) -> None:
        """Print what is wrong."""
        self.problems += 1
        sys.stdout.flush()
        click.echo(f"{PROGRAM}: {printable(text)}", err=True)

    def end(self) -> None:
        """Nothing."""


class _Json:
    """One document, written item by item (D5)."""

    def __init__(self, store: str, verb: str) -> None:
        self._store = store
        self._verb = verb
        self._separator = "\n  "
        self.problems = 0

    def begin(self, store: Store) -> None:
        """The head."""
        head = {"store": public_name(self._store), "verb": self._verb, "may_be_writing": store.writers}
        click.echo(json.dumps(head)[:-1] + ', "items": [', nl=False)
        for item in store.notes:
            self.item(item)

    def item(self, item: Item) -> None:
        """One item."""
        self.problems += len(item.problems)
        click.echo(self._separator + json.dumps({**item.document, "problems": item.problems}), nl=False)
        self._separator = ",\n  "

    def end(self) -> None:
        """The tail."""
        click.echo(f'\n], "problems": {self.problems}}}')
