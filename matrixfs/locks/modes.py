"""The lock modes that the filesystem uses, of the six that the lock manager knows."""

from dlm.modes import CW, EX, NL, PR

__all__ = ["CW", "EX", "NL", "PR"]
