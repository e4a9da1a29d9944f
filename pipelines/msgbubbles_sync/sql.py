"""Quote SQL literals and identifiers that cannot be bind parameters."""

from __future__ import annotations


def quote_literal(text: str) -> str:
    """Quote a text as a string literal."""
    return "'" + text.replace("'", "''") + "'"


def quote_name(name: str) -> str:
    """Quote the name of a table, column or the like as an identifier."""
    return '"' + name.replace('"', '""') + '"'
