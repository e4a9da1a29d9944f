"""The descriptions that a database should have as comments."""

from __future__ import annotations

from typing import Any


def describe(node: Any) -> dict[str, str]:
    """Return the descriptions of a dbt model's columns by name, and under the empty name that of the model."""
    columns = {column.name: column.description for column in node.columns.values()}
    return {name: " ".join(text.split()) for name, text in ({"": node.description} | columns).items()}
