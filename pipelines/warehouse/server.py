"""What a PostgreSQL server says of itself, and what its refusals mean."""

from __future__ import annotations

import re

# What libpq and the server say of a connection, as far as it can be repeated: DuckDB's message around it quotes the
# whole address, with the password.
REASONS = re.compile(
    "server does not support SSL, but SSL was required"
    "|root certificate file .{0,200}? does not exist|certificate verify failed"
    "|server certificate for .{0,200}? does not match host name"
    "|could not (?:load|read) [a-z ]*(?:certificate|key)[a-z ]*file"
    '|(?:role|database) ".{1,63}?" does not exist'
    "|password authentication failed|no password supplied|no pg_hba.conf entry"
    "|timeout expired|[Cc]onnection refused|could not translate host name|permission denied for [a-z]+"
    "|unsupported startup parameter|invalid [a-z_]+ value"
)


def reason_of(error: Exception) -> str:
    """Return why a connection was refused, without anything secret."""
    reason = REASONS.search(str(error))
    return f"{type(error).__name__}: {reason[0]}" if reason else type(error).__name__
