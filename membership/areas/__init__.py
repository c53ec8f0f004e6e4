"""The membership areas: header, ballots, slots and database on one or three disks, by majority (002-12, 002-42)."""
