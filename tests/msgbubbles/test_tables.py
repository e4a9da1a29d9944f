from __future__ import annotations

import pytest

from msgbubbles.models import Chat
from msgbubbles.tables import FROM_EVENT_AT, TABLES, Pii, _build_columns

DECISIONS = {
    "id": (Pii.ID, ""),
    "from_handle": (Pii.OWN_HANDLE, ""),
    "remote_handle": (Pii.HANDLE, ""),
    "title": (Pii.TITLE, ""),
}


def test_text_field_without_a_decision_is_refused() -> None:
    columns = _build_columns(Chat, FROM_EVENT_AT, **DECISIONS)
    assert [(column.name, column.type, column.pii, column.nullable) for column in columns] == [
        (column.name, column.type, column.pii, column.nullable) for column in TABLES["chats"].columns
    ]
    with pytest.raises(ValueError, match=r"Chat\.title: say what it holds"):
        _build_columns(Chat, **{name: pii for name, pii in DECISIONS.items() if name != "title"})


def test_decision_about_a_field_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="no field subject"):
        _build_columns(Chat, **DECISIONS, subject=(Pii.TITLE, ""))


def test_keys_of_every_table_are_among_its_columns() -> None:
    for table in TABLES.values():
        keys = {*table.key, table.chat_key, table.message_key, table.person_key} - {None}
        assert keys <= {*table.column_names}, table.name
        assert not [column.name for column in table.columns if column.name in table.key and column.nullable]
