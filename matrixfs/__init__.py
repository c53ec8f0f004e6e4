"""MatrixFS: one file tree, mounted read-write by many nodes from one shared block store."""

__version__ = "0.1.0"
