"""SCSI over iSCSI from user space: what a store on a SAN is made of (ecosystem.md 1; RFC 7143, SBC-3, SPC-4).

Pure: ``commands`` and ``reservation_commands`` (what is sent), ``answers`` (what comes back), ``status`` (how it can go
wrong), ``address`` (where a LUN is, and who we are to it).  Then ``libiscsi`` (the binding), ``session`` (one login, so
one I_T nexus) and ``link`` (a nexus that outlives its sessions).  ``device/iscsi.py`` is the SectorDevice on top.
"""
