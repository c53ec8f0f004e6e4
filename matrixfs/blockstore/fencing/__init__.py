"""Fencing on this node's side: the gate every block write passes (R3, 002-22, 002-23)."""
