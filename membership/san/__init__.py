"""SAN membership: the administrator, who may touch the store, fencing order and recovery (002-28 to 002-45)."""
