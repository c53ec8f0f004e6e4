"""The lock modes that the filesystem uses, of the six that the lock manager knows."""

from dlm.modes import EX, NL, PR

__all__ = ["EX", "NL", "PR"]
