"""Groups declared in a table: planned, applied, and recorded in a ledger."""
