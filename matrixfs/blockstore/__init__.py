"""The block store: device, fencing gate, and (later, behind the same seam) redundancy groups and virtual disks.

Everything here is a ``SectorDevice`` (``membership/seams.py``); a mount process stacks them as
``opened_store(name)`` > ``FencingGate`` > ``PatientDevice`` > ``Window`` over the data area (architecture 2, R3, R13).
Nothing in ``device`` and ``fencing`` imports locks: leases and fencing work while the lock service is down.
"""

from __future__ import annotations

from matrixfs.blockstore.device.store import open_store, opened_store
from matrixfs.blockstore.device.window import Window
from matrixfs.blockstore.fencing.gate import FencingGate
from matrixfs.blockstore.fencing.patience import PatientDevice
from matrixfs.blockstore.initialize import data_window, initialize_disk, prepare_disk, write_label

__all__ = [
    "FencingGate",
    "PatientDevice",
    "Window",
    "data_window",
    "initialize_disk",
    "open_store",
    "opened_store",
    "prepare_disk",
    "write_label",
]
