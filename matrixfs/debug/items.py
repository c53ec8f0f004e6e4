"""What a verb finds: lines for people and a document for programs, from one description."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from matrixfs.fsck.context import printable

LABEL_WIDTH = 21
VALUE_WIDTH = 38


@dataclass(slots=True)
class Item:
    """One thing that was found.

    ``document`` says all; ``lines`` say it to people.  ``problems`` are in both, and counted.
    """

    lines: list[str]
    document: dict[str, Any]
    problems: list[str] = field(default_factory=list)


Items: TypeAlias = AsyncGenerator[Item, None]


def facts(kind: str, title: str, values: Mapping[str, Any], problems: Sequence[str] = ()) -> Item:
    """An item of names and values, one a line."""
    lines = [title, *(row(name, str(value)) for name, value in values.items())]
    return Item([printable(line.encode()) for line in lines], {"kind": kind, **values}, list(problems))


def line(kind: str, text: str, values: Mapping[str, Any], problems: Sequence[str] = ()) -> Item:
    """An item of one line."""
    return Item([printable(text.encode(errors="surrogateescape"))], {"kind": kind, **values}, list(problems))


def problem(text: str, **values: Any) -> Item:
    """Something that is wrong, and belongs to nothing that is printed."""
    return Item([], {"kind": "problem", **values}, [text])


def row(name: str, value: str, meaning: str = "") -> str:
    """A line of a structure."""
    return f"  {name:<{LABEL_WIDTH}} {value:<{VALUE_WIDTH}} {meaning}".rstrip()
