"""Access control lists in short form, for tests."""

from __future__ import annotations

from matrixfs.ondisk.acl import GROUP, GROUP_OBJ, MASK, OTHER, USER, USER_OBJ, AclEntry


def rules(text: str) -> list[AclEntry]:
    """A list from its short form, in order: "u:rwx u5:r-x g:r-- g9:--- m:rw- o:---"."""
    tags = {"u": (USER_OBJ, USER), "g": (GROUP_OBJ, GROUP), "m": (MASK, MASK), "o": (OTHER, OTHER)}
    entries = []
    for word in text.split():
        who, _, may = word.partition(":")
        bits = sum(bit for bit, letter in zip((4, 2, 1), may, strict=True) if letter != "-")
        plain, named = tags[who[0]]
        entries.append(AclEntry(named, bits, int(who[1:])) if who[1:] else AclEntry(plain, bits))
    return entries
