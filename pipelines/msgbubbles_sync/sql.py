"""Texts and names as SQL writes them, where a parameter cannot stand."""

from __future__ import annotations


def quoted(value: str) -> str:
    """A text as SQL writes it, where a parameter cannot stand."""
    return "'" + value.replace("'", "''") + "'"


def named(name: str) -> str:
    """A name of a table or the like as SQL writes it."""
    return '"' + name.replace('"', '""') + '"'
