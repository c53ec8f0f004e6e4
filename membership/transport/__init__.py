"""The Matrix Communication Service (002-19): authenticated, ordered, at-most-once messages between peers.

Lower to upper: ``session`` (pure: numbering, acknowledgement, resend), ``frames`` (pure: bytes of a gathered
batch, 003-33), ``handshake`` (pure: who is there), ``paths`` (pure: by which address), ``peer`` (pure: up, lost, down),
``inbox`` and ``connection`` (trio), ``door`` (who calls; guests: ``reception``), ``caller`` (whom we call), ``links``
(``LinkMesh``, the Transport of a real node).  ``guest`` is the other end of a guest's conversation.
``docs/format/wire-transport.md`` has the bytes; decision 0017 says why so.
"""
