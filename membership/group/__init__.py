"""Group membership: the processes that communicate, in numbered views (002-27, Figure 7A)."""
