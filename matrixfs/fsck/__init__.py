"""fsck.matrixfs: is the store what the formats say, and if not, make it so where that is safe (style.md 3.18).

Invariants (tests cite the numbers):

- **F1** Nothing is checked or written while a node may be writing (``alive.py``).
- **F2** Dirty journals are replayed first; what is checked is what a mount would see.  With ``-n`` the replay goes to
  memory (``overlay.py``) and the store is opened read-only.
- **F3** One problem = one code = one check = one sentence = one planted damage in ``tests/damage`` (``problems.py``).
- **F4** Nothing is freed while part of the tree couldn't be read, or blocks have two owners: what looks unused may
  belong to what is damaged (``Problem.taints``).
- **F5** Repairs go through a journal, as a mount's changes do: a crash in the middle leaves a journal to replay, and a
  metadata block is never half written (``repair.py``).  After a repair everything is checked again.
- **F6** Memory is bounded by the size of the store (two bits per block), a stack of directory numbers (8 bytes each),
  the files with several names (``links.py``), what is read ahead, and ``FINDINGS_MAX``; not by the number of files.

The passes of one check (``check.py``): names and inodes from the root (``walk.py``), orphan directories
(``orphans.py``), inodes that nothing refers to (``lost.py``), link counts, allocation groups (``groups.py``).
"""
