"""Groups declared in a table, brought about through the API: planned, applied exactly once, and on record."""
