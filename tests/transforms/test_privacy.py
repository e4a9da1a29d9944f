"""Tests that a privacy policy changes only handles and titles in the marts."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import duckdb

from helpers.marts_account import Account
from helpers.marts_reference import MARTS
from msgbubbles.policy import PRESETS, Pseudonymizer
from msgbubbles.redact import Redactor
from msgbubbles_sync.privacy.reapply import redact_stored_rows
from msgbubbles_sync.privacy.rewrite import StoredRows


def test_policy_replaces_only_handles_and_titles_in_the_marts(warehouse: Any, at: Callable[[int], datetime]) -> None:
    account = Account(7, at)
    for load_id in account.load_ids[:6]:
        warehouse.load(load_id, **account.next_load(size=3))
    warehouse.rebuild()
    names = Pseudonymizer("a test key that is certainly long enough")
    ours = {row["handle"] for row in warehouse.rows("SELECT handle FROM msgbubbles.numbers")}

    def replaced(column: str, value: Any) -> Any:
        if value is None or (value in ours and column in HANDLES) or column not in (*HANDLES, "title"):
            return value
        return names.title(value) if column == "title" else names.handle(value)

    def row_replaced(row: dict[str, Any]) -> dict[str, Any]:
        return {column: replaced(column, value) for column, value in row.items()}

    marts = MARTS.keys() - {"reactions_daily"}
    expected = {mart: sorted(repr(row_replaced(row)) for row in rows) for mart, rows in warehouse.marts(marts).items()}
    assert "p_" in repr(expected)
    with duckdb.connect(str(warehouse.path)) as connection:
        changed = redact_stored_rows(Redactor(PRESETS["analytics"], names), StoredRows(connection))
    assert {"chats", "messages", "participant_lists", "group_member_operations", "chat_titles"} <= changed.keys()
    warehouse.rebuild()
    for mart, rows in warehouse.marts(marts).items():
        assert sorted(map(repr, rows)) == expected[mart], mart
    # Of a text, this policy keeps the length.
    assert {*"".join(row["reaction"] or "" for row in warehouse.mart("reactions_daily"))} <= {"·"}


HANDLES = ("handle", "remote_handle", "sender", "from_handle", "contact")
