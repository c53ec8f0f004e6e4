"""The Matrix Communication Service (002-19): authenticated, ordered, at-most-once messages between peers.

Lower to upper: ``session`` (pure: numbering, acknowledgement, resend), ``frames`` (pure: bytes of a gathered
batch, 003-33), ``handshake`` (pure: who is there), ``peer`` (pure: up, lost, down), ``inbox`` and ``connection``
(trio), ``links`` (``LinkMesh``, the Transport of a real node).  ``docs/format/wire-transport.md`` has the bytes.
"""
