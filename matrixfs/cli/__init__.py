"""The commands: one module per command, ``<verb>_cmd.py``, each with a ``main`` (pyproject's scripts).

Invariants:
- Commands import late: what ``--help`` and a refusal need must load in less than 100 ms (ecosystem 6).
- What an administrator did wrong comes out as one line and an exit code, never as a traceback
  (``common.py``; the codes stand in ``membership/errors.py``).
"""
