"""debug.matrixfs: what lies on a store, structure by structure, for people and as JSON (issue 5).

Invariants (tests cite the numbers):

- **D1** Nothing is written, ever: the store is opened read-only, and nothing here calls ``write``.
- **D2** What is printed of a structure comes from its declaration (``membership/records.py``, ``matrixfs/ondisk``): a
  new field or record is printed without a change here (``structures.py``).
- **D3** Bytes that contradict the format are printed all the same, with what is wrong with them; the verb goes on, and
  the command ends with exit code 5 (R11).  Every walk is bounded: no block of a tree is visited twice (``trees.py``),
  no directory is listed twice, no frame follows itself.
- **D4** A node may be writing meanwhile: its name is told, because what is printed then may be torn.
- **D5** Items are printed as they are found: memory does not grow with the filesystem, but for the numbers of the
  directories that ``ls -R`` and the blocks that one tree's walk has seen.

``verbs_store.py`` and ``verbs_journal.py`` show the store's own parts, ``verbs_files.py`` what belongs to a file,
``cat.py`` a file's bytes.
"""
