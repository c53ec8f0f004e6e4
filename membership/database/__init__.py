"""The membership database: SQLite in memory on the administrator, an image on the shared disk (002-42, 002-44)."""
